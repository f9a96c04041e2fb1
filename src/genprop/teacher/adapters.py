"""Content encoders that copy nothing: the report's alternatives, for comparison.

`CtrlAdapter` ("ctrl-adapter", after Lin et al. 2024, arXiv:2404.09967): features of a frozen image model
pass through small trained adapters (convolution in space, in time, attention in space, in time) to the skip
connections. `ConvAdapter` ("conv-adapter"): convolutions alone, whose output is added to the stem's features.

Both read the time embedding (and with it the task) and end in `sce.Injection`, so they start without effect.
They take `sce.norm`, `sce.zero` and `sce.scale`; `sce.fusion` and `sce.injection` are the copy's.

Legend: as in `unet.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.errors import GenPropError
from genprop.settings import NoiseConfig, SceConfig
from genprop.teacher.sce import Injection, Place, SceOut, Seen, skips_of
from genprop.teacher.unet import Backbone, run_block

GROUPS = 8
"""Of the adapters' group norms; the widths of an SVD are multiples of 32."""

STEM_WEIGHT = 0.1
"""What a convolutional adapter's output is multiplied by on its way into the stem's features (the report)."""

CONV_BLOCKS = 6
"""Of a convolutional adapter: about as many parameters as the copy of two blocks in `tiny`."""

TIMESTEPS = 1000
"""Of a ControlNet's own, discrete noise schedule."""


def freeze(module: nn.Module) -> nn.Module:
    """Turn every parameter into a buffer that no state dict holds, in place.

    It moves with the network it is part of, never trains, and is in no bundle.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=False)
    return module


def inverse_timestep(timestep_b: Tensor, noise: NoiseConfig | None = None) -> Tensor:
    """A ControlNet's timestep for a continuous noise level: both at the same quantile of their own training.

    Ctrl-Adapter's inverse-timestep sampling. A level at quantile u of `ln s ~ N(mean, std^2)` is the
    ControlNet's timestep `1000 u`, which trained on uniform ones.

    Args:
        timestep_b: `ln(s) / 4`, as a `Net` is given it.
        noise: the distribution of levels; SVD's own if None.

    Returns:
        Whole numbers from 0 to 999, `[B]`.
    """
    noise = noise or NoiseConfig()
    quantile = torch.special.ndtr((4 * timestep_b.float() - noise.mean) / noise.std)
    return (TIMESTEPS * quantile).round().clamp(max=TIMESTEPS - 1).long()


class ConvBlock(nn.Module):
    """A convolution in space, told the time, and one in time, each with its own shortcut."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.spatial_norm = nn.GroupNorm(GROUPS, width)
        self.spatial = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(time_width, width)
        self.temporal_norm = nn.GroupNorm(GROUPS, width)
        self.temporal = nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, hidden_nchw: Tensor, time_nd: Tensor, *, frames: int) -> Tensor:
        told = F.silu(self.spatial_norm(hidden_nchw)) + self.time(F.silu(time_nd))[..., None, None]
        hidden = hidden_nchw + self.spatial(told)
        clips = F.silu(self.temporal_norm(hidden)).unflatten(0, (-1, frames)).transpose(1, 2)
        return hidden + self.temporal(clips).transpose(1, 2).flatten(0, 1)


class Attention(nn.Module):
    """Self-attention over the middle axis of `[..., tokens, width]`, with its shortcut.

    Queries and keys have no bias: a key's is without effect.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, tokens_nld: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(tokens_nld)).unflatten(2, (3, -1, 32)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return tokens_nld + self.to_out(mixed)


class Adapter(nn.Module):
    """One frozen feature to one raw residual: `[n, c', h', w']` to `[n, c, h', w']`."""

    def __init__(self, channels: int, width: int, time_width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, 1)
        self.convolutions = ConvBlock(width, time_width)
        self.spatial = Attention(width)
        self.temporal = Attention(width)

    def forward(self, features_nchw: Tensor, time_nd: Tensor, *, frames: int) -> Tensor:
        hidden = self.convolutions(self.project(features_nchw), time_nd, frames=frames)
        n, c, h, w = hidden.shape
        cells_npc = self.spatial(hidden.flatten(2).transpose(1, 2))
        across_btpc = cells_npc.unflatten(0, (-1, frames))
        tracks = self.temporal(across_btpc.transpose(1, 2).flatten(0, 1))  # one a cell: [b * p, t, c]
        moved_btpc = tracks.unflatten(0, (-1, h * w)).transpose(1, 2)
        return moved_btpc.reshape(n, h * w, c).transpose(1, 2).reshape(n, c, h, w)


class FrozenEncoder(nn.Module):
    """The backbone's own encoder, frozen, reading the original as the copy does."""

    def __init__(self, backbone: Backbone, blocks: int) -> None:
        super().__init__()
        self.widths = [c for c, _ in skips_of(backbone, blocks)]
        self.conv_in = freeze(copy.deepcopy(backbone.conv_in))
        self.down_blocks: Any = freeze(copy.deepcopy(backbone.down_blocks[:blocks]))

    @torch.no_grad()
    def forward(self, seen: Seen, source_btchw: Tensor) -> tuple[Tensor, ...]:
        hidden = self.conv_in(torch.cat([source_btchw, seen.reference_btchw], dim=2).flatten(0, 1))
        features = (hidden,)
        for block in self.down_blocks:
            hidden, skips = run_block(block, hidden, seen.stem)
            features += skips
        return features


