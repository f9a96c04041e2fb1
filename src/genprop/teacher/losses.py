"""The region-aware loss (GenProp, section 3.3) and the masks it needs on the latent grid.

    L = L_nonmask + w_mask L_mask + w_grad L_grad + w_mpd L_mpd

Legend: as in `unet.py`; masks are `[B, T, 1, h, w]` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.config import LossConfig
from genprop.draws import Draws


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
        radius = cell
        taps = torch.arange(-radius, radius + 1, device=flat.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (taps / (0.5 * cell)) ** 2)
        kernel = kernel / kernel.sum()
        padded = F.pad(flat, (radius,) * 4, mode="replicate")
        blurred = F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
        small = F.adaptive_avg_pool2d(blurred, size)
    return small.unflatten(0, mask_bthw.shape[:2])


def region_terms(error_btchw: Tensor, mask_bt1hw: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """The squared error by region, and the mean of each region for the log.

    `nonmask` and `mask` are normalised over all elements, so that they add up to the plain mean at weight 1;
    `keep` and `hole` are the mean over the region's own elements.
    """
    squared = error_btchw.float() ** 2
    inside, outside = squared * mask_bt1hw, squared * (1 - mask_bt1hw)
    channels = squared.shape[2]
    with torch.no_grad():
        hole = inside.sum() / (mask_bt1hw.sum() * channels).clamp(min=1e-6)
        keep = outside.sum() / ((1 - mask_bt1hw).sum() * channels).clamp(min=1e-6)
    nonmask, mask = outside.mean(), inside.mean()
    return {
        "nonmask": nonmask,
        "mask": mask,
        "region": nonmask + config.mask * mask,
        "hole": hole,
        "keep": keep,
    }


def gradient_loss(
    features: Callable[[Tensor], Tensor],
    source_btchw: Tensor,
    mask_bt1hw: Tensor,
    *,
    step: float,
    draws: Draws,
    at_source: Tensor | None = None,
) -> Tensor:
    """L_grad: how much the content encoder's features change with what is under the mask.

    The finite difference along a random direction inside the mask, squared, with gradient through both
    branches (GenProp, section 3.3).

    Args:
        features: the content encoder as a function of `source`.
        at_source: `features(source)`, where that is at hand.
    """
    direction = draws.randn(*source_btchw.shape[1:])
    there = features(source_btchw + step * direction * mask_bt1hw)
    here = features(source_btchw) if at_source is None else at_source
    return (((there - here).float() / step) ** 2).mean()


def carry_loss(carried_btchw: Tensor, target_btchw: Tensor, mask_bt1hw: Tensor) -> Tensor:
    """The squared error of the carried first frame in the hole; cells far from it weigh a tenth.

    Frame 0 does not count: it is given.
    """
    squared = (carried_btchw - target_btchw)[:, 1:].float() ** 2
    weight = mask_bt1hw[:, 1:] + 0.1
    each = (squared * weight).flatten(1).sum(1) / (weight.flatten(1).sum(1) * squared.shape[2])
    return each.mean()  # by sample, so that a batch may be split among processes


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


def mask_loss(logits_bt1hw: Tensor, mask_bt1hw: Tensor, *, kind: str) -> Tensor:
    """L_mpd: binary cross-entropy (the report) or squared error of the probability (the paper)."""
    logits = logits_bt1hw.float()
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, mask_bt1hw)
    return F.mse_loss(logits.sigmoid(), mask_bt1hw)


def mask_iou(logits_bt1hw: Tensor, mask_bt1hw: Tensor) -> Tensor:
    """Intersection over union on the latent grid, both cut at one half; 1 where both are empty."""
    predicted, true = logits_bt1hw > 0, mask_bt1hw > 0.5
    union = (predicted | true).sum()
    return torch.where(union > 0, (predicted & true).sum() / union.clamp(min=1), 1.0)
