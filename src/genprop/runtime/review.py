"""Which frames a person should look at: the tracker is unsure, the mask jumps or is gone, much is guessed.

A frame is kept as a small picture, its mask outlined; the worst `MOST` of them, so that memory is bounded.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from genprop.guide.motion import small
from genprop.runtime.removal import Finished
from genprop.sheet import contact_sheet
from genprop.video import write_image

MOST = 24
UNSURE = 0.6
"""Confidence below this is worth a look."""
JUMP = 2.0
"""So is a mask that grows or shrinks by this factor from one frame to the next,"""
GUESSED = 0.3
"""and a hole of which so much is seen in no frame."""
SIDE = 240


@dataclass(frozen=True)
class Doubt:
    """A frame to look at: why, how bad on a scale without a unit, and its picture."""

    index: int
    reasons: tuple[str, ...]
    badness: float
    picture: np.ndarray


class Review:
    """Is told every finished frame, and keeps the doubtful ones."""

    def __init__(self) -> None:
        self._doubts: list[Doubt] = []
        self._area: int | None = None
        self.count = 0

    def add(self, frame: Finished) -> None:
        """The next frame."""
        area, before = int(np.count_nonzero(frame.mask)), self._area
        self._area = area
        reasons, badness = [], 0.0
        if frame.confidence < UNSURE:
            reasons.append(f"unsure ({frame.confidence:.2f})")
            badness += 1 - frame.confidence
        if before and not area:
            reasons.append("the mask is gone")
            badness += 1
        elif before and area and max(area / before, before / area) > JUMP:
            reasons.append(f"the mask jumps from {before} to {area} pixels")
            badness += 0.5
        if frame.unseen > GUESSED:
            reasons.append(f"{frame.unseen:.0%} of the hole is seen in no frame")
            badness += 0.5 * frame.unseen
        if not reasons:
            return
        self.count += 1
        self._doubts.append(Doubt(frame.index, tuple(reasons), badness, _outlined(frame)))
        if len(self._doubts) > MOST:
            self._doubts.remove(min(self._doubts, key=lambda doubt: doubt.badness))

    def document(self) -> dict[str, Any]:
        """How many frames are doubtful, and the worst of them."""
        frames = [{"frame": d.index, "reasons": list(d.reasons)} for d in self._doubts]
        return {"doubtful": self.count, "frames": frames}

    def write(self, folder: Path) -> None:
        """`review.json` and, if there is anything to see, `review.png`, into a folder that is made."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".review.json.partial"
        partial.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / "review.json")
        if self._doubts:
            rows = [(f"frame {d.index}: {'; '.join(d.reasons)}", d.picture[None]) for d in self._doubts]
            write_image(folder / "review.png", contact_sheet(rows, height=SIDE * 2 // 3))


def _outlined(frame: Finished) -> np.ndarray:
    """The video's frame with its mask outlined in red, beside the result, small."""
    edge = cv2.morphologyEx(frame.mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
    marked = frame.original.copy()
    marked[edge] = (255, 0, 0)
    return small(np.concatenate([marked, frame.frame], axis=1), side=2 * SIDE)
