"""GenProp's network: frozen backbone, content encoder and Mask Prediction Decoder in one `Net`.

Teacher and student are both this class; they differ in what was trained and how it is sampled. The content
encoder is GenProp's copy or one of the alternatives (`KINDS`); nothing outside this file asks which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genprop.errors import GenPropError
from genprop.settings import NetConfig, SceConfig
from genprop.teacher.adapters import ConvAdapter, CtrlAdapter
from genprop.teacher.carry import Carried, Carry
from genprop.teacher.gate import MaskGate
from genprop.teacher.guidance import GuidanceEmbedding
from genprop.teacher.mpd import MaskPredictionDecoder
from genprop.teacher.sce import Place, SceOut, Seen, SelectiveContentEncoder
from genprop.teacher.unet import Backbone, Body, Stem
from genprop.teacher.unet3d import UNet3d
from genprop.types import GUIDANCE, TASK, TASKS, NetOut

KINDS = {
    "copy": SelectiveContentEncoder,
    "ctrl-adapter": CtrlAdapter,
    "conv-adapter": ConvAdapter,
    "unet3d": UNet3d,
}
"""The content encoders, by `sce.kind`."""


class Parts(NamedTuple):
    """A forward with what the losses and the metrics need of its inside.

    `seen` is what the content encoder read beside the original; `injection_ratio` the largest ratio of
    deviations of what is injected to what it is added to, 0 where nothing is.
    """

    out: NetOut
    seen: Seen
    sce: SceOut
    injection_ratio: Tensor
    carried: Carried | None


class Prepared(NamedTuple):
    """What the network makes of the clip alone, before any noise: the same in every step of a sampling.

    None is what a network does not have: a carry, or a content encoder with `sce.once`.
    """

    carried: Carried | None
    sce: SceOut | None


class GenPropNet(nn.Module):
    """`(sample, timestep, first, source, image_embedding, added_time_ids) -> NetOut`; see `types.Net`.

    A network with a task embedding (`net.tasks`) reads the fourth column of `added_time_ids`, the index in
    `types.TASKS` of the kind of edit; the embedding is added to the time embedding that the content encoder
    sees, and the frozen backbone does not. A student with embedded guidance (`net.guidance`) reads the fifth,
    the guidance scale, whose embedding both of them see. Columns that a network does not know it ignores.

    Args:
        backbone: the image-to-video backbone. It is frozen here; a student's LoRA is added after.
        config: mask decoder and what stands beside it.
        sce: the content encoder and its injections.
    """

    def __init__(self, backbone: Backbone, config: NetConfig, sce: SceConfig) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.sce = KINDS[sce.kind](backbone, sce)
        widths = backbone.config["block_out_channels"]
        width = self.sce.width if isinstance(self.sce, UNet3d) else widths[min(1, len(widths) - 1)]
        self.mpd = MaskPredictionDecoder(width, hidden=config.mpd_hidden)
        self.gate = MaskGate() if config.gate else None
        channels = backbone.config["out_channels"]
        self.carry = Carry(channels, config.carry) if config.carry else None
        time_width = 4 * widths[0]  # upstream's 4
        self.tasks = nn.Embedding(len(TASKS), time_width) if config.tasks else None
        self.guidance = GuidanceEmbedding(time_width) if config.guidance else None
        if self.tasks is not None:
            nn.init.normal_(self.tasks.weight, std=0.02)
        self.once = sce.once
        self.scale = sce.scale  # alpha, in training and after
        # How strongly the original is followed at inference, 0 to 1; 0 is the bare image-to-video model.
        self.injection_weight = 1.0

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        return self.parts(sample, timestep, first, source, image_embedding, added_time_ids).out

    def prepare(
        self, first: Tensor, source: Tensor, image_embedding: Tensor, added_time_ids: Tensor
    ) -> Prepared:
        """What depends on the clip alone: the carry, and a content encoder that is told no noise."""
        dtype = self.dtype
        first, source, image_embedding = first.to(dtype), source.to(dtype), image_embedding.to(dtype)
        carried = None if self.carry is None else self.carry(source, first)
        if not self.once:
            return Prepared(carried, None)
        sample, timestep = torch.zeros_like(first), added_time_ids.new_zeros(len(first))
        stem = self._stem(sample, timestep, first, image_embedding, added_time_ids)
        seen = self._seen(stem, sample, timestep, first, added_time_ids, carried)
        return Prepared(carried, self.sce(seen, source))

    def parts(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
        *,
        prepared: Prepared | None = None,
    ) -> Parts:
        """`forward`, with the content encoder's output and the injected-to-backbone ratio of deviations.

        In the precision of the weights, but for embeddings of numbers and the gate, which are float32.

        Args:
            prepared: what `prepare` has made of this clip; made here if None.
        """
        if prepared is None:
            prepared = self.prepare(first, source, image_embedding, added_time_ids)
        carried, dtype = prepared.carried, self.dtype
        inner, given = sample.to(dtype), first.to(dtype)
        stem = self._stem(inner, timestep, given, image_embedding.to(dtype), added_time_ids)
        seen = self._seen(stem, inner, timestep, given, added_time_ids, carried)
        sce = self.sce(seen, source.to(dtype)) if prepared.sce is None else prepared.sce
        residuals = tuple(self.scale * self.injection_weight * r for r in sce.residuals_nchw)
        if sce.answer is None:
            body, targets = inject(self.backbone, stem, residuals, self.sce.injection)
        else:
            body, targets = sce.answer, ()
        b, t, _, h, w = sample.shape
        logits = self.mpd(body.penultimate_nchw, size=(h, w)).unflatten(0, (b, t))
        velocity = body.velocity_btchw
        if self.gate is not None:
            velocity = self.gate(
                velocity, logits, sample=sample, timestep=timestep, source=source, carried=carried
            )
        with torch.no_grad():
            ratios = [
                residual.float().std() / target.float().std()
                for residual, target in zip(residuals, targets, strict=False)
            ]
            ratio = torch.stack(ratios).max() if ratios else velocity.new_zeros(())
        return Parts(NetOut(velocity, logits), seen, sce, ratio, carried)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of what happens inside."""
        return self.backbone.conv_in.weight.dtype

    def _stem(
        self, sample: Tensor, timestep: Tensor, first: Tensor, image_embedding: Tensor, added_time_ids: Tensor
    ) -> Stem:
        """The backbone's stem, told the guidance scale."""
        both = torch.cat([sample, first], dim=2)
        stem = self.backbone.stem(both, timestep, image_embedding, added_time_ids[:, :TASK])
        return _told(stem, self._guidance(added_time_ids))

    def _seen(
        self,
        stem: Stem,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        added_time_ids: Tensor,
        carried: Carried | None,
    ) -> Seen:
        """What the content encoder may read: the stem told the task, too, and the first frame, carried."""
        task, guidance = self._task(added_time_ids), self._guidance(added_time_ids)
        reference = first if carried is None else carried.latents_btchw.to(first.dtype)
        told = task if guidance is None else guidance if task is None else task + guidance
        return Seen(sample, timestep, _told(stem, task), reference, told)

    def _task(self, added_time_ids: Tensor) -> Tensor | None:
        """The embedding of the kind of edit, `[B, D]`."""
        if self.tasks is None:
            return None
        if (columns := added_time_ids.shape[1]) <= TASK:
            raise GenPropError(
                f"added_time_ids has {columns} columns, expected 4: the fourth is the task",
                "encode the data with tasks, or set net.tasks = false",
            )
        return self.tasks(added_time_ids[:, TASK].long())

    def _guidance(self, added_time_ids: Tensor) -> Tensor | None:
        """The embedding of the guidance scale, `[B, D]`."""
        if self.guidance is None:
            return None
        if (columns := added_time_ids.shape[1]) <= GUIDANCE:
            raise GenPropError(
                f"added_time_ids has {columns} columns, expected 5: the fifth is the guidance scale",
                "give the scale of each sample (`Cond.with_guidance`), or set net.guidance = false",
            )
        return self.guidance(added_time_ids[:, GUIDANCE])


def _told(stem: Stem, embedding_bd: Tensor | None) -> Stem:
    """The stem with the embedding of task or guidance added to its time embedding."""
    if embedding_bd is None:
        return stem
    b, t = stem.image_only_bt.shape
    time_nd = stem.time_embedding_nd
    of_each_frame = embedding_bd.to(time_nd.dtype).repeat_interleave(t, dim=0, output_size=b * t)
    return stem._replace(time_embedding_nd=time_nd + of_each_frame)


def inject(
    backbone: Backbone, stem: Stem, residuals: Sequence[Tensor], place: Place
) -> tuple[Body, tuple[Tensor, ...]]:
    """The backbone after its stem, residuals added in their place; and what each was added to."""
    if place == "stem":
        (residual,) = residuals
        body = backbone.body(stem._replace(features_nchw=stem.features_nchw + residual))
        return body, (stem.features_nchw,)
    body = (
        backbone.body(stem, block_residuals=residuals)
        if place == "blocks"
        else backbone.body(stem, residuals)
    )
    return body, body.targets_nchw
