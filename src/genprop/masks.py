"""Masks: where the object is, for the first frame, for some frames or for all.

A mask is white where the object is. The masks of a whole clip are a stream like its frames: a video of
masks is decoded as it goes, and a folder's pictures are read when they are asked for. What the files'
names, number and headers are wrong about is said at opening, before any work.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from .codec import count_packets
from .errors import GenPropError
from .frames import VideoReader, open_frames
from .pictures import IMAGE_SUFFIXES, image_files, image_size, read_image

THRESHOLD = 127
"""A mask is where a pixel's brightest channel is above this."""

_PAINT = "Paint only the object white (255), all else black (0)."


def read_mask(path: Path, *, size: tuple[int, int]) -> np.ndarray:
    """Reads one mask as bool `[H, W]`. A video's or a folder's mask is its first frame.

    Raises:
        GenPropError: its size is not `size` (height, width), it is empty, or it covers the whole frame.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES or not path.exists():
        image = read_image(path)
    else:
        with open_frames(path) as reader:
            image = next(reader)
    _check_size(path, image.shape[:2], size)
    mask = image.max(axis=-1) > THRESHOLD
    if not mask.any():
        raise _empty(f"the mask {path} is empty: its", image.max())
    _check_not_full(f"the mask {path}", mask)
    return mask


class MaskReader(ABC):
    """The masks of a clip, asked for in the order of its frames; a context manager. See `open_masks`.

    Attributes:
        indices: the frames that have a mask, rising; None: every frame has one.
    """

    def __init__(self, path: Path, *, indices: Sequence[int] | None, last: int | None) -> None:
        self.path, self.indices = path, indices
        self._last = last  # the last frame with a mask, where it is known
        self._index, self._mask = -1, None
        self._brightest: int | None = None  # of all masks read so far

    def get(self, index: int) -> np.ndarray | None:
        """The mask of frame `index` as bool `[H, W]`, or None where none was given.

        It may be empty: the object is not in every frame. `index` never falls from call to call.

        Raises:
            GenPropError: the mask is of another size, is white all over, or is missing at the end of a
                video; or it was the last one, and all were empty.
        """
        assert index >= max(self._index, 0), f"mask {index} is asked for after mask {self._index}"
        if index == self._index:
            return self._mask
        self._index, self._mask = index, None
        image = self._read(index)
        if image is not None:
            self._mask = image.max(axis=-1) > THRESHOLD
            _check_not_full(self._name(index), self._mask)
            self._brightest = max(self._brightest or 0, int(image.max()))
        if self._last is not None and index >= self._last:
            self._check_not_all_empty()
        return self._mask

    def finish(self, frames: int) -> None:
        """To be called after the last frame of the clip, when their number is known for certain.

        Raises:
            GenPropError: there are masks for more frames, or for fewer, or all that were read are empty.
        """
        self._check_length(frames)
        self._check_not_all_empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Closes the file, if one is open."""

    @abstractmethod
    def _read(self, index: int) -> np.ndarray | None:
        """The picture `[H, W, 3]` of frame `index`, if there is one."""

    @abstractmethod
    def _name(self, index: int) -> str:
        """What a message calls the mask of frame `index`."""

    @abstractmethod
    def _check_length(self, frames: int) -> None:
        """Raises GenPropError where the masks do not fit so many frames."""

    def _check_not_all_empty(self) -> None:
        if self._brightest is not None and self._brightest <= THRESHOLD:
            raise _empty(f"all masks in {self.path} are empty: their", self._brightest)


def open_masks(path: Path, *, height: int, width: int, frames: int | None) -> MaskReader:
    """Opens the masks of a whole clip: a video with one for each frame, or a folder of pictures.

    In a folder the last number in a file's name says which frame the mask is for: `mask-0040.png` is for
    frame 40, the first being 0. Some frames are enough. Only where there are as many files as frames, and
    they begin at 1, is the first frame number 1.

    Args:
        height, width: the clip's.
        frames: how many frames the clip has, if that is known for certain (`VideoReader.expected` is not);
            otherwise a wrong number is found on the way, and by `MaskReader.finish`.

    Raises:
        GenPropError: there is nothing at `path` or no masks, they are of another size or number than the
            clip's frames, or a picture's name does not say one frame of the clip.
    """
    path = Path(path)
    if not path.exists():
        raise GenPropError(
            f"{path} does not exist, expected a video of masks or a folder of them", "Check the path."
        )
    if path.is_dir():
        return _FolderMasks(path, height=height, width=width, frames=frames)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise GenPropError(
            f"{path} is a picture, expected a video of masks or a folder of them",
            "Put it into a folder, with the number of its frame in its name: masks/0.png is the first.",
        )
    return _VideoMasks(path, height=height, width=width, frames=frames)


