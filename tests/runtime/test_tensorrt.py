"""How engines are opened, bound and run, with a library that computes on the CPU at the addresses it is told.

An output of the engines here is the sum of the means of their inputs, the i-th of them times i, plus the
output's place; so each depends on all inputs and on their order.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genprop import trt
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hub import sha256
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    ENCODER,
    FILE,
    IMAGE_ENCODER,
    EngineSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
)
from genprop.runtime.backends.lanes import CudaDevice
from genprop.runtime.backends.stages import Stages
from genprop.runtime.backends.tensorrt import open_tensorrt

LATENTS, FRAMES = (1, 3, 4, 8, 8), (1, 3, 3, 16, 16)
GRAPHS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]] = {
    DENOISER: (
        {"sample": LATENTS, "timestep": (1,), "first": LATENTS, "image_embedding": (1, 1, 32)}
        | {"added_time_ids": (1, 3), "residual_0": (3, 8, 8, 8)},
        {"velocity": LATENTS, "mask_logits": (1, 3, 1, 8, 8)},
        900,
    ),
    CONDITIONER: ({"first": LATENTS, "source": LATENTS}, {"residual_0": (3, 8, 8, 8)}, 500),
    ENCODER: ({"frames": (1, 2, 3, 16, 16)}, {"unscaled_latents": (1, 2, 4, 8, 8)}, 300),
    DECODER: ({"latents": (1, 2, 4, 8, 8)}, {"frames": (1, 2, 3, 16, 16)}, 2000),
    IMAGE_ENCODER: ({"frame": (1, 3, 16, 16)}, {"image_embedding": (1, 1, 32)}, 100),
}
"""Inputs, outputs and bytes of memory of each engine."""


def at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class Log:
    """What happened, in order, and the contexts that were made."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.contexts: list[Any] = []

    def count(self, event: str) -> int:
        return self.events.count(event)


def fake_library(log: Log, *, rtx: bool = True, capturable: bool = True, works: bool = True) -> Any:
    """As much of `tensorrt_rtx` as the runtime uses, or of `tensorrt`. An engine's file is JSON."""

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses, self.memory = engine, {}, (0, 0)
            self.shapes = {**engine.inputs, **engine.outputs}
            log.contexts.append(self)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            fits = self.engine.any_size or tuple(self.shapes[name]) == shape
            self.shapes[name] = shape
            return fits

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self.shapes[name])

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert name in self.engine.names, name
            log.events.append("bind")
            self.addresses[name] = address
            return True

        def set_device_memory(self, address: int, size: int) -> None:
            assert size >= self.engine.device_memory_size_v2
            self.memory = (address, size)

        def execute_async_v3(self, handle: int) -> bool:
            log.events.append(f"run on {handle}")
            ctypes.memset(self.memory[0], 255, self.engine.device_memory_size_v2)
            total = sum(
                i * float(at(self.addresses[name], tuple(self.shapes[name])).mean(dtype=np.float64))
                for i, name in enumerate(self.engine.inputs, 1)
            )
            for place, (name, shape) in enumerate(self.engine.outputs.items()):
                at(self.addresses[name], tuple(shape))[...] = total + place
            return works

    if rtx:
        Context.is_stream_capturable = lambda self, handle: capturable  # pyright: ignore

    class Cache:
        def __init__(self) -> None:
            self.content = b"kernels"

        def deserialize(self, data: bytes) -> bool:
            log.events.append("cache read")
            return data == b"kernels"

        def serialize(self) -> bytes:
            log.events.append("cache written")
            return self.content

    class RuntimeConfig:
        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_execution_context_allocation_strategy(self, strategy: str) -> None:
            assert strategy == "user managed"
            self.user_managed = True

        def set_runtime_cache(self, cache: Cache) -> None:
            self.cache = cache

    class Engine:
        def __init__(self, described: dict[str, Any]) -> None:
            self.inputs, self.outputs = described["inputs"], described["outputs"]
            self.device_memory_size_v2 = described["memory"]
            self.any_size = described.get("any size", False)
            self.names = [*self.inputs, *self.outputs]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, i: int) -> str:
            return self.names[i]

        def get_tensor_mode(self, name: str) -> str:
            return "input" if name in self.inputs else "output"

        def get_tensor_dtype(self, name: str) -> str:
            return "float32"

        def create_execution_context(self, how: Any) -> Context:
            assert how.user_managed if rtx else how == "user managed"
            return Context(self)

        def create_runtime_config(self) -> RuntimeConfig:
            return RuntimeConfig()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: Any) -> Engine | None:
            log.events.append("deserialize")
            try:
                return Engine(json.loads(bytes(data)))
            except ValueError:
                self.logger.log("Severity.ERROR", "magic tag does not match")
                return None

    library = SimpleNamespace(
        __version__="1.7.1",
        ILogger=type("ILogger", (), {}),
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        float32="float32",
    )
    if rtx:
        library.IRuntimeCache = Cache
    return library


