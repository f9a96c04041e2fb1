"""The composite of one frame: moved pixels where something is known, the model's where nothing is.

Outside of the hole every pixel is the source's, bit for bit. What is generated meets its surroundings in the
gradient domain (Perez et al. 2003): the membrane of the difference at its border takes away any seam and any
shift of colour that an autoencoder makes. Then it gets the grain of what is around it.
"""

from __future__ import annotations

import cv2
import numpy as np

from genprop.guide.fill import membrane
from genprop.guide.geometry import box, grow

HALF_TRUSTED = 0.5
"""Known pixels of less trust than this are mixed with generated ones."""

GRAIN = 1.0
"""Grain below this, in grey levels, is none."""

MARGIN = 24


def blend(
    source: np.ndarray,
    *,
    hole: np.ndarray,
    known: np.ndarray,
    trust: np.ndarray,
    generated: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """A frame with its hole filled.

    Args:
        source: uint8 `[H, W, 3]`.
        hole: what is replaced, bool `[H, W]`.
        known: pixels of other frames, moved here, uint8 `[H, W, 3]`.
        trust: how far they are to be trusted, float32 `[H, W]`; 0 where nothing is known.
        generated: a model's picture, float32 `[H, W, 3]`; with none, what is unseen is filled smoothly.
        seed: of the grain.

    Returns:
        uint8 `[H, W, 3]`.
    """
    result = source.copy()
    if not hole.any():
        return result
    result[hole] = known[hole]
    unseen = hole & (trust <= 0)
    unsure = hole & (trust < HALF_TRUSTED) if generated is not None else unseen
    if not unsure.any():
        return result
    rows, columns = box(unsure, margin=MARGIN)
    patch, gap, open_ = result[rows, columns], unsure[rows, columns], unseen[rows, columns]
    values = patch.astype(np.float32)
    if gap.all():
        return result if generated is None else np.where(unseen[..., None], _bytes(generated), result)
    if generated is None:
        filled = membrane(values, gap)
    else:
        made = generated[rows, columns].astype(np.float32)
        filled = made + membrane(np.where(gap[..., None], 0, values - made), gap)
        weight = np.where(open_, 0, np.minimum(trust[rows, columns] / HALF_TRUSTED, 1))[..., None]
        filled = weight * values + (1 - weight) * filled
    rng = np.random.default_rng(seed)
    filled = _with_grain(filled, source[rows, columns], gap=open_, ring=~hole[rows, columns], rng=rng)
    patch[gap] = _bytes(filled)[gap]
    return result


def _with_grain(
    filled: np.ndarray, source: np.ndarray, *, gap: np.ndarray, ring: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The filled gap with as much noise as the source has around it, and it lacks."""
    if not gap.any():
        return filled
    around = grow(gap, MARGIN) & ring
    level = grain(source.astype(np.float32), around) if around.sum() > 100 else 0.0
    has = grain(filled, gap)
    lacking = np.sqrt(max(level**2 - has**2, 0.0))
    if lacking < GRAIN:
        return filled
    noise = rng.standard_normal(filled.shape[:2]).astype(np.float32) * np.float32(lacking)
    return filled + noise[..., None] * gap[..., None]


def grain(image: np.ndarray, where: np.ndarray) -> float:
    """The deviation of the noise in a region of float32 `[H, W, 3]`, in grey levels, robustly.

    A second difference along both axes cancels what is smooth (Immerkaer 1996); the median of its size over
    the region's calmer half leaves edges out.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    size = np.abs(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT)).mean(-1)[where]
    if not size.size:
        return 0.0
    return float(np.quantile(size, 0.25)) / 0.6


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)
