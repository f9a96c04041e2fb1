"""Videos as streams of uint8 frames, in and out, in bounded memory.

A ten-minute clip does not fit into memory, so nothing here holds more than the frame in hand and what the
codec looks ahead. Frames keep their number, rate and size on the way in and on the way out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .codec import Decoder, Encoder
from .errors import GenPropError
from .pictures import (
    IMAGE_SUFFIXES,
    beside,
    check_target,
    image_files,
    image_size,
    naming_failures,
    pixels,
    read_image,
)

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
"""What can be written; whatever FFmpeg decodes can be read."""


class VideoReader:
    """A video that is read from its first frame to its last, once; a context manager. See `open_frames`.

    Iterating yields upright uint8 RGB frames `[H, W, 3]`, contiguous, each decoded when it is asked for.

    Attributes:
        path: the file or the folder.
        height, width: of every frame.
        fps: the container's average rate (a variable rate is evened out).
        expected: how many frames the container states, or how many files a folder holds; None where it is
            not stated. For a progress bar: a video may hold a few more or fewer.

    Raises:
        GenPropError: while iterating, where a frame is damaged or of another size, or the video cut short.
    """

    def __init__(self, path: Path, *, folder_fps: Fraction) -> None:
        self.path = path
        self._closing = ExitStack()
        if path.is_dir():
            files = image_files(path)
            sizes = [image_size(file) for file in files]
            for index, size in enumerate(sizes):
                self._check_size(index, size, sizes[0])
            self.fps, self.expected = folder_fps, len(files)
            frames: Iterator[np.ndarray] = map(read_image, files)
        else:
            decoder = Decoder(path)
            self._closing.callback(decoder.close)
            self.fps, self.expected, frames = decoder.fps, decoder.expected, iter(decoder)
        with ExitStack() as on_failure:
            on_failure.callback(self.close)
            first = next(frames, None)
            if first is None:
                raise GenPropError(
                    f"{path} holds no frames, expected at least one", "Give a video with pictures in it."
                )
            on_failure.pop_all()
        self.height, self.width = first.shape[:2]
        self._frames, self._index = chain([first], frames), -1

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        frame = next(self._frames)
        self._index += 1
        self._check_size(self._index, frame.shape[:2], (self.height, self.width))
        return frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; there are no frames after that."""
        self._frames = iter(())
        self._closing.close()

    def _check_size(self, index: int, size: tuple[int, ...], first: tuple[int, ...]) -> None:
        if size != first:
            raise GenPropError(
                f"{self.path}: frame {index} is {size[1]}x{size[0]}, frame 0 is {first[1]}x{first[0]}; "
                "expected one size",
                "Bring all frames to the same width and height.",
            )


def open_frames(path: Path, *, folder_fps: Fraction = Fraction(16)) -> VideoReader:
    """Opens a video file, or a folder of png or jpg frames in natural order (2 before 10), as a stream.

    Args:
        path: the file or folder.
        folder_fps: the rate of a folder, which cannot state its own.

    Raises:
        GenPropError: it is missing, is no video, or holds no frames or pictures of several sizes. What only
            shows on the way is raised there: see `VideoReader`.
    """
    path = Path(path)
    if not path.exists():
        raise GenPropError(
            f"{path} does not exist, expected a video or a folder of frames", "Check the path."
        )
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise GenPropError(f"{path} is a picture, expected a video", "Give the video, or a folder of frames.")
    return VideoReader(path, folder_fps=folder_fps)


class VideoWriter:
    """A video that is written frame by frame, as a context manager. See `write_frames`."""

    def __init__(
        self, path: Path, *, height: int, width: int, fps: Fraction, audio_from: Path | None, crf: int
    ) -> None:
        self.path, self.height, self.width = path, height, width
        self._fps, self._audio_from, self._crf = fps, audio_from, crf

    @property
    def frames(self) -> int:
        """How many frames were written so far."""
        return self._encoder.frames

    def __enter__(self) -> Self:
        with self._naming_failures(), ExitStack() as stack:
            self._temporary = stack.enter_context(beside(self.path))
            self._encoder = Encoder(
                self._temporary,
                height=self.height,
                width=self.width,
                fps=self._fps,
                crf=self._crf,
                audio_from=self._audio_from,
            )
            self._folder = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Appends a uint8 RGB frame `[H, W, 3]`; GenPropError where the disk or the sound fails."""
        assert frame.shape == (self.height, self.width, 3) and frame.dtype == np.uint8, pixels(frame)
        with self._naming_failures():
            self._encoder.write(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._naming_failures(), self._folder:  # the folder goes, however this ends
            if kind is not None:
                self._encoder.abort()
            elif not self.frames:
                self._encoder.abort()
                raise GenPropError(
                    f"{self.path}: no frames were written, expected at least one",
                    "Give a video with pictures in it.",
                )
            else:
                self._encoder.close()
                os.replace(self._temporary, self.path)

    def _naming_failures(self) -> AbstractContextManager[None]:
        return naming_failures(self.path, audio_from=self._audio_from)


def write_frames(
    path: Path, *, height: int, width: int, fps: Fraction, audio_from: Path | None = None, crf: int = 16
) -> VideoWriter:
    """Writes H.264 (yuv420p, or yuv444p for odd sizes, which 4:2:0 cannot hold) as frames come.

    The file appears when the `with` block ends, whole; if the block ends by any exception, nothing does.
    An exception that is not about writing passes through as it is.

    Args:
        path: one of `VIDEO_SUFFIXES`, in a folder that exists.
        fps: written exactly.
        audio_from: a video whose sound is copied, bit for bit and in time with its pictures, as far as
            the frames last; a folder of frames is silent.
        crf: x264's constant rate factor; 0 is lossless, 16 is hard to tell from it.

    Raises:
        GenPropError: the target cannot be written, or the sound not be copied into it, or no frame came.
    """
    assert height > 0 and width > 0 and fps > 0
    path, audio_from = Path(path), Path(audio_from) if audio_from is not None else None
    check_target(path, suffixes=VIDEO_SUFFIXES, audio_from=audio_from)
    return VideoWriter(path, height=height, width=width, fps=fps, audio_from=audio_from, crf=crf)
