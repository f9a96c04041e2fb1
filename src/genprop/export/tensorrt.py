"""One ONNX file to one TensorRT engine, for TensorRT and TensorRT for RTX alike.

Networks are strongly typed: the precision is the graph's, the builder chooses none. The weights are mapped
from disk by the parser, and the engine goes to its file piece by piece, so a build needs about two and a
half times the weights.

A build runs in a process of its own. It starts with little memory and gives all of it back, what it held is
measured for it alone, and a crash inside the library is an error like any other. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from genprop.errors import GenPropError
from genprop.trt import Backend, buildable, collector, complaints, library

Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, the likeliest and the largest shape of each input whose shape varies."""

ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


class Build(BaseModel):
    """What a builder is asked for.

    Attributes:
        graph: the ONNX file; its data lies beside it. engine: where the engine goes.
        targets: compute capabilities for TensorRT for RTX; none for TensorRT, which builds for the GPU here.
        profile: for a graph of varying size; empty for a static one.
        level: of the builder's optimisation, 0 to 5. workspace: bytes a kernel may take. None: the library's.
        tf32: whether float32 products may round their inputs to TF32.
        timing_cache: a file of kernel timings, read and written (TensorRT only).
    """

    model_config = ConfigDict(frozen=True)

    backend: Backend
    graph: Path
    engine: Path
    targets: tuple[str, ...] = ()
    profile: Profile = {}
    level: int | None = None
    workspace: int | None = None
    tf32: bool = False
    timing_cache: Path | None = None


class Built(BaseModel):
    """What a build took.

    Attributes:
        memory: bytes of device memory that the activations need, as the builder says; None if it does not.
        peak: the most bytes of this machine's memory that the building process held.
    """

    model_config = ConfigDict(frozen=True)

    seconds: float
    memory: int | None
    peak: int


def build(request: Build) -> Built:
    """Build an engine in this process.

    Raises:
        GenPropError: the library is missing, cannot parse the graph or cannot build it, in its own words.
    """
    trt = library(request.backend)
    logger = collector(trt)
    began = time.perf_counter()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the binding makes of a null pointer
        raise GenPropError(
            f"{request.backend} cannot build here: {complaints(logger)}", "it needs a GPU and its driver"
        ) from error
    flags = trt.NetworkDefinitionCreationFlag
    typed = (
        1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    )  # 11 knows no other kind
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)  # it owns the weights until the engine is written
    if not parser.parse_from_file(str(request.graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}".lstrip(" :") for e in errors)
        raise GenPropError(
            f"{request.backend} cannot parse {request.graph.name}: {said or complaints(logger)}",
            "another opset may parse: genprop export --opset",
        )
    let_attention_decompose(trt, network)
    config = configure(trt, builder, request)
    try:
        with request.engine.open("wb") as file:
            done = write_engine(trt, builder, network, config, file)
    except OSError as error:
        raise GenPropError(f"{request.engine} cannot be written: {error.strerror}", "make room") from error
    if not done:
        raise GenPropError(
            f"{request.backend} cannot build {request.graph.name}: {complaints(logger)}",
            "where memory ran out, allow it less: genprop export --workspace",
        )
    if request.timing_cache is not None:
        beside = request.timing_cache.with_name(f"{request.timing_cache.name}.{os.getpid()}")
        beside.write_bytes(memoryview(config.get_timing_cache().serialize()))
        beside.replace(request.timing_cache)
    said = [match for _, text in logger.messages if (match := ACTIVATIONS.search(text))]
    seconds = time.perf_counter() - began
    return Built(seconds=seconds, memory=int(said[-1][1]) if said else None, peak=peak_memory())


def let_attention_decompose(trt: Any, network: Any) -> None:
    """Let an attention that has no kernel of its own be made of products, where the library would refuse it.

    In float32 there is none, nor for some widths of a head.
    """
    if not hasattr(trt, "IAttentionInputLayer"):  # an older TensorRT, which always does
        return
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # how these bindings cast
            layer.attention.decomposable = True


def configure(trt: Any, builder: Any, request: Build) -> Any:
    """The builder's configuration. Flags that only one library has, or a later version, are looked for."""
    config = builder.create_builder_config()
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # or a CUDA graph may not be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if request.level is not None:
        config.builder_optimization_level = request.level
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    if known := buildable(trt):
        config.num_compute_capabilities = len(request.targets)
        for i, target in enumerate(request.targets):
            assert target in known, target
            member = getattr(trt.ComputeCapability, f"SM{target.replace('.', '')}")
            config.set_compute_capability(member, i)
    if request.profile:
        profile = builder.create_optimization_profile()
        for name, shapes in request.profile.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if request.timing_cache is not None:
        kept = request.timing_cache.read_bytes() if request.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(kept), False)
    return config


def write_engine(trt: Any, builder: Any, network: Any, config: Any, file: BinaryIO) -> bool:
    """Build, and write the engine as it comes. Returns whether it did."""
    if not hasattr(builder, "build_serialized_network_to_stream"):  # an older TensorRT
        engine = builder.build_serialized_network(network, config)
        return engine is not None and file.write(memoryview(engine)) > 0

    class Writer(trt.IStreamWriter):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            return file.write(data)

    return bool(builder.build_serialized_network_to_stream(network, config, Writer()))


def peak_memory() -> int:
    """The most bytes that this process has held, without what its parent had when it started it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def build_apart(request: Build) -> Built:
    """`build` in a process of its own.

    Raises:
        GenPropError: as `build` does; or the process was killed, as it is where memory runs out.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "genprop.export.tensorrt"],
        input=request.model_dump_json(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    answer = done.stdout.strip().splitlines()
    if done.returncode == 0:
        return Built.model_validate_json(answer[-1])
    if done.returncode == 1 and answer:
        raise GenPropError(*json.loads(answer[-1]))
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise GenPropError(
        f"building {request.engine.name} with {request.backend} ended with {how}: {last}",
        "signal 9 is most likely memory: build on a machine with more of it",
    )


def main() -> int:
    """The process of `build_apart`: a request on stdin, on stdout what it took or the error."""
    try:
        print(build(Build.model_validate_json(sys.stdin.read())).model_dump_json())
    except GenPropError as error:
        print(json.dumps([error.message, error.hint]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
