"""Pixels by their coordinates: the grid, sampling away from it, and masks that grow.

Coordinates are (x, y) in pixels, as OpenCV has them: the centre of the first pixel is (0, 0).
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


def grid(height: int, width: int) -> np.ndarray:
    """The coordinates of every pixel, float32 `[H, W, 2]`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y], axis=-1)


def sample(image: np.ndarray, at: np.ndarray, *, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    """The image at the coordinates `[h, w, 2]`; beyond its border, the border's own pixels."""
    return cv2.remap(image, at[..., 0], at[..., 1], how, borderMode=cv2.BORDER_REPLICATE)


def grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """A bool mask `[H, W]` with everything within `radius` pixels of it.

    By a distance transform, whose time does not depend on the radius as a dilation's does.
    """
    if radius <= 0 or not mask.any():
        return mask.copy()
    outside = np.where(mask, 0, 255).astype(np.uint8)
    return cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_5) <= radius


def shrink(mask: np.ndarray, radius: float) -> np.ndarray:
    """A bool mask `[H, W]` without what is within `radius` pixels of its outside; the border is no edge."""
    return ~grow(~mask, radius)


class Region(NamedTuple):
    """A rectangle of a picture, by its corner (x, y) and its size in pixels; it may lie over the border."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def about(cls, centre: tuple[float, float], width: int, height: int) -> Region:
        """Of a size, about a centre (x, y)."""
        return cls(round(centre[0] - width / 2), round(centre[1] - height / 2), width, height)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The region of an image `[H, W, ...]`, the border's pixels repeated beyond it."""
        height, width = image.shape[:2]
        rows = np.arange(self.y, self.y + self.height).clip(0, height - 1)
        columns = np.arange(self.x, self.x + self.width).clip(0, width - 1)
        if rows[-1] - rows[0] + 1 == len(rows) and columns[-1] - columns[0] + 1 == len(columns):
            return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return image[rows[:, None], columns]

    def paste(self, patch: np.ndarray, onto: np.ndarray) -> None:
        """Lay a patch of the region onto an image, as far as it lies inside."""
        height, width = onto.shape[:2]
        top, bottom = max(0, self.y), min(height, self.y + self.height)
        left, right = max(0, self.x), min(width, self.x + self.width)
        if bottom > top and right > left:
            onto[top:bottom, left:right] = patch[
                top - self.y : bottom - self.y, left - self.x : right - self.x
            ]


def place(mask: np.ndarray) -> tuple[tuple[float, float], int, int]:
    """The middle (x, y) of a mask's box, its width and its height; the mask is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2
    return middle, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1


def box(mask: np.ndarray, *, margin: int = 0) -> tuple[slice, slice]:
    """The rows and columns that a mask `[H, W]` lies in, and a margin; of an empty one, the whole picture."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    (x, y), width, height = place(mask)
    left, top = round(x - (width - 1) / 2), round(y - (height - 1) / 2)
    return (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )
