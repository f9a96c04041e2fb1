"""When an engine is built again and when not, what is said of it, and that a damaged one is never taken.

The builder stands in for a library: `test_tensorrt.py` has the real one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.export import engines
from genprop.export.engine_cache import EngineCache
from genprop.export.engine_keys import profile_of, read_graph
from genprop.export.engines import build_engines, explain_engines, resolve_targets
from genprop.export.folder import file_hashes
from genprop.export.tensorrt import Build, Built
from genprop.manifest import FILE, GraphSpec, Manifest, SizeRange, TensorSpec, read_manifest

NAMES = ("denoiser", "image_encoder")


def write_graph(
    folder: Path, name: str, *, weight: float = 1.0, width: int = 8, data: str | None = None
) -> Path:
    """A matrix product with a bias; `data` names the file its weights go to, None leaves them inside."""
    weights = np.arange(width * width, dtype=np.float32).reshape(width, width)
    weights[0, 0] = weight
    bias = helper.make_tensor("b", TensorProto.FLOAT, [width], [0.5] * width)  # not as raw bytes
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, width])],
        [numpy_helper.from_array(weights, "w"), bias],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, [4, width])],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name=str(folder))
    file = folder / f"{name}.onnx"
    if data is None:
        onnx.save(model, file)
    else:
        onnx.save(model, file, save_as_external_data=True, location=data, size_threshold=0)
    return file


def make_export(folder: Path, config: Config, **graph: Any) -> Manifest:
    """An export of two graphs, without engines."""
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):  # alike they would share one engine
        write_graph(folder, name, **{**graph, "weight": i + graph.get("weight", 1.0)})
    shape = (4, graph.get("width", 8))
    io: dict[str, Any] = {
        "inputs": (TensorSpec(name="x", shape=shape),),
        "outputs": (TensorSpec(name="y", shape=shape),),
    }
    return Manifest(
        kind="student",
        config=config,
        sigmas={1: (80.0,)},
        scaling_factor=0.5,
        latent_channels=4,
        precision="fp16",
        encode_frames=3,
        chunk=3,
        opset=20,
        graphs={name: GraphSpec(name=name, **io, precision="fp16") for name in NAMES},
        files=file_hashes(folder),
        weights={},
        versions={},
    )


class Builder:
    """Stands in for `build_apart`: an engine is its request, and each request is kept."""

    def __init__(self) -> None:
        self.requests: list[Build] = []
        self.fails = False

    def __call__(self, request: Build) -> Built:
        self.requests.append(request)
        request.engine.write_bytes(f"engine of {request.graph.name}".encode())
        if self.fails:
            raise GenPropError("no tactics")
        return Built(seconds=2.0, memory=4096, peak=2**20)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    capabilities = SimpleNamespace(SM75=0, SM80=1, SM86=2, SM89=3, SM120=4, CURRENT=5)
    library = SimpleNamespace(__version__="1.7.1", ComputeCapability=capabilities)
    monkeypatch.setattr(engines, "build_apart", builder)
    monkeypatch.setattr(engines, "library", lambda backend: library)
    return builder


def run(folder: Path, manifest: Manifest, cache: Path, **given: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    options: dict[str, Any] = {"backend": "tensorrt-rtx", **given}
    return build_engines(folder, manifest, **options, cache=cache, say=said.append), said


def test_engines_are_built_once_and_then_taken(
    tmp_path: Path, small_config: Config, builder: Builder
) -> None:
    manifest = make_export(tmp_path / "a", small_config)
    first, said = run(tmp_path / "a", manifest, tmp_path / "cache")
    assert len(builder.requests) == 2 and set(first) == set(NAMES)
    assert "building for 8.0, 8.6, 8.9, 12.0: weights 0.0 MB, largest activation 0.0 MB; about" in said[0]
    assert said[1].startswith("denoiser: built in 2.0 s with at most 1.0 MB of memory: engine 0.0 MB, activ")
    engine = first["denoiser"]
    assert (engine.file, engine.version, engine.memory) == ("denoiser.tensorrt-rtx.engine", "1.7.1", 4096)
    assert (tmp_path / "a" / engine.file).read_bytes() == b"engine of denoiser.onnx"
    assert engine.targets == ("8.0", "8.6", "8.9", "12.0") and engine.fingerprint["shapes"] == "x 4x8"
    (tmp_path / "a" / engine.file).unlink()
    (tmp_path / "a" / first["image_encoder"].file).unlink()
    again, said = run(tmp_path / "a", manifest, tmp_path / "cache")
    assert again == first and len(builder.requests) == 2
    assert said == ["denoiser: cached", "image_encoder: cached"]
    assert (tmp_path / "a" / engine.file).read_bytes() == b"engine of denoiser.onnx"


def test_names_and_places_of_files_change_nothing_and_one_weight_does(
    tmp_path: Path, small_config: Config, builder: Builder
) -> None:
    cache = tmp_path / "cache"
    run(tmp_path / "a", make_export(tmp_path / "a", small_config), cache)
    options: dict[str, Any] = {"backend": "tensorrt-rtx", "cache": cache}
    cached = ["denoiser: cached", "image_encoder: cached"]
    # Elsewhere, and the weights in a file beside the graph, of either name.
    for data in ("weights.bin", "other.data"):
        folder = tmp_path / "elsewhere" / data
        moved = make_export(folder, small_config, data=data)
        assert explain_engines(folder, moved, **options) == cached
        run(folder, moved, cache)
    graph = tmp_path / "elsewhere" / "weights.bin" / "denoiser.onnx"
    renamed = graph.rename(graph.with_name("new.onnx"))
    assert read_graph(renamed) == read_graph(tmp_path / "a" / "denoiser.onnx")
    assert len(builder.requests) == 2
    # One weight.
    changed = make_export(tmp_path / "b", small_config, weight=1.000001)
    lines = explain_engines(tmp_path / "b", changed, **options)
    assert [line.split(": not as before: ")[1].split(" (")[0] for line in lines] == ["weights", "weights"]
    assert lines[0].startswith("denoiser: would build: ") and lines[0].endswith(" here)")
    assert len(builder.requests) == 2
    run(tmp_path / "b", changed, cache)
    assert len(builder.requests) == 4


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"level": 4}, "level (default there, 4 here)"),
        ({"workspace": 2**30}, "workspace (default there, 1073741824 here)"),
        ({"targets": ("8.9",)}, "targets (8.0 8.6 8.9 12.0 there, 8.9 here)"),
        ({"targets": ("12.0", "8.9", "8.0", "8.6", "8.9")}, None),
    ],
    ids=["level", "workspace", "targets", "the same targets in another order"],
)
def test_what_a_builder_is_told_is_part_of_the_key(
    tmp_path: Path, small_config: Config, builder: Builder, given: dict[str, Any], line: str | None
) -> None:
    manifest, cache = make_export(tmp_path / "a", small_config), tmp_path / "cache"
    run(tmp_path / "a", manifest, cache)
    lines = explain_engines(tmp_path / "a", manifest, backend="tensorrt-rtx", cache=cache, **given)
    why = "cached" if line is None else f"would build: not as before: {line}"
    assert lines == [f"{name}: {why}" for name in NAMES]


def test_shapes_precision_and_version_are_part_of_the_key(
    tmp_path: Path, small_config: Config, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_export(tmp_path / "a", small_config)
    options: dict[str, Any] = {"backend": "tensorrt-rtx"}
    empty = explain_engines(tmp_path / "a", manifest, cache=tmp_path / "cache", **options)
    assert empty == [f"{name}: would build: no engine of it was built before" for name in NAMES]
    run(tmp_path / "a", manifest, tmp_path / "cache")
    options["cache"] = tmp_path / "cache"
    wider = make_export(tmp_path / "wide", small_config, width=9)
    assert "shapes (x 4x8 there, x 4x9 here)" in explain_engines(tmp_path / "wide", wider, **options)[0]
    plain = manifest.model_copy(
        update={
            "precision": "fp32",
            "graphs": {n: g.model_copy(update={"precision": "fp32"}) for n, g in manifest.graphs.items()},
        }
    )
    what = "precision (fp16 there, fp32 here); tf32 (yes there, no here)"
    assert what in explain_engines(tmp_path / "a", plain, **options)[0]
    newer = SimpleNamespace(
        __version__="1.7.2", ComputeCapability=engines.library("tensorrt-rtx").ComputeCapability
    )
    monkeypatch.setattr(engines, "library", lambda backend: newer)
    assert "version (1.7.1 there, 1.7.2 here)" in explain_engines(tmp_path / "a", manifest, **options)[0]


@pytest.mark.parametrize("damage", ["engine", "record", "missing"])
def test_a_damaged_entry_is_built_again_and_said(
    tmp_path: Path, small_config: Config, builder: Builder, damage: str
) -> None:
    manifest, cache = make_export(tmp_path / "a", small_config), tmp_path / "cache"
    built, _ = run(tmp_path / "a", manifest, cache)
    entry = cache / built["denoiser"].key
    if damage == "engine":
        data = bytearray((entry / "engine").read_bytes())
        data[3] ^= 1
        (entry / "engine").write_bytes(data)
    elif damage == "record":
        (entry / "record.json").write_text("{")
    else:
        (entry / "engine").unlink()
    said_before = explain_engines(tmp_path / "a", manifest, backend="tensorrt-rtx", cache=cache)
    assert said_before[0].startswith(f"denoiser: would build: the cached engine {entry} ")
    shutil.rmtree(tmp_path / "a")
    manifest = make_export(tmp_path / "a", small_config)
    again, said = run(tmp_path / "a", manifest, cache)
    assert again == built and len(builder.requests) == 3
    assert said[0].startswith(f"denoiser: the cached engine {entry} ") and said[0].endswith(
        "it is built again"
    )
    assert (tmp_path / "a" / built["denoiser"].file).read_bytes() == b"engine of denoiser.onnx"


def test_a_failed_build_leaves_nothing(tmp_path: Path, small_config: Config, builder: Builder) -> None:
    manifest, builder.fails = make_export(tmp_path / "a", small_config), True
    with pytest.raises(GenPropError, match="no tactics"):
        run(tmp_path / "a", manifest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [] and not list((tmp_path / "a").glob("*.engine"))


def test_an_engine_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, small_config: Config, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    manifest = make_export(tmp_path / "a", small_config)
    monkeypatch.setattr("genprop.export.folder.os.link", refuse)
    built, _ = run(tmp_path / "a", manifest, tmp_path / "cache")
    engine = tmp_path / "a" / built["denoiser"].file
    assert engine.read_bytes() == b"engine of denoiser.onnx" and engine.stat().st_nlink == 1


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, small_config: Config, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENPROP_CACHE", str(tmp_path / "mine"))
    built = build_engines(tmp_path / "a", make_export(tmp_path / "a", small_config), backend="tensorrt-rtx")
    entry = tmp_path / "mine" / "engines" / built["denoiser"].key
    assert sorted(p.name for p in entry.iterdir()) == ["engine", "record.json"]
    monkeypatch.setenv("GENPROP_CACHE", str(tmp_path / "a" / "denoiser.onnx"))
    with pytest.raises(GenPropError, match="cannot be written"), EngineCache().new():
        pass


@pytest.mark.parametrize("victim", ["engine", "graph"])
def test_a_flipped_byte_in_an_engine_or_a_graph_is_refused(
    tmp_path: Path, small_config: Config, builder: Builder, victim: str
) -> None:
    folder = tmp_path / "a"
    manifest = make_export(folder, small_config)
    built, _ = run(folder, manifest, tmp_path / "cache")
    whole = manifest.model_copy(update={"engines": built, "files": file_hashes(folder)})
    (folder / FILE).write_text(whole.model_dump_json())
    assert read_manifest(folder) == whole
    file = folder / (built["denoiser"].file if victim == "engine" else "denoiser.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(GenPropError, match=rf"{file.name} has SHA-256 .*, expected"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("9.0",), "cannot build for 9.0: it knows 7.5, 8.0, 8.6, 8.9, 12.0"),
        (("8.9", "10.0"), "cannot build for 10.0"),
        (("sm89",), "no compute capability 'sm89'"),
    ],
)
def test_targets_that_cannot_be_had_are_refused(
    builder: Builder, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(GenPropError, match=message):
        resolve_targets("tensorrt-rtx", targets)


def test_tensorrt_builds_for_the_gpu_it_finds_and_no_other(
    tmp_path: Path, small_config: Config, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GenPropError, match="finds no CUDA device") as caught:
        resolve_targets("tensorrt", ())
    assert "use --to tensorrt-rtx" in caught.value.hint
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(engines, "free_memory", lambda: 10**9)
    assert resolve_targets("tensorrt", ("9.0",)) == ("H100", ("9.0",))
    with pytest.raises(GenPropError, match=r"the GPU of this machine, H100 \(9\.0\), not for 8\.9"):
        resolve_targets("tensorrt", ("8.9",))
    manifest = make_export(tmp_path / "a", small_config)
    built, _ = run(tmp_path / "a", manifest, tmp_path / "cache", backend="tensorrt")
    assert built["denoiser"].fingerprint["device"] == "H100" and built["denoiser"].targets == ("9.0",)
    assert builder.requests[0].targets == ()
    assert builder.requests[0].timing_cache == tmp_path / "cache" / "timing.cache"


def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, small_config: Config, builder: Builder
) -> None:
    manifest = make_export(tmp_path / "a", small_config)
    with pytest.raises(GenPropError, match="takes no timing cache"):
        run(tmp_path / "a", manifest, tmp_path / "cache", timing_cache=tmp_path / "t")
    with pytest.raises(GenPropError, match="level is 6, expected 0 to 5"):
        run(tmp_path / "a", manifest, tmp_path / "cache", level=6)


def test_profile_of_a_graph_of_varying_size(tmp_path: Path, small_config: Config) -> None:
    manifest = make_export(tmp_path / "a", small_config)
    spec = GraphSpec(
        name="denoiser",
        inputs=(
            TensorSpec(name="sample", shape=(1, 3, 4, "grid_height", "grid_width")),
            TensorSpec(name="timestep", shape=(1,)),
            TensorSpec(name="residual", shape=(3, 8, "grid_height/2", "grid_width/2")),
        ),
        outputs=(),
    )
    sizes = SizeRange(
        min_height=12, max_height=24, min_width=16, max_width=32, multiple=4, cells=2
    )  # around 16x16
    assert profile_of(spec, manifest) == {}
    assert profile_of(spec, manifest.model_copy(update={"sizes": sizes})) == {
        "sample": ((1, 3, 4, 6, 8), (1, 3, 4, 8, 8), (1, 3, 4, 12, 16)),
        "residual": ((3, 8, 3, 4), (3, 8, 4, 4), (3, 8, 6, 8)),
    }


def test_facts_of_a_graph(tmp_path: Path) -> None:
    facts = read_graph(write_graph(tmp_path, "g"))
    assert (facts.weight_bytes, facts.activation_bytes) == (4 * 8 * 8 + 4 * 8, 4 * 4 * 8)
    assert facts == read_graph(write_graph(tmp_path, "h", data="weights"))
    (tmp_path / "weights").write_bytes(bytes(len((tmp_path / "weights").read_bytes())))
    assert read_graph(tmp_path / "h.onnx").weights != facts.weights
