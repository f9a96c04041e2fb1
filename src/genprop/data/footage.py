"""Frames where they lie, a video file or a folder of pictures, of which only the asked ones are read.

What is broken raises a `GenPropError`; what is unusual, but can be read, is told to a `Note`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from genprop.data.probe import decode_at, probe
from genprop.errors import GenPropError
from genprop.video import THRESHOLD, image_files, read_image

Note = Callable[[str], None]
"""Is told what is unusual about a clip that is read all the same."""

USUAL_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "ffv1")


class Footage(Protocol):
    """The frames of one part of a clip, in order."""

    @property
    def path(self) -> Path: ...

    @property
    def fps(self) -> Fraction | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames at `indices` (rising), uint8 `[H, W, 3]` or labels `[H, W]`, one after the other."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Picture files, each a frame; `load` reads one."""

    path: Path
    files: list[Path]
    load: Callable[[Path], np.ndarray] = read_image
    fps: Fraction | None = None

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        for index in indices:
            file = self.files[index]
            if file.is_file() and not file.stat().st_size:
                raise GenPropError(f"{file}: zero bytes, expected a picture", "Save the frame again as png.")
            yield self.load(file)


@dataclass(frozen=True)
class Video:
    """A video file that `probe` has found whole."""

    path: Path
    frames: int
    fps: Fraction | None

    def __len__(self) -> int:
        return self.frames

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        return decode_at(self.path, indices)


@dataclass(frozen=True)
class Labels:
    """A black and white footage as labels: 1 where the brightest channel is above `THRESHOLD`, else 0."""

    shades: Footage

    @property
    def path(self) -> Path:
        return self.shades.path

    @property
    def fps(self) -> Fraction | None:
        return self.shades.fps

    def __len__(self) -> int:
        return len(self.shades)

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        return ((frame.max(-1) > THRESHOLD).astype(np.uint8) for frame in self.shades.read(indices))


def open_footage(path: Path, note: Note) -> Footage:
    """A video file or a folder of pictures.

    Raises:
        GenPropError: it is broken or holds no frames; the message says how.
    """
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise GenPropError(
                f"{path} holds no frames, expected png or jpg", "Remove it, or add its frames."
            )
        return Pictures(path, files)
    found = probe(path)
    if found.variable:
        note("variable frame rate: frames are taken as they come")
    if found.rotation:
        note(f"rotated by {found.rotation} degrees: turned upright")
    if found.bits > 8:
        note(f"{found.bits} bit: reduced to 8")
    if found.codec not in USUAL_CODECS:
        note(f"codec {found.codec}, expected one of {', '.join(USUAL_CODECS)}: decoded all the same")
    return Video(path, found.frames, found.fps)


def read_labels(path: Path) -> np.ndarray:
    """Which instance is where: uint8 `[H, W]`, 0 is none.

    A palette PNG's index is the instance; its colours mean nothing. Any other picture is one object, 255
    where its brightest channel is above `THRESHOLD` (DAVIS 2016).
    """
    try:
        with Image.open(path) as image:
            if image.mode == "P":
                return np.array(image)
            shades = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise GenPropError(f"{path} cannot be read as a mask: {error}", "Save it again as png.") from error
    return np.where(shades.max(-1) > THRESHOLD, np.uint8(255), np.uint8(0))
