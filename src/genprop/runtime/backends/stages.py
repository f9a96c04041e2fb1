"""What a backend gives to the runtime: the four stages of a model as plain functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genprop.config import Config
from genprop.types import Net


@dataclass(frozen=True)
class Stages:
    """An opened model. Its functions take tensors of any device and return them on `device`.

    None of them records a gradient.

    Attributes:
        backend: "torch", "compile" or "onnxruntime".
        kind: "teacher" or "student".
        config: the model's configuration.
        sigmas: few-step noise levels by number of steps, without the final 0; empty for a teacher.
        scaling_factor: what unscaled latents are multiplied by to be denoised.
        net: the denoising network.
        encode: frames `[1, T, 3, H, W]` in [-1, 1] to unscaled latents `[1, T, C, h, w]`.
        decode: scaled latents `[1, T, C, h, w]` to frames `[1, T, 3, H, W]`.
        embed: a frame `[1, 3, H, W]` in [-1, 1] to its embedding `[1, 1, D]`.
        eta: share of fresh noise in few-step sampling, by number of steps; 1 where none is named.
    """

    backend: str
    kind: str
    config: Config
    sigmas: Mapping[int, tuple[float, ...]]
    scaling_factor: float
    net: Net
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    device: torch.device
    eta: Mapping[int, float] = field(default_factory=dict)
