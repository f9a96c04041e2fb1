"""GenProp's network: frozen backbone, Selective Content Encoder and Mask Prediction Decoder in one `Net`.

Teacher and student are both this class; they differ in what was trained and how it is sampled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genprop.config import NetConfig, SceConfig
from genprop.teacher.carry import Carried, Carry
from genprop.teacher.gate import MaskGate
from genprop.teacher.mpd import MaskPredictionDecoder
from genprop.teacher.sce import SceOut, SelectiveContentEncoder
from genprop.teacher.unet import Backbone, Stem
from genprop.types import NetOut


class Parts(NamedTuple):
    """A forward with what the losses and the metrics need of its inside.

    `reference` is what the content encoder read beside the original: the edited first frame in every
    frame, carried along where the network has a carry.
    """

    out: NetOut
    stem: Stem
    sce: SceOut
    injection_ratio: Tensor
    reference_btchw: Tensor
    carried: Carried | None


class GenPropNet(nn.Module):
    """`(sample, timestep, first, source, image_embedding, added_time_ids) -> NetOut`; see `types.Net`.

    Args:
        backbone: the image-to-video backbone. It is frozen here; a student's LoRA is added after.
        config: mask decoder and what stands beside it.
        sce: the content encoder and its injections.
    """

    def __init__(self, backbone: Backbone, config: NetConfig, sce: SceConfig) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.sce = SelectiveContentEncoder(backbone, sce)
        widths = backbone.config["block_out_channels"]
        self.mpd = MaskPredictionDecoder(widths[min(1, len(widths) - 1)], hidden=config.mpd_hidden)
        self.gate = MaskGate() if config.gate else None
        channels = backbone.config["out_channels"]
        self.carry = Carry(channels, config.carry) if config.carry else None
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

    def parts(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> Parts:
        """`forward`, with the content encoder's output and the injected-to-backbone ratio of deviations."""
        stem = self.backbone.stem(
            torch.cat([sample, first], dim=2), timestep, image_embedding, added_time_ids
        )
        carried = None if self.carry is None else self.carry(source, first)
        reference = first if carried is None else carried.latents_btchw.to(first.dtype)
        sce = self.sce(stem, source, reference)
        residuals = tuple(self.injection_weight * r for r in sce.residuals_nchw)
        blocks = self.sce.injection == "blocks"
        body = self.backbone.body(stem, () if blocks else residuals, residuals if blocks else ())
        b, t, _, h, w = sample.shape
        logits = self.mpd(body.penultimate_nchw, size=(h, w)).unflatten(0, (b, t))
        velocity = body.velocity_btchw
        if self.gate is not None:
            velocity = self.gate(
                velocity, logits, sample=sample, timestep=timestep, source=source, carried=carried
            )
        with torch.no_grad():
            ratio = torch.stack(
                [
                    residual.float().std() / target.float().std()
                    for residual, target in zip(residuals, body.targets_nchw, strict=False)
                ]
            ).max()
        return Parts(NetOut(velocity, logits), stem, sce, ratio, reference, carried)
