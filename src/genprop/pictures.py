"""Picture files, and how any output file comes to be: whole or not at all.

An output is written beside its target, in a folder of its own, and moved over it when it is complete: a
run that fails, or that someone stops, leaves what was there before.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from av.error import FFmpegError
from PIL import Image

from .errors import GenPropError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_ORIENTATION = 0x0112  # the EXIF tag; 5 and above turn a picture by a quarter


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order (2 before 10); hidden files are no pictures."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return sorted(
        found,
        key=lambda p: [int(s) if s.isdecimal() and s.isascii() else s for s in re.split(r"([0-9]+)", p.name)],
    )


def read_image(path: Path) -> np.ndarray:
    """Reads a picture as uint8 RGB `[H, W, 3]`, upright; GenPropError where there is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise GenPropError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise GenPropError(f"{path} is not a picture, expected png or jpg", "Save the image again as png.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) of an upright picture, from the file's header; GenPropError where there is none."""
    try:
        with Image.open(path) as image:
            (width, height), turned = image.size, False
            if "exif" in image.info:
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        height, width = read_image(path).shape[:2]  # says what is wrong with it
        turned = False
    return (width, height) if turned else (height, width)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB `[H, W, 3]` or grey `[H, W]` as png or jpg, whole or not at all."""
    path = Path(path)
    check_target(path, suffixes=IMAGE_SUFFIXES)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    with naming_failures(path), beside(path) as temporary:
        _, data = cv2.imencode(path.suffix.lower(), bgr)  # jpg at cv2's quality of 95
        temporary.write_bytes(data.tobytes())
        os.replace(temporary, path)


def pixels(image: np.ndarray) -> str:
    """The size of `[H, W, ...]` as a person writes it: width x height."""
    return f"{image.shape[1]}x{image.shape[0]}"


def check_target(path: Path, *, suffixes: tuple[str, ...], audio_from: Path | None = None) -> None:
    """Raises GenPropError where a file of that name cannot be written, or the sound's source is missing."""
    if path.suffix.lower() not in suffixes:
        raise GenPropError(
            f"{path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(suffixes)}",
            f"Call it {path.stem}{suffixes[0]}.",
        )
    if path.is_dir():
        raise GenPropError(f"{path} is a folder, expected a file name", "Choose another name.")
    if not path.parent.is_dir():
        raise GenPropError(f"the folder {path.parent} does not exist", "Create it, or choose another.")
    if audio_from is not None and not audio_from.exists():
        raise GenPropError(
            f"{audio_from} does not exist, expected a video to take the sound from", "Check the path."
        )


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write to before moving it to `path`; whatever is left there is removed.

    It lies in a folder of its own beside the target: the same file system, so the move is atomic; the
    same name, so FFmpeg sees the suffix; and the file gets the permissions that any new file gets.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".genprop-") as folder:
        yield Path(folder) / path.name


@contextmanager
def naming_failures(path: Path, *, audio_from: Path | None = None) -> Iterator[None]:
    """Turns what the disk or FFmpeg says against writing `path` into a GenPropError."""
    try:
        yield
    except (FFmpegError, OSError, ValueError) as error:
        sound = f" with the sound of {audio_from}" if audio_from is not None else ""
        hint = "Check the disk and the folder's permissions"
        raise GenPropError(
            f"{path} cannot be written{sound}: {error}",
            f"{hint}; .mkv holds kinds of sound that .mp4 does not." if sound else f"{hint}.",
        ) from error
