"""All graphs of the embedded student and of a reduced SVD-XT: gates, and engines without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from genprop.config import load_config
from genprop.export.bundle import explain_export, export_bundle
from genprop.export.options import ExportOptions
from genprop.manifest import CONDITIONER, DECODER, DENOISER, ENCODER, IMAGE_ENCODER, Precision, read_manifest

pytestmark = pytest.mark.slow  # a minute and more each

SCRIPT = Path(__file__).parents[2] / "scripts" / "random_student.py"
STAGES = {DENOISER, ENCODER, DECODER, IMAGE_ENCODER}


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The embedded student, and SVD-XT's architecture at a fifth of its width, 3 frames of 128x192."""
    specification = importlib.util.spec_from_file_location("random_student", SCRIPT)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    config = load_config("svd-xt", ["clip.frames=3", "clip.height=128", "clip.width=192"])
    folder = tmp_path_factory.mktemp("svd")
    return {"tiny": "tiny", "svd-xt": str(script.write_student(script.reduced(config, 8), folder))}


@pytest.mark.parametrize(
    ("name", "precision"),
    # Random weights amplify the rounding of bfloat16 past its bar.
    [("tiny", "fp32"), ("tiny", "fp16"), ("tiny", "bf16"), ("svd-xt", "fp32"), ("svd-xt", "fp16")],
)
def test_every_graph_passes_its_gates(
    students: dict[str, str], tmp_path: Path, name: str, precision: Precision
) -> None:
    manifest = export_bundle(students[name], tmp_path / "out", ExportOptions(precision=precision))
    assert manifest.verified and {check.stage for check in manifest.checks} == {*manifest.graphs, "chain"}
    assert manifest.graphs.keys() == STAGES | ({CONDITIONER} if name == "tiny" else set())
    assert {check.sigma for check in manifest.checks if check.stage == DENOISER} == {
        sigma for schedule in manifest.sigmas.values() for sigma in schedule
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["tiny", "svd-xt"])
def test_every_engine_builds_for_every_target_without_a_gpu(
    students: dict[str, str], tmp_path: Path, name: str, precision: Precision
) -> None:
    pytest.importorskip("tensorrt_rtx")
    targets = ("8.0", "8.6", "8.9", "12.0")
    options = ExportOptions(to="tensorrt-rtx", precision=precision, compute_capabilities=targets)
    out, cache = tmp_path / "out", tmp_path / "cache"
    manifest = export_bundle(students[name], out, options, cache=cache)
    assert manifest.verified and manifest.engines.keys() == manifest.graphs.keys()
    assert all(engine.targets == targets for engine in manifest.engines.values())
    assert read_manifest(out) == manifest
    graphs, *engines = explain_export(students[name], out, options, cache=cache)
    assert "kept" in graphs and engines == [f"{graph}: cached" for graph in manifest.graphs]


def test_graphs_of_varying_size_pass_at_the_smallest_too(students: dict[str, str], tmp_path: Path) -> None:
    options = ExportOptions(min_size=(64, 128))
    manifest = export_bundle(students["svd-xt"], tmp_path / "out", options)
    assert manifest.verified and manifest.graphs[DENOISER].dynamic
    assert sum(check.stage == DECODER for check in manifest.checks) == 2  # at two sizes
