"""Parity: ONNX Runtime against PyTorch, float32, graph by graph.

A value that the exporter baked into a graph agrees on the inputs of the export and on no others, so the
inputs here are drawn anew, every one of them, and the denoiser is measured at every sigma that it will
be run at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from genprop.edm import karras_sigmas
from genprop.errors import GenPropError
from genprop.export.spec import DENOISER
from genprop.manifest import GraphSpec, Parity
from genprop.settings import SamplingConfig
from genprop.types import TASK, TASKS

TOLERANCE = 1e-4
"""The largest absolute error that an export may have, in any output of any graph."""

EXAMPLE_SEED, FRESH_SEED = 0, 1


def draw_inputs(
    spec: GraphSpec, seed: int, *, frames: int = 1, sigma: float | None = None
) -> tuple[Tensor, ...]:
    """Random inputs of a graph: pixels in [-1, 1], micro-conditioning as large as it gets, else normal.

    Args:
        frames: the size of the varying axis, where there is one.
        sigma: noise level; the timestep is its `c_noise` (EDM). None draws the timestep, too.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name in ("frames", "frame"):
            return 2 * torch.rand(shape, generator=generator) - 1
        if name == "added_time_ids":  # fps - 1, motion bucket, noise augmentation, task, guidance scale
            largest = torch.tensor([30.0, 255.0, 0.1, len(TASKS), 4.0])[: shape[-1]]
            drawn = torch.rand(shape, generator=generator) * largest
            drawn[:, TASK : TASK + 1].floor_()
            return drawn
        if name == "timestep" and sigma is not None:
            return torch.tensor([sigma]).log() / 4
        return torch.randn(shape, generator=generator)

    return tuple(draw(tensor.name, tensor.sized(frames)) for tensor in spec.inputs)


def sigmas_to_verify(sigmas: Mapping[int, tuple[float, ...]], sampling: SamplingConfig) -> tuple[float, ...]:
    """Every sigma of the few-step schedules; without any (a teacher), five of its Karras sigmas."""
    few = {sigma for schedule in sigmas.values() for sigma in schedule if sigma > 0}
    if few:
        return tuple(sorted(few, reverse=True))
    karras = karras_sigmas(
        sampling.steps, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
    )[:-1]
    picked = torch.linspace(0, len(karras) - 1, min(5, len(karras))).round().long()
    return tuple(karras[picked].tolist())


def measure_parity(
    folder: Path,
    modules: Mapping[str, nn.Module],
    specs: Mapping[str, GraphSpec],
    *,
    sigmas: tuple[float, ...],
    chunk: int,
) -> tuple[Parity, ...]:
    """The error of each graph in `folder` against its module, on fresh inputs.

    Args:
        modules: the PyTorch module that each graph was exported from, by the graph's name.
        sigmas: where the denoiser is measured.
        chunk: frames that the autoencoder is given at most; it is measured there and at a single frame.
    """
    return tuple(
        parity
        for name, spec in specs.items()
        for parity in measure_graph(folder / spec.file, modules[name], spec, sigmas=sigmas, chunk=chunk)
    )


def measure_graph(
    file: Path, module: nn.Module, spec: GraphSpec, *, sigmas: tuple[float, ...], chunk: int
) -> Iterator[Parity]:
    """The errors of one graph: by sigma for the denoiser, by number of frames for the autoencoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in spec.outputs]

    def error(inputs: tuple[Tensor, ...]) -> float:
        feed = {tensor.name: x.numpy() for tensor, x in zip(spec.inputs, inputs, strict=True)}
        with torch.no_grad():
            expected = module(*inputs)
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        got = [torch.from_numpy(x) for x in session.run(names, feed)]
        return max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))

    if spec.name == DENOISER:
        for i, sigma in enumerate(sigmas):
            yield Parity(
                graph=spec.name, sigma=sigma, error=error(draw_inputs(spec, FRESH_SEED + i, sigma=sigma))
            )
    elif spec.dynamic:
        for frames in sorted({1, chunk}):
            yield Parity(
                graph=spec.name, frames=frames, error=error(draw_inputs(spec, FRESH_SEED, frames=frames))
            )
    else:
        yield Parity(graph=spec.name, error=error(draw_inputs(spec, FRESH_SEED)))


def check_parity(parity: tuple[Parity, ...], *, tolerance: float = TOLERANCE) -> float:
    """The largest error.

    Raises:
        GenPropError: it is above `tolerance`, or not a number; names the graph and the sigma.
    """
    worst = max(parity, key=lambda p: math.inf if math.isnan(p.error) else p.error)
    if not worst.error <= tolerance:
        at = {"sigma": worst.sigma, "frames": worst.frames}
        where = "".join(f" at {name} {value:g}" for name, value in at.items() if value is not None)
        raise GenPropError(
            f"{worst.graph} differs from PyTorch by {worst.error:.2g}{where}, expected at most {tolerance:g}",
            "nothing was written; try another --opset",
        )
    return worst.error
