"""Samplers: free functions `(denoiser, noise, sigmas, cond, *, generator) -> (x0, mask_logits)`.

`sigmas` is `[N + 1]`, falls, and ends in 0; `noise` is standard normal, `[B, T, C, h, w]`. The mask is the
one of the last evaluation, which sees the least noise. N evaluations of the denoiser each.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor

from genprop.edm import Denoiser
from genprop.types import Cond


class Sampler(Protocol):
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        sigmas: Tensor,
        cond: Cond,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def start(noise: Tensor, sigma: Tensor | float) -> Tensor:
    """The first x of a trajectory: data of variance 1 and the noise together, `noise sqrt(s^2 + 1)`."""
    return noise * (torch.as_tensor(sigma) ** 2 + 1).sqrt().to(noise.device)


def euler_step(x: Tensor, x0: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """One Euler step of the probability-flow ODE `dx/ds = (x - x0) / s` (EDM algorithm 1, line 5)."""
    return x + (to - sigma) * (x - x0) / sigma


def euler(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    cond: Cond,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The deterministic Euler sampler of the ODE; how the teacher samples. `generator` is not used."""
    x = start(noise, sigmas[0])
    mask_logits = x.new_zeros(())
    for sigma, to in itertools.pairwise(sigmas):
        x0, mask_logits = denoiser(x, sigma.expand(len(x)).to(x.device), cond)
        x = euler_step(x, x0, sigma.to(x.device), to.to(x.device))
    return x, mask_logits


def consistency(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    cond: Cond,
    *,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): predict x0, re-noise, predict again.

    With no generator it takes `euler`'s steps instead of fresh noise: the deterministic sample that
    `endpoint_db` compares with the teacher's.
    """
    if generator is None:
        return euler(denoiser, noise, sigmas, cond)
    x = start(noise, sigmas[0])
    x0, mask_logits = x, x.new_zeros(())
    for sigma, to in itertools.pairwise(sigmas):
        x0, mask_logits = denoiser(x, sigma.expand(len(x)).to(x.device), cond)
        fresh = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        x = x0 + to.to(x.device) * fresh
    return x0, mask_logits
