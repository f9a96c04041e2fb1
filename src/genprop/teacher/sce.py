"""The Selective Content Encoder and its injection layers (GenProp, arXiv:2412.19761, section 3.2).

A trainable copy of the backbone's stem and first N down blocks reads the *original* video, and hands one
residual to each skip connection it covers (stem, every resnet, the downsampler), as ControlNet does:
features that enter only after a downsampler cannot carry the background's detail.
`injection = "blocks"` keeps the variant with one residual a block, for comparison.

Legend: as in `unet.py`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genprop.config import SceConfig
from genprop.errors import GenPropError
from genprop.teacher.unet import Backbone, Stem, run_block


class SceOut(NamedTuple):
    """Residuals for the backbone, already through their injection layers, and the last raw features."""

    residuals_nchw: tuple[Tensor, ...]
    features_nchw: Tensor


class Injection(nn.Module):
    """A 1x1x1 convolution into the backbone, with a group norm before it as an option.

    Its effect is zero at the start *with a gradient*: the convolution alone is zero-initialised. Zeroing
    the norm's weight as well would leave nothing but a bias that learns. (One frame at a time, a 1x1x1
    convolution is a 1x1 one.)
    """

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels) if norm else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, features_nchw: Tensor) -> Tensor:
        return self.conv(self.norm(features_nchw))


class SelectiveContentEncoder(nn.Module):
    """Copies of `conv_in` and the first `config.blocks` down blocks, and an injection for each output."""

    def __init__(self, backbone: Backbone, config: SceConfig) -> None:
        super().__init__()
        available = len(backbone.down_blocks)
        if config.blocks > available:
            raise GenPropError(
                f"sce.blocks is {config.blocks}, but the backbone has {available} down blocks",
                "set sce.blocks to at most that",
            )
        self.injection = config.injection
        self.conv_in = copy.deepcopy(backbone.conv_in)
        self.down_blocks = copy.deepcopy(backbone.down_blocks[: config.blocks])
        stem_channels = backbone.conv_in.out_channels
        self.fusion = Injection(stem_channels, norm=False) if config.fusion == "bidirectional" else None
        block_channels = backbone.config["block_out_channels"][: config.blocks]
        if config.injection == "blocks":
            channels = list(block_channels)
        else:
            channels = [stem_channels]
            blocks: Any = self.down_blocks  # upstream's, of either kind
            for block, width in zip(blocks, block_channels, strict=True):
                channels += [width] * (len(block.resnets) + (block.downsamplers is not None))
        self.injections = nn.ModuleList(Injection(c, norm=config.norm) for c in channels)
        self.requires_grad_(True)

    def forward(self, stem: Stem, source_btchw: Tensor, reference_btchw: Tensor) -> SceOut:
        """Read the original video (`source`, scaled latents) beside the edited first frame (`reference`)."""
        hidden = self.conv_in(torch.cat([source_btchw, reference_btchw], dim=2).flatten(0, 1))
        if self.fusion is not None:
            hidden = hidden + self.fusion(stem.features_nchw)
        skips, outputs = (hidden,), ()
        for block in self.down_blocks:
            hidden, block_skips = run_block(block, hidden, stem)
            skips += block_skips
            outputs += (hidden,)
        injected = outputs if self.injection == "blocks" else skips
        residuals = tuple(inject(x) for inject, x in zip(self.injections, injected, strict=True))
        return SceOut(residuals, hidden)
