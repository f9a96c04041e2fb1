"""The mask-aware gate: where nothing is edited, the answer is the original.

A backbone of 96 channels with 16 latent ones cannot copy: after a third of its training the embedded
teacher still missed 11 % of the latents' power far from any edit, where the original *is* the answer. So
the network's own mask decides, cell by cell, how much of the answer is its own and how much the original:

    x0 = x0_net + (1 - g) w (source - x0_net)    g = sigmoid(a logit + b)    w = s^2 / (s^2 + d^2)

written in velocities, so that a gated network is a `Net` like any other. a and b are learned: a cell that
only touches the object must be generated, too. w hands over to the network below sigma d, where x holds
the original already and an error of the mask would weigh with 1 / s.

With a carry (`teacher.carry`), the carried first frame stands in the hole as the original does around it,
with a trust c and a handover d of each cell's own:

    x0 = x0_net + (1 - g) w (source - x0_net) + g c w_d (carried - x0_net)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genprop.teacher.carry import Carried

HANDOVER = 0.25
"""d: the sigma at which original and network weigh the same."""


class MaskGate(nn.Module):
    """Velocity `[B, T, C, h, w]` and mask logits `[B, T, 1, h, w]` to the gated velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(2.0))

    def forward(
        self,
        velocity: Tensor,
        mask_logits: Tensor,
        *,
        sample: Tensor,
        timestep: Tensor,
        source: Tensor,
        carried: Carried | None = None,
    ) -> Tensor:
        """`sample` is `c_in x`, `timestep` is `ln(s) / 4`, as a `Net` is given them. In float32."""
        sigma = (4 * timestep.float()).exp().view(-1, 1, 1, 1, 1)
        own = velocity.float()

        def pull(x0: Tensor, handover: float | Tensor) -> Tensor:
            """w times the way from the network's velocity to the one whose x0 is given."""
            there = sample.float() - x0.float() * (sigma**2 + 1).sqrt()  # times s, and w is over s
            return sigma / (sigma**2 + handover**2) * (there - sigma * own)

        opened = (self.scale * mask_logits.float() + self.shift).sigmoid()
        gated = own + (1 - opened) * pull(source, HANDOVER)
        if carried is not None:
            gated = gated + opened * carried.trust_bt1hw * pull(carried.latents_btchw, carried.handover_bt1hw)
        return gated
