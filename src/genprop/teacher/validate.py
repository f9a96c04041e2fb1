"""Validation in training: fixed clips are sampled, measured by region, and shown.

What a clip should be is the truth through the autoencoder: what the network is asked for, and all that a
latent cache still has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.latents import Autoencoder
from genprop.loop import Validate, Validation
from genprop.metrics import MaskIoU, RegionPsnr, RegionSsim
from genprop.pixels import to_uint8
from genprop.sheet import contact_sheet
from genprop.teacher.losses import region_terms
from genprop.teacher.objective import TeacherObjective
from genprop.types import Cond

LOUD_INJECTION = 3.0
"""Above it, injected features drown the backbone's; the course report measured 14.7 and 260.9."""
VALIDATION_STEPS = 10
"""Of the sampler: enough to see what is learned, at a fraction of the teacher's own number."""
SHOWN = 2
"""Clips on the contact sheet; the first of them is the video."""

logger = logging.getLogger(__name__)


def sampled_validation(
    objective: TeacherObjective,
    held_out: Batch,
    autoencoder: Autoencoder,
    sample: Callable[[Tensor, Cond], tuple[Tensor, Tensor]],
) -> Validate:
    """Validation by sampling `held_out`, always from the same noise.

    Scalars: the objective's own terms under `loss/`; of the samples, squared latent error by region, PSNR
    (dB) and SSIM of the decoded frames by region, and mask IoU; the injection ratio. A contact sheet of
    `SHOWN` clips, and a video of the first: original, truth, sample and mask side by side.

    Args:
        sample: noise and condition to `(x0, mask_logits)`.
    """

    def validate(step: int) -> Validation:
        batch, device = beside(objective, held_out)
        autoencoder.to(device)
        inputs = objective.inputs(batch, None)
        noise = Draws.of(0, len(inputs.target), device=device).randn(*inputs.target.shape[1:])
        x0, logits = sample(noise, inputs.cond)
        errors = region_terms((x0 - inputs.target)[:, 1:], inputs.mask[:, 1:], objective.config.loss)
        psnr, ssim, iou, shown = RegionPsnr(), RegionSsim(), MaskIoU(), []
        for i, mask in enumerate(held_out["mask"].numpy()):
            frames = {
                name: to_uint8(autoencoder.decode(latents[i : i + 1])[0]).cpu().numpy()
                for name, latents in (("truth", inputs.target), ("sample", x0))
            }
            psnr.add(frames["sample"], frames["truth"], mask)
            ssim.add(frames["sample"], frames["truth"], mask)
            likely = F.interpolate(logits[i].sigmoid(), size=mask.shape[1:], mode="bilinear")[:, 0]
            predicted = (likely > 0.5).cpu().numpy()
            iou.add(predicted, mask)
            if i < SHOWN:
                original = to_uint8(autoencoder.decode(inputs.cond.source[i : i + 1])[0]).cpu().numpy()
                shown.append({"original": original, **frames, "mask": predicted})
        terms = numbers(objective(batch, Draws.of(0, len(x0), device=device)))
        ratio = terms.pop("injection_ratio")
        if ratio > LOUD_INJECTION:
            logger.warning("injected features deviate %.1f times as much as the backbone's", ratio)
        scalars = {
            "hole": float(errors["hole"]),
            "keep": float(errors["keep"]),
            "hole_psnr": psnr.hole,
            "keep_psnr": psnr.keep,
            "hole_ssim": ssim.hole,
            "keep_ssim": ssim.keep,
            "iou": iou.value,
            "injection_ratio": ratio,
            **{f"loss/{name}": value for name, value in terms.items()},
        }
        rows = [(f"{name} {i}", clip) for i, clips in enumerate(shown) for name, clip in clips.items()]
        video = side_by_side(list(shown[0].values()))
        return Validation(scalars, contact_sheet(rows), video, objective.config.clip.fps)

    return validate


def term_validation(objective: nn.Module, held_out: Batch, *, draws: int = 1) -> Validate:
    """Validation by an objective's own terms, their mean over so many draws of noise."""

    def validate(step: int) -> Validation:
        batch, device = beside(objective, held_out)
        terms = [
            numbers(objective(batch, Draws.of(seed, len(batch["target"]), device=device)))
            for seed in range(draws)
        ]
        return Validation({name: float(np.mean([t[name] for t in terms])) for name in terms[0]})

    return validate


def beside(objective: nn.Module, batch: Batch) -> tuple[Batch, torch.device]:
    """A batch on the device of an objective, and that device."""
    device = next(objective.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}, device


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers."""
    return {name: float(value) for name, value in terms.items()}


def side_by_side(clips: list[np.ndarray], *, gap: int = 4) -> np.ndarray:
    """Clips as one: uint8 `[T, H, W, 3]`, or masks, bool `[T, H, W]`."""
    white = np.full((*clips[0].shape[:2], gap, 3), 255, np.uint8)
    row: list[np.ndarray] = []
    for clip in clips:
        if clip.dtype == bool:
            clip = np.repeat(clip[..., None].astype(np.uint8) * 255, 3, axis=-1)
        row += [clip, white]
    return np.concatenate(row[:-1], axis=2)
