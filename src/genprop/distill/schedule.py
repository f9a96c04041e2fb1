"""The sigmas of few-step sampling, chosen by measurement.

Greedy and small: a student that knows n - 1 sigmas gets the n-th where it brings the deterministic sample
nearest to the teacher's endpoint from the same noise, on held-out clips. (Nearest to the truth is the mean of
what may be there: chosen so, a second step went to sigma 52 and did nothing.) Every schedule starts at the
largest sigma, since sampling starts from noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genprop.edm import Denoiser
from genprop.sampling import consistency
from genprop.types import Cond


@torch.no_grad()
def error(
    denoiser: Denoiser, sigmas: tuple[float, ...], noise: Tensor, endpoint: Tensor, cond: Cond
) -> float:
    """Mean squared latent distance of the deterministic sample to `endpoint`, the given frame left out."""
    x0, _ = consistency(denoiser, noise, torch.tensor([*sigmas, 0.0]), cond)
    return float((x0 - endpoint)[:, 1:].square().mean())


def search(
    denoiser: Denoiser,
    noise: Tensor,
    endpoint: Tensor,
    cond: Cond,
    candidates: Tensor,
    *,
    sigma_max: float,
    steps: tuple[int, ...] = (1, 2, 4, 8),
) -> tuple[dict[int, tuple[float, ...]], dict[int, float]]:
    """Schedules for each number of steps, and the error each was chosen by.

    Args:
        noise: standard normal, `[B, T, C, h, w]`.
        endpoint: where the teacher's full sampling takes it, of the same shape.
        candidates: sigmas below `sigma_max` that may be used.
    """
    chosen: tuple[float, ...] = (sigma_max,)
    schedules: dict[int, tuple[float, ...]] = {1: chosen}
    errors = {1: error(denoiser, chosen, noise, endpoint, cond)}
    for count in range(2, max(steps) + 1):
        trials = {}
        for sigma in candidates.tolist():
            if sigma not in chosen:
                trial = tuple(sorted((*chosen, sigma), reverse=True))
                trials[trial] = error(denoiser, trial, noise, endpoint, cond)
        if not trials:
            break
        chosen = min(trials, key=lambda trial: trials[trial])
        schedules[count], errors[count] = chosen, trials[chosen]
    return {n: schedules[n] for n in steps if n in schedules}, errors
