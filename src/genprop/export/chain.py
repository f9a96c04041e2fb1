"""From noise to decoded frames: the whole of a model, in PyTorch or in graphs, for the same noise.

It is what the runtime does with a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from genprop.chunks import by_windows
from genprop.data.procedural import make_sample
from genprop.edm import Guided, NetDenoiser, karras_sigmas
from genprop.export.inputs import FRESH_SEED
from genprop.graphnet import Graph, GraphNet
from genprop.manifest import DECODER, ENCODER, IMAGE_ENCODER, Manifest
from genprop.pixels import to_pixels
from genprop.sampling import consistency, euler
from genprop.types import TASKS, Cond, Net, time_ids

FEW = 4
"""The chain is measured at no more steps than this, and at 1."""
PEAK = 2.0
"""Frames are in [-1, 1]."""


@dataclass(frozen=True)
class Chain:
    """What turns noise into frames: the network, and the stages around it for clips of any length."""

    net: Net
    encode: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def chain_of(manifest: Manifest, stages: Mapping[str, Graph]) -> Chain:
    """The chain of an export, in its windows."""
    return Chain(
        net=GraphNet(manifest.graphs, stages),
        encode=lambda x: by_windows(lambda w: stages[ENCODER](w)[0], x, manifest.encode_frames, pad=True),
        embed=lambda x: stages[IMAGE_ENCODER](x)[0],
        decode=lambda x: by_windows(
            lambda w: stages[DECODER](w)[0], x, manifest.chunk, overlap=manifest.overlap
        ),
    )


def schedules(manifest: Manifest) -> Iterator[Tensor]:
    """Noise levels of the samplings to measure: of 1 and the most steps up to `FEW`; a teacher's of 2."""
    if manifest.kind == "teacher" or not manifest.sigmas:
        sampling = manifest.config.sampling
        yield karras_sigmas(2, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho)
        return
    known = sorted(manifest.sigmas)
    most = max((n for n in known if n <= FEW), default=known[0])
    for steps in sorted({1, most}.intersection(known)):
        yield torch.tensor([*manifest.sigmas[steps], 0.0])


@torch.no_grad()
def sample_frames(chain: Chain, manifest: Manifest, sigmas: Tensor) -> Tensor:
    """Frames `[1, T, 3, H, W]` of a procedural clip, sampled as the runtime's `sample_window` does."""
    config, generator = manifest.config, torch.Generator().manual_seed(FRESH_SEED)
    clip, told, scale = config.clip, config.net, config.guidance
    sample = make_sample(FRESH_SEED, frames=clip.frames, height=clip.height, width=clip.width)
    frames, edited = (to_pixels(torch.from_numpy(x))[None] for x in (sample.source, sample.target[:1]))
    encoded = chain.encode(torch.cat([edited, frames], dim=1))
    ids = time_ids(clip, TASKS[0] if told.tasks else None, scale if told.guidance else None)
    cond = Cond(
        first=encoded[:, :1].expand(-1, clip.frames, -1, -1, -1),
        source=encoded[:, 1:] * manifest.scaling_factor,
        image_embedding=chain.embed(edited[:, 0]),
        added_time_ids=ids[None],
    )
    noise = torch.randn(cond.source.shape, generator=generator)
    denoiser = NetDenoiser(chain.net)
    if manifest.kind == "teacher":
        latents, _ = euler(Guided(denoiser, config.sampling.guidance_min, scale), noise, sigmas, cond)
    else:
        eta = manifest.eta.get(len(sigmas) - 1, 1.0)
        latents, _ = consistency(denoiser, noise, sigmas, cond, generator=generator, eta=eta)
    return chain.decode(latents)


def psnr(got: Tensor, expected: Tensor) -> float:
    """In dB, of frames in [-1, 1]; at most 200, so that equal frames have a figure; NaN as it comes."""
    error = (got.double() - expected.double()).square().mean()
    return float(10 * torch.log10(PEAK**2 / error.clamp(min=1e-20 * PEAK**2)))
