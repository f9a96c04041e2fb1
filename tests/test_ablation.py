"""The ablation script: its rows are settings that exist, and a row can be made, from training to table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from genprop.config import load_config

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ablation.py"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(name: str, hole: float) -> dict[str, Any]:
    figures = {"hole_psnr": hole, "keep_psnr": 25.0, "hole_mse": 0.2, "keep_mse": 0.1, "sharpness": 0.9}
    more = {"mask_iou": 0.5, "injection_ratio": 1.0, "seconds_per_update": 0.4, "trained": 930_000}
    settings = ["loss.mpd=0.0"] if name == "no-mpd" else []
    return {"name": name, "settings": settings, **figures, **more}


REFERENCES = {"clips": 2, "rows": {"identity": {"hole_psnr": 7.0, "keep_psnr": None}}}


def test_every_row_is_a_configuration_and_no_two_are_the_same(ablation: ModuleType) -> None:
    configs = [
        load_config("tiny", (*ablation.REFERENCE, *settings)) for _, settings in ablation.VARIANTS.values()
    ]
    assert len({config.model_dump_json() for config in configs}) == len(ablation.VARIANTS)
    assert len({title for title, _ in ablation.VARIANTS.values()}) == len(ablation.VARIANTS)


def test_the_table_has_a_row_for_each_and_no_mask_where_none_was_learned(ablation: ModuleType) -> None:
    lines = ablation.table([row("reference", 20.0), row("no-mpd", 19.5)], REFERENCES).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| identity | | 7.00 | - |")
    assert "| 0.50 |" in lines[3] and "| 0.50 |" not in lines[4] and "| 19.50 |" in lines[4]


def test_a_result_of_another_budget_is_made_again(ablation: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    assert not ablation.is_done(path, {"steps": 5})
    ablation.write_json(path, {"steps": 5, "batch": 4})
    assert ablation.is_done(path, {"steps": 5, "batch": 4}) and not ablation.is_done(path, {"steps": 6})


def test_the_figure_is_drawn(ablation: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ablation.figure([row("reference", 20.0), row("seed", 20.3)], REFERENCES, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_one_row_from_training_to_figures(ablation: ModuleType, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from genprop.cli import app

    encode = ["data", "encode", "procedural", "--base", "tiny-base", "--out", str(tmp_path / "latents")]
    few = ["--set", "data.count=4", "--set", "data.validation=1"]
    assert CliRunner().invoke(app, [*encode, *few]).exit_code == 0
    result = ablation.run_variant(
        "unet3d", latents=tmp_path / "latents", out=tmp_path, steps=1, batch=1, clips=2
    )
    assert json.loads(json.dumps(result)) == result and result["trained"] > 0
    assert 0 < result["hole_psnr"] < 60 and result["injection_ratio"] == 0
