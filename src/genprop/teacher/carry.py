"""Carry: where each cell of each frame finds its background in the edited first frame.

What an edit uncovers is, for the most part, in the first frame already: only the camera has moved. Told by
the noise alone, a small network paints a blurred guess; told by the original clip, the move is known. So a
small trunk reads the clip and predicts, for every cell, kernels over the 5x5 cells around it in the edited
first frame (kernel prediction: Jia et al. 2016, arXiv:1605.09673; Niklaus et al. 2017, arXiv:1703.07514):

    carried(p) = W_out sum_h sum_n a_h(p, n) W_h first(p + n) + r(p)        a_h = softmax over n

Several heads with a value map each, because moving a picture by part of a patch mixes a latent's channels.
The trunk sees no noise and no timestep: its answer is the same at every step of a sampling.

Legend: as in `unet.py`; k cells of the window, d width of the trunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Carried(NamedTuple):
    """The edited first frame as it is in every frame, and how far it is to be trusted.

    `latents` `[B, T, C, h, w]`; `trust` in (0, 1) and `handover`, the sigma at which the network's own
    answer weighs as much, both `[B, T, 1, h, w]`.
    """

    latents_btchw: Tensor
    trust_bt1hw: Tensor
    handover_bt1hw: Tensor


class TrunkBlock(nn.Module):
    """A convolution in space and one in time, each with its own shortcut; the latter starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = width // 4
        self.spatial = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.temporal_norm = nn.GroupNorm(groups, width)
        self.temporal = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))
        nn.init.zeros_(self.temporal.weight)
        nn.init.zeros_(self.temporal.bias)  # type: ignore[arg-type]

    def forward(self, hidden_ndhw: Tensor, frames: int) -> Tensor:
        hidden = hidden_ndhw + self.spatial(hidden_ndhw)
        clips = F.silu(self.temporal_norm(hidden)).unflatten(0, (-1, frames)).transpose(1, 2)
        return hidden + self.temporal(clips).transpose(1, 2).flatten(0, 1)


