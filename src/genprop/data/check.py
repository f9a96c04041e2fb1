"""What `genprop data check` does: every frame of every clip is read, and what is wrong is said."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import cv2
from av.error import FFmpegError

from genprop.data.recordings import Recordings, Source
from genprop.errors import GenPropError

READING_ERRORS = (GenPropError, OSError, FFmpegError, cv2.error)
"""What a broken clip raises; anything else is a bug, and is not caught."""


class ClipReport(NamedTuple):
    """One clip; `size` is (width, height), and the three facts are None where it cannot be read.

    `faults` is empty where all is well; a clip that is `usable` in spite of them is read in training.
    """

    clip: str
    frames: int | None
    size: tuple[int, int] | None
    fps: Fraction | None
    faults: list[str]
    usable: bool


def check_source(source: Source) -> list[ClipReport]:
    """Reads all of a source, one frame at a time.

    Raises:
        GenPropError: it has no files to check.
    """
    if not isinstance(source, Recordings):
        raise GenPropError(f"{source.where} clips are drawn, not read: there is nothing to check")
    return [check_clip(source, index) for index in range(len(source.names))]


def check_clip(source: Recordings, index: int) -> ClipReport:
    """One clip of `check_source`."""
    faults: list[str] = []
    try:
        facts = source.check(index, faults.append)
    except READING_ERRORS as error:
        faults.append(describe(error))
        return ClipReport(source.names[index], None, None, None, unique(faults), False)
    return ClipReport(source.names[index], *facts, unique(faults), True)


def describe(error: Exception) -> str:
    """What an error says of a clip, in one line."""
    return " ".join((error.message if isinstance(error, GenPropError) else f"{error!r}").split())


def unique(faults: list[str]) -> list[str]:
    """Each once: the parts of a triplet often share what is unusual about them."""
    return list(dict.fromkeys(faults))