class FakeLane:
    def __init__(self, log: Log, handle: int) -> None:
        self.log, self.handle = log, handle

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.log.events.append("turn")
        yield

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """As CUDA does it: recording runs nothing."""
        self.log.events.append("capture")

        def replay() -> None:
            self.log.events.append("replay")
            work()

        return replay


class FakeDevice:
    torch, name, capability = torch.device("cpu"), "a fake", "8.9"

    def __init__(self, log: Log) -> None:
        self.log, self.lanes = log, 0

    def lane(self) -> FakeLane:
        self.lanes += 1
        return FakeLane(self.log, self.lanes)


def tensors(described: dict[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=name, shape=shape) for name, shape in described.items())


def make_export(folder: Path, config: Config, *, backend: Any = "tensorrt-rtx", without: str = "") -> None:
    """An export with engines; `without` names an input of the denoiser that its engine has no use for."""
    folder.mkdir()
    for name, (inputs, outputs, memory) in GRAPHS.items():
        kept = {n: shape for n, shape in inputs.items() if n != without}
        (folder / f"{name}.onnx").write_bytes(b"graph")
        described = {"inputs": kept, "outputs": outputs, "memory": memory}
        (folder / f"{name}.engine").write_text(json.dumps(described))
    manifest = Manifest(
        kind="student",
        config=config,
        sigmas={1: (80.0,)},
        scaling_factor=0.5,
        latent_channels=4,
        encode_frames=2,
        chunk=2,
        opset=23,
        graphs={
            n: GraphSpec(name=n, inputs=tensors(i), outputs=tensors(o)) for n, (i, o, _) in GRAPHS.items()
        },
        engines={
            name: EngineSpec(
                graph=name,
                file=f"{name}.engine",
                backend=backend,
                version="1.7.1",
                targets=("8.6", "8.9"),
                key=f"key-of-{name}",
                fingerprint={},
                seconds=1.0,
                peak=1,
            )
            for name in GRAPHS
        },
        files={},
        weights={},
        versions={},
    )
    save(folder, manifest)


def save(folder: Path, manifest: Manifest) -> None:
    files = {file.name: sha256(file) for file in folder.iterdir() if file.name != FILE}
    (folder / FILE).write_text(manifest.model_copy(update={"files": files}).model_dump_json())


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def opened(
    tmp_path: Path, small_config: Config, log: Log, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stages]:
    """Opens an export with the fake library, which it is told how to be."""
    monkeypatch.setenv("GENPROP_CACHE", str(tmp_path / "cache"))

    def open_it(*, without: str = "", backend: Any = "tensorrt-rtx", **how: Any) -> Stages:
        library = fake_library(log, rtx=backend == "tensorrt-rtx", **how)
        monkeypatch.setattr(trt, "library", lambda backend: library)
        folder = tmp_path / "export"
        if not folder.exists():
            make_export(folder, small_config, backend=backend, without=without)
        return open_tensorrt(folder, backend=backend, device=lambda: FakeDevice(log))

    return open_it


