"""Exact rewrites of a model's layers before ONNX Runtime gets them.

ONNX Runtime fuses patterns of its own, but not these: each of them costs copies, or passes over a tensor,
that the graph need not contain. The numbers are PyTorch's up to rounding (the gates compare them with the
modules as they were). TensorRT finds most of them itself, and parses none but standard operators.

- A temporal residual block ends in `a x + (1 - a)(x + f(x)) = x + (1 - a) f(x)`, a constant: the share goes
  into the last convolution's weights, and the frames are brought to the front and back for f alone.
- Its convolutions, over time alone, are 2D ones over (time, cells), which have the faster kernels.
- Self-attention is one operator, which never holds the matrix of scores: 21 GB in float16 for 25 frames of
  576x1024.
- The two halves of a gated layer are two products instead of one that is copied apart.
- The embedding of the noise level is the same for all frames of a clip, and is projected once for all.
- GroupNorm is two operators instead of ten.

Legend: b batch, t frames, c channels, h w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn
from torch.nn import functional as F


def optimise(module: nn.Module) -> None:
    """Rewrite what is in `module`, in place. It can be exported from then on, and no longer be run."""
    rewrites: list[tuple[type[nn.Module], Callable[[Any], nn.Module]]] = [
        (SpatioTemporalResBlock, Folded),
        (nn.Conv3d, conv_over_time),
        (GEGLU, Gated),
        (Attention, SelfAttention),
        (nn.GroupNorm, Normalised),
    ]
    for kind, rewrite in rewrites:
        for parent in [*module.modules()]:
            for name, child in parent.named_children():
                if isinstance(child, kind):
                    setattr(parent, name, rewrite(child))


class ConvOverTime(nn.Module):
    """A `Conv3d` with a kernel of one cell, `[b, c, t, h, w]`, as a `Conv2d` over `[b, c, t, h * w]`."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        # Built where memory is not: the weights are the old ones, and not initialised for nothing.
        self.conv = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], 1),
            padding=(int(conv.padding[0]), 0),
            bias=conv.bias is not None,
            device="meta",
        )
        self.conv.weight = nn.Parameter(conv.weight.squeeze(-1), requires_grad=False)
        self.conv.bias = conv.bias

    def forward(self, x_bcthw: Tensor) -> Tensor:
        return self.conv(x_bcthw.flatten(3)).unflatten(3, x_bcthw.shape[3:])


def conv_over_time(conv: nn.Conv3d) -> nn.Module:
    """`ConvOverTime` where the kernel is one cell wide, else the convolution as it is."""
    cell = conv.kernel_size[1:] == (1, 1) and conv.padding[1:] == (0, 0)
    plain = set(conv.stride) == {1} and set(conv.dilation) == {1} and conv.groups == 1
    return ConvOverTime(conv) if cell and plain else conv


class Folded(nn.Module):
    """A `SpatioTemporalResBlock` for a batch of one clip, every frame of which is one of a video."""

    def __init__(self, block: SpatioTemporalResBlock) -> None:
        super().__init__()
        temporal, mixer = block.temporal_res_block, block.time_mixer
        assert temporal.conv_shortcut is None
        share = mixer.get_alpha(torch.zeros(1, 1), 5).detach().float().flatten()[0]  # of the spatial half
        share = share if mixer.switch_spatial_to_temporal_mix else 1 - share
        self.spatial_res_block, self.act, self.time_emb_proj = (
            block.spatial_res_block,
            temporal.nonlinearity,
            temporal.time_emb_proj,
        )
        self.norm1, self.norm2 = temporal.norm1, temporal.norm2
        self.conv1, self.conv2 = conv_over_time(temporal.conv1), conv_over_time(temporal.conv2)
        for tensor in self.conv2.parameters():
            tensor.data = (share * tensor.data.float()).to(tensor.dtype)

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Any = None
    ) -> Tensor:
        told_1d = None if temb is None else temb[:1]
        x_tchw = self.spatial_res_block(hidden_states, told_1d)
        y_bcthw = x_tchw[None].transpose(1, 2)
        y_bcthw = self.conv1(self.act(self.norm1(y_bcthw)))
        if self.time_emb_proj is not None:
            y_bcthw = y_bcthw + self.time_emb_proj(self.act(told_1d))[..., None, None, None]
        y_bcthw = self.conv2(self.act(self.norm2(y_bcthw)))
        return x_tchw + y_bcthw.transpose(1, 2)[0]


class Gated(nn.Module):
    """`GEGLU`."""

    def __init__(self, gated: GEGLU) -> None:
        super().__init__()
        both = gated.proj
        self.value, self.gate = (
            nn.Linear(both.in_features, both.out_features // 2, device="meta") for _ in range(2)
        )
        for i, layer in enumerate((self.value, self.gate)):
            layer.weight = nn.Parameter(both.weight.chunk(2)[i].clone(), requires_grad=False)
            layer.bias = nn.Parameter(both.bias.chunk(2)[i].clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * F.gelu(self.gate(x))


class SelfAttention(nn.Module):
    """`Attention` of tokens `[n, tokens, c]`, or of an autoencoder's cells `[n, c, h, w]`, to themselves."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        assert not attention.is_cross_attention and attention.spatial_norm is None
        assert attention.norm_q is None and attention.norm_k is None
        self.group_norm, self.heads = attention.group_norm, attention.heads
        layers: Any = attention  # upstream's, of types that may be None
        self.to_q, self.to_k, self.to_v, self.to_out = (
            layers.to_q,
            layers.to_k,
            layers.to_v,
            layers.to_out[0],
        )
        self.residual, self.factor = attention.residual_connection, attention.rescale_output_factor

    def forward(
        self, hidden: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None, temb: Any = None
    ) -> Tensor:
        assert encoder_hidden_states is None and attention_mask is None
        x = hidden.flatten(2) if hidden.ndim == 4 else hidden.transpose(1, 2)
        x = (x if self.group_norm is None else self.group_norm(x)).transpose(1, 2)
        query = self.to_q(x)
        mixed = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (query, self.to_k(x), self.to_v(x)),
            {"num_heads": self.heads},
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )
        out = self.to_out(mixed)
        if hidden.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden.shape)
        return (out + hidden if self.residual else out) / self.factor


class Normalised(nn.Module):
    """`GroupNorm`: instances normalised group by group, then scaled and shifted channel by channel."""

    one: Tensor
    zero: Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("one", torch.ones_like(norm.weight))
        self.register_buffer("zero", torch.zeros_like(norm.weight))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(x.shape[0], self.groups, -1)
        scale_and_shift = self.one[: self.groups], self.zero[: self.groups]
        normal = torch.onnx.ops.symbolic(
            "InstanceNormalization",
            (flat, *scale_and_shift),
            {"epsilon": self.eps},
            dtype=x.dtype,
            shape=flat.shape,
        )
        return torch.onnx.ops.symbolic(
            "BatchNormalization",
            (normal.reshape(x.shape), self.weight, self.bias, self.zero, self.one),
            {"epsilon": 0.0},
            dtype=x.dtype,
            shape=x.shape,
        )
