"""Building one engine: with TensorRT for RTX where it is installed, which needs no GPU, and with a builder
that stands in for either library."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genprop.errors import GenPropError
from genprop.export import tensorrt
from genprop.export.tensorrt import Build, Built, build, build_apart

TARGETS = ("8.0", "8.6", "8.9", "12.0")


def write_graph(file: Path, *, height: int | str = 4, op: str = "MatMul") -> Path:
    """A float32 matrix product with `[8, 8]` weights, which lie in a file beside it."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [height, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [height, 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=0)
    return file


def request(folder: Path, **given: Any) -> Build:
    defaults = {"backend": "tensorrt-rtx", "graph": folder / "g.onnx", "engine": folder / "g.engine"}
    return Build(**{**defaults, "targets": TARGETS, **given})


class FakeTrt:
    """Either library as far as a build uses it: what the builder was told ends up in `told`."""

    __version__ = "9.9.9"

    class ILogger:
        pass

    class IStreamWriter:
        pass

    class BuilderFlag:
        TF32 = "tf32"

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    class MemoryPoolType:
        WORKSPACE = "workspace"

    def __init__(self, *, streams: bool = True, gpu: bool = True, works: bool = True) -> None:
        self.told: dict[str, Any] = {}
        told = self.told

        class Config:
            builder_optimization_level = 3

            def clear_flag(self, flag: str) -> None:
                told["cleared"] = flag

            def set_flag(self, flag: str) -> None:
                told["set"] = flag

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                told[pool] = size

            def create_timing_cache(self, kept: bytes) -> bytes:
                return kept

            def set_timing_cache(self, cache: bytes, ignore: bool) -> None:
                told["timings"] = cache

            def get_timing_cache(self) -> Any:
                return SimpleNamespace(serialize=lambda: b"more timings")

            def add_optimization_profile(self, profile: Any) -> None:
                told["profile"] = profile.shapes

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, tuple[Any, ...]] = {}

            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                self.shapes[name] = shapes

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger
                if not gpu:
                    logger.log("Severity.ERROR", "CUDA initialization failure with error: 35")
                    raise TypeError("factory function returned nullptr")

            def create_network(self, flags: int) -> SimpleNamespace:
                told["flags"] = flags
                return SimpleNamespace()

            def create_builder_config(self) -> Config:
                told["config"] = Config()
                return told["config"]

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
                self.logger.log("Severity.VERBOSE", "of no interest")
                self.logger.log("Severity.INFO", "Total Activation Memory: 4096 bytes")
                if not works:
                    self.logger.log("Severity.ERROR", "no tactics")
                return b"engine" if works else None

        class StreamingBuilder(Builder):
            def build_serialized_network_to_stream(self, network: Any, config: Any, writer: Any) -> bool:
                engine = self.build_serialized_network(network, config)
                return engine is not None and sum(writer.write(engine[i : i + 2]) for i in (0, 2, 4)) == 6

        class Parser:
            num_errors = 0

            def __init__(self, network: Any, logger: Any) -> None:
                pass

            def parse_from_file(self, file: str) -> bool:
                return Path(file).is_file()

        self.Builder = StreamingBuilder if streams else Builder
        self.OnnxParser = Parser


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "at once"])
def test_the_builder_is_told_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    fake = FakeTrt(streams=streams)
    monkeypatch.setattr(tensorrt, "library", lambda backend: fake)
    (tmp_path / "timings").write_bytes(b"timings")
    profile = {"x": ((1, 8), (2, 8), (4, 8))}
    built = build(
        request(
            tmp_path,
            backend="tensorrt",
            graph=write_graph(tmp_path / "g.onnx"),
            targets=(),
            level=5,
            workspace=2**20,
            profile=profile,
            timing_cache=tmp_path / "timings",
        )
    )
    assert (tmp_path / "g.engine").read_bytes() == b"engine" and built.memory == 4096
    assert fake.told.pop("config").builder_optimization_level == 5
    assert fake.told == {
        "flags": 2,  # strongly typed
        "cleared": "tf32",
        "workspace": 2**20,
        "timings": b"timings",
        "profile": profile,
    }
    assert (tmp_path / "timings").read_bytes() == b"more timings"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.engine", "g.onnx", "g.onnx.data", "timings"]


