"""SVD's backbone with its forward in two parts, so that residuals can be added between them.

`Backbone` is `UNetSpatioTemporalConditionModel` and nothing more: same constructor, same state-dict
keys, and with no residuals the same numbers bit for bit (a test holds it to that). Upstream has no
place to hand residuals in, which is why its forward is written out here as `stem` and `body`; blocks
and layers are upstream's. `checkpoint_blocks` turns on the recomputation of their activations.

Legend: b batch, t frames, n = b*t, c channels, h w latent grid, d embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.unets.unet_3d_blocks import (
    CrossAttnDownBlockSpatioTemporal,
    CrossAttnUpBlockSpatioTemporal,
    DownBlockSpatioTemporal,
    UNetMidBlockSpatioTemporal,
    UpBlockSpatioTemporal,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Stem(NamedTuple):
    """What the first convolution and the embeddings give; everything later reads from it."""

    features_nchw: Tensor
    time_embedding_nd: Tensor
    image_embedding_n1d: Tensor
    image_only_bt: Tensor


class Body(NamedTuple):
    """Velocity, the penultimate up block's features, and what residuals are added to, before they are.

    The last are the skip tensors or, where block residuals were given, the outputs of those blocks.
    """

    velocity_btchw: Tensor
    penultimate_nchw: Tensor
    targets_nchw: tuple[Tensor, ...]


def run_block(block: nn.Module, hidden: Tensor, stem: Stem) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One of upstream's down blocks: its output and its skip tensors."""
    if getattr(block, "has_cross_attention", False):
        return block(
            hidden_states=hidden,
            temb=stem.time_embedding_nd,
            encoder_hidden_states=stem.image_embedding_n1d,
            image_only_indicator=stem.image_only_bt,
        )
    return block(hidden_states=hidden, temb=stem.time_embedding_nd, image_only_indicator=stem.image_only_bt)


class RecomputedTransformer(TransformerSpatioTemporalModel):
    """Upstream's transformer, all of it recomputed in the backward pass; same state and same numbers.

    Upstream's own switch covers the residual blocks and the spatial half of a transformer. The temporal
    half, two feed-forward layers of it, is most of what a clip keeps in memory.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        image_only_indicator: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        arguments = (hidden_states, encoder_hidden_states, image_only_indicator, return_dict)
        if not torch.is_grad_enabled():
            return super().forward(*arguments)
        return recompute(super().forward, *arguments)


BLOCKS = (
    CrossAttnDownBlockSpatioTemporal,
    DownBlockSpatioTemporal,
    UNetMidBlockSpatioTemporal,
    CrossAttnUpBlockSpatioTemporal,
    UpBlockSpatioTemporal,
)


def recompute(layer: Callable[..., Any], *arguments: Any) -> Any:
    """`layer(*arguments)`, its activations recomputed in the backward pass.

    Not reentrant: the first layers of a frozen backbone have no input that needs a gradient, and the
    reentrant kind would then cut off the parameters of a content encoder.
    """
    return checkpoint(layer, *arguments, use_reentrant=False)


def checkpoint_blocks(*modules: nn.Module) -> None:
    """Recompute activations of all of upstream's spatio-temporal blocks within `modules`, from now on.

    Each residual block and each transformer keeps its input only: one more forward for most of the
    memory. In eval mode too: what counts is whether gradients are
    recorded. State-dict keys stay; a deep copy keeps the setting.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, BLOCKS):
                block: Any = layer  # upstream's attributes are not typed
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = recompute
            elif type(layer) is TransformerSpatioTemporalModel:
                # As torch's `fully_shard` does: a subclass without state of its own, so nothing else changes.
                layer.__class__ = RecomputedTransformer


class Backbone(UNetSpatioTemporalConditionModel):
    """The image-to-video backbone; `forward` is upstream's own."""

    def stem(
        self, sample_btchw: Tensor, timestep_b: Tensor, image_embedding_b1d: Tensor, added_time_ids: Tensor
    ) -> Stem:
        """Embeddings and the first convolution. `sample` is `c_in x` beside `first`, `[B, T, 2C, h, w]`."""
        b, t = sample_btchw.shape[:2]
        time = self.time_embedding(self.time_proj(timestep_b.expand(b)).to(sample_btchw.dtype))
        added = self.add_time_proj(added_time_ids.flatten()).reshape(b, -1).to(time.dtype)
        time = time + self.add_embedding(added)
        return Stem(
            features_nchw=self.conv_in(sample_btchw.flatten(0, 1)),
            time_embedding_nd=time.repeat_interleave(t, dim=0, output_size=b * t),
            image_embedding_n1d=image_embedding_b1d.repeat_interleave(t, dim=0, output_size=b * t),
            image_only_bt=torch.zeros(b, t, dtype=sample_btchw.dtype, device=sample_btchw.device),
        )

    def body(
        self,
        stem: Stem,
        skip_residuals: Sequence[Tensor] = (),
        block_residuals: Sequence[Tensor] = (),
    ) -> Body:
        """All after the first convolution.

        Args:
            stem: from `stem`.
            skip_residuals: one for each of the first skip connections (stem, each resnet, downsampler),
                added to it on its way to the up blocks, as ControlNet does.
            block_residuals: one for each of the first down blocks, added to its output.
        """
        b, t = stem.image_only_bt.shape
        hidden = stem.features_nchw
        skips, covered = (hidden,), ()
        for i, block in enumerate(self.down_blocks):
            hidden, block_skips = run_block(block, hidden, stem)
            if i < len(block_residuals):
                covered += (hidden,)
                hidden = hidden + block_residuals[i]
                block_skips = (*block_skips[:-1], hidden)
            skips += block_skips
        hidden = self.mid_block(
            hidden_states=hidden,
            temb=stem.time_embedding_nd,
            encoder_hidden_states=stem.image_embedding_n1d,
            image_only_indicator=stem.image_only_bt,
        )
        remaining = tuple(
            skip + skip_residuals[i] if i < len(skip_residuals) else skip for i, skip in enumerate(skips)
        )
        penultimate = hidden
        up_blocks: Any = self.up_blocks  # upstream's, of either kind
        for block in up_blocks:
            penultimate = hidden
            count = len(block.resnets)
            taken, remaining = remaining[-count:], remaining[:-count]
            # Given always: for grids that halve evenly it is the size that upstream computes itself.
            arguments: dict[str, Any] = {"upsample_size": remaining[-1].shape[2:]} if remaining else {}
            if getattr(block, "has_cross_attention", False):
                arguments["encoder_hidden_states"] = stem.image_embedding_n1d
            hidden = block(
                hidden_states=hidden,
                temb=stem.time_embedding_nd,
                res_hidden_states_tuple=taken,
                image_only_indicator=stem.image_only_bt,
                **arguments,
            )
        out = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return Body(out.unflatten(0, (b, t)), penultimate, covered or skips)
