"""The composite of one frame: moved pixels where something is known, the model's where nothing is.

Outside of the hole every pixel is the source's, bit for bit. What is generated meets its surroundings in the
gradient domain (Perez et al. 2003): the membrane of the difference at its border takes away any seam and any
shift of colour that an autoencoder makes. Then it gets the grain of what is around it. Known pixels stay as
they are, unless the camera's exposure has clearly changed since they were seen.

Shapes: H W pixels. Grey levels are 0 to 255.
"""

from __future__ import annotations

import cv2
import numpy as np

from genprop.guide.fill import membrane
from genprop.guide.geometry import box, grow, shrink

HALF_TRUSTED = 0.5
"""Known pixels of less trust than this are mixed with generated ones."""

MARGIN = 24
"""How far around the hole a composite looks, in pixels."""

SOFTEN = 5.0
"""The difference at a seam is averaged over about so many pixels: colours are met, not each pixel's noise."""
MOST_SHIFT = 15.0
"""A difference at a seam is no shift of colour as far as it is this many grey levels from the usual one."""

STEP_BAND = 3
"""The width in pixels of each of the bands, two inside of the hole's border and two outside, of a step."""
LEAST_STEP = 1.5
"""A smaller step of exposure, in grey levels, is left alone."""
MOST_STEP = 16.0
"""A larger one is another scene, not another exposure."""
STEP_REACH = 12.0
"""The correction of a step fades with the distance from the hole's border, in pixels."""