def test_tf32_is_left_on_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrt()
    monkeypatch.setattr(tensorrt, "library", lambda backend: fake)
    write_graph(tmp_path / "g.onnx")
    build(request(tmp_path, targets=(), tf32=True))
    assert "cleared" not in fake.told


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (FakeTrt(gpu=False), "cannot build here: CUDA initialization failure"),
        (FakeTrt(works=False), r"cannot build g\.onnx: no tactics"),
    ],
    ids=["no GPU", "no tactics"],
)
def test_a_failed_build_is_told_in_the_librarys_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeTrt, message: str
) -> None:
    monkeypatch.setattr(tensorrt, "library", lambda backend: fake)
    write_graph(tmp_path / "g.onnx")
    with pytest.raises(GenPropError, match=message):
        build(request(tmp_path, backend="tensorrt", targets=()))


def test_an_engine_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "library", lambda backend: FakeTrt())
    write_graph(tmp_path / "g.onnx")
    with pytest.raises(GenPropError, match="cannot be written"):
        build(request(tmp_path, targets=(), engine=tmp_path / "nowhere" / "g.engine"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_an_error_comes_back_from_the_process_that_builds(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="tensorrt cannot be used here: No module named") as caught:
        build_apart(request(tmp_path, backend="tensorrt"))
    assert "pip install tensorrt" in caught.value.hint


def test_a_build_that_is_killed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def killed(command: list[str], **options: Any) -> Any:
        return run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **options)

    monkeypatch.setattr(tensorrt.subprocess, "run", killed)
    with pytest.raises(GenPropError, match=r"building g\.engine with tensorrt-rtx ended with signal 9"):
        build_apart(request(tmp_path))


# With the library itself.


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


@pytest.mark.usefixtures("rtx")
def test_one_engine_is_built_for_four_targets_without_a_gpu(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.onnx")
    built = build_apart(request(tmp_path, level=2, workspace=2**30))
    assert isinstance(built, Built) and (tmp_path / "g.engine").stat().st_size > 1000
    assert built.memory is not None and 2**20 < built.peak < 2**31 and built.seconds > 0


@pytest.mark.usefixtures("rtx")
def test_a_graph_of_varying_size_is_built_with_a_profile(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.onnx", height="height")
    with pytest.raises(GenPropError, match="profile"):
        build_apart(request(tmp_path))
    build_apart(request(tmp_path, profile={"x": ((1, 8), (4, 8), (16, 8))}))
    assert (tmp_path / "g.engine").stat().st_size > 1000


@pytest.mark.usefixtures("rtx")
def test_what_the_parser_cannot_read_is_named(tmp_path: Path) -> None:
    write_graph(tmp_path / "g.onnx", op="NoSuchOperator")
    with pytest.raises(GenPropError, match=r"cannot parse g\.onnx: .*NoSuchOperator"):
        build_apart(request(tmp_path))
    with pytest.raises(GenPropError, match=r"cannot parse none\.onnx: .*cannot be found"):
        build_apart(request(tmp_path, graph=tmp_path / "none.onnx"))


@pytest.mark.usefixtures("rtx")
def test_an_attention_without_a_kernel_of_its_own_is_made_of_products(tmp_path: Path) -> None:
    """In float32, with heads of 14 channels: refused as it is."""
    shape = [1, 4, 36, 14]
    names = ("q", "k", "v")
    graph = helper.make_graph(
        [helper.make_node("Attention", [*names], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "g.onnx")
    build_apart(request(tmp_path))
    assert (tmp_path / "g.engine").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_graph_of_the_embedded_student_builds(tmp_path: Path, precision: Any) -> None:
    from genprop.export.bundle import export_bundle
    from genprop.export.engines import build_engines, explain_engines
    from genprop.export.folder import file_hashes
    from genprop.export.options import ExportOptions
    from genprop.manifest import read_manifest

    out, cache = tmp_path / "export", tmp_path / "cache"
    manifest = export_bundle(
        "tiny",
        out,
        ExportOptions(to="tensorrt-rtx", precision=precision, verify=False),
        cache=cache,
    )
    engines = build_engines(out, manifest, backend="tensorrt-rtx", cache=cache)
    assert set(engines) == set(manifest.graphs)
    (out / "manifest.json").unlink()
    whole = manifest.model_copy(update={"engines": engines, "files": file_hashes(out)})
    (out / "manifest.json").write_text(whole.model_dump_json())
    assert read_manifest(out) == whole
    assert explain_engines(out, manifest, backend="tensorrt-rtx", cache=cache) == [
        f"{name}: cached" for name in manifest.graphs
    ]
