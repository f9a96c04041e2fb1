"""The shadow that a pasted object casts, so that what belongs to an object is in the training data.

GenProp removes effects with their objects, since its pairs hold both (supplementary S1). Here the object's
matte is laid on the ground, hinged at its lowest row: squashed, sheared, softened, and darkening.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

COARSE = 4
"""Shadows are blurred this much smaller: they are soft anyway, and a wide blur is slow."""


@dataclass(frozen=True)
class CastShadow:
    """How the light falls, the same in every frame.

    Attributes:
        length: of the shadow, in heights of the object; towards the viewer below 0.
        lean: how far it leans to the right, in heights of the object.
        blur: deviation, in heights of the frame.
        strength: the share of light that it takes.
    """

    length: float
    lean: float
    blur: float
    strength: float


def draw_shadow(rng: Generator) -> CastShadow:
    """From short to as long as half the object, to any side, weak to strong."""
    return CastShadow(
        length=float(rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)),
        lean=rng.uniform(-0.8, 0.8),
        blur=rng.uniform(0.005, 0.02),
        strength=rng.uniform(0.3, 0.6),
    )


def cast(
    shadow: CastShadow, matte: np.ndarray, *, corner: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The share of light that is taken from the ground, float32 `[H, W]` in [0, 1].

    Args:
        shadow: the light.
        matte: the object in one frame, uint8 `[h, w]`.
        corner: row and column of the frame at which the matte lies; it may reach beyond the frame.
        size: H and W.
    """
    rows = np.flatnonzero(matte.max(1) > 127)
    if not len(rows):
        return np.zeros(size, np.float32)
    foot = float(rows[-1])  # a point at height foot - y leans by lean, and lies at length, times that height
    laid = np.array([[1, -shadow.lean, shadow.lean * foot], [0, shadow.length, (1 - shadow.length) * foot]])
    laid[:, 2] += corner[::-1]
    coarse = (-(-size[1] // COARSE), -(-size[0] // COARSE))
    fine = (coarse[0] * COARSE, coarse[1] * COARSE)
    shade = cv2.resize(cv2.warpAffine(matte, laid, fine), coarse, interpolation=cv2.INTER_AREA)
    shade = cv2.GaussianBlur(shade.astype(np.float32), (0, 0), max(0.5, shadow.blur * size[0] / COARSE))
    return cv2.resize(shade, fine)[: size[0], : size[1]] * np.float32(shadow.strength / 255)
