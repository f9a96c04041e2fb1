"""Removing an object from a video as it streams by: guide, model, composite.

    frames -> guide.follow -> windows of the model, where something is unseen -> blend -> finished frames

Motion and tracking run in threads of their own, a few frames ahead. Everything holds a fixed number of
frames, so memory does not grow with the video. `remove` does it for frames in an array, `task` for files.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from genprop.errors import GenPropError
from genprop.guide.blend import blend
from genprop.guide.guide import Masks, follow
from genprop.guide.network import TrackerNet
from genprop.guide.propagation import Guided
from genprop.guide.tracker import embedded_tracker, load_tracker
from genprop.runtime.backends import Stages
from genprop.runtime.unseen import Sampling, generate

LEAST_UNSEEN = 16
"""Fewer unseen pixels in a window than this are filled from around them: no model is asked."""


@dataclass(frozen=True)
class Finished:
    """A frame without the object.

    Attributes:
        index: counted from the first.
        frame: uint8 `[H, W, 3]`; outside of `hole` the video's own, bit for bit.
        original: the video's own, uint8 `[H, W, 3]`.
        mask: the object, bool `[H, W]`.
        hole: what was replaced, bool `[H, W]`.
        confidence: in the mask, 0 to 1.
        unseen: the share of the hole that no frame shows.
    """

    index: int
    frame: np.ndarray
    original: np.ndarray
    mask: np.ndarray
    hole: np.ndarray
    confidence: float
    unseen: float


@dataclass
class Seconds:
    """The time that each stage took, in seconds; stages that ran at once are counted twice.

    And how often the network ran.
    """

    by_stage: dict[str, float] = field(default_factory=dict)
    evaluations: int = 0

    def add(self, stage: str, began: float) -> None:
        self.by_stage[stage] = self.by_stage.get(stage, 0.0) + time.perf_counter() - began


def stream_removal(
    frames: Iterable[np.ndarray],
    *,
    edited: np.ndarray | None,
    masks: Masks,
    stages: Stages | None,
    net: TrackerNet | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    seconds: Seconds | None = None,
) -> Generator[Finished]:
    """The frames of a video without the object, in order, as they become known.

    Args:
        frames: uint8 `[H, W, 3]`.
        edited: the first frame without it; None fills it.
        masks: where the object is, by a frame's index; the first frame's at least.
        stages: the model for what no frame shows; None leaves that to the guide.
        net: the tracker's network; the embedded one if None.
        sampling: of the model.
        seed: of all noise.
        seconds: is told the time of each stage.
    """
    tracker = net if net is not None else load_tracker(embedded_tracker())
    clock = seconds if seconds is not None else Seconds()
    guided = follow(frames, tracker, edited=edited, masks=masks, clock=clock.add)
    windows = _Windows(stages, sampling or Sampling(), seed=seed, clock=clock)
    with closing(guided):
        for item in guided:
            yield from windows.add(item)
        yield from windows.rest()


class _Windows:
    """Gathers guided frames to windows and finishes them; each window starts from the last finished frame."""

    def __init__(self, stages: Stages | None, sampling: Sampling, *, seed: int, clock: Seconds) -> None:
        self._stages, self._sampling, self._seed, self._clock = stages, sampling, seed, clock
        self._generator = torch.Generator().manual_seed(seed)
        self._length = stages.config.clip.frames if stages is not None else 1
        self._waiting: list[Guided] = []
        self._last: Finished | None = None

    def add(self, item: Guided) -> Iterator[Finished]:
        """One frame more; whatever is finished by it."""
        self._waiting.append(item)
        if len(self._waiting) >= self._length - (self._last is not None and self._stages is not None):
            yield from self.rest()

    def rest(self) -> Iterator[Finished]:
        """All that waits, finished."""
        window, self._waiting = self._waiting, []
        for item, generated in zip(window, self._generate(window), strict=True):
            began = time.perf_counter()
            now = item.tracked
            frame = blend(
                now.frame,
                hole=now.hole,
                known=item.known,
                trust=item.trust,
                generated=generated,
                seed=self._seed + now.index,
            )
            share = float(item.unseen.sum() / max(int(now.hole.sum()), 1))
            self._clock.add("composite", began)
            self._last = Finished(now.index, frame, now.original, now.mask, now.hole, now.confidence, share)
            yield self._last

    def _generate(self, window: list[Guided]) -> list[np.ndarray | None]:
        """The model's frames of a window, for those that have something unseen."""
        hidden = [int(item.unseen.sum()) for item in window]
        if self._stages is None or sum(hidden) < LEAST_UNSEEN:
            return [None] * len(window)
        began = time.perf_counter()
        before = [] if self._last is None else [_as_guided(self._last, window[0])]
        first = window[0].known if self._last is None else self._last.frame
        frames, evaluations = generate(
            self._stages, [*before, *window], first, sampling=self._sampling, generator=self._generator
        )
        self._clock.evaluations += evaluations
        self._clock.add("model", began)
        pairs = zip(frames[len(before) :], hidden, strict=True)
        return [frame if count else None for frame, count in pairs]


def _as_guided(last: Finished, like: Guided) -> Guided:
    """The last finished frame as the first of a window: all of it is known."""
    tracked = replace(
        like.tracked,
        index=last.index,
        frame=last.frame,
        original=last.original,
        hole=np.zeros_like(last.hole),
    )
    return Guided(tracked, last.frame, np.ones(last.hole.shape, np.float32))


@dataclass(frozen=True)
class Removed:
    """A whole video without the object.

    Attributes:
        frames: uint8 `[T, H, W, 3]`.
        mask: the object, bool `[T, H, W]`.
        confidence: float `[T]`.
        unseen: the share of each frame's hole that no frame shows, float `[T]`.
        seconds: by stage, and the total.
    """

    frames: np.ndarray
    mask: np.ndarray
    confidence: np.ndarray
    unseen: np.ndarray
    seconds: dict[str, float]


def remove(
    frames: np.ndarray,
    *,
    edited: np.ndarray | None = None,
    masks: Mapping[int, np.ndarray],
    stages: Stages | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Removed:
    """`stream_removal` for frames in an array, uint8 `[T, H, W, 3]`, and masks in a dict.

    Raises:
        GenPropError: no mask of the first frame, or an empty one.
    """
    check_first_mask(masks.get(0))
    began, clock = time.perf_counter(), Seconds()
    done = list(
        stream_removal(
            frames,
            edited=edited,
            masks=masks.get,
            stages=stages,
            sampling=Sampling(steps),
            seed=seed,
            seconds=clock,
        )
    )
    clock.add("total", began)
    return Removed(
        np.stack([item.frame for item in done]),
        np.stack([item.mask for item in done]),
        np.array([item.confidence for item in done]),
        np.array([item.unseen for item in done]),
        clock.by_stage,
    )


def check_first_mask(mask: np.ndarray | None) -> None:
    """Refuse a first frame without a mask: there is nothing to follow then."""
    if mask is None or not mask.any():
        raise GenPropError(
            "the first frame has no mask, expected where the object is in it",
            "Give a mask of the first frame: the object white on black.",
        )
