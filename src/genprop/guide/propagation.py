"""Bringing pixels into a hole from the frames that show them.

For each pixel of a hole, forwards and backwards in time, the nearest frame that shows it: coordinates are
chained from frame to frame by the ground's flow, and pixels are sampled once, from the frame itself, so that
detail does not fade as it does where pictures are warped frame by frame. What both directions bring is
weighed by how many frames away it was seen. What none within reach shows stays unseen: trust 0.

The video is worked off in blocks. Backwards a block sees `LOOK_AHEAD` frames beyond its end; forwards, what
was seen longer ago than `REACH` frames is taken from the last finished frame, so that memory is bounded.

Shapes: H W pixels of the video, h w of its motion (`motion.SIDE`), N pixels of a hole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from genprop.guide.geometry import grid, sample
from genprop.guide.motion import ground_flow

BLOCK = 16
LOOK_AHEAD = 20
REACH = 24

AGREE = 24.0
"""Where the two directions differ by this much, in grey levels, they are trusted half as much."""


SLACK = 0.5
"""Two flows agree that miss each other by this, in squared pixels, and by a hundredth of their own."""


@dataclass(frozen=True)
class Tracked:
    """A frame whose edit is known.

    Attributes:
        index: counted from the first frame.
        frame: uint8 `[H, W, 3]`; of the first, the edited one.
        original: the video's own, uint8 `[H, W, 3]`.
        mask: the object, bool `[H, W]`.
        hole: the mask, grown: what is replaced; empty in the first frame where that was edited.
        closed: the hole and what is near it, bool `[H, W]`: no pixel is taken from there, since the mask may
            have missed a bit of the object, or of its soft edge.
        small_hole: the hole, bool `[h, w]`.
        confidence: in the mask, 0 to 1.
        back: flow to the frame before, float32 `[h, w, 2]`; None in the first.
        forth: from the frame before to this one; None in the first.
    """

    index: int
    frame: np.ndarray
    original: np.ndarray
    mask: np.ndarray
    hole: np.ndarray
    closed: np.ndarray
    small_hole: np.ndarray
    confidence: float
    back: np.ndarray | None
    forth: np.ndarray | None


@dataclass(frozen=True)
class Guided:
    """A frame with what the guide knows of it.

    Attributes:
        tracked: the frame and its hole.
        known: the frame, its hole filled as far as anything is known, uint8 `[H, W, 3]`.
        trust: how far each pixel is known, float32 `[H, W]`: 1 outside the hole, 0 where it is unseen.
    """

    tracked: Tracked
    known: np.ndarray
    trust: np.ndarray

    @property
    def unseen(self) -> np.ndarray:
        """The pixels of the hole that nothing shows, bool `[H, W]`."""
        return self.tracked.hole & (self.trust == 0)


@dataclass(frozen=True)
class _Chain:
    """For the closed pixels of one frame, in the order of `np.nonzero`: where each is seen.

    `source` is a frame's index, int32 `[N]`, or -1; `where` its coordinates there, float32 `[N, 2]`; `steps`
    how many frames away, float32 `[N]`.
    """

    closed: np.ndarray
    source: np.ndarray
    where: np.ndarray
    steps: np.ndarray


def propagate(
    frames: Iterable[Tracked], *, clock: Callable[[str, float], None] = lambda stage, began: None
) -> Generator[Guided]:
    """Fill the holes of a video, frame by frame in order, in bounded memory."""
    ahead: list[Tracked] = []
    steps: dict[int, _Step] = {}
    before: Tracked | None = None
    past: dict[int, np.ndarray] = {}
    last: tuple[Tracked, _Chain] | None = None
    stream = iter(frames)
    done = False
    while True:
        while not done and len(ahead) < BLOCK + LOOK_AHEAD:
            following = next(stream, None)
            if following is None:
                done = True
            else:
                began = time.perf_counter()
                if before is not None:
                    steps[following.index] = _step(before, following)
                before = following
                ahead.append(following)
                clock("propagation", began)
        if not ahead:
            return
        block = ahead[:BLOCK]
        began = time.perf_counter()
        later = _backwards(ahead, steps)
        clock("propagation", began)
        for now, behind in zip(block, later, strict=False):
            began = time.perf_counter()
            chain = _start(now.closed)
            if last is not None:
                chain = _follow(now.closed, last[1], steps.pop(now.index).back, last[0].index)
            past[now.index] = now.frame
            pictures = past | {item.index: item.frame for item in ahead}
            known, trust = _gather(now, (chain, behind), pictures)
            last = now, chain
            clock("propagation", began)
            yield Guided(now, known, trust)
        assert last is not None
        last = _rebase(last, known, trust, past, before=last[0].index - REACH)
        ahead = ahead[BLOCK:]


class _Flow(NamedTuple):
    """The ground's flow to a neighbour, float32 `[h, w, 2]`, and where it is believed, bool `[h, w]`."""

    flow: np.ndarray
    sure: np.ndarray


class _Step(NamedTuple):
    """The ground's motion between a frame and the one before: `back` from it, `forth` to it."""

    back: _Flow
    forth: _Flow


def _step(before: Tracked, now: Tracked) -> _Step:
    """Both flows, completed in the holes, and where following one and then the other leads back."""
    assert now.back is not None and now.forth is not None
    holes = now.small_hole | before.small_hole
    back, forth = ground_flow(now.back, holes), ground_flow(now.forth, holes)
    return _Step(_Flow(back, _returns(back, forth)), _Flow(forth, _returns(forth, back)))


