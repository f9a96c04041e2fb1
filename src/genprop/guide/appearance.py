"""What the object looked like in the first frame, by its colours.

A colour's likeness is its share in the object over its share in object and surroundings together, from
histograms of 16 levels a channel, smoothed. The network has a memory of its own for shape and texture.
"""

from __future__ import annotations

import cv2
import numpy as np

from genprop.guide.geometry import grow

LEVELS = 16
AROUND = 40.0
"""Colours this near the object, in pixels, count for as much as all others together: they are what it
is to be told from."""


class Colours:
    """The colours of an object and of what is around it, from one frame.

    Args:
        frame: uint8 `[h, w, 3]`.
        mask: the object, bool `[h, w]`.
    """

    def __init__(self, frame: np.ndarray, mask: np.ndarray) -> None:
        near = grow(mask, AROUND) & ~grow(mask, 2)
        self._object = _histogram(frame, mask)
        self._others = 0.5 * _histogram(frame, near) + 0.5 * _histogram(frame, ~mask)

    def likeness(self, frame: np.ndarray) -> np.ndarray:
        """For each pixel of uint8 `[h, w, 3]`, float32 `[h, w]` in [0, 1]: 1 is the object's colour only."""
        level = frame // (256 // LEVELS)
        at = (level[..., 0], level[..., 1], level[..., 2])
        mine, others = self._object[at], self._others[at]
        return cv2.GaussianBlur((mine + 1e-7) / (mine + others + 2e-7), (0, 0), 1)


def _histogram(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The shares of colours in a mask, float32 `[16, 16, 16]`; zeros where it is empty."""
    level = (frame[mask] // (256 // LEVELS)).astype(np.int64)
    index = (level[:, 0] * LEVELS + level[:, 1]) * LEVELS + level[:, 2]
    counts = np.bincount(index, minlength=LEVELS**3).reshape((LEVELS,) * 3).astype(np.float32)
    for axis in range(3):
        counts = (np.roll(counts, 1, axis) + 2 * counts + np.roll(counts, -1, axis)) / 4
    return counts / max(float(counts.sum()), 1e-6)