class FrozenControlNet(nn.Module):
    """A ControlNet's features of the original, frame by frame, without words and without noised latents.

    Ctrl-Adapter leaves the latents out for backbones with continuous noise levels, whose scale a ControlNet
    never saw. What it conditions on are pixels, which a `Net` does not have: a learned projection of latents
    (original and edited first frame) to three channels, enlarged to a picture, stands for them.
    """

    def __init__(self, folder: Path, channels: int) -> None:
        super().__init__()
        try:
            loaded: Any = ControlNetModel.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise GenPropError(
                f"sce.controlnet: {folder} cannot be loaded: {error}",
                "expected a ControlNet in diffusers' layout: config.json and safetensors",
            ) from error
        settings = loaded.config
        self.channels, self.words = settings["in_channels"], settings["cross_attention_dim"]
        self.cell = 2 ** (len(settings["conditioning_embedding_out_channels"]) - 1)
        self.widths = [layer.out_channels for layer in loaded.controlnet_down_blocks]
        self.controlnet: Any = freeze(loaded.eval())
        self.picture = nn.Conv2d(2 * channels, 3, 1)

    def forward(self, seen: Seen, source_btchw: Tensor) -> tuple[Tensor, ...]:
        b, t, _, h, w = source_btchw.shape
        latents = torch.cat([source_btchw, seen.reference_btchw], dim=2).flatten(0, 1)
        picture = self.picture(latents).sigmoid()
        timestep = inverse_timestep(seen.timestep_b.expand(b))
        return self.controlnet(
            picture.new_zeros(b * t, self.channels, h, w),
            timestep.repeat_interleave(t, dim=0, output_size=b * t),
            encoder_hidden_states=picture.new_zeros(b * t, 1, self.words),
            controlnet_cond=F.interpolate(picture, scale_factor=self.cell, mode="nearest"),
            return_dict=False,
        )[0]


class CtrlAdapter(nn.Module):
    """Frozen features through an adapter for each skip connection of the first `sce.blocks` down blocks.

    Skip connections and features are paired in their order (a ControlNet of Stable Diffusion has SVD's
    twelve), and brought to one size where they differ.
    """

    def __init__(self, backbone: Backbone, config: SceConfig) -> None:
        super().__init__()
        self.injection: Place = "skips"
        skips = skips_of(backbone, config.blocks)
        widths, self.halvings = [c for c, _ in skips], [n for _, n in skips]
        if config.controlnet is None:
            self.frozen = FrozenEncoder(backbone, config.blocks)
        else:
            self.frozen = FrozenControlNet(Path(config.controlnet), backbone.config["out_channels"])
        if len(self.frozen.widths) < len(widths):
            raise GenPropError(
                f"sce.controlnet has {len(self.frozen.widths)} features, expected at least {len(widths)}",
                "set sce.blocks lower, or give a ControlNet of as many layers as the backbone",
            )
        time_width = time_embedding_width(backbone)
        pairs = zip(self.frozen.widths, widths, strict=False)
        self.adapters = nn.ModuleList(Adapter(c, width, time_width) for c, width in pairs)
        self.injections = nn.ModuleList(Injection(c, norm=config.norm, zero=config.zero) for c in widths)

    def forward(self, seen: Seen, source_btchw: Tensor) -> SceOut:
        frames = source_btchw.shape[1]
        h, w = source_btchw.shape[-2:]
        raw, residuals = (), ()
        frozen = self.frozen(seen, source_btchw)
        for feature, halvings, adapter, inject in zip(
            frozen, self.halvings, self.adapters, self.injections, strict=False
        ):
            size = (-(-h // 2**halvings), -(-w // 2**halvings))  # stride 2 with padding 1 rounds up
            if feature.shape[-2:] != size:
                feature = F.interpolate(feature, size=size, mode="bilinear", align_corners=False)
            adapted = adapter(feature, seen.stem.time_embedding_nd, frames=frames)
            raw, residuals = (*raw, adapted), (*residuals, inject(adapted))
        return SceOut(residuals, raw)


class ConvAdapter(nn.Module):
    """Hint block, convolutions in space and in time, and a zero convolution, into the stem at 0.1."""

    def __init__(self, backbone: Backbone, config: SceConfig) -> None:
        super().__init__()
        self.injection: Place = "stem"
        width, channels = backbone.conv_in.out_channels, backbone.config["out_channels"]
        self.hint = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        time_width = time_embedding_width(backbone)
        self.blocks = nn.ModuleList(ConvBlock(width, time_width) for _ in range(CONV_BLOCKS))
        self.injections = nn.ModuleList([Injection(width, norm=config.norm, zero=config.zero)])

    def forward(self, seen: Seen, source_btchw: Tensor) -> SceOut:
        hidden = self.hint(torch.cat([source_btchw, seen.reference_btchw], dim=2).flatten(0, 1))
        for block in self.blocks:
            hidden = block(hidden, seen.stem.time_embedding_nd, frames=source_btchw.shape[1])
        return SceOut((STEM_WEIGHT * self.injections[0](hidden),), (hidden,))


def time_embedding_width(backbone: Backbone) -> int:
    """Channels of the backbone's time embedding; upstream's factor."""
    return 4 * backbone.config["block_out_channels"][0]
