"""AdamW in 32 or 8 bits, the learning rate of each step, and the decay of the EMA."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from genprop.errors import GenPropError
from genprop.settings import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to `min_learning_rate_ratio`; `step` counts from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def ema_decay(step: int, config: TrainConfig) -> float:
    """The EMA's decay at `step`, from 0: short at first, so that the initial weights are forgotten."""
    return min(config.ema, (1 + step) / (10 + step))


def adamw(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, fused or in 8 bits; biases, norms and other vectors do not decay."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw8bit":
        return bitsandbytes().optim.AdamW8bit(groups, lr=config.learning_rate, betas=config.betas)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def bitsandbytes() -> Any:
    """The library of the 8-bit optimiser.

    Raises:
        GenPropError: there is no CUDA device, or it is not installed.
    """
    instead = 'set optimizer = "adamw"'
    if not torch.cuda.is_available():
        raise GenPropError("optimizer adamw8bit needs a CUDA device, got none", instead)
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError as error:
        raise GenPropError(
            f"optimizer adamw8bit needs bitsandbytes, which cannot be imported: {error}",
            f"pip install bitsandbytes, or {instead}",
        ) from error
    return bitsandbytes
