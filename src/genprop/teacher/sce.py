"""The Selective Content Encoder and its injection layers (GenProp, arXiv:2412.19761, section 3.2).

A trainable copy of the backbone's stem and first N down blocks reads the *original* video, and hands one
residual to each skip connection it covers (stem, every resnet, the downsampler), as ControlNet does:
features that enter only after a downsampler cannot carry the background's detail.
`injection = "blocks"` keeps the variant with one residual a block, for comparison.

It is one kind of content encoder (`sce.kind`), and the others (`adapters.py`, `unet3d.py`) have its form:
a module `(seen, source) -> SceOut` whose `injection` says what its residuals are added to.

Legend: as in `unet.py`.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genprop.errors import GenPropError
from genprop.settings import SceConfig
from genprop.teacher.unet import Backbone, Body, Stem, run_block

Place = Literal["skips", "blocks", "stem"]
"""What residuals are added to: the first skip connections, the first blocks' outputs, the stem's features."""


class Seen(NamedTuple):
    """What a content encoder may read beside the original.

    `sample` and `timestep` are the network's own arguments; `told` is the sum of the embeddings of task and
    guidance scale, None in networks without either; `stem` is the backbone's, `told` in its time embedding;
    `reference` is the edited first frame in every frame, carried along where the network has a carry.
    """

    sample_btchw: Tensor
    timestep_b: Tensor
    stem: Stem
    reference_btchw: Tensor
    told_bd: Tensor | None


class SceOut(NamedTuple):
    """Residuals for the backbone, already through their injection layers, and what went into those, raw.

    An encoder that needs no backbone ("unet3d") has no residuals, but the answer.
    """

    residuals_nchw: tuple[Tensor, ...]
    features_nchw: tuple[Tensor, ...]
    answer: Body | None = None


class Injection(nn.Module):
    """A 1x1x1 convolution into the backbone, with a group norm before it as an option.

    Its effect is zero at the start *with a gradient*: the convolution alone is zero-initialised. With
    `zero = "both"` the norm's weight and bias are, too, as in the report: the convolution's input is zero
    then, and so is what comes back through it, so that nothing but its bias ever learns. (One frame at a
    time, a 1x1x1 convolution is a 1x1 one.)
    """

    def __init__(self, channels: int, *, norm: bool, zero: Literal["conv", "both"] = "conv") -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels) if norm else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 1)
        for layer in (self.conv, *([self.norm] if zero == "both" else [])):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features_nchw: Tensor) -> Tensor:
        return self.conv(self.norm(features_nchw))


def skips_of(backbone: Backbone, blocks: int) -> list[tuple[int, int]]:
    """The skip connections that the stem and the first `blocks` down blocks give: channels, times halved.

    Raises:
        GenPropError: the backbone has fewer down blocks.
    """
    available = len(backbone.down_blocks)
    if blocks > available:
        raise GenPropError(
            f"sce.blocks is {blocks}, but the backbone has {available} down blocks",
            "set sce.blocks to at most that",
        )
    skips = [(backbone.conv_in.out_channels, 0)]
    covered: Any = backbone.down_blocks[:blocks]  # upstream's, of either kind
    for i, block in enumerate(covered):
        width = backbone.config["block_out_channels"][i]
        skips += [(width, i)] * len(block.resnets)
        if block.downsamplers is not None:
            skips.append((width, i + 1))
    return skips


class SelectiveContentEncoder(nn.Module):
    """Copies of `conv_in` and the first `config.blocks` down blocks, and an injection for each output."""

    def __init__(self, backbone: Backbone, config: SceConfig) -> None:
        super().__init__()
        widths = [channels for channels, _ in skips_of(backbone, config.blocks)]
        self.injection: Place = config.injection
        self.conv_in = copy.deepcopy(backbone.conv_in)
        self.down_blocks = copy.deepcopy(backbone.down_blocks[: config.blocks])
        self.fusion = Injection(widths[0], norm=False) if config.fusion == "bidirectional" else None
        if config.injection == "blocks":
            widths = list(backbone.config["block_out_channels"][: config.blocks])
        self.injections = nn.ModuleList(Injection(c, norm=config.norm, zero=config.zero) for c in widths)
        self.requires_grad_(True)

    def forward(self, seen: Seen, source_btchw: Tensor) -> SceOut:
        """Read the original video (`source`, scaled latents) beside the edited first frame."""
        stem = seen.stem
        hidden = self.conv_in(torch.cat([source_btchw, seen.reference_btchw], dim=2).flatten(0, 1))
        if self.fusion is not None:
            hidden = hidden + self.fusion(stem.features_nchw)
        skips, outputs = (hidden,), ()
        for block in self.down_blocks:
            hidden, block_skips = run_block(block, hidden, stem)
            skips += block_skips
            outputs += (hidden,)
        injected = outputs if self.injection == "blocks" else skips
        residuals = tuple(inject(x) for inject, x in zip(self.injections, injected, strict=True))
        return SceOut(residuals, injected)
