"""Between uint8 pixels and the [-1, 1] that networks see."""

from __future__ import annotations

import torch
from torch import Tensor


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 `[..., H, W, 3]` to float `[..., 3, H, W]` in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> Tensor:
    """The inverse of `to_pixels`, rounded and clipped."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)
