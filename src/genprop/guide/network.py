"""The tracker's network: where the object is in a crop of a frame, from what the guide predicts for it.

A small U-Net reads the frame, the clean frame that is predicted for it, the last frame and the last mask as
the motion brings them here, and a colour map. What the object looked like comes from a memory: at a quarter
of the crop's size each cell looks for cells like itself in remembered crops and reads there whether they
were the object (a small space-time memory: Oh et al. 2019, arXiv:1904.00607). So an object that was hidden is
found again, and one beside it that looks otherwise is not taken for it.

Shapes: B crops, M remembered crops, `SIDE` pixels on each side of a crop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 128
"""Pixels on each side of the crop."""

CHANNELS = 11
"""Frame, predicted clean frame, moved last frame (3 each), moved last mask, colour map; all in [0, 1]."""

MEMORY_CHANNELS = 4
"""A remembered crop: frame and mask."""

WIDTHS = (32, 48, 64, 96)
KEY = 32
VALUE = 32


class Memory(NamedTuple):
    """Remembered crops as the network reads them: `keys` `[B, M * N, K]`, `values` `[B, M * N, V]`."""

    keys: Tensor
    values: Tensor


class Block(nn.Module):
    """Two convolutions with their shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.GroupNorm(8, outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.last_norm = nn.GroupNorm(8, outside)
        self.shortcut = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(F.silu(self.norm(self.first(x))))
        return self.shortcut(x) + self.last_norm(hidden)


class Look(nn.Module):
    """A crop's appearance alone: features of `WIDTHS[1]` channels at a quarter of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(48, WIDTHS[1], 3, padding=1)
        self.block = Block(WIDTHS[1], WIDTHS[1])

    def forward(self, frame: Tensor) -> Tensor:
        return self.block(F.silu(self.conv_in(F.pixel_unshuffle(frame - 0.5, 4))))


class TrackerNet(nn.Module):
    """Crop and memory to the object's logits and the confidence in them; 0.8 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(WIDTHS) - 1
        self.look = Look()
        self.key = nn.Conv2d(WIDTHS[1], KEY, 1)
        self.value = nn.Conv2d(WIDTHS[1] + 1, VALUE, 1)
        self.conv_in = nn.Conv2d(4 * (CHANNELS + 2), WIDTHS[0], 3, padding=1)
        self.down = nn.ModuleList(Block(WIDTHS[i], WIDTHS[i + 1]) for i in range(levels))
        self.recall = nn.Conv2d(WIDTHS[1] + VALUE + 1, WIDTHS[1], 1)
        self.middle = Block(WIDTHS[-1], WIDTHS[-1])
        self.up = nn.ModuleList(Block(WIDTHS[i + 1] + WIDTHS[i], WIDTHS[i]) for i in reversed(range(levels)))
        self.out = nn.Conv2d(WIDTHS[0], 4, 3, padding=1)
        self.confidence = nn.Linear(WIDTHS[-1] + 2, 1)

    def remember(self, crop: Tensor) -> Memory:
        """Crops `[B, 4, S, S]`, each with its mask, as a memory of one crop each."""
        frame, mask = crop[:, :3], crop[:, 3:]
        features = F.avg_pool2d(self.look(frame), 2)
        share = F.avg_pool2d(mask, 8)
        values = torch.cat([share, self.value(torch.cat([features, share], 1))], 1)
        return Memory(self.key(features).flatten(2).mT, values.flatten(2).mT)

    def forward(self, crop: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, 1, S, S]`, and the logit of the intersection over union that they will have, `[B]`."""
        now, predicted, before = crop[:, :3], crop[:, 3:6], crop[:, 6:9]
        unlike = [2 * (now - other).abs().mean(1, keepdim=True) for other in (predicted, before)]
        hidden = F.silu(self.conv_in(F.pixel_unshuffle(torch.cat([crop, *unlike], 1), 2)))
        skips = [hidden]
        for level, block in enumerate(self.down):
            hidden = block(F.silu(F.avg_pool2d(hidden, 2)))
            if level == 0:
                look = self.look(now)
                hidden = hidden + self.recall(torch.cat([look, self._recall(look, keys, values)], 1))
            skips.append(hidden)
        hidden = F.silu(self.middle(hidden))
        deep = hidden.mean((2, 3))
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            hidden = block(torch.cat([F.interpolate(hidden, scale_factor=2.0, mode="bilinear"), skip], 1))
        logits = F.pixel_shuffle(self.out(F.silu(hidden)), 2)
        sure = logits.detach().sigmoid()
        unsure = (sure * (1 - sure)).sum((1, 2, 3)) / (sure.sum((1, 2, 3)) + 16)
        told = torch.stack([unsure, sure.mean((1, 2, 3))], 1)
        return logits, self.confidence(torch.cat([deep, told], 1))[:, 0]

    def _recall(self, look: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the memory holds at the cells like each cell, `[B, V + 1, S / 4, S / 4]`."""
        query = self.key(look)
        height, width = query.shape[-2:]
        scores = query.flatten(2).mT @ keys.mT * KEY**-0.5
        return (scores.softmax(-1) @ values).mT.unflatten(-1, (height, width))