def draw(rng: torch.Generator) -> tuple[Tensor, ...]:
    """Inputs of the net."""
    shapes = (LATENTS, (1,), LATENTS, LATENTS, (1, 1, 32), (1, 3))
    return tuple(torch.randn(shape, generator=rng) for shape in shapes)


def expected(*inputs: Tensor) -> float:
    return sum(i * float(x.double().mean()) for i, x in enumerate(inputs, 1))


def expect_net(inputs: tuple[Tensor, ...]) -> float:
    sample, timestep, first, source, embedding, ids = inputs
    residual = torch.tensor(expected(first, source))
    return expected(sample, timestep, first, embedding, ids, residual)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_every_stage_computes_from_its_own_inputs_at_every_call(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log, backend: str
) -> None:
    stages = opened(backend=backend)
    assert stages.backend == backend and stages.why == f"{backend} 1.7.1 on a fake, compute capability 8.9"
    for _ in range(5):  # plain, then captured, then replayed, and each of two buffers in turn
        inputs = draw(rng)
        velocity, mask_logits = stages.net(*inputs)
        assert velocity.shape == LATENTS and mask_logits.shape == (1, 3, 1, 8, 8)
        torch.testing.assert_close(velocity, torch.full(LATENTS, expect_net(inputs)), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(mask_logits[0, 0, 0, 0, 0], velocity[0, 0, 0, 0, 0] + 1)
        frame = torch.randn(1, 3, 16, 16, generator=rng)
        torch.testing.assert_close(stages.embed(frame), torch.full((1, 1, 32), expected(frame)))
        frames = torch.randn(1, 5, 3, 16, 16, generator=rng)  # three windows of two
        latents = stages.encode(frames)
        assert latents.shape == (1, 5, 4, 8, 8)
        for i, window in enumerate((frames[:, :2], frames[:, 2:4], frames[:, 3:])):
            at_frame = latents[0, min(2 * i, 4), 0, 0, 0]
            torch.testing.assert_close(at_frame, torch.tensor(expected(window)), atol=1e-6, rtol=0.0)
        assert stages.decode(latents).shape == (1, 5, 3, 16, 16)
    assert log.count("deserialize") == 5


def test_addresses_are_bound_once_and_the_second_run_of_each_buffer_is_captured(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log
) -> None:
    stages = opened()
    frame = torch.randn(1, 3, 16, 16, generator=rng)
    for _ in range(6):
        stages.embed(frame)
    assert log.count("bind") == 2 * 2  # two contexts, an input and an output each
    assert (log.count("capture"), log.count("replay"), log.count("run on 1")) == (2, 4, 6)
    assert len(log.contexts) == 2 and log.contexts[0].addresses["frame"] == log.contexts[1].addresses["frame"]
    assert len({context.addresses["image_embedding"] for context in log.contexts}) == 2
    assert log.count("turn") == 6


def test_nothing_is_captured_where_the_library_forbids_it(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log
) -> None:
    stages = opened(capturable=False)
    for _ in range(4):
        stages.embed(torch.randn(1, 3, 16, 16, generator=rng))
    assert (log.count("capture"), log.count("run on 1")) == (0, 4)


def test_a_velocity_stays_while_the_next_is_made_and_all_else_for_good(
    opened: Callable[..., Stages], rng: torch.Generator
) -> None:
    stages = opened()
    for _ in range(3):
        first = stages.net(*(a := draw(rng)))
        second = stages.net(*draw(rng))
        assert float(first.velocity.mean()) == pytest.approx(expect_net(a), abs=1e-5)
        assert first.velocity.data_ptr() != second.velocity.data_ptr()
    kept = [(frame, stages.embed(frame)) for frame in torch.randn(6, 1, 3, 16, 16, generator=rng)]
    for frame, embedding in kept:
        assert float(embedding.mean()) == pytest.approx(expected(frame), abs=1e-6)
    masks = [(inputs, stages.net(*inputs).mask_logits) for inputs in (draw(rng) for _ in range(4))]
    for inputs, mask_logits in masks:
        assert float(mask_logits.mean()) == pytest.approx(expect_net(inputs) + 1, abs=1e-5)


def test_a_thread_has_one_arena_for_all_stages_and_a_lane_of_its_own(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log
) -> None:
    stages = opened()
    inputs, frames = draw(rng), torch.randn(1, 2, 3, 16, 16, generator=rng)

    def work() -> None:
        for _ in range(3):
            latents = stages.encode(frames)
            stages.net(*inputs)
            stages.decode(latents)

    work()
    arenas = {context.memory for context in log.contexts}
    assert len(log.contexts) == 8 and len(arenas) == 1
    assert next(iter(arenas))[1] == 2000  # the decoder's, the largest that ran
    # The encoder and the denoiser were bound to a smaller arena before, and captured on none but the last.
    mine = log.contexts[:]
    log.events.clear()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    theirs = log.contexts[8:]
    assert log.count("run on 2") > 0 and log.count("run on 1") == 0 and log.count("deserialize") == 0
    assert not {c.memory[0] for c in mine} & {c.memory[0] for c in theirs}
    assert not {a for c in mine for a in c.addresses.values()} & {
        a for c in theirs for a in c.addresses.values()
    }


def test_a_larger_arena_drops_the_captured_graphs(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log
) -> None:
    stages = opened()
    frame = torch.randn(1, 3, 16, 16, generator=rng)
    for _ in range(4):
        stages.embed(frame)
    assert log.count("capture") == 2
    stages.decode(torch.randn(1, 2, 4, 8, 8, generator=rng))
    got = stages.embed(frame)
    assert log.count("capture") == 3 and float(got.mean()) == pytest.approx(expected(frame), abs=1e-6)


def test_an_input_that_the_engine_has_no_use_for_is_not_bound(
    opened: Callable[..., Stages], rng: torch.Generator
) -> None:
    inputs = draw(rng)
    velocity = opened(without="timestep").net(*inputs).velocity
    sample, _, first, source, embedding, ids = inputs
    total = expected(sample, first, embedding, ids, torch.tensor(expected(first, source)))
    torch.testing.assert_close(velocity, torch.full(LATENTS, total), atol=1e-5, rtol=0.0)


def test_finished_kernels_are_kept_for_the_next_start(
    opened: Callable[..., Stages], rng: torch.Generator, log: Log, tmp_path: Path
) -> None:
    frame = torch.randn(1, 3, 16, 16, generator=rng)
    stages = opened()
    stages.embed(frame)
    stages.embed(frame)
    file = tmp_path / "cache" / "runtime" / "key-of-image_encoder-8.9.bin"
    assert file.read_bytes() == b"kernels" and [p.name for p in file.parent.iterdir()] == [file.name]
    assert (log.count("cache written"), log.count("cache read")) == (1, 0)
    opened().embed(frame)
    assert (log.count("cache written"), log.count("cache read")) == (1, 1)
    file.write_bytes(b"of another driver")  # is made anew
    opened().embed(frame)
    assert log.count("cache written") == 2 and file.read_bytes() == b"kernels"


def change(folder: Path, **update: Any) -> None:
    manifest = Manifest.model_validate_json((folder / FILE).read_bytes())
    engine = manifest.engines[DECODER].model_copy(update=update)
    save(folder, manifest.model_copy(update={"engines": {**manifest.engines, DECODER: engine}}))


@pytest.mark.parametrize(
    ("update", "message", "hint"),
    [
        ({"version": "1.6.0"}, "built by tensorrt-rtx 1.6.0, and here is 1.7.1", "install that version"),
        ({"targets": ("12.0",)}, "built for compute capability 12.0, and a fake has 8.9", "--target 8.9"),
        ({"backend": "tensorrt"}, "needs an engine of autoencoder_decoder, and the export has one", "--to"),
    ],
)
def test_an_engine_that_cannot_run_here_is_refused_with_the_reason(
    opened: Callable[..., Stages], tmp_path: Path, log: Log, update: dict[str, Any], message: str, hint: str
) -> None:
    opened()
    log.events.clear()
    change(tmp_path / "export", **update)
    with pytest.raises(GenPropError, match=message) as caught:
        opened()
    assert hint in caught.value.hint and log.events == []


def test_an_export_without_engines_is_refused(opened: Callable[..., Stages], tmp_path: Path) -> None:
    opened()
    manifest = Manifest.model_validate_json((tmp_path / "export" / FILE).read_bytes())
    save(tmp_path / "export", manifest.model_copy(update={"engines": {}}))
    with pytest.raises(GenPropError, match="the export has none"):
        opened()


@pytest.mark.parametrize("victim", ["autoencoder_decoder.engine", "image_encoder.onnx"])
def test_no_engine_is_opened_where_a_byte_was_flipped(
    opened: Callable[..., Stages], tmp_path: Path, log: Log, victim: str
) -> None:
    opened()
    log.events.clear()
    file = tmp_path / "export" / victim
    data = bytearray(file.read_bytes())
    data[2] ^= 4
    file.write_bytes(data)
    with pytest.raises(GenPropError, match=f"{victim} has SHA-256"):
        opened()
    assert log.events == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "cannot be opened: magic tag does not match"),
        ('{"inputs": {"x": [1]}, "outputs": {"frames": [1]}, "memory": 1}', "has x, frames, expected inputs"),
        ('{"inputs": {"latents": [1]}, "outputs": {}, "memory": 1}', "expected inputs latents and outputs"),
    ],
)
def test_an_engine_that_is_not_the_graphs_is_refused(
    opened: Callable[..., Stages], tmp_path: Path, text: str, message: str
) -> None:
    opened()
    (tmp_path / "export" / "autoencoder_decoder.engine").write_text(text)
    change(tmp_path / "export")
    with pytest.raises(GenPropError, match=message):
        opened()


