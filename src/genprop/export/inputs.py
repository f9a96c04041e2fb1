"""Random inputs of a graph: those of its export, and others to check it on.

A value that the exporter baked into a graph agrees on the inputs of the export and on no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genprop.edm import karras_sigmas
from genprop.manifest import CONDITIONER, DENOISER, GraphSpec, Manifest
from genprop.settings import SamplingConfig
from genprop.types import TASK, TASKS

EXAMPLE_SEED, FRESH_SEED = 0, 1
NET_INPUTS: tuple[str, ...] = ("sample", "timestep", "first", "source", "image_embedding", "added_time_ids")


@dataclass(frozen=True)
class Trial:
    """A stage and inputs to run it on; for the denoiser those of the whole network, at `sigma`."""

    stage: str
    spec: GraphSpec
    inputs: tuple[Tensor, ...]
    sigma: float | None = None

    def __str__(self) -> str:
        at = "" if self.sigma is None else f" at sigma {self.sigma:g}"
        return f"{self.stage} in {self.spec.precision}{at}"


def draw_inputs(
    spec: GraphSpec, seed: int, *, sigma: float | None = None, sizes: Mapping[str, int] | None = None
) -> tuple[Tensor, ...]:
    """Pixels in [-1, 1], micro-conditioning as large as it gets, shares in (0, 1), else normal.

    Args:
        sigma: noise level; the timestep is its `c_noise` (EDM). None draws the timestep, too.
        sizes: of the varying axes, see `TensorSpec.sized`.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name in ("frames", "frame"):
            return 2 * torch.rand(shape, generator=generator) - 1
        if name in ("trust", "handover"):
            return torch.rand(shape, generator=generator)
        if name == "added_time_ids":  # fps - 1, motion bucket, noise augmentation, task, guidance scale
            largest = torch.tensor([30.0, 255.0, 0.1, len(TASKS), 4.0])[: shape[-1]]
            drawn = torch.rand(shape, generator=generator) * largest
            drawn[:, TASK : TASK + 1].floor_()
            return drawn
        if name == "timestep" and sigma is not None:
            return torch.tensor([sigma]).log() / 4
        return torch.randn(shape, generator=generator)

    return tuple(draw(tensor.name, tensor.sized(sizes)) for tensor in spec.inputs)


def trials(manifest: Manifest) -> Iterator[Trial]:
    """Every stage on inputs other than those of its export; the conditioner before what reads it."""
    order = sorted(manifest.graphs, key=lambda name: name != CONDITIONER)
    seed = FRESH_SEED
    for sizes in sizes_to_verify(manifest):
        for name in order:
            sigmas = sigmas_to_verify(manifest.sigmas, manifest.config.sampling)
            spec = whole_net(manifest.graphs) if name == DENOISER else manifest.graphs[name]
            for sigma in sigmas if name == DENOISER else (None,):
                yield Trial(name, spec, draw_inputs(spec, seed, sigma=sigma, sizes=sizes), sigma)
                seed += 1


def whole_net(graphs: Mapping[str, GraphSpec]) -> GraphSpec:
    """The network in one, whatever it is split into: `types.Net`'s six inputs and two outputs."""
    parts = [graphs[name] for name in (CONDITIONER, DENOISER) if name in graphs]
    given = {tensor.name: tensor for part in parts for tensor in part.inputs}
    return graphs[DENOISER].model_copy(update={"inputs": tuple(given[name] for name in NET_INPUTS)})


def sizes_to_verify(manifest: Manifest) -> tuple[dict[str, int] | None, ...]:
    """What varying axes are measured at: the clip's own size and the smallest; None where none varies."""
    sizes, clip = manifest.sizes, manifest.config.clip
    if sizes is None:
        return (None,)
    own, least = (clip.height, clip.width), (sizes.min_height, sizes.min_width)
    return tuple(sizes.of(*size) for size in dict.fromkeys((own, least)))


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
