"""Where a person edited the first frame: the mask of someone who only gives the edited picture."""

from __future__ import annotations

import cv2
import numpy as np

from genprop.errors import GenPropError
from genprop.guide.geometry import grow

LEAST = 12.0
"""Grey levels that an edit differs by at least; an editor's own compression stays below."""
NOISE, MOST = 6.0, 60.0
"""An edit also differs by so many times what most of the frame does, but no more than the second."""
SPECK = 2e-4
"""Spots of a smaller share of the frame are none."""
WHOLE = 0.8


def edit_mask(frame: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Where an edited frame differs from the original, uint8 `[H, W, 3]` both, as bool `[H, W]`.

    Raises:
        GenPropError: it differs nowhere, or nearly everywhere.
    """
    difference = np.abs(frame.astype(np.float32) - edited).max(axis=-1)
    difference = cv2.GaussianBlur(difference, (0, 0), 1)
    threshold = float(np.clip(NOISE * np.median(difference), LEAST, MOST))
    spots = cv2.morphologyEx(
        (difference > threshold).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)
    )
    count, labels, stats, _ = cv2.connectedComponentsWithStats(spots)
    large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= max(16, SPECK * spots.size)]
    mask = np.isin(labels, large)
    if not mask.any():
        raise GenPropError(
            f"the edited frame equals the video's first frame: they differ by {difference.max():.0f} grey "
            f"levels at most, expected more than {threshold:.0f} somewhere",
            "Edit the first frame and save it, or give a mask of the object with --mask.",
        )
    if mask.mean() > WHOLE:
        raise GenPropError(
            f"the edited frame differs from the video's first frame on {mask.mean():.0%} of its pixels, "
            "expected an edit of a part of it",
            "Edit the video's own first frame; or say where the object is with --mask beside --edited.",
        )
    return grow(mask, 2)
