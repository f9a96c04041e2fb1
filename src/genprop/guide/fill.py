"""Filling a hole in one picture from its surroundings: smoothly, or with pieces of them."""

from __future__ import annotations

import cv2
import numpy as np

from genprop.errors import GenPropError
from genprop.guide.geometry import box, grow

SWEEPS = 24
"""Relaxations of the membrane on each level of its pyramid: enough for a grey level's exactness."""

LARGEST = 320
"""The longest side of what is painted at once, in pixels: the time of a shift map grows with its area."""

NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4


def push_pull(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Smooth values where there are none, from those around, by a pyramid (Gortler et al. 1996, section 3.4).

    Args:
        values: float32 `[H, W, C]`.
        known: bool `[H, W]`; there values stay as they are.
    """
    return _push_pull(values.astype(np.float32), known.astype(np.float32))


def _push_pull(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    height, width, channels = values.shape
    if min(height, width) <= 2:
        mean = (values * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6)
        return np.where(weight[..., None] > 0, values, mean).astype(np.float32)
    half = (width + 1) // 2, (height + 1) // 2
    weighted = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
    less = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
    coarse = weighted.reshape(half[1], half[0], channels) / np.maximum(less, 1e-6)[..., None]
    smooth = _push_pull(coarse, (less > 1e-3).astype(np.float32))
    fine = cv2.resize(smooth, (width, height)).reshape(height, width, channels)
    return np.where(weight[..., None] > 0, values, fine)


def membrane(values: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The smoothest values in a hole that meet those around it: Laplace's equation, by a pyramid.

    It is what a gradient-domain seam adds to a patch (Perez et al. 2003, eq. 8). At the picture's border the
    values are level.

    Args:
        values: float32 `[H, W, C]`.
        hole: bool `[H, W]`; outside of it values stay as they are.
    """
    if not hole.any():
        return values
    if hole.all():
        raise GenPropError("the hole covers the whole picture, expected something around it")
    result = values.astype(np.float32, copy=True)
    rows, columns = box(hole, margin=2)
    result[rows, columns] = _membrane(result[rows, columns], hole[rows, columns])
    return result


def _membrane(values: np.ndarray, hole: np.ndarray) -> np.ndarray:
    if hole.all():  # its surroundings lie beyond the margin: not with a margin of 2
        return values
    height, width, channels = values.shape
    if min(height, width) > 6:
        half = (width + 1) // 2, (height + 1) // 2
        weight = (~hole).astype(np.float32)
        summed = cv2.resize(values * weight[..., None], half, interpolation=cv2.INTER_AREA)
        share = cv2.resize(weight, half, interpolation=cv2.INTER_AREA)
        if share.max() > 0:
            coarse = summed.reshape(half[1], half[0], channels) / np.maximum(share, 1e-6)[..., None]
            smooth = _membrane(coarse, share < 0.25)
            start = cv2.resize(smooth, (width, height)).reshape(height, width, channels)
        else:
            start = push_pull(values, ~hole)
    else:
        start = push_pull(values, ~hole)
    now = np.where(hole[..., None], start, values).astype(np.float32)
    inside = np.repeat(hole[..., None], channels, axis=-1)
    for _ in range(SWEEPS):
        means = cv2.filter2D(now, -1, NEIGHBOURS, borderType=cv2.BORDER_REPLICATE)
        np.copyto(now, means.reshape(now.shape), where=inside)
    return now


def paint(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill a hole with pieces of what is around it: a shift map (Pritch et al. 2009), its seam made smooth.

    Args:
        image: uint8 `[H, W, 3]`, unchanged outside of the hole.
        hole: bool `[H, W]`.

    Raises:
        GenPropError: the hole covers the whole picture.
    """
    if hole.all():
        raise GenPropError(
            "the mask covers the whole frame, nothing is left to fill from", "Mask the object only."
        )
    if not hole.any():
        return image
    rows, columns = box(hole, margin=max(24, round(0.6 * np.sqrt(hole.sum()))))
    crop, gap = image[rows, columns], hole[rows, columns]
    if gap.all():
        crop, gap, rows, columns = image, hole, slice(None), slice(None)
    pieces = _shift_map(crop, gap)
    values = crop.astype(np.float32)
    if pieces is None:
        filled = membrane(values, gap)
    else:
        # The difference to what is around, just outside of the hole, is spread over the hole.
        difference = np.where(gap[..., None], 0, values - pieces)
        filled = np.where(gap[..., None], pieces + membrane(difference, gap), values)
    result = image.copy()
    patch = result[rows, columns]
    patch[gap] = filled[gap].round().clip(0, 255).astype(np.uint8)
    return result


def _shift_map(crop: np.ndarray, gap: np.ndarray) -> np.ndarray | None:
    """The crop, its gap and 2 pixels around it made of pieces, float32; None where that fails."""
    height, width = gap.shape
    scale = min(1.0, LARGEST / max(height, width))
    size = max(8, round(width * scale)), max(8, round(height * scale))
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    open_gap = cv2.resize(grow(gap, 2).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    if open_gap.all() or not open_gap.any():
        return None
    cv2.setRNGSeed(0)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    made = np.zeros_like(lab)
    try:
        cv2.xphoto.inpaint(lab, (1 - open_gap) * 255, made, cv2.xphoto.INPAINT_SHIFTMAP)
    except cv2.error:
        return None
    rgb = cv2.cvtColor(made, cv2.COLOR_LAB2RGB)
    if (rgb[open_gap > 0].max(axis=-1) == 0).mean() > 0.05 and small[open_gap == 0].min() > 0:
        return None  # it left the gap black
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
