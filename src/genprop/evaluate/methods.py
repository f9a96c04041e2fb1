"""The rows of the table of removals: baselines, the guide, the guide with a model, the model alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from genprop.errors import GenPropError
from genprop.evaluate.baselines import TELEA_RADIUS
from genprop.evaluate.removal import Removal
from genprop.guide.fill import paint
from genprop.runtime.backends import Stages
from genprop.runtime.propagate import Model
from genprop.runtime.removal import remove


class Outcome(NamedTuple):
    """What a method makes of a removal: frames uint8 `[T, H, W, 3]`, and a mask bool `[T, H, W]` or None."""

    frames: np.ndarray
    mask: np.ndarray | None
    seconds: float


Method = Callable[[Removal], Outcome]

NAMES = (
    "identity",
    "frozen",
    "telea",
    "shiftmap",
    "model",
    "guide",
    "guide+model",
    "guide, masks given",
    "guide+model, masks given",
)
"""In the order of the table. Telea and the shift map have the true hole of every frame given."""


def methods(names: tuple[str, ...], stages: Stages | None, *, steps: int | None) -> dict[str, Method]:
    """The rows that are asked for; `stages` is the model of those that have one.

    Raises:
        GenPropError: no row of that name, or one with a model where there is none.
    """
    check_names(names, has_model=stages is not None)
    every: dict[str, Method] = {
        "identity": _timed(lambda r: r.video),
        "frozen": _timed(lambda r: np.repeat(r.truth[:1], len(r.video), axis=0)),
        "telea": _timed(_telea),
        "shiftmap": _timed(lambda r: np.stack([paint(f, h) for f, h in zip(r.video, r.hole, strict=True)])),
        "guide": partial(_guide, stages=None, given=False, steps=steps),
        "guide, masks given": partial(_guide, stages=None, given=True, steps=steps),
    }
    if stages is not None:
        every["model"] = partial(_model, model=Model(stages), steps=steps)
        every["guide+model"] = partial(_guide, stages=stages, given=False, steps=steps)
        every["guide+model, masks given"] = partial(_guide, stages=stages, given=True, steps=steps)
    return {name: every[name] for name in NAMES if name in names}


def known_names(*, has_model: bool) -> tuple[str, ...]:
    """The rows that there are, with a model or without."""
    return tuple(name for name in NAMES if has_model or "model" not in name)


def check_names(names: Iterable[str], *, has_model: bool) -> None:
    """Refuse a row that there is not, before anything is read.

    Raises:
        GenPropError: it is not in the table, or needs a model and there is none.
    """
    known = known_names(has_model=has_model)
    for name in names:
        if name not in known:
            raise GenPropError(
                f"no method {name!r}, expected some of: {'; '.join(known)}",
                "Name them as in the table." if name not in NAMES else "Give a --model other than none.",
            )


def _timed(make: Callable[[Removal], np.ndarray]) -> Method:
    def method(removal: Removal) -> Outcome:
        began = time.perf_counter()
        frames = make(removal)
        return Outcome(frames, None, time.perf_counter() - began)

    return method


def _telea(removal: Removal) -> np.ndarray:
    pairs = zip(removal.video, removal.hole, strict=True)
    return np.stack(
        [cv2.inpaint(frame, hole.astype(np.uint8), TELEA_RADIUS, cv2.INPAINT_TELEA) for frame, hole in pairs]
    )


def _model(removal: Removal, *, model: Model, steps: int | None) -> Outcome:
    """The model alone, on squashed frames: what it did before there was a guide."""
    done = model.propagate(removal.video, removal.truth[0], steps=steps)
    return Outcome(done.frames, done.mask > 0.5, done.seconds["total"])


def _guide(removal: Removal, *, stages: Stages | None, given: bool, steps: int | None) -> Outcome:
    masks = dict(enumerate(removal.mask)) if given else {0: removal.mask[0]}
    done = remove(removal.video, edited=removal.truth[0], masks=masks, stages=stages, steps=steps)
    return Outcome(done.frames, done.mask, done.seconds["total"])
