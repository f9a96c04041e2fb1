"""What a removal is judged by: figures of each clip, then their means over the clips with an interval.

The first frame counts nowhere: it is given. PSNR is capped, so that an exact clip does not decide a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genprop.guide.geometry import grow
from genprop.metrics import Motion, RegionSsim, SquaredError

CAP = 50.0
"""dB; nobody sees more."""
FEWEST = 200
"""Unseen pixels of a clip, below which it has no figure for them."""
TOLERANCE = 0.008
"""Of a boundary, in diagonals of the frame (DAVIS 2016, section 4)."""


def psnr(frames: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Of the pixels `where`, bool `[T, H, W]`, in dB, at most `CAP`; nan where there are none."""
    error = SquaredError()
    error.add(frames[where] / 255.0, truth[where] / 255.0)
    return min(error.psnr(), CAP)


def clip_figures(
    frames: np.ndarray, truth: np.ndarray, *, hole: np.ndarray, unseen: np.ndarray
) -> dict[str, float]:
    """Of one clip: uint8 `[T, H, W, 3]` against the truth, regions bool `[T, H, W]`."""
    inside, outside = hole.copy(), ~hole
    inside[0] = outside[0] = False
    similarity, motion = RegionSsim(), Motion()
    similarity.add(frames, truth, hole)
    motion.add(frames, truth, hole)
    return {
        "hole": psnr(frames, truth, inside),
        "keep": psnr(frames, truth, outside),
        "unseen": psnr(frames, truth, unseen) if unseen.sum() >= FEWEST else float("nan"),
        "hole_ssim": similarity.hole,
        "keep_ssim": similarity.keep,
        "flicker": motion.value,
    }


def mask_figures(predicted: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Of one object, bool `[T, H, W]` both: means over the frames after the first."""
    overlaps = [overlap(p, m) for p, m in zip(predicted[1:], mask[1:], strict=True)]
    edges = [boundary(p, m) for p, m in zip(predicted[1:], mask[1:], strict=True)]
    tenth = max(1, len(overlaps) // 10)
    return {
        "iou": float(np.mean(overlaps)),
        "boundary": float(np.mean(edges)),
        "iou_end": float(np.mean(overlaps[-tenth:])),
        "iou_lowest": float(np.min(overlaps)),
    }


def overlap(predicted: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    either = np.count_nonzero(predicted | mask)
    return np.count_nonzero(predicted & mask) / either if either else 1.0


def boundary(predicted: np.ndarray, mask: np.ndarray) -> float:
    """F measure of two masks' outlines (DAVIS 2016, section 4): a pixel counts with the other's near."""
    if not predicted.any() or not mask.any():
        return float(predicted.any() == mask.any())
    near = float(np.ceil(TOLERANCE * np.hypot(*mask.shape)))
    mine, other = _outline(predicted), _outline(mask)
    if not mine.any() or not other.any():
        return float(mine.any() == other.any())
    precision = (mine & grow(other, near)).sum() / mine.sum()
    recall = (other & grow(mine, near)).sum() / other.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the right, lower or lower right one; the frame's border is no outline."""
    here = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ here[1:, :-1]) | (mask ^ here[:-1, 1:]) | (mask ^ here[1:, 1:])


def interval(values: Sequence[float], *, seed: int = 0, draws: int = 1000) -> tuple[float, float, float]:
    """The mean of clips' figures and its 95 % interval, by bootstrap over the clips; nan is left out."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, len(known), (draws, len(known)))
    low, high = np.quantile(known[picks].mean(axis=1), [0.025, 0.975])
    return float(known.mean()), float(low), float(high)
