"""Samplers: free functions `(denoiser, noise, sigmas, cond, *, generator) -> (x0, mask_logits)`.

`sigmas` is `[N + 1]`, falls, and ends in 0; `noise` is standard normal, `[B, T, C, h, w]`. The mask is the
one of the last evaluation, which sees the least noise. N evaluations of the denoiser each.

A solver goes one step: `(denoiser, x, sigma, to, cond) -> x` at `to`, where each sample of the batch has a
noise level of its own. Distillation has its teacher walk its grid with one (`SOLVERS`).
"""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor

from genprop.edm import Denoiser
from genprop.types import Cond


class Step(Protocol):
    """A solver's step from `sigma` to `to`, both `[B]`; `to` may be 0 for some samples, `sigma` may not."""

    def __call__(self, denoiser: Denoiser, x: Tensor, sigma: Tensor, to: Tensor, cond: Cond) -> Tensor: ...


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


def first_order(denoiser: Denoiser, x: Tensor, sigma: Tensor, to: Tensor, cond: Cond) -> Tensor:
    """`euler_step` with the denoiser's own x0: one evaluation; see `Step`."""
    x0, _ = denoiser(x, sigma, cond)
    return euler_step(x, x0, _wide(sigma), _wide(to))


def heun_step(denoiser: Denoiser, x: Tensor, sigma: Tensor, to: Tensor, cond: Cond) -> Tensor:
    """One step of Heun's second-order method (EDM algorithm 1): two evaluations, one where all arrive at 0.

    A sample whose `to` is 0 takes Euler's step: the slope at 0 is 0 / 0.
    """
    x0, _ = denoiser(x, sigma, cond)
    s, t = _wide(sigma), _wide(to)
    there = euler_step(x, x0, s, t)
    inside = t > 0
    if not inside.any():
        return there
    level = torch.where(to > 0, to, sigma)  # any level above 0: what is evaluated there is not used
    x0_there, _ = denoiser(there, level, cond)
    slopes = (x - x0) / s + (there - x0_there) / _wide(level)
    return torch.where(inside, x + (t - s) * slopes / 2, there)


SOLVERS: dict[str, Step] = {"euler": first_order, "heun": heun_step}
"""By the names that `distill.solver` has."""


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
    eta: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Multistep consistency sampling: predict x0, go to the next level, predict again.

        x <- x0 + s_next (sqrt(1 - eta^2) (x - x0) / s + eta fresh)

    What is added to x0 has the level's variance for any eta. At 1 all of it is fresh noise (Song et al. 2023,
    algorithm 1); at 0, as with no generator, these are `euler`'s steps, and nothing is drawn.

    Args:
        eta: share of fresh noise, in [0, 1].
    """
    if generator is None or eta == 0:
        return euler(denoiser, noise, sigmas, cond)
    assert 0 < eta <= 1, eta
    x = start(noise, sigmas[0])
    x0, mask_logits = x, x.new_zeros(())
    for sigma, to in itertools.pairwise(sigmas.to(x.device)):
        x0, mask_logits = denoiser(x, sigma.expand(len(x)), cond)
        fresh = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        if eta < 1:
            fresh = math.sqrt(1 - eta**2) * (x - x0) / sigma + eta * fresh
        x = x0 + to * fresh
    return x0, mask_logits


def _wide(sigma: Tensor) -> Tensor:
    """`[B]` so that it multiplies `[B, T, C, h, w]`."""
    return sigma.view(-1, 1, 1, 1, 1)