GRAIN = 1.0
"""Grain below this, in grey levels, is none."""
MOST_GRAIN = 4.0
"""What is above is taken for texture, which noise does not look like."""
GRAIN_MARGIN = 96
"""How far around the hole grain is measured, in pixels: a camera's grain is about the same all over a frame,
and close to the hole there is often nothing but texture."""
CALM = 0.05
"""The share of a region, of the least contrast, whose grain is measured; a larger one takes in texture."""
BLOCK = 15
"""Contrast is averaged over blocks of this side, in pixels."""
LEAST_CALM = 100
"""Fewer pixels than these do not tell their grain."""
LEAST_REGION = 500
"""Nor does a region of fewer: all of it may be texture."""


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
        uint8 `[H, W, 3]`, equal to `source` outside of the hole.
    """
    result = source.copy()
    if not hole.any():
        return result
    rows, columns = box(hole, margin=MARGIN)
    patch, gap = result[rows, columns], hole[rows, columns]
    share = (
        trust[rows, columns] > 0 if generated is None else (trust[rows, columns] / HALF_TRUSTED).clip(0, 1)
    )
    share = np.where(gap, share, 1).astype(np.float32)  # of the known pixels; the rest is generated
    values = np.where(gap[..., None], known[rows, columns], patch).astype(np.float32)
    values += _exposure(values, gap, seen=gap & (share == 1))
    if share.min() < 1:
        fill = _fill(values, None if generated is None else generated[rows, columns], open_=share < 1)
        wide = box(hole, margin=GRAIN_MARGIN)
        fill += _missing_grain(fill, source[wide], around=~hole[wide], unseen=share == 0, seed=seed)
        values = fill + share[..., None] * (values - fill)
    patch[gap] = values[gap].round().clip(0, 255).astype(np.uint8)
    return result


def _fill(values: np.ndarray, generated: np.ndarray | None, *, open_: np.ndarray) -> np.ndarray:
    """What is generated, its colours moved to those around the open pixels; or smooth, with none generated.

    What is left of the object just outside of a hole must not bleed into it: hence the average and the
    limit. With nothing around, generated colours stay as they are.
    """
    if open_.all():
        return values.copy() if generated is None else generated.astype(np.float32)
    if generated is None:
        return membrane(values, open_)
    around = grow(open_, 2 * SOFTEN) & ~open_
    apart = values - generated
    usual = np.median(apart[around], axis=0)
    closed = (~open_).astype(np.float32)
    apart = (usual + (apart - usual).clip(-MOST_SHIFT, MOST_SHIFT)) * closed[..., None]
    weight = np.maximum(cv2.GaussianBlur(closed, (0, 0), SOFTEN), 1e-6)
    return generated + membrane(cv2.GaussianBlur(apart, (0, 0), SOFTEN) / weight[..., None], open_)


def _exposure(values: np.ndarray, hole: np.ndarray, *, seen: np.ndarray) -> np.ndarray | float:
    """What to add to known pixels, fading from the hole's border, where all along it they are off by a step.

    Each side is extrapolated to the border from two bands, so that a slope is no step. There is a step only
    if most of the border agrees on it, and the further bands show it, too: an object's soft edge, just
    outside of the hole, is none.
    """
    depth = cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    height = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    sides, complete = [], hole & (depth <= 1)
    for distance, where in ((depth, seen), (height, ~hole)):
        for low in (0, STEP_BAND):
            band = (where & (distance > low) & (distance <= low + STEP_BAND)).astype(np.float32)
            count = cv2.boxFilter(band, -1, (9, 9), normalize=False)
            complete = complete & (count >= 4)
            sides.append(cv2.boxFilter(values * band[..., None], -1, (9, 9), normalize=False))
            sides[-1] /= np.maximum(count, 1)[..., None]
    if complete.sum() < LEAST_CALM:
        return 0.0
    near, far, outer_near, outer_far = (side[complete] for side in sides)
    step = (1.5 * near - 0.5 * far) - (1.5 * outer_near - 0.5 * outer_far)
    low, middle, high = np.quantile(step, [0.2, 0.5, 0.8], axis=0)
    sign = np.sign(middle)
    size = np.minimum(np.abs(middle), sign * np.median(far - outer_far, axis=0))
    weakest = np.where(sign > 0, low, -high)
    clear = (weakest > 0.3 * np.abs(middle)) & (size > LEAST_STEP) & (size < MOST_STEP)
    if not clear.any():
        return 0.0
    offset = np.where(clear, -sign * size, 0).astype(np.float32)
    fade = np.where(hole, np.exp(-depth / STEP_REACH), 0).astype(np.float32)
    return fade[..., None] * offset


def _missing_grain(
    fill: np.ndarray, source: np.ndarray, *, around: np.ndarray, unseen: np.ndarray, seed: int
) -> np.ndarray | float:
    """The noise that the source has around the hole, and the fill lacks."""
    if unseen.sum() < LEAST_CALM:
        return 0.0
    level, blur = grain(source.astype(np.float32), around)
    present, _ = grain(fill, unseen)
    lacking = np.sqrt(max(min(level, MOST_GRAIN) ** 2 - present**2, 0.0))
    if lacking < GRAIN:
        return 0.0
    noise = np.random.default_rng(seed).standard_normal(unseen.shape, np.float32)
    if blur > 0.3:
        noise = cv2.GaussianBlur(noise, (0, 0), blur)
    return (noise * np.float32(lacking / noise.std()))[..., None]


_SAME = np.linspace(0, 0.95, 96)
"""How far neighbours are alike."""
_RATIOS = (6 - 8 * _SAME + 2 * _SAME**4) / (6 - 8 * _SAME**4 + 2 * _SAME**16)
"""Of the variances of second differences over one pixel and over two, for each."""


def grain(image: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    """The noise in a region of float32 `[H, W, 3]`: its deviation in grey levels, and its blur in pixels.

    Second differences cancel what is smooth (Immerkaer 1996); over one and over two pixels they tell how far
    noise, taken for blurred white noise, is alike in neighbours. Only the calmest part of the region counts,
    so that edges and texture do not. A region that is too small has none.
    """
    where = shrink(where, 4)  # what is near the region is not of it
    if where.sum() < LEAST_REGION:
        return 0.0, 0.0
    grey = image.mean(axis=-1)
    sizes = []
    for apart in (1, 2):
        line = np.zeros(2 * apart + 1, np.float32)
        line[[0, apart, -1]] = 1, -2, 1
        across, down = cv2.filter2D(grey, -1, line[None]), cv2.filter2D(grey, -1, line[:, None])
        sizes.append(np.abs(across) + np.abs(down))
    about = cv2.blur(np.where(where, sizes[0], 0), (BLOCK, BLOCK)) / np.maximum(
        cv2.blur(where.astype(np.float32), (BLOCK, BLOCK)), 1e-3
    )
    calm = where & (about <= np.quantile(about[where], max(CALM, LEAST_CALM / where.sum())))
    spreads = [float(size[calm].mean()) / 1.596 for size in sizes]  # of two normal deviates' sizes
    if min(spreads) < 1e-3:
        return 0.0, 0.0
    same = float(np.interp((spreads[0] / spreads[1]) ** 2, _RATIOS[::-1], _SAME[::-1]))
    level = spreads[0] / np.sqrt(6 - 8 * same + 2 * same**4)
    return float(level), 0.0 if same < 0.01 else float(0.5 / np.sqrt(-np.log(same)))