def _returns(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Whether a flow and its reverse agree (Sundaram et al. 2010, eq. 5): what they do not, is covered up."""
    error = np.square(there + sample(back, grid(*there.shape[:2]) + there)).sum(-1)
    return error < SLACK + 0.01 * (np.square(there).sum(-1))


def _start(closed: np.ndarray) -> _Chain:
    """A chain in which nothing is seen."""
    count = int(np.count_nonzero(closed))
    return _Chain(
        closed, np.full(count, -1, np.int32), np.zeros((count, 2), np.float32), np.zeros(count, np.float32)
    )


def _backwards(frames: list[Tracked], steps: dict[int, _Step]) -> list[_Chain]:
    """The chain of each frame to those after it."""
    chains = [_start(frames[-1].closed)]
    for now, after in zip(reversed(frames[:-1]), reversed(frames[1:]), strict=True):
        chains.append(_follow(now.closed, chains[-1], steps[after.index].forth, after.index))
    return chains[::-1]


def _follow(closed: np.ndarray, there: _Chain, step: _Flow, index: int) -> _Chain:
    """The chain of a frame from that of its neighbour `index` and the flow to it."""
    height, width = closed.shape
    y, x = np.nonzero(closed)
    if not len(y):
        return _start(closed)
    flow, sure = step
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    at = np.stack([x, y], axis=-1).astype(np.float32)
    moved = at + _at_points(flow, (at + 0.5) / scale - 0.5) * scale
    nearest = np.round(moved).astype(np.int64)
    inside = (moved >= 0).all(-1) & (moved[:, 0] <= width - 1) & (moved[:, 1] <= height - 1)
    here = np.round((at + 0.5) / scale - 0.5).astype(np.int64)
    inside &= sure[np.minimum(here[:, 1], sure.shape[0] - 1), np.minimum(here[:, 0], sure.shape[1] - 1)]
    column, row = np.clip(nearest[:, 0], 0, width - 1), np.clip(nearest[:, 1], 0, height - 1)
    hidden = there.closed[row, column]
    chain = _start(closed)
    shown = inside & ~hidden
    chain.source[shown], chain.where[shown], chain.steps[shown] = index, moved[shown], 1
    if len(there.source):
        order = np.full(closed.shape, -1, np.int32)
        order[there.closed] = np.arange(len(there.source), dtype=np.int32)
        k = np.flatnonzero(inside & hidden)
        link = order[row[k], column[k]]
        known = there.source[link] >= 0
        k, link = k[known], link[known]
        chain.source[k] = there.source[link]
        chain.where[k] = there.where[link] + moved[k] - nearest[k]
        chain.steps[k] = there.steps[link] + 1
    return chain


def _gather(
    now: Tracked, chains: tuple[_Chain, _Chain], pictures: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The hole's pixels from where both directions see them; see `Guided`."""
    hole = now.hole
    known, trust = now.frame.copy(), np.ones(hole.shape, np.float32)
    inner = hole[chains[0].closed]  # of the closed pixels, those of the hole
    count = int(np.count_nonzero(inner))
    if not count:
        return known, trust
    colours = np.zeros((2, count, 3), np.float32)
    weights = np.zeros((2, count), np.float32)
    for side, chain in enumerate(chains):
        seen_in, where, steps = chain.source[inner], chain.where[inner], chain.steps[inner]
        for source in np.unique(seen_in[seen_in >= 0]):
            k = np.flatnonzero(seen_in == source)
            colours[side, k] = _at_points(pictures[int(source)], where[k], how=cv2.INTER_CUBIC)
            weights[side, k] = steps[k] ** -1.5
    total = weights.sum(axis=0)
    seen = total > 0
    mean = (colours * weights[..., None]).sum(axis=0) / np.maximum(total, 1e-9)[:, None]
    apart = np.abs(colours[0] - colours[1]).mean(-1) * (weights > 0).all(axis=0)
    inside = now.frame[hole]
    inside[seen] = mean[seen].round().clip(0, 255).astype(np.uint8)
    known[hole] = inside
    trust[hole] = np.where(seen, 1 / (1 + (apart / AGREE) ** 2), 0)
    return known, trust


def _rebase(
    last: tuple[Tracked, _Chain],
    known: np.ndarray,
    trust: np.ndarray,
    past: dict[int, np.ndarray],
    *,
    before: int,
) -> tuple[Tracked, _Chain]:
    """Forget frames before an index: what was seen there is taken from the last finished frame from now on.

    That frame then stands in `past` with its hole filled; what it shows outside of the hole is the same.
    """
    now, chain = last
    old = (chain.source >= 0) & (chain.source < before)
    if old.any():
        y, x = np.nonzero(chain.closed)
        at = np.stack([x, y], axis=-1).astype(np.float32)
        chain.source[old], chain.where[old] = now.index, at[old]
        past[now.index] = known
    for index in [index for index in past if index < before]:
        del past[index]
    return now, chain


def _at_points(image: np.ndarray, at: np.ndarray, *, how: int = cv2.INTER_LINEAR) -> np.ndarray:
    """An image at the points `[N, 2]`, `[N, C]` float32; OpenCV's maps have at most 32767 rows."""
    rows = -(-len(at) // 512)
    padded = np.zeros((rows * 512, 2), np.float32)
    padded[: len(at)] = at
    return (
        sample(image, padded.reshape(rows, 512, 2), how=how)
        .reshape(rows * 512, -1)[: len(at)]
        .astype(np.float32)
    )
