"""The tensorrt and tensorrt-rtx backends: an export folder with engines, one code path for both libraries.

What may run here is decided here; an opened engine is in `engine`, how a thread runs it in `workers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from genprop import trt
from genprop.errors import GenPropError
from genprop.manifest import CONDITIONER, GraphSpec, Manifest, read_manifest
from genprop.runtime.backends.engine import Engine
from genprop.runtime.backends.graphs import Graph, open_graphs
from genprop.runtime.backends.lanes import CudaDevice, Device
from genprop.runtime.backends.stages import Stages
from genprop.runtime.backends.workers import Workers


def open_tensorrt(
    folder: Path,
    *,
    backend: trt.Backend,
    light: bool = False,
    device: Callable[[], Device] = CudaDevice,
) -> Stages:
    """Open an export folder with engines, after checking the hash of each of its files.

    Args:
        light: decode with the light decoder.
        device: gives the device to run on.

    Raises:
        GenPropError: no GPU, the library missing or of another version, no engines, or none for this GPU, a
            damaged file.
    """
    on, library = device(), trt.library(backend)
    manifest = read_manifest(folder)
    for name in manifest.graphs:
        check_engine(manifest, name, backend=backend, version=str(library.__version__), device=on)
    logger = trt.collector(library)
    runtime = library.Runtime(logger)
    workers = Workers(on)

    def open_graph(spec: GraphSpec) -> Graph:
        engine = Engine(library, runtime, logger, folder, spec=spec, built=manifest.engines[spec.name], on=on)
        return lambda *tensors: hand_out(spec, workers.worker.run(engine, tensors))

    stages = open_graphs(manifest, open_graph, backend=backend, device=on.torch, light=light)
    why = f"{backend} {library.__version__} on {on.name}, compute capability {on.capability}"
    return replace(stages, why=why)


def check_engine(manifest: Manifest, name: str, *, backend: str, version: str, device: Device) -> None:
    """Refuse a graph without an engine that runs here, before any of it is opened.

    Raises:
        GenPropError: says what there is and what is needed.
    """
    engine = manifest.engines.get(name)
    again = f"genprop export MODEL --to {backend} --out DIR"
    if engine is None or engine.backend != backend:
        has = f"one of {engine.backend}" if engine is not None else "none"
        raise GenPropError(f"backend {backend} needs an engine of {name}, and the export has {has}", again)
    if engine.version != version:
        raise GenPropError(
            f"the engine of {name} was built by {backend} {engine.version}, and here is {version}: an engine "
            "runs on the version that built it",
            f"install that version, or build again: {again}",
        )
    if device.capability not in engine.targets:
        raise GenPropError(
            f"the engine of {name} was built for compute capability {', '.join(engine.targets)}, and "
            f"{device.name} has {device.capability}",
            f"build for it: {again} --target {device.capability}"
            if backend == "tensorrt-rtx"
            else f"build on this machine: {again}",
        )


def hand_out(spec: GraphSpec, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs that callers may keep: windows are collected, masks kept to the end of a sampling.

    A velocity is used up before the next but one is made, and the conditioner's are copied by their caller.
    """
    lent = [spec.name == CONDITIONER or tensor.name == "velocity" for tensor in spec.outputs]
    return tuple(x if stays else x.clone() for x, stays in zip(outputs, lent, strict=True))
