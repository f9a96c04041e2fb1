"""The sigmas of few-step sampling, chosen by measurement.

Greedy and small: a student that knows n - 1 sigmas gets the n-th where it lowers the latent error on
held-out clips most. Every schedule starts at the largest sigma, since sampling starts from noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genprop.edm import Denoiser
from genprop.sampling import consistency
from genprop.teacher.objective import Inputs


@torch.no_grad()
def error(denoiser: Denoiser, sigmas: tuple[float, ...], inputs: Inputs, *, seeds: int = 2) -> float:
    """Mean squared latent error against the truth, hole and kept region alike, the given frame left out."""
    total = 0.0
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(inputs.target.shape, generator=generator).to(inputs.target.device)
        levels = torch.tensor([*sigmas, 0.0])
        x0, _ = consistency(denoiser, noise, levels, inputs.cond, generator=generator)
        squared = (x0 - inputs.target)[:, 1:].square().mean(dim=2, keepdim=True)
        mask = inputs.mask[:, 1:]
        hole = (squared * mask).sum() / mask.sum().clamp(min=1e-6)
        keep = (squared * (1 - mask)).sum() / (1 - mask).sum().clamp(min=1e-6)
        total += float(hole + keep)
    return total / seeds


def search(
    denoiser: Denoiser,
    inputs: Inputs,
    candidates: Tensor,
    *,
    sigma_max: float,
    steps: tuple[int, ...] = (1, 2, 4, 8),
) -> tuple[dict[int, tuple[float, ...]], dict[int, float]]:
    """Schedules for each number of steps, and the error each was chosen by.

    Args:
        candidates: sigmas below `sigma_max` that may be used.
    """
    chosen: tuple[float, ...] = (sigma_max,)
    schedules: dict[int, tuple[float, ...]] = {1: chosen}
    errors = {1: error(denoiser, chosen, inputs)}
    for count in range(2, max(steps) + 1):
        trials = {}
        for sigma in candidates.tolist():
            if sigma not in chosen:
                trial = tuple(sorted((*chosen, sigma), reverse=True))
                trials[trial] = error(denoiser, trial, inputs, seeds=1)
        if not trials:
            break
        chosen = min(trials, key=lambda trial: trials[trial])
        schedules[count], errors[count] = chosen, trials[chosen]
    return {n: schedules[n] for n in steps if n in schedules}, errors
