"""What one gets without a model: the floor that a model has to clear.

Each takes a sample and returns frames like its source, uint8 `[T, H, W, 3]`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from genprop.types import EditSample

TELEA_RADIUS = 3


def identity(sample: EditSample) -> np.ndarray:
    """The original video: nothing is edited, everything is kept."""
    return sample.source


def frozen_first_frame(sample: EditSample) -> np.ndarray:
    """The edited first frame, for the whole length: edited everywhere, but nothing moves."""
    return np.repeat(sample.edited[None], len(sample.source), axis=0)


def telea(sample: EditSample) -> np.ndarray:
    """Each frame on its own, the true mask filled in from around it (Telea 2004). No model gets that mask."""
    holes = sample.mask.astype(np.uint8)
    pairs = zip(sample.source, holes, strict=True)
    return np.stack([cv2.inpaint(frame, hole, TELEA_RADIUS, cv2.INPAINT_TELEA) for frame, hole in pairs])


BASELINES: dict[str, Callable[[EditSample], np.ndarray]] = {
    "identity": identity,
    "frozen_first_frame": frozen_first_frame,
    "telea": telea,
}
