"""The region-aware loss (GenProp, section 3.3) and the masks it needs on the latent grid.

    L = L_nonmask + w_mask L_mask + w_grad L_grad + w_mpd L_mpd + w_temporal L_temporal

Every loss is the mean over a batch of what each sample has on its own, so that a batch may be split among
processes. The means by region that are only logged (`hole`, `keep`, `iou`) are pooled over the batch.

Legend: as in `unet.py`; masks are `[B, T, 1, h, w]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.draws import Draws
from genprop.settings import LossConfig

BLUR_CELLS = 2.0
"""Deviation, in latent cells, of the blur of `blur_inside`."""


def blur(x_nchw: Tensor, *, deviation: float, radius: int) -> Tensor:
    """A Gaussian over height and width, cut off at `radius`; beyond the border, the nearest. In float32."""
    taps = torch.arange(-radius, radius + 1, device=x_nchw.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (taps / deviation) ** 2)
    kernel = kernel / kernel.sum()
    single = x_nchw.float().flatten(0, 1).unsqueeze(1)
    padded = F.pad(single, (radius,) * 4, mode="replicate")
    with torch.autocast(x_nchw.device.type, enabled=False):  # it would round a mask to 8 bits
        blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return blurred.view_as(x_nchw)


def blur_inside(source_btchw: Tensor, mask_bt1hw: Tensor) -> Tensor:
    """Latents, blurred where the mask is: what lies there is hidden, its colour is not."""
    blurred = blur(source_btchw.flatten(0, 1), deviation=BLUR_CELLS, radius=round(2 * BLUR_CELLS))
    return torch.lerp(source_btchw, blurred.view_as(source_btchw), mask_bt1hw.expand_as(source_btchw))


def latent_mask(mask_bthw: Tensor, size: tuple[int, int], *, kind: str) -> Tensor:
    """A pixel mask on the latent grid, `[B, T, 1, h, w]`.

    Args:
        mask_bthw: bool or float, `[B, T, H, W]`.
        size: `(h, w)`, each a divisor of `(H, W)`.
        kind: "nearest" (the course report), or "gaussian" (the paper): blurred by half a cell, then averaged,
            so that a cell which an edge crosses counts by its share.
    """
    flat = mask_bthw.flatten(0, 1).float().unsqueeze(1)
    if kind == "nearest":
        small = F.interpolate(flat, size=size, mode="nearest")
    else:
        cell = flat.shape[-1] // size[1]
        small = F.adaptive_avg_pool2d(blur(flat, deviation=0.5 * cell, radius=cell), size)
    return small.unflatten(0, mask_bthw.shape[:2])


def region_terms(error_btchw: Tensor, mask_bt1hw: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The squared error by region, and the mean of each region for the log.

    `nonmask` and `mask` are normalised over all elements, so that they add up to the plain mean at weight 1,
    or (`normalise = "region"`) over each region's own elements in a sample, so that a small edit counts as
    much as a large one; a region that a sample lacks counts 0. `keep` and `hole` are the mean over the
    region's own elements, in any case.
    """
    squared = error_btchw.float() ** 2
    inside, outside = squared * mask_bt1hw, squared * (1 - mask_bt1hw)
    channels = squared.shape[2]
    with torch.no_grad():
        hole = inside.sum() / (mask_bt1hw.sum() * channels).clamp(min=1e-6)
        keep = outside.sum() / ((1 - mask_bt1hw).sum() * channels).clamp(min=1e-6)
    if config.normalise == "region":
        mask, nonmask = _own_mean(inside, mask_bt1hw), _own_mean(outside, 1 - mask_bt1hw)
    else:
        mask, nonmask = inside.mean(), outside.mean()
    return {
        "nonmask": nonmask,
        "mask": mask,
        "region": nonmask + config.mask * mask,
        "hole": hole,
        "keep": keep,
    }


def _own_mean(masked_btchw: Tensor, weight_bt1hw: Tensor) -> Tensor:
    """The mean over each sample's own region, averaged over the batch."""
    elements = weight_bt1hw.flatten(1).sum(1) * masked_btchw.shape[2]
    return (masked_btchw.flatten(1).sum(1) / elements.clamp(min=1e-6)).mean()


def temporal_loss(error_btchw: Tensor) -> Tensor:
    """L_temporal: the squared error of the differences between neighbouring frames; 0 of a single frame.

    Of the same error as the other terms: an error that stands still costs nothing here, one that flickers
    does. (A velocity's error is the x0's over c_out, so noise levels weigh as EDM has them.)
    """
    flicker = error_btchw.float().diff(dim=1)
    return (flicker**2).sum() / max(1, flicker.numel())


