"""What of an export is kept, what is made anew, and that it is said beforehand; without making any of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genprop.bundle import read_bundle, write_bundle
from genprop.config import Config, load_config
from genprop.errors import GenPropError
from genprop.export import bundle as export
from genprop.export.folder import file_hashes, versions, weight_hashes
from genprop.export.options import ExportOptions
from genprop.manifest import Check, Manifest

CONFIG: Config = load_config("tiny")
GRAPHS = ExportOptions(verify=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which bundles were captured: a graph is a text here."""
    captured: list[str] = []

    def write_graphs(bundle: Path, folder: Path, options: ExportOptions, say: Any) -> Manifest:
        model = read_bundle(bundle)
        captured.append(bundle.name)
        (folder / "denoiser.onnx").write_text(str(sorted(weight_hashes(model).items())))
        return Manifest(
            kind=model.card.kind,
            config=model.card.config,
            sigmas=model.card.sigmas,
            scaling_factor=1.0,
            latent_channels=4,
            encode_frames=3,
            chunk=1,
            opset=20,
            graphs={},
            files=file_hashes(folder),
            weights=weight_hashes(model),
            versions=versions(),
            recipe=export.recipe(model, options),
        )

    def run_gates(bundle: Path, folder: Path, manifest: Manifest) -> tuple[Check, ...]:
        captured.append("gates")
        return (Check(stage="chain", runner="onnxruntime", precision="fp32", error=0.0, passed=True),)

    monkeypatch.setattr(export, "write_graphs", write_graphs)
    monkeypatch.setattr(export, "run_gates", run_gates)
    return captured


@pytest.fixture
def student(tmp_path: Path) -> Path:
    write(tmp_path / "student", torch.zeros(4))
    return tmp_path / "student"


def write(folder: Path, weights: torch.Tensor, sigma: float = 80.0) -> None:
    tensors = {"sce.weight": weights}
    write_bundle(
        folder, kind="student", config=CONFIG, base="tiny-base", tensors=tensors, sigmas={1: (sigma,)}
    )


def test_an_export_is_made_once_also_of_a_bundle_that_was_moved(
    tmp_path: Path, student: Path, made: list[str]
) -> None:
    out = tmp_path / "out"
    export.export_bundle(student, out, GRAPHS)
    moved = Path(shutil.move(student, tmp_path / "another name"))
    assert export.export_bundle(moved, out, GRAPHS).recipe and made == ["student"]
    assert export.explain_export(moved, out, GRAPHS) == [
        "graphs: kept, of the same weights and made in the same way"
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("weight", "weights ("),
        ("sigmas", "configuration ("),
        ("precision", "precision (fp32 -> fp16)"),
        ("chunk", "chunk (None -> 2)"),
    ],
)
def test_one_change_makes_it_anew_and_is_named(
    tmp_path: Path, student: Path, made: list[str], change: str, named: str
) -> None:
    out, options = tmp_path / "out", GRAPHS
    export.export_bundle(student, out, options)
    if change == "weight":
        write(student, torch.tensor([0.0, 0.0, 1e-6, 0.0]))
    elif change == "sigmas":
        write(student, torch.zeros(4), sigma=70.0)
    else:
        options = GRAPHS.model_copy(update={change: "fp16" if change == "precision" else 2})
    (line,) = export.explain_export(student, out, options)
    assert "exported again" in line and named in line and line.count("->") == 1
    export.export_bundle(student, out, options)
    assert made == ["student"] * 2


def test_a_damaged_export_is_made_anew(tmp_path: Path, student: Path, made: list[str]) -> None:
    out = tmp_path / "out"
    export.export_bundle(student, out, GRAPHS)
    (out / "denoiser.onnx").write_text("flipped")
    (line,) = export.explain_export(student, out, GRAPHS)
    assert "SHA-256" in line
    export.export_bundle(student, out, GRAPHS)
    assert made == ["student"] * 2
    assert "holds no export" in export.explain_export(student, tmp_path / "nothing", GRAPHS)[0]


def test_graphs_without_checks_are_kept_and_checked(tmp_path: Path, student: Path, made: list[str]) -> None:
    out = tmp_path / "out"
    assert not export.export_bundle(student, out, GRAPHS).verified
    assert export.export_bundle(student, out).verified and made == ["student", "gates"]
    assert export.export_bundle(student, out, GRAPHS).verified and made == ["student", "gates"]


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"min_size": (64, 100)}, "the size is 64x100"),
        ({"min_size": (128, 128)}, "the size is 128x128"),
        ({"min_size": (96, 96), "max_size": (96, 96)}, "alone, expected a smallest and a larger one"),
    ],
)
def test_sizes_that_cannot_be_are_refused(asked: dict[str, Any], fault: str) -> None:
    with pytest.raises(GenPropError, match=fault):
        ExportOptions(**asked).sizes((96, 96), multiple=16, cells=2)


def test_sizes_reach_from_the_smallest_to_the_largest() -> None:
    found = ExportOptions(min_size=(64, 96)).sizes((96, 96), multiple=16, cells=2)
    assert found is not None and (found.min_height, found.max_height, found.min_width) == (64, 96, 96)
    assert found.of(80, 96) == {"height": 80, "width": 96, "grid_height": 10, "grid_width": 12}
    assert ExportOptions().sizes((96, 96), multiple=16, cells=2) is None


def test_bfloat16_has_an_opset_that_knows_it() -> None:
    assert ExportOptions().graph_opset == 20 and ExportOptions(precision="bf16").graph_opset == 22
    assert ExportOptions(to="tensorrt-rtx", precision="bf16").graph_opset == 23
    with pytest.raises(GenPropError, match="opset is 20, expected at least 22"):
        _ = ExportOptions(precision="bf16", opset=20).graph_opset


def test_engines_are_built_over_graphs_that_are_kept(
    tmp_path: Path, student: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(folder: Path, manifest: Manifest, **options: Any) -> dict[str, Any]:
        made.append(options["backend"])
        (folder / "denoiser.tensorrt-rtx.engine").write_text("engine")
        return {}

    monkeypatch.setattr("genprop.export.engines.build_engines", build)
    monkeypatch.setattr("genprop.export.engines.explain_engines", lambda *_, **__: ["denoiser: cached"])
    out, options = tmp_path / "out", ExportOptions(to="tensorrt-rtx", verify=False)
    for _ in range(2):
        manifest = export.export_bundle(student, out, options)
        assert "denoiser.tensorrt-rtx.engine" in manifest.files
    assert made == ["student", "tensorrt-rtx", "tensorrt-rtx"]  # captured once; the cache is build's business
    kept, engines = export.explain_export(student, out, options)
    assert "kept" in kept and engines == "denoiser: cached"
