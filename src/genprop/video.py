"""Videos, pictures and masks between the disk and uint8 arrays: all of it in one place to import from.

`frames` has videos as streams, `pictures` single files, `masks` the masks; here are the same things for a
clip that fits into memory, and the edited first frame. Everything behind sees a `Clip` or plain arrays.
What a file is wrong about is said before any work begins.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from .codec import Encoder
from .errors import GenPropError
from .frames import VIDEO_SUFFIXES, VideoReader, VideoWriter, open_frames, write_frames
from .masks import THRESHOLD, MaskReader, open_masks, read_mask
from .pictures import (
    IMAGE_SUFFIXES,
    beside,
    check_target,
    image_files,
    naming_failures,
    pixels,
    read_image,
    write_image,
)
from .types import Clip

__all__ = [
    "IMAGE_SUFFIXES", "THRESHOLD", "VIDEO_SUFFIXES", "MaskReader", "VideoReader", "VideoWriter",
    "check_edited", "check_edited_size", "check_output", "fill_first_frame", "image_files", "open_frames",
    "open_masks", "read_clip", "read_image", "read_mask", "read_mask_clip", "write_clip", "write_frames",
    "write_image",
]  # fmt: skip


def read_clip(path: Path, *, max_frames: int | None = None, folder_fps: Fraction = Fraction(16)) -> Clip:
    """Reads a video file, or a folder of png or jpg frames in natural order (2 before 10).

    Args:
        path: the file or folder.
        max_frames: stop after so many frames; None reads all.
        folder_fps: the rate of a folder, which cannot state its own.

    Returns:
        The clip, upright (a phone's rotation is applied), at the container's average rate (a variable
        rate is evened out).

    Raises:
        GenPropError: it is missing, is no video, is cut short, holds no frames or frames of several sizes.
    """
    if max_frames is not None and max_frames < 1:
        raise GenPropError(f"max_frames is {max_frames}, expected at least 1", "Give 1 or more.")
    with open_frames(path, folder_fps=folder_fps) as reader:
        return Clip(np.stack(list(islice(reader, max_frames))), reader.fps, reader.path)


def read_mask_clip(path: Path, *, like: Clip) -> np.ndarray:
    """Reads a mask for every frame as bool `[T, H, W]`; single frames may be empty.

    Raises:
        GenPropError: the frame count or the size is not that of `like`.
    """
    frames = read_clip(path).frames
    if frames.shape != like.frames.shape:
        raise GenPropError(
            f"the mask {path} has {len(frames)} frames of {pixels(frames[0])}, "
            f"the video has {len(like.frames)} of {pixels(like.frames[0])}",
            "Give one mask frame for each frame of the video, at the same size.",
        )
    return frames.max(axis=-1) > THRESHOLD


def check_edited(edited: np.ndarray, clip: Clip) -> None:
    """Raises GenPropError unless the edited frame `[H, W, 3]` has the size of the clip's frames."""
    height, width = clip.frames.shape[1:3]
    check_edited_size(edited, height=height, width=width)


def check_edited_size(edited: np.ndarray, *, height: int, width: int) -> None:
    """Raises GenPropError unless the edited frame `[H, W, 3]` has the size of the video's frames."""
    h, w = edited.shape[:2]
    if (h, w) == (height, width):
        return
    got = f"the edited frame is {w}x{h}, the video is {width}x{height}"
    # Rounding in a resize moves a side by up to a pixel; more than that is a crop or a stretch.
    if abs(w * height - h * width) <= max(height, width):
        raise GenPropError(f"{got}: another size", f"Resize the edited frame to {width}x{height}.")
    raise GenPropError(
        f"{got}: another aspect ratio ({w / h:.3f}, expected {width / height:.3f})",
        "Edit the video's first frame as it is, without cropping or stretching it.",
    )


def fill_first_frame(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills the mask of a frame from around it (Telea 2004): the edit of someone who only has a mask.

    Args:
        frame: uint8 `[H, W, 3]`.
        mask: bool `[H, W]`; grown by 1 % of the shorter side, at least 2 pixels, as edges cut into objects.

    Returns:
        uint8 `[H, W, 3]`, equal to `frame` outside the grown mask.
    """
    assert frame.shape[:2] == mask.shape
    grow = 2 * max(2, round(min(mask.shape) / 100)) + 1
    hole = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grow, grow)))
    if hole.all():
        raise GenPropError(
            "the mask covers the whole frame, nothing is left to fill from", "Mask the object only."
        )
    return cv2.inpaint(frame, hole, 5, cv2.INPAINT_TELEA)


def check_output(path: Path, *, audio_from: Path | None = None) -> None:
    """Raises GenPropError where `write_clip` would: to be asked before hours of work, not after.

    It tries: one black frame is written beside `path`, with the first sound of `audio_from`, and removed.
    """
    path, audio_from = Path(path), Path(audio_from) if audio_from is not None else None
    check_target(path, suffixes=VIDEO_SUFFIXES, audio_from=audio_from)
    with naming_failures(path, audio_from=audio_from), beside(path) as temporary:
        size = {"height": 16, "width": 16}
        with Encoder(temporary, **size, fps=Fraction(25), crf=16, audio_from=audio_from) as encoder:
            encoder.write(np.zeros((16, 16, 3), np.uint8))


def write_clip(
    path: Path, frames: np.ndarray, *, fps: Fraction, audio_from: Path | None = None, crf: int = 16
) -> None:
    """Writes a clip as a video, whole or not at all; see `write_frames`.

    Args:
        frames: uint8 RGB `[T, H, W, 3]`.
        fps, audio_from, crf: as in `write_frames`.

    Raises:
        GenPropError: the target cannot be written, or the sound not be copied into it.
    """
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames)
    height, width = frames.shape[1:3]
    with write_frames(path, height=height, width=width, fps=fps, audio_from=audio_from, crf=crf) as writer:
        for frame in frames:
            writer.write(frame)
