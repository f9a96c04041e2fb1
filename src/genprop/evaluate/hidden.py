"""What a removal must invent: the pixels of its hole that no frame of the clip shows."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from genprop.evaluate.removal import Removal
from genprop.guide.geometry import grid, sample
from genprop.guide.motion import flow, grey, small

SIDE = 320
"""The longest side at which the motion is followed, in pixels: finer flow costs four times as much."""
APART = 1.5
"""Pixels of that size by which motion may miss its start on its way back."""
UNLIKE = 4.0
"""Grey levels by which the pictures may differ where it does miss it: a flat sky has no motion to measure."""


def unseen(removal: Removal) -> np.ndarray:
    """Pixels of the hole that no frame of the clip shows, bool `[T, H, W]`; none in the first frame.

    By the motion of the truth, its coordinates chained from frame to frame, backwards and forwards: a pixel
    is seen where its place in some other frame is inside the picture and outside of that frame's hole. The
    first frame has no hole: it is edited. A chain ends where it leaves the picture, and where its pixel is
    covered by something of the ground's own: motion and picture do not agree there.
    """
    truth = [grey(small(frame, side=SIDE)) for frame in removal.truth]
    height, width = truth[0].shape
    holes = [
        cv2.resize(hole.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        for hole in removal.hole
    ]
    holes[0] = np.zeros_like(holes[0])
    steps = _Steps(truth)
    result = np.zeros_like(removal.hole)
    for t in range(1, len(truth)):
        hidden = holes[t] > 0
        for order in (range(t, -1, -1), range(t, len(truth))):
            hidden &= ~_shown(order, holes, steps)
        size = removal.hole.shape[2], removal.hole.shape[1]
        large = cv2.resize(hidden.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        result[t] = large & removal.hole[t]
    return result


class _Steps:
    """The motion between neighbouring grey frames, and where it can be believed, by their numbers."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        neighbours = [(t, t + 1) for t in range(len(frames) - 1)]
        neighbours += [(after, before) for before, after in neighbours]
        self.flow = {(a, b): flow(frames[a], frames[b]) for a, b in neighbours}
        self.believed: dict[tuple[int, int], np.ndarray] = {}
        points = grid(*frames[0].shape)
        for a, b in neighbours:
            at = points + self.flow[a, b]
            apart = np.linalg.norm(self.flow[a, b] + sample(self.flow[b, a], at), axis=-1)
            unlike = cv2.GaussianBlur(
                cv2.absdiff(frames[a], sample(frames[b], at)).astype(np.float32), (0, 0), 1
            )
            self.believed[a, b] = ((apart < APART) | (unlike < UNLIKE)).astype(np.float32)


def _shown(order: range, holes: list[np.ndarray], steps: _Steps) -> np.ndarray:
    """Pixels of the first frame of the order, bool `[h, w]`, that one of the frames after it shows."""
    height, width = holes[0].shape
    at, shown = grid(height, width), np.zeros((height, width), bool)
    followed = holes[order[0]] > 0
    for here, there in pairwise(order):
        followed &= sample(steps.believed[here, there], at) > 0.5
        at = at + sample(steps.flow[here, there], at)
        followed &= (at >= 0).all(axis=-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
        seen = followed & (sample(holes[there], at) < 0.5)
        shown |= seen
        followed &= ~seen
        if not followed.any():
            break
    return shown
