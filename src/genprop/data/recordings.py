"""Recorded clips with masks, whatever the folders are called: what every layout on disk has in common.

A layout says which files are the parts of a clip (`Recordings.open`); that the parts agree, which window
and which instance are taken, and what is wrong with a clip, is decided here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import Generator

from genprop.data.footage import Footage, Note
from genprop.data.window import View, Window
from genprop.errors import GenPropError
from genprop.types import EditSample, MaskedClip

TRIES = 8
"""Windows that are drawn of a clip until the object is in the first frame."""

VOID = 255
"""Among other labels, what annotators left undecided; alone, the one object of a black and white mask."""


class Source(Protocol):
    """Clips to learn from. Picklable, and without open files: workers read from copies.

    Attributes:
        where: the folder, or what else names it.
        names: of the clips.
        pairs: clips are recorded edits (`EditSample`); else edits are made of them (`MaskedClip`).
    """

    where: str
    names: list[str]
    pairs: bool

    def read(self, index: int, rng: Generator, view: View, *, note: Note = ...) -> MaskedClip | EditSample:
        """A window of clip `index` drawn from `rng`; `note` is told what is unusual about the clip.

        Raises:
            GenPropError: what is wrong with the clip.
        """
        ...


@dataclass(frozen=True)
class Recording:
    """The parts of a clip: frames, labels of what is where in them, and the same frames edited.

    `instance` is the label to take; None draws one.
    """

    frames: Footage
    labels: Footage
    edited: Footage | None = None
    instance: int | None = None

    @property
    def parts(self) -> dict[str, Footage]:
        """What is to agree, by what errors call it; the frames come first."""
        edited = {} if self.edited is None else {"edited video": self.edited}
        return {"video": self.frames, **edited, "mask": self.labels}


class Facts(NamedTuple):
    """What a clip that can be read is: size is (width, height); fps None where frames are files."""

    frames: int
    size: tuple[int, int]
    fps: Fraction | None


class Recordings(ABC):
    """A `Source` of clips on disk; `captions` are those that are known, by name."""

    def __init__(
        self, where: str, names: list[str], *, pairs: bool, captions: Mapping[str, str] | None = None
    ) -> None:
        self.where, self.names, self.pairs = where, names, pairs
        self.captions = captions or {}

    @abstractmethod
    def open(self, index: int, note: Note) -> Recording:
        """The parts of clip `index`, none of them decoded; GenPropError where one is missing or broken."""

    def read(
        self, index: int, rng: Generator, view: View, *, note: Note = lambda _: None
    ) -> MaskedClip | EditSample:
        """See `Source`. An edit begins in the first frame, so windows are drawn until the object is in it;
        after `TRIES` of them the object is looked for. A layout without `edited` gives a `MaskedClip`."""
        recording = self.open(index, note)
        _check_lengths(recording)
        window, mask, size = _draw(recording, rng, view)
        frames = _fitted(recording.frames, window, "video", size, note)
        caption = self.captions.get(self.names[index], "")
        if recording.edited is None:
            return MaskedClip(frames, mask, caption)
        edited = _fitted(recording.edited, window, "edited video", size, note)
        return EditSample(frames, edited, mask, caption=caption)

    def check(self, index: int, note: Note) -> Facts:
        """Reads every frame of clip `index`.

        Raises:
            GenPropError: the first fault of it.
        """
        recording = self.open(index, note)
        _check_lengths(recording)
        size: tuple[int, int] | None = None
        empty = True
        for name, part in recording.parts.items():
            for frame in part.read(range(len(part))):
                if size is None:
                    size = _size(frame)
                    _note_odd(size, note)
                _check_size(name, part, _size(frame), size)
                if part is recording.labels:
                    empty &= not _instances(frame, recording.instance)
        assert size is not None
        if empty:
            raise _empty(recording)
        return Facts(len(recording.frames), size, recording.frames.fps)


def _check_lengths(recording: Recording) -> None:
    for name, part in recording.parts.items():
        if len(part) != len(recording.frames):
            raise GenPropError(
                f"{part.path}: the {name} has {len(part)} frames, the video {len(recording.frames)}",
                "The parts of a clip need the same number of frames.",
            )


def _draw(recording: Recording, rng: Generator, view: View) -> tuple[Window, np.ndarray, tuple[int, int]]:
    """A window, the mask of one instance in it (bool `[T, H, W]`), and the size of the mask's frames."""
    footage = recording.labels
    for attempt in range(TRIES + 1):
        last = attempt == TRIES
        window = _at_an_object(recording, rng, view) if last else view.draw(rng, len(footage))
        labels = list(footage.read(window.indices))
        size = _size(labels[0])
        for frame in labels:
            _check_size("mask", footage, _size(frame), size)
        found = set().union(*(_instances(frame, recording.instance) for frame in labels))
        masks = [np.stack([window.fit_mask(f == instance) for f in labels]) for instance in sorted(found)]
        seen = [mask for mask in masks if (mask if last else mask[0]).any()]
        if seen:
            return window, seen[int(rng.integers(len(seen)))], size
    raise GenPropError(
        f"{footage.path}: the object is outside of all {TRIES + 1} crops that were tried",
        "Remove the clip, or crop at random.",
    )


def _at_an_object(recording: Recording, rng: Generator, view: View) -> Window:
    """A window at stride 1 that starts at an object or, near the end of the clip, holds one."""
    footage = recording.labels
    frames = enumerate(footage.read(range(len(footage))))
    present = [index for index, labels in frames if _instances(labels, recording.instance)]
    if not present:
        raise _empty(recording)
    start = min(present[int(rng.integers(len(present)))], len(footage) - view.frames)
    return replace(view.draw(rng, len(footage)), indices=list(range(start, start + view.frames)))


def _empty(recording: Recording) -> GenPropError:
    which = "" if recording.instance is None else f" of instance {recording.instance}"
    return GenPropError(
        f"{recording.labels.path}: the mask{which} is empty in all frames", "Remove the clip."
    )


def _instances(labels: np.ndarray, instance: int | None) -> set[int]:
    """The labels of a frame that may be taken."""
    found = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()) - {0}
    if instance is not None:
        return found & {instance}
    return found - {VOID} or found


def _fitted(footage: Footage, window: Window, name: str, expected: tuple[int, int], note: Note) -> np.ndarray:
    """The window's frames at its size, one at a time, since a large video's do not all fit in memory."""
    fitted = []
    for frame in footage.read(window.indices):
        _check_size(name, footage, _size(frame), expected)
        fitted.append(window.fit(frame))
    _note_odd(expected, note)
    return np.stack(fitted)


def _check_size(name: str, part: Footage, got: tuple[int, int], expected: tuple[int, int]) -> None:
    if got != expected:
        raise GenPropError(
            f"{part.path}: the {name} has frames of {got[0]}x{got[1]}, expected {expected[0]}x{expected[1]} "
            "as in the rest of the clip",
            "All frames of a clip's parts need one size.",
        )


def _note_odd(size: tuple[int, int], note: Note) -> None:
    if size[0] % 2 or size[1] % 2:
        note(f"odd size {size[0]}x{size[1]}: resized")


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[1], image.shape[0]
