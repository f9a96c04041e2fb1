"""What the teacher learns: the edit of one frame, carried through the clip (GenProp 3.2 and 3.3).

The content encoder reads the original clip, the target is the edited one, and the image condition is
dropped in some samples, so that guidance has its branch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from genprop.config import Config
from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.edm import add_noise, precondition, sample_sigma, velocity_target
from genprop.latents import ImageEncoder
from genprop.teacher.base import drop_condition
from genprop.teacher.losses import (
    blur_inside,
    carry_loss,
    gradient_loss,
    latent_mask,
    mask_iou,
    mask_loss,
    region_terms,
    temporal_loss,
)
from genprop.teacher.net import GenPropNet, Parts
from genprop.types import Cond


class Inputs(NamedTuple):
    """A batch as the network wants it: float32, condition, and the mask on the latent grid."""

    target: Tensor
    cond: Cond
    mask: Tensor


class TeacherObjective(nn.Module):
    """Denoising in v-prediction with the region-aware loss.

    Args:
        net: content encoder, injections and mask decoder train; the backbone is frozen.
        image_encoder: frozen.
    """

    def __init__(self, net: GenPropNet, image_encoder: ImageEncoder, config: Config) -> None:
        super().__init__()
        self.net, self.image_encoder, self.config = net, image_encoder, config

    def inputs(self, batch: Batch, draws: Draws | None) -> Inputs:
        """An encoded batch as the network wants it; with draws, the image condition of some is dropped.

        With `sce.source = "blurred"` the original is blurred inside the *true* mask, in validation as in
        training: an oracle, which shows what hiding the edited object is worth. At inference there is no
        such mask. With `net.guidance` the condition has the scale that is taken where none is asked for; a
        distillation that draws its own puts them in its place (`Cond.with_guidance`).
        """
        target, source = batch["target"].float(), batch["source"].float()
        first = batch["first"].float().unsqueeze(1).expand_as(target)
        if "embedding" in batch:
            embedding = batch["embedding"]
        else:
            with torch.no_grad():
                embedding = self.image_encoder.embed(batch["image"].float())
        if draws is not None:
            first, embedding = drop_condition(first, embedding, self.config.noise.drop, draws)
        mask = latent_mask(
            batch["mask"], (target.shape[-2], target.shape[-1]), kind=self.config.loss.downsample
        )
        if self.config.sce.source == "blurred":
            source = blur_inside(source, mask)
        cond = Cond(first, source, embedding, batch["added_time_ids"].float())
        if self.config.net.guidance:
            cond = cond.with_guidance(target.new_full((len(target),), self.config.guidance))
        return Inputs(target, cond, mask)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        inputs = self.inputs(batch, draws)
        target, cond, noise = inputs.target, inputs.cond, self.config.noise
        sigma = sample_sigma(draws, mean=noise.mean, std=noise.std)
        x = add_noise(target, draws.randn(*target.shape[1:]), sigma)
        p = precondition(sigma)
        parts = self.net.parts(
            p.c_in * x, p.c_noise, cond.first, cond.source, cond.image_embedding, cond.added_time_ids
        )
        error = parts.out.velocity.float() - velocity_target(target, x, sigma)
        return self.terms(parts, error, inputs, draws)

    def terms(self, parts: Parts, error: Tensor, inputs: Inputs, draws: Draws) -> dict[str, Tensor]:
        """The region-aware loss of an error, be it of a velocity or of an x0."""
        loss = self.config.loss
        terms = region_terms(error, inputs.mask, loss)
        terms["mpd"] = mask_loss(
            parts.out.mask_logits, inputs.mask, kind=loss.mpd_kind, balance=loss.mpd_balance
        )
        total = terms["region"] + loss.mpd * terms["mpd"]
        if loss.gradient:
            chosen = slice(-1 if loss.gradient_features == "last" else 0, None)
            terms["gradient"] = gradient_loss(
                lambda source: self.net.sce(parts.seen, source).features_nchw[chosen],
                inputs.cond.source,
                inputs.mask,
                step=loss.gradient_step,
                draws=draws,
                at_source=parts.sce.features_nchw[chosen],
            )
            total = total + loss.gradient * terms["gradient"]
        if loss.temporal:
            terms["temporal"] = temporal_loss(error)
            total = total + loss.temporal * terms["temporal"]
        if parts.carried is not None:
            dropped = ~inputs.cond.first.flatten(1).any(1)  # nothing can be carried from there
            carried = torch.where(dropped.view(-1, 1, 1, 1, 1), inputs.target, parts.carried.latents_btchw)
            terms["carry"] = carry_loss(carried, inputs.target, inputs.mask)
            total = total + loss.carry * terms["carry"]
        terms["iou"] = mask_iou(parts.out.mask_logits.detach(), inputs.mask)
        terms["injection_ratio"] = parts.injection_ratio
        return {"loss": total, **terms}


class CarryObjective(nn.Module):
    """The carry alone, before the teacher: no noise and no backbone, so it is learned many times faster.

    Args:
        region: of a network that has a carry.
    """

    def __init__(self, region: TeacherObjective) -> None:
        super().__init__()
        self.region = region

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        inputs = self.region.inputs(batch, None)
        assert self.region.net.carry is not None
        carried = self.region.net.carry(inputs.cond.source, inputs.cond.first).latents_btchw
        mask, settings = inputs.mask[:, 1:], self.region.config.loss
        with torch.no_grad():
            terms = region_terms((carried - inputs.target)[:, 1:], mask, settings)
            still = region_terms((inputs.cond.first - inputs.target)[:, 1:], mask, settings)
        loss = carry_loss(carried, inputs.target, inputs.mask)
        return {"loss": loss, "hole": terms["hole"], "keep": terms["keep"], "frozen_hole": still["hole"]}
