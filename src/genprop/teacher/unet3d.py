"""The report's baseline: a 3D U-Net of its own, which learns all from the pairs and has no backbone.

It reads what is denoised, the edited first frame and the original side by side, and gives velocity and the
mask decoder's features: what GenProp's frozen prior is worth is the distance to it. Its width is chosen so
that it trains about as many parameters as the copy of the content encoder would.

Legend: b batch, t frames, c channels, h w latent grid, d width of the time embedding. Here `[b, c, t, h, w]`.
"""

from __future__ import annotations

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.settings import SceConfig
from genprop.teacher.sce import Place, SceOut, Seen
from genprop.teacher.unet import Backbone, Body

GROUPS = 4
MULTIPLES = (1, 2, 4, 4)
"""Width of each level, as a multiple of the first's; one level for each of the backbone's down blocks."""


def count(module: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


class Block3d(nn.Module):
    """Two convolutions over space and time with a shortcut; the time embedding enters between them."""

    def __init__(self, channels: int, width: int, time_width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1)
        self.time = nn.Linear(time_width, width)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.shortcut = nn.Conv3d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x_bcthw: Tensor, time_bd: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x_bcthw)))
        shift = self.time(F.silu(time_bd))[..., None, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden) + shift))
        return self.shortcut(x_bcthw) + hidden


class UNet3d(nn.Module):
    """A content encoder that is the whole network: its `SceOut` has the answer and no residuals.

    Frames are never halved, rows and columns at each level. Of the settings of the content encoder it takes
    `blocks` alone, for its size.
    """

    def __init__(self, backbone: Backbone, config: SceConfig) -> None:
        super().__init__()
        self.injection: Place = "stem"  # of nothing
        widths = backbone.config["block_out_channels"]
        channels, time_width = backbone.config["out_channels"], 4 * widths[0]
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], time_width)
        copied = (backbone.conv_in, *backbone.down_blocks[: config.blocks])
        goal = max(1, sum(count(module) for module in copied) - count(self.time_embedding))
        multiples = MULTIPLES[: len(widths)]
        first = 16 * GROUPS
        for _ in range(4):  # the count is about a square of the width
            with torch.device("meta"):
                levels = _Levels(channels, [first * m for m in multiples], time_width)
            first = GROUPS * max(1, round(first * (goal / count(levels)) ** 0.5 / GROUPS))
        self.width = first * multiples[min(1, len(multiples) - 1)]
        """Channels of the mask decoder's features."""
        self.levels = _Levels(channels, [first * m for m in multiples], time_width)

    def forward(self, seen: Seen, source_btchw: Tensor) -> SceOut:
        timestep = seen.timestep_b.expand(len(source_btchw))
        time = self.time_embedding(self.time_proj(timestep).to(source_btchw.dtype))
        if seen.told_bd is not None:
            time = time + seen.told_bd.to(time.dtype)
        x = torch.cat([seen.sample_btchw, seen.reference_btchw, source_btchw], dim=2)
        velocity, penultimate, features = self.levels(x.transpose(1, 2), time)
        by_frame = [x_bcthw.transpose(1, 2).flatten(0, 1) for x_bcthw in (penultimate, *features)]
        answer = Body(velocity.transpose(1, 2), by_frame[0], ())
        return SceOut((), tuple(by_frame[1:]), answer)


class _Levels(nn.Module):
    """Down, middle and up; features are each level's on the way down."""

    def __init__(self, channels: int, widths: list[int], time_width: int) -> None:
        super().__init__()
        befores = [widths[0], *widths[:-1]]
        self.conv_in = nn.Conv3d(3 * channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Block3d(before, width, time_width) for before, width in zip(befores, widths, strict=True)
        )
        self.halve = nn.ModuleList(
            nn.Conv3d(width, width, 3, stride=(1, 2, 2), padding=1) for width in widths[:-1]
        )
        self.middle = Block3d(widths[-1], widths[-1], time_width)
        self.up = nn.ModuleList(
            Block3d(after + width, width, time_width)
            for width, after in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.conv_out = nn.Conv3d(widths[0], channels, 3, padding=1)

    def forward(self, x_bcthw: Tensor, time_bd: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        hidden = self.conv_in(x_bcthw)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            hidden = block(hidden if i == 0 else self.halve[i - 1](hidden), time_bd)
            skips.append(hidden)
        hidden = penultimate = self.middle(hidden, time_bd)
        for i in reversed(range(len(skips))):
            if hidden.shape[-2:] != skips[i].shape[-2:]:
                hidden = F.interpolate(hidden, size=skips[i].shape[-3:], mode="nearest")
            hidden = self.up[i](torch.cat([hidden, skips[i]], dim=1), time_bd)
            if i == 1:
                penultimate = hidden
        return self.conv_out(F.silu(self.norm(hidden))), penultimate, skips