def gradient_loss(
    features: Callable[[Tensor], Sequence[Tensor]],
    source_btchw: Tensor,
    mask_bt1hw: Tensor,
    *,
    step: float,
    draws: Draws,
    at_source: Sequence[Tensor] | None = None,
) -> Tensor:
    """L_grad: how much the content encoder's features change with what is under the mask.

    The finite difference along a random direction inside the mask, squared, with gradient through both
    branches (GenProp, section 3.3).

    Args:
        features: the content encoder as a function of `source`; the mean is over its outputs' own means.
        at_source: `features(source)`, where that is at hand.
    """
    direction = draws.randn(*source_btchw.shape[1:])
    there = features(source_btchw + step * direction * mask_bt1hw)
    here = features(source_btchw) if at_source is None else at_source
    slopes = [(((t - h).float() / step) ** 2).mean() for t, h in zip(there, here, strict=True)]
    return torch.stack(slopes).mean()


def carry_loss(carried_btchw: Tensor, target_btchw: Tensor, mask_bt1hw: Tensor) -> Tensor:
    """The squared error of the carried first frame in the hole; cells far from it weigh a tenth.

    Frame 0 does not count: it is given.
    """
    squared = (carried_btchw - target_btchw)[:, 1:].float() ** 2
    weight = mask_bt1hw[:, 1:] + 0.1
    each = (squared * weight).flatten(1).sum(1) / (weight.flatten(1).sum(1) * squared.shape[2])
    return each.mean()  # by sample, so that a batch may be split among processes


def picture_terms(ours_nchw: Tensor, true_nchw: Tensor, *, cell: int) -> dict[str, Tensor]:
    """What a decoder's pictures are judged by: `l1`, `gradient` (L1 of the slopes) and `texture`; in [-1, 1].

    `psnr` (dB) and `sharpness` (their slopes' share of the true ones) are for the log.
    """
    slopes = [(ours_nchw.diff(dim=d), true_nchw.diff(dim=d)) for d in (-1, -2)]
    terms = {
        "l1": F.l1_loss(ours_nchw, true_nchw),
        "gradient": torch.stack([F.l1_loss(ours, true) for ours, true in slopes]).sum(),
        "texture": texture_error(ours_nchw, true_nchw, cell=cell).mean(),
    }
    with torch.no_grad():
        terms["psnr"] = 10 * torch.log10(4 / F.mse_loss(ours_nchw, true_nchw))
        sharp = [torch.stack([slope.abs().mean() for slope in of]).sum() for of in zip(*slopes, strict=True)]
        terms["sharpness"] = sharp[0] / sharp[1]
    return terms


def texture_error(ours_nchw: Tensor, true_nchw: Tensor, *, cell: int) -> Tensor:
    """How far two pictures' mean absolute slopes are apart in each cell of pixels, `[N, H / cell, W / cell]`.

    It asks for as much texture as the truth has, wherever in the cell: no blurred mean is near it.
    """

    def slopes(image: Tensor) -> list[Tensor]:
        ends = (image[..., -1:], image[..., -1:, :])
        return [image.diff(dim=d, append=end).abs() for d, end in zip((-1, -2), ends, strict=True)]

    pooled = (
        F.avg_pool2d(ours, cell) - F.avg_pool2d(true, cell)
        for ours, true in zip(slopes(ours_nchw), slopes(true_nchw), strict=True)
    )
    return torch.stack([difference.abs().mean(1) for difference in pooled]).sum(0)


def mask_loss(logits_bt1hw: Tensor, mask_bt1hw: Tensor, *, kind: str, balance: float = 1.0) -> Tensor:
    """L_mpd: binary cross-entropy (the report) or squared error of the probability (the paper).

    Args:
        balance: how much more a cell of the mask counts than one outside: masks are small, and above 1 a
            decoder that says "nowhere" is not nearly right.
    """
    logits = logits_bt1hw.float()
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, mask_bt1hw, pos_weight=logits.new_tensor(balance))
    return ((1 + (balance - 1) * mask_bt1hw) * (logits.sigmoid() - mask_bt1hw) ** 2).mean()


def mask_iou(logits_bt1hw: Tensor, mask_bt1hw: Tensor) -> Tensor:
    """Intersection over union on the latent grid, both cut at one half; 1 where both are empty."""
    predicted, true = logits_bt1hw > 0, mask_bt1hw > 0.5
    union = (predicted | true).sum()
    return torch.where(union > 0, (predicted & true).sum() / union.clamp(min=1), 1.0)
