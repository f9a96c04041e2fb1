"""AdamW in 32 or 8 bits, the learning rate of each step, and the decay of the EMA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genprop.adaptive import OwnOptimizer
from genprop.errors import GenPropError
from genprop.settings import TrainConfig


def learning_rate(step: int, config: TrainConfig, *, peak: float | None = None) -> float:
    """Linear warm-up, then a cosine down to `min_learning_rate_ratio`; `step` counts from 0.

    Args:
        peak: of parameters with an optimiser of their own; the run's if None.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    floor = config.min_learning_rate_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def ema_decay(step: int, config: TrainConfig) -> float:
    """The EMA's decay at `step`, from 0: short at first, so that the initial weights are forgotten."""
    return min(config.ema, (1 + step) / (10 + step))


def by_owner(
    parameters: dict[str, nn.Parameter], own: Mapping[str, OwnOptimizer]
) -> dict[str, list[nn.Parameter]]:
    """The parameters of each optimiser, by prefix of their names; those of the run are under ""."""
    parts: dict[str, list[nn.Parameter]] = {"": [], **{prefix: [] for prefix in own}}
    for name, parameter in parameters.items():
        parts[next((prefix for prefix in own if name.startswith(prefix)), "")].append(parameter)
    assert all(parts[prefix] for prefix in own), f"no trainable parameter under one of {list(own)}"
    return parts


def adamw(
    parameters: dict[str, nn.Parameter], config: TrainConfig, *, own: Mapping[str, OwnOptimizer] | None = None
) -> torch.optim.Optimizer:
    """AdamW, fused or in 8 bits; biases, norms and other vectors do not decay.

    Args:
        own: what has other numbers, by prefix of parameter names. AdamW keeps nothing that parameters share,
            so a group of this optimiser is an optimiser of its own, and one gradient scaler serves all.
    """
    own = own or {}
    parts = by_owner(parameters, own)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parts[""] if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parts[""] if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [{**group, "peak": config.learning_rate} for group in groups if group["params"]]
    for prefix, its in own.items():
        groups.append(
            {"params": parts[prefix], "weight_decay": 0.0, "betas": its.betas, "peak": its.learning_rate}
        )
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