class Carry(nn.Module):
    """Original clip and edited first frame to the carried first frame.

    It starts as a copy: the first frame where it was.

    Args:
        channels: C of the latents.
        width: of the trunk; a multiple of 8.
        heads: kernels for each cell.
        window: side of a kernel in cells, odd.
        matches: heads of the correlation of each frame with the first (as in PWC-Net, arXiv:1709.02371).
    """

    def __init__(
        self, channels: int, width: int, *, heads: int = 8, window: int = 5, matches: int = 4
    ) -> None:
        super().__init__()
        self.heads, self.window, self.matches = heads, window, matches
        cells = window**2
        self.project = nn.Conv2d(channels, matches * channels, 1)
        self.conv_in = nn.Conv2d(3 * channels + 2, width, 3, padding=1)
        self.match_in = nn.Conv2d(matches * cells, width, 1)
        self.fine = nn.ModuleList(TrunkBlock(width) for _ in range(2))
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList(TrunkBlock(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.last = TrunkBlock(width)
        self.kernels = nn.Conv2d(width, heads * cells, 1)
        self.values = nn.Conv2d(channels, heads * channels, 1)
        self.out = nn.Conv2d(heads * channels, channels, 1)
        self.rest = nn.Conv2d(width, channels, 1)
        self.trust = nn.Conv2d(width, 2, 1)
        self._start_as_a_copy()

    @torch.no_grad()
    def _start_as_a_copy(self) -> None:
        """Kernels at their centre, value maps near the identity (apart, so that heads can differ)."""
        channels = self.out.out_channels
        identity = torch.eye(channels)
        for bias in (self.kernels.bias, self.values.bias, self.out.bias):
            assert bias is not None
            bias.zero_()
        assert self.kernels.bias is not None
        self.kernels.bias.view(self.heads, -1)[:, self.window**2 // 2] = 6.0
        self.kernels.weight.mul_(0.1)
        self.values.weight.mul_(0.2).add_(identity.repeat(self.heads, 1)[..., None, None])
        self.out.weight.mul_(0.2).add_(identity.repeat(1, self.heads)[..., None, None] / self.heads)
        for layer in (self.rest, self.trust):
            assert layer.bias is not None
            layer.weight.zero_()
            layer.bias.zero_()
        self.trust.bias[0] = 2.0  # type: ignore[index]

    def forward(self, source_btchw: Tensor, first_btchw: Tensor) -> Carried:
        """`source`: the original's scaled latents; `first`: the edited first frame's, in every frame."""
        b, t, _, h, w = source_btchw.shape
        source, first = source_btchw.flatten(0, 1), first_btchw[:, 0]
        before = source_btchw[:, :1].expand_as(source_btchw).flatten(0, 1)
        y, x = (torch.linspace(-1, 1, n, dtype=source.dtype, device=source.device) for n in (h, w))
        place = torch.stack([y.view(h, 1).expand(h, w), x.expand(h, w)]).expand(b * t, 2, h, w)
        hidden = self.conv_in(torch.cat([source, before, first_btchw.flatten(0, 1), place], 1))
        hidden = hidden + self.match_in(self._match(source_btchw))
        for block in self.fine:
            hidden = block(hidden, t)
        coarse = self.down(hidden)
        for block in self.coarse:
            coarse = block(coarse, t)
        coarse = coarse + self._attend(coarse)
        hidden = self.last(hidden + F.interpolate(coarse, size=(h, w), mode="nearest"), t)

        kernels_bthkp = self.kernels(hidden).view(b, t, self.heads, -1, h * w)
        values_bhpkc = self._windows(self.values(first), self.heads)
        moved_bhptc = kernels_bthkp.permute(0, 2, 4, 1, 3).softmax(4) @ values_bhpkc
        carried = self.out(moved_bhptc.permute(0, 3, 1, 4, 2).reshape(b * t, -1, h, w)) + self.rest(hidden)
        trust, handover = self.trust(hidden).float().unflatten(0, (b, t)).split(1, dim=2)
        return Carried(carried.float().unflatten(0, (b, t)), trust.sigmoid(), handover.exp())

    def _windows(self, image_bchw: Tensor, heads: int) -> Tensor:
        """The cells around each cell, `[b, heads, h * w, k, c / heads]`; beyond the border, the nearest."""
        b, c, h, w = image_bchw.shape
        radius = self.window // 2
        offset = torch.arange(-radius, radius + 1, device=image_bchw.device)
        y = (torch.arange(h, device=offset.device).unsqueeze(1) + offset).clamp(0, h - 1)
        x = (torch.arange(w, device=offset.device).unsqueeze(1) + offset).clamp(0, w - 1)
        cells = (y.view(h, 1, -1, 1) * w + x.view(1, w, 1, -1)).flatten()
        # Channels last before, not after: there are fewer cells than cells around cells.
        image_bhpc = image_bchw.reshape(b, heads, c // heads, h * w).transpose(2, 3)
        return image_bhpc.index_select(2, cells).unflatten(2, (h * w, self.window**2))

    def _match(self, source_btchw: Tensor) -> Tensor:
        """How well each cell matches those around it in frame 0, `[n, matches * k, h, w]`."""
        b, t, c, h, w = source_btchw.shape
        features = self.project(source_btchw.flatten(0, 1)).unflatten(0, (b, t))
        around_bmpkc = self._windows(features[:, 0], self.matches)
        here_bmpct = features.view(b, t, self.matches, c, h * w).permute(0, 2, 4, 3, 1)
        score_bmpkt = around_bmpkc @ here_bmpct / c**0.5
        return score_bmpkt.permute(0, 4, 1, 3, 2).reshape(b * t, -1, h, w)

    def _attend(self, hidden_ndhw: Tensor) -> Tensor:
        """Self-attention over the cells of a frame: a camera's move is everywhere the same."""
        n, d, h, w = hidden_ndhw.shape
        qkv = self.to_qkv(self.norm(hidden_ndhw.flatten(2).transpose(1, 2)))
        q, k, v = qkv.unflatten(2, (3, 4, d // 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out(mixed).transpose(1, 2).reshape(n, d, h, w)
