"""Removing an object from a video as it streams by: guide, model, composite.

    frames -> guide.follow -> windows of the model, where something is unseen -> blend -> finished frames

Motion and tracking run in threads of their own, a few frames ahead. Everything holds a fixed number of
frames, so memory does not grow with the video. `remove` does it for frames in an array, `task` for files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from genprop.runtime.unseen import generate

LEAST_UNSEEN = 16
"""Fewer unseen pixels in a window than this are filled from around them: no model is asked."""


@dataclass(frozen=True)
class Finished:
    """A frame without the object.

    Attributes:
        index: counted from the first.
        frame: uint8 `[H, W, 3]`; outside of `hole` the video's own, bit for bit.
        mask: the object, bool `[H, W]`.
        hole: what was replaced, bool `[H, W]`.
        confidence: in the mask, 0 to 1.
        unseen: the share of the hole that no frame shows.
    """

    index: int
    frame: np.ndarray
    mask: np.ndarray
    hole: np.ndarray
    confidence: float
    unseen: float


@dataclass
class Seconds:
    """The time that each stage took, in seconds; stages that ran at once are counted twice."""

    by_stage: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, began: float) -> None:
        self.by_stage[stage] = self.by_stage.get(stage, 0.0) + time.perf_counter() - began


def stream_removal(
    frames: Iterable[np.ndarray],
    *,
    edited: np.ndarray | None,
    masks: Masks,
    stages: Stages | None,
    net: TrackerNet | None = None,
    steps: int | None = None,
    seed: int = 0,
    seconds: Seconds | None = None,
) -> Iterator[Finished]:
    """The frames of a video without the object, in order, as they become known.

    Args:
        frames: uint8 `[H, W, 3]`.
        edited: the first frame without it; None fills it.
        masks: where the object is, by a frame's index; the first frame's at least.
        stages: the model for what no frame shows; None leaves that to the guide.
        net: the tracker's network; the embedded one if None.
        steps: of the model.
        seed: of all noise.
        seconds: is told the time of each stage.
    """
    tracker = net if net is not None else load_tracker(embedded_tracker())
    clock = seconds if seconds is not None else Seconds()
    guided = follow(frames, tracker, edited=edited, masks=masks, clock=clock.add)
    generator = torch.Generator().manual_seed(seed)
    length = stages.config.clip.frames if stages is not None else 8
    window: list[Guided] = []
    finished: Finished | None = None
    with closing(guided):
        for item in guided:
            window.append(item)
            if len(window) == (length if finished is None else length - 1):
                for finished in _finish(window, finished, stages, steps, generator, seed, clock):
                    yield finished
                window = []
        if window:
            yield from _finish(window, finished, stages, steps, generator, seed, clock)


def _finish(
    window: list[Guided],
    last: Finished | None,
    stages: Stages | None,
    steps: int | None,
    generator: torch.Generator,
    seed: int,
    clock: Seconds,
) -> Iterator[Finished]:
    """The frames of one window; the model starts it from the last frame that was finished."""
    made: list[np.ndarray | None] = [None] * len(window)
    if stages is not None and sum(int(item.unseen.sum()) for item in window) >= LEAST_UNSEEN:
        began = time.perf_counter()
        if last is None:
            frames = generate(stages, window, window[0].known, steps=steps, generator=generator)
        else:
            before = _as_guided(last, window[0])
            frames = generate(stages, [before, *window], last.frame, steps=steps, generator=generator)[1:]
        made = [frame if item.unseen.any() else None for frame, item in zip(frames, window, strict=True)]
        clock.add("model", began)
    for item, generated in zip(window, made, strict=True):
        began = time.perf_counter()
        now = item.tracked
        frame = blend(
            now.frame,
            hole=now.hole,
            known=item.known,
            trust=item.trust,
            generated=generated,
            seed=seed + now.index,
        )
        share = float(item.unseen.sum() / max(int(now.hole.sum()), 1))
        clock.add("composite", began)
        yield Finished(now.index, frame, now.mask, now.hole, now.confidence, share)


def _as_guided(last: Finished, like: Guided) -> Guided:
    """The last finished frame as the first of a window: all of it is known."""
    tracked = replace(like.tracked, index=last.index, frame=last.frame, hole=np.zeros_like(last.hole))
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
    stages: Stages | None,
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
            frames, edited=edited, masks=masks.get, stages=stages, steps=steps, seed=seed, seconds=clock
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