class _VideoMasks(MaskReader):
    def __init__(self, path: Path, *, height: int, width: int, frames: int | None) -> None:
        super().__init__(path, indices=None, last=None if frames is None else frames - 1)
        self._next = 0  # the frame that comes next out of the reader
        self._reader: VideoReader = open_frames(path)
        try:
            _check_size(path, (self._reader.height, self._reader.width), (height, width))
            if frames is not None and count_packets(path) != frames:
                with open_frames(path) as reader:
                    count = sum(1 for _ in reader)
                if count != frames:
                    raise self._wrong_length(f"{count}", frames)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._reader.close()

    def _read(self, index: int) -> np.ndarray:
        for frame in self._reader:
            self._next += 1
            if self._next > index:
                return frame
        raise self._wrong_length(f"{self._next}", f"at least {index + 1}")

    def _name(self, index: int) -> str:
        return f"the mask of frame {index} in {self.path}"

    def _check_length(self, frames: int) -> None:
        if self._next < frames:
            self._read(frames - 1)
        rest = sum(1 for _ in self._reader)
        if rest:
            raise self._wrong_length(f"{frames + rest}", frames)

    def _wrong_length(self, got: str, expected: int | str) -> GenPropError:
        return GenPropError(
            f"the masks in {self.path} have {got} frames, the video has {expected}",
            "Give one mask for each frame of the video; for some frames only, give a folder of pictures.",
        )


class _FolderMasks(MaskReader):
    def __init__(self, path: Path, *, height: int, width: int, frames: int | None) -> None:
        self._size = (height, width)
        numbered = _numbered(path)
        first, last = min(numbered), max(numbered)
        self._base = 1 if first == 1 and len(numbered) == frames else 0
        self._files = {number - self._base: numbered[number] for number in sorted(numbered)}
        every = frames is not None and len(self._files) == frames
        super().__init__(path, indices=None if every else tuple(self._files), last=last - self._base)
        if frames is not None:
            self._check_length(frames)
        for file in self._files.values():
            _check_size(file, image_size(file), self._size)

    def close(self) -> None:
        pass  # a picture's file is closed when it is read

    def _read(self, index: int) -> np.ndarray | None:
        if index not in self._files:
            return None
        image = read_image(self._files[index])
        _check_size(self._files[index], image.shape[:2], self._size)
        return image

    def _name(self, index: int) -> str:
        return f"the mask {self._files[index]}"

    def _check_length(self, frames: int) -> None:
        last = max(self._files)
        if last >= frames:
            raise GenPropError(
                f"the mask {self._files[last]} is for frame {last + self._base}, the video has {frames} "
                f"frames, {self._base} to {frames - 1 + self._base}",
                f"Name each mask by the number of its frame; the first frame is {self._base}.",
            )


def _numbered(folder: Path) -> dict[int, Path]:
    """The pictures of a folder by the last number in their names; at least one."""
    numbered: dict[int, Path] = {}
    for file in image_files(folder):
        digits = re.findall(r"[0-9]+", file.stem)
        if not digits:
            raise GenPropError(
                f"the mask {file} has no number in its name, expected that of its frame",
                "Call it 0.png if it is for the first frame.",
            )
        number = int(digits[-1])
        if number in numbered:
            raise GenPropError(
                f"the masks {numbered[number]} and {file.name} are both for frame {number}, expected one",
                "Give one mask for a frame; the last number in a name is its frame.",
            )
        numbered[number] = file
    if not numbered:
        raise GenPropError(
            f"{folder} holds no pictures, expected masks as png or jpg",
            "Give a folder of masks, each named by its frame: 0.png, 40.png.",
        )
    return numbered


def _check_size(path: Path, got: tuple[int, ...], expected: tuple[int, int]) -> None:
    if got != expected:
        raise GenPropError(
            f"the mask {path} is {got[1]}x{got[0]}, the video is {expected[1]}x{expected[0]}",
            "Draw the mask on the video's own frame, at its full size.",
        )


def _check_not_full(name: str, mask: np.ndarray) -> None:
    if mask.all():
        raise GenPropError(
            f"{name} covers the whole frame: 100 % of it is white, expected the object alone", _PAINT
        )


def _empty(what: str, brightest: int) -> GenPropError:
    return GenPropError(f"{what} brightest pixel is {brightest}, expected more than {THRESHOLD}", _PAINT)
