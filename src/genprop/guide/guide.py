"""The guide as a stream: motion, tracking and propagation, one frame after the other, in bounded memory.

    frames -> measure_motion -> track -> propagation.propagate -> Guided

`follow` is all of them. A video is never held: what is needed of the past and of the future is a fixed number
of frames. Shapes: H W pixels of the video, h w of its motion (`motion.SIDE`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import cv2
import numpy as np

from genprop.guide.ahead import ahead
from genprop.guide.blend import blend
from genprop.guide.fill import paint
from genprop.guide.geometry import grow
from genprop.guide.motion import flow, grey, small
from genprop.guide.network import TrackerNet
from genprop.guide.propagation import BLOCK, LOOK_AHEAD, Guided, Tracked, propagate
from genprop.guide.tracker import Tracker
from genprop.guide.tracking import begin

MARGIN = 6.0
"""How far a tracked mask is grown to a hole, in pixels of its motion: it may miss a bit of the object."""
GIVEN_MARGIN = 3.0
"""The same of a mask that a person gave."""
NEAR = 2.0
"""No pixel is taken from so near a tracked hole: the mask may have missed a bit of the object there."""

Masks = Callable[[int], np.ndarray | None]
"""What a person gave for a frame, by its index: bool `[H, W]`, or None."""


@dataclass(frozen=True)
class Moving:
    """A frame, uint8 `[H, W, 3]`, the same at its motion's size, and the motion between it and the last.

    `given` is its mask, bool `[H, W]`, where a person gave one.
    """

    frame: np.ndarray
    small: np.ndarray
    given: np.ndarray | None
    back: np.ndarray | None
    forth: np.ndarray | None


Clock = Callable[[str, float], None]
"""Is told a stage's name, and when it began (`time.perf_counter`), when it is done with a frame."""


def untimed(stage: str, began: float) -> None:
    """Nobody wants to know."""


def measure_motion(
    frames: Iterable[np.ndarray], masks: Masks, *, clock: Clock = untimed
) -> Generator[Moving]:
    """The motion between each frame and the one before, both ways. Masks are asked for in order, once."""
    last: np.ndarray | None = None
    for index, frame in enumerate(frames):
        began = time.perf_counter()
        less = small(frame)
        now = grey(less)
        back = forth = None
        if last is not None:
            back, forth = flow(now, last), flow(last, now)
        last = now
        clock("motion", began)
        yield Moving(frame, less, masks(index), back, forth)


def track(
    moving: Iterable[Moving],
    net: TrackerNet,
    *,
    edited: np.ndarray,
    filled: bool,
    clock: Clock = untimed,
) -> Generator[Tracked]:
    """The edit in every frame, from its mask in the first; masks that a person gave are believed.

    Args:
        edited: the first frame without the object, uint8 `[H, W, 3]`.
        filled: whether `edited` is what the first frame is to be; else its hole is open like any other.
    """
    tracker: Tracker | None = None
    for index, now in enumerate(moving):
        began = time.perf_counter()
        height, width = now.frame.shape[:2]
        scale = max(height, width) / max(now.small.shape[:2])
        given = now.given
        known = None if given is None else _resize_mask(given, now.small.shape[:2])
        if tracker is None:
            assert given is not None and known is not None
            tracker, confidence = Tracker(net, begin(now.small, small(edited), known)), 1.0
        else:
            assert now.back is not None
            confidence = tracker.step(now.small, now.back, mask=known)
        mask = given if given is not None else _enlarge(tracker.state.mask, (height, width))
        margin = MARGIN if given is None else GIVEN_MARGIN
        hole = grow(mask, margin * scale)
        closed = grow(hole, NEAR * scale) if given is None else hole
        frame = now.frame
        if index == 0 and filled:
            frame, hole, closed = edited, np.zeros_like(hole), np.zeros_like(hole)
        less = _resize_mask(hole, now.small.shape[:2])
        clock("tracking", began)
        yield Tracked(index, frame, now.frame, mask, hole, closed, less, confidence, now.back, now.forth)


def follow(
    frames: Iterable[np.ndarray],
    net: TrackerNet,
    *,
    edited: np.ndarray | None,
    masks: Masks,
    clock: Clock = untimed,
) -> Generator[Guided]:
    """A video through the guide; motion and tracking each run in a thread, a few frames ahead.

    Args:
        frames: uint8 `[H, W, 3]`, at least one.
        edited: the first frame without the object; None fills it (`fill_first`).
        masks: those that are known; the first frame's is, and is not empty.
        clock: is told the time of each stage.
    """
    moving: Iterator[Moving] = ahead(measure_motion(frames, masks, clock=clock))
    if edited is None:
        held = list(itertools.islice(moving, BLOCK + LOOK_AHEAD))
        began = time.perf_counter()
        edited = fill_first(held, net)
        clock("first frame", began)
        moving = itertools.chain(held, moving)
    tracked = ahead(track(moving, net, edited=edited, filled=True, clock=clock))
    with closing(tracked):
        yield from propagate(tracked, clock=clock)


def fill_first(held: list[Moving], net: TrackerNet) -> np.ndarray:
    """The first frame without the object: from the frames after it, painted where none of them shows it.

    Args:
        held: the first frames of the video; more of them show more.
    """
    frame, mask = held[0].frame, held[0].given
    assert mask is not None
    scale = max(frame.shape[:2]) / max(held[0].small.shape[:2])
    guess = paint(frame, grow(mask, MARGIN * scale))
    found = next(propagate(track(held, net, edited=guess, filled=False)))
    if not found.unseen.any():
        return found.known
    painted = paint(found.known, found.unseen)
    return blend(
        found.known,
        hole=found.tracked.hole,
        known=found.known,
        trust=np.where(found.unseen, 0, 1).astype(np.float32),
        generated=painted.astype(np.float32),
    )


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask at another size `(h, w)`: whatever it covers by half stays."""
    if mask.shape == size:
        return mask
    share = cv2.resize(mask.astype(np.uint8) * 255, size[::-1], interpolation=cv2.INTER_AREA)
    return share > 127


def _enlarge(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at the video's size, from its probability at the motion's."""
    if probability.shape == size:
        return probability > 0.5
    return cv2.resize(probability, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