def test_a_shape_that_the_engine_was_not_built_for_and_a_run_that_fails(
    opened: Callable[..., Stages],
) -> None:
    with pytest.raises(GenPropError, match=r"decoder was given latents of shape \[1, 2, 4, 4, 4\]"):
        opened().decode_window(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(GenPropError, match="image_encoder failed: it gave no reason"):
        opened(works=False).embed(torch.zeros(1, 3, 16, 16))


def test_an_engine_of_varying_size_is_bound_for_the_last_few_sizes(
    opened: Callable[..., Stages], tmp_path: Path, log: Log, rng: torch.Generator
) -> None:
    opened()
    inputs, outputs, memory = GRAPHS[DECODER]
    described = {"inputs": inputs, "outputs": outputs, "memory": memory, "any size": True}
    (tmp_path / "export" / "autoencoder_decoder.engine").write_text(json.dumps(described))
    change(tmp_path / "export")
    stages = opened()
    given = [torch.randn(1, 2, 4, height, 8, generator=rng) for height in (4, 8, 12, 16, 20)]
    for latents in (*given, *given[1:], given[0]):  # five sizes, the last four of them, the forgotten one
        got = float(stages.decode_window(latents).mean())
        assert got == pytest.approx(expected(latents), abs=1e-6)
    assert len(log.contexts) == 2 * (5 + 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_backend_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="PyTorch finds no CUDA device"):
        open_tensorrt(tmp_path / "nowhere", backend="tensorrt-rtx")


@pytest.mark.gpu
def test_a_lane_runs_after_the_caller_and_before_what_it_does_next() -> None:
    device = CudaDevice()
    lane = device.lane()
    x = torch.zeros(2**24, device=device.torch)
    add = lane.capture(lambda: torch._foreach_add_([x], 1))
    assert float(x.sum()) == 0
    for i in range(3):
        x.mul_(2)
        with lane.turn():
            add()
        assert float(x[0]) == float(x[-1]) == 2 ** (i + 1) - 1
