"""Upstream's autoencoders layer by layer, each layer in slices: the same numbers in a small workspace.

A temporal decoder cannot be cut into windows exactly. The group norms of its temporal blocks take their
statistics over all frames (diffusers' `TemporalResnetBlock`), so every pixel depends on every frame, and its
convolutions reach dozens of frames far: windows that overlap are near the whole, never equal to it (on random
weights windows of 8 frames are 21 to 25 dB from it, with 6 of them shared 26 to 37). Nor can
frames be cut into tiles, for every group norm sees the whole frame. What can be cut is one layer at a time.
Here a spatial layer runs frame by frame and in bands of rows with the halo that its convolution needs, a
temporal one in bands of rows over all frames; a group norm's statistics are gathered over all slices first,
then norm, activation and convolution run slice by slice. The answer is the one-shot one up to rounding,
without seams, for a clip of any length and frames of any size; of whole activations only two live at a time.
Statistics are put together in float64, so in float32 it is nearer to the exact answer than one shot is.

The layers are upstream's own modules, of `AutoencoderKL` and `AutoencoderKLTemporalDecoder`. Without
gradient. Attention, which stands at the latents' resolution, takes a frame whole.

Legend: a clip is a list of its T frames, each `[1, C, H, W]`; a band of rows of them all, `[1, C, T, r, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder, UpBlockTemporalDecoder
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from genprop.errors import GenPropError

Vae = AutoencoderKL | AutoencoderKLTemporalDecoder


@torch.no_grad()
def decode_sliced(vae: Vae, latents: Tensor, *, size: int) -> Tensor:
    """What `vae.decode` answers to each clip as a whole. `[B, T, C, h, w]`, unscaled, to `[B, T, 3, H, W]`.

    Args:
        size: how many numbers of an activation a slice may have; at least one row is taken.
    """
    return torch.stack([_decode_clip(vae, list(clip.split(1)), size) for clip in latents])


@torch.no_grad()
def encode_sliced(vae: Vae, frames: Tensor, *, size: int) -> Tensor:
    """The mode of `vae.encode`, frame by frame. `[N, 3, H, W]` to `[N, C, h, w]`, unscaled.

    H and W are multiples of the autoencoder's downsampling.

    Args:
        size: as for `decode_sliced`.
    """
    encoder: Any = vae.encoder
    layers = [encoder.conv_in, *_layers(*encoder.down_blocks, encoder.mid_block), Tail.of(encoder)]
    if vae.quant_conv is not None:
        layers.append(vae.quant_conv)
    moments = [_through(layers, frame, size) for frame in frames.split(1)]
    return DiagonalGaussianDistribution(torch.cat(moments)).mode()


class Tail(NamedTuple):
    """What ends an encoder or a decoder."""

    norm: nn.GroupNorm
    act: nn.Module
    conv: nn.Conv2d

    @classmethod
    def of(cls, part: Any) -> Tail:
        return cls(part.conv_norm_out, part.conv_act, part.conv_out)


def _decode_clip(vae: Vae, clip: list[Tensor], size: int) -> Tensor:
    """The frames of one clip, `[T, 3, H, W]`. `clip` is emptied on the way."""
    decoder: Any = vae.decoder
    spatial: list[Any] = [decoder.conv_in]
    if isinstance(vae, AutoencoderKL) and vae.post_quant_conv is not None:
        spatial.insert(0, vae.post_quant_conv)
    for layer in [*_layers(decoder.mid_block, *decoder.up_blocks), Tail.of(decoder)]:
        if isinstance(layer, SpatioTemporalResBlock):
            # All that lies between two mixings of the frames is done to one frame before the next, so what is
            # widest, the last upsampling, never exists for the whole clip.
            _each_frame([*spatial, layer.spatial_res_block], clip, size)
            _mix_frames(layer, clip, size)
            spatial = []
        else:
            spatial.append(layer)
    _each_frame(spatial, clip, size)
    if isinstance(vae, AutoencoderKLTemporalDecoder):
        last = decoder.time_conv_out
        into = [torch.empty_like(frame) for frame in clip]
        for rows in _bands(clip[0], size // len(clip)):
            _put(into, rows, last(_take(clip, rows)))
        clip = into
    return torch.cat(clip)


def _layers(*blocks: Any) -> Iterator[Any]:
    """The layers of blocks in the order in which upstream runs them."""
    for block in blocks:
        match block:
            case UNetMidBlock2D() | MidBlockTemporalDecoder():
                first, *others = cast(Any, block.resnets)
                yield first
                # not strict: upstream's temporal one has a single attention, and runs no resnet without one
                for attention, resnet in zip(cast(Any, block.attentions), others, strict=False):
                    yield from (resnet,) if attention is None else (attention, resnet)
            case UpDecoderBlock2D() | UpBlockTemporalDecoder():
                yield from (*cast(Any, block.resnets), *(block.upsamplers or ()))
            case DownEncoderBlock2D():
                yield from (*cast(Any, block.resnets), *(block.downsamplers or ()))
            case _:
                raise GenPropError(
                    f"an autoencoder with a {type(block).__name__} cannot be run in slices",
                    "leave base.slice out",
                )


def _each_frame(layers: list[Any], clip: list[Tensor], size: int) -> None:
    for index in range(len(clip)):
        clip[index] = _through(layers, clip[index], size)


def _through(layers: list[Any], frame: Tensor, size: int) -> Tensor:
    for layer in layers:
        frame = _spatial(layer, frame, size)
    return frame


def _spatial(layer: Any, x: Tensor, size: int) -> Tensor:
    """`layer(x)` of one frame."""
    match layer:
        case Attention():
            return layer(x)
        case Tail():
            ready = _Normed(layer.norm, layer.act, [x[..., rows, :] for rows in _bands(x, size)])
            return _by_rows(lambda rows: layer.conv(ready(x[..., rows, :])), x, size, halo=1)
        case ResnetBlock2D():
            return _resnet(layer, x, size)
        case Upsample2D():
            return _by_rows(lambda rows: layer(x[..., rows, :]), x, size // 4, halo=1, scale=2)
        case Downsample2D():
            # Pads below and on the right only: row i reads 2i, 2i + 1 and 2i + 2.
            bands = _bands(x, size, multiple=2)
            return torch.cat([layer(x[..., rows.start : rows.stop + 1, :]) for rows in bands], dim=-2)
        case nn.Conv2d():
            return _by_rows(lambda rows: layer(x[..., rows, :]), x, size, halo=layer.kernel_size[0] // 2)
    raise AssertionError(f"no way to slice a {type(layer).__name__}")


def _resnet(layer: Any, x: Tensor, size: int) -> Tensor:
    size = size * x.shape[1] // max(x.shape[1], layer.out_channels)
    if x.numel() <= size:
        return layer(x, None)
    norm1 = _Normed(layer.norm1, layer.nonlinearity, (x[..., rows, :] for rows in _bands(x, size)))
    h = _by_rows(lambda rows: layer.conv1(norm1(x[..., rows, :])), x, size, halo=1)
    norm2 = _Normed(layer.norm2, layer.nonlinearity, (h[..., rows, :] for rows in _bands(h, size)))

    def rest(rows: slice) -> Tensor:
        skip = x[..., rows, :]
        if layer.conv_shortcut is not None:
            skip = layer.conv_shortcut(skip)
        return (skip + layer.conv2(norm2(h[..., rows, :]))) / layer.output_scale_factor

    return _by_rows(rest, x, size, halo=1)


def _mix_frames(block: SpatioTemporalResBlock, clip: list[Tensor], size: int) -> None:
    """The temporal half of `block`, in place. Its convolutions are 1 x 1 in space, so bands need no halo."""
    layer: Any = block.temporal_res_block
    bands = _bands(clip[0], size // len(clip))
    norm1 = _Normed(layer.norm1, layer.nonlinearity, (_take(clip, rows) for rows in bands))
    hidden = [torch.empty_like(frame) for frame in clip]
    for rows in bands:
        _put(hidden, rows, layer.conv1(norm1(_take(clip, rows))))
    norm2 = _Normed(layer.norm2, layer.nonlinearity, (_take(hidden, rows) for rows in bands))
    video = clip[0].new_zeros(1, len(clip))  # upstream's image_only_indicator: no frame is a lone image
    for rows in bands:
        spatial = _take(clip, rows)
        temporal = spatial + layer.conv2(norm2(_take(hidden, rows)))
        _put(clip, rows, block.time_mixer(spatial, temporal, image_only_indicator=video))


class _Normed:
    """Group norm and activation, with the statistics of all `slices` together, float32 inside as upstream."""

    def __init__(self, norm: nn.GroupNorm, act: nn.Module, slices: Iterable[Tensor]) -> None:
        found = []
        for part in slices:
            groups = part.float().reshape(norm.num_groups, -1)
            variance, mean = torch.var_mean(groups, dim=1, correction=0)
            found.append(torch.stack([torch.full_like(mean, groups.shape[1]), mean, variance]).double())
        count, means, variances = torch.stack(found, dim=1)
        share = count / count.sum(0)
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        each = norm.num_channels // norm.num_groups
        scale = norm.weight.double() * (variance + norm.eps).rsqrt().repeat_interleave(each)
        shift = norm.bias.double() - mean.repeat_interleave(each) * scale
        self.scale, self.shift, self.act = scale.float(), shift.float(), act

    def __call__(self, part: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (part.ndim - 2)
        normed = torch.addcmul(self.shift.view(shape), part.float(), self.scale.view(shape))
        return self.act(normed.to(part.dtype))


def _bands(x: Tensor, size: int, *, multiple: int = 1) -> list[slice]:
    """Bands of rows of a frame, of `size` numbers each, cut at multiples of `multiple`."""
    height = x.shape[-2]
    rows = max(1, size // (x.numel() // height) // multiple) * multiple
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def _by_rows(
    function: Callable[[slice], Tensor], x: Tensor, size: int, *, halo: int, scale: int = 1
) -> Tensor:
    """What a convolution, `function` of rows of the frame `x`, makes of all of it.

    Each band is given `halo` rows more on both sides, and loses what came of them: at the cut, the padding
    that the convolution put there; at the frame's border there are none, and the padding is the right one.
    """
    height, bands = x.shape[-2], _bands(x, size)
    if len(bands) == 1:
        return function(bands[0])
    parts = []
    for rows in bands:
        wide = slice(max(0, rows.start - halo), min(height, rows.stop + halo))
        start = scale * (rows.start - wide.start)
        parts.append(function(wide)[..., start : start + scale * (rows.stop - rows.start), :])
    return torch.cat(parts, dim=-2)


def _take(clip: list[Tensor], rows: slice) -> Tensor:
    """A band of all frames, `[1, C, T, r, W]`."""
    return torch.stack([frame[..., rows, :] for frame in clip], dim=2)


def _put(clip: list[Tensor], rows: slice, band: Tensor) -> None:
    for frame, part in zip(clip, band.unbind(2), strict=True):
        frame[..., rows, :] = part
