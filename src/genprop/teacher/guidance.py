"""A network that is told its guidance scale (Meng et al. 2023, arXiv:2210.03142, section 3; LCM, Luo et al.
2023, arXiv:2310.04378, section 4.2).

A student whose teacher was guided at one scale has that scale baked in. One that was shown many and told
each of them answers for any in one evaluation: the scale is chosen at inference, and a second, unconditional
evaluation is still not needed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOWEST, HIGHEST, FEATURES = 1 / 16, 2.0, 32
"""Cycles per unit of scale, and how many sines and cosines lie between, evenly in octaves.

Scales of use lie in about 1 to 8. The slowest wave is 16 long, so that no two of them look alike; the fastest
1/2, so that a tenth turns it by 72 degrees and yet what lies between two scales that training drew is
interpolated. (LCM embeds a thousand times the scale as if it were a timestep, whose fastest wave turns 160
times a unit: neighbours have nothing in common there.)
"""

HIDDEN = 128


class GuidanceEmbedding(nn.Module):
    """The scale of each sample `[B]` to what is added to the time embedding, `[B, width]`.

    Without effect at the start, with a gradient: the last layer alone is zero-initialised, so the first
    update moves it, and the second all of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.out = nn.Linear(HIDDEN, width)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, scale_b: Tensor) -> Tensor:
        # Numbers, not a buffer: a network in float16 would round them, and with them the phases.
        octaves = torch.linspace(math.log2(LOWEST), math.log2(HIGHEST), FEATURES // 2, device=scale_b.device)
        turns = 2 * math.pi * scale_b.float()[:, None] * 2**octaves
        features = torch.cat([turns.sin(), turns.cos()], dim=1)
        return self.out(nn.functional.silu(self.hidden(features.to(self.hidden.weight.dtype))))
