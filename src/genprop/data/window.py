"""What a training sees of a clip: which frames, and which part of them, at the model's size.

The only place where that is drawn. All parts of a clip go through one `Window`, so a mask stays where its
object is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.random import Generator

from genprop.config import Config
from genprop.errors import GenPropError


@dataclass(frozen=True)
class Window:
    """Frames of one clip and a crop of them.

    Attributes:
        indices: of the frames, rising.
        height, width: what a frame becomes.
        place: where the crop lies between the first possible place and the last, (down, right) in [0, 1).
    """

    indices: list[int]
    height: int
    width: int
    place: tuple[float, float] = (0.5, 0.5)

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """Resizes uint8 `[H, W]` or `[H, W, 3]` to cover the window's size, aspect kept, and crops it."""
        h, w = frame.shape[:2]
        scale = max(self.height / h, self.width / w)
        size = (max(round(w * scale), self.width), max(round(h * scale), self.height))
        # Area averaging is for shrinking; enlarging with it would repeat pixels.
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = cv2.resize(frame, size, interpolation=how) if size != (w, h) else frame
        # Each of the spare + 1 places is equally likely; the middle of them is the centre.
        top = int(self.place[0] * (size[1] - self.height + 1))
        left = int(self.place[1] * (size[0] - self.width + 1))
        return resized[top : top + self.height, left : left + self.width]

    def fit_mask(self, mask: np.ndarray) -> np.ndarray:
        """`fit` for a bool mask `[H, W]`: where more than half of a pixel is covered."""
        return self.fit(mask.astype(np.uint8) * 255) > 127


@dataclass(frozen=True)
class View:
    """How windows are drawn: `frames` of them at `height` x `width`, at most `stride` frames apart."""

    frames: int
    height: int
    width: int
    stride: int = 1
    crop: Literal["random", "centre"] = "centre"

    @staticmethod
    def of(config: Config) -> View:
        clip, data = config.clip, config.data
        return View(clip.frames, clip.height, clip.width, data.stride, data.crop)

    def draw(self, rng: Generator, length: int) -> Window:
        """A window of a clip of `length` frames: its stride, its start and its crop, each uniform.

        A stride that the clip is too short for is not drawn.

        Raises:
            GenPropError: the clip is too short at any stride.
        """
        if length < self.frames:
            raise GenPropError(
                f"it has {length} frames, expected at least {self.frames}",
                "Give longer clips, or ask for fewer frames.",
            )
        longest = (length - 1) // (self.frames - 1) if self.frames > 1 else 1
        stride = int(rng.integers(1, min(self.stride, longest) + 1))
        start = int(rng.integers(length - (self.frames - 1) * stride))
        down, right = rng.random(2) if self.crop == "random" else (0.5, 0.5)
        indices = [start + stride * i for i in range(self.frames)]
        return Window(indices, self.height, self.width, (float(down), float(right)))
