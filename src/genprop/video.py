"""Videos, images and masks between the disk and uint8 arrays.

This is the only place where pixels are uint8 and files are pictures; everything behind it sees a `Clip`
or plain arrays. Frames keep their number, rate and size on the way in and on the way out, since a person
who edits a video wants the same video back. What a file is wrong about is said before any work begins.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from av.error import FFmpegError

from .codec import decode, encode
from .errors import GenPropError
from .types import Clip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv")
"""What can be written; whatever FFmpeg decodes can be read."""

THRESHOLD = 127
"""A mask is where a pixel's brightest channel is above this."""


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
    path = Path(path)
    if max_frames is not None and max_frames < 1:
        raise GenPropError(f"max_frames is {max_frames}, expected at least 1")
    if not path.exists():
        raise GenPropError(
            f"{path} does not exist, expected a video or a folder of frames", "Check the path."
        )
    if path.is_dir():
        frames, fps = [read_image(p) for p in image_files(path)[:max_frames]], folder_fps
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        raise GenPropError(f"{path} is a picture, expected a video", "Give the video, or a folder of frames.")
    else:
        frames, fps = decode(path, max_frames=max_frames)
    if not frames:
        raise GenPropError(
            f"{path} holds no frames, expected at least one", "Give a video with pictures in it."
        )
    for index, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            raise GenPropError(
                f"{path}: frame {index} is {_size(frame)}, frame 0 is {_size(frames[0])}; expected one size",
                "Bring all frames to the same width and height.",
            )
    return Clip(np.stack(frames), fps, path)


def image_files(folder: Path) -> list[Path]:
    """The pictures in a folder in natural order (2 before 10); hidden files are no pictures."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"([0-9]+)", p.name)])


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


def read_mask(path: Path, *, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask, white where the object is, as bool `[H, W]`. A video's mask is its first frame.

    Raises:
        GenPropError: its size is not `size` (height, width), or it is empty.
    """
    path = Path(path)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES or not path.exists()
    image = read_image(path) if is_image else read_clip(path, max_frames=1).frames[0]
    if image.shape[:2] != size:
        raise GenPropError(
            f"the mask {path} is {_size(image)}, the video is {size[1]}x{size[0]}",
            "Draw the mask on the video's first frame, at its full size.",
        )
    mask = image.max(axis=-1) > THRESHOLD
    if not mask.any():
        raise GenPropError(
            f"the mask {path} is empty: its brightest pixel is {image.max()}, expected more than {THRESHOLD}",
            "Paint the object white (255) on black.",
        )
    return mask


def read_mask_clip(path: Path, *, like: Clip) -> np.ndarray:
    """Reads a mask for every frame as bool `[T, H, W]`; single frames may be empty.

    Raises:
        GenPropError: the frame count or the size is not that of `like`.
    """
    frames = read_clip(path).frames
    if frames.shape != like.frames.shape:
        raise GenPropError(
            f"the mask {path} has {len(frames)} frames of {_size(frames[0])}, "
            f"the video has {len(like.frames)} of {_size(like.frames[0])}",
            "Give one mask frame for each frame of the video, at the same size.",
        )
    return frames.max(axis=-1) > THRESHOLD


def check_edited(edited: np.ndarray, clip: Clip) -> None:
    """Raises GenPropError unless the edited frame `[H, W, 3]` has the size of the clip's frames."""
    (height, width), (h, w) = clip.frames.shape[1:3], edited.shape[:2]
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
    black = np.zeros((1, 16, 16, 3), np.uint8)
    with _beside(Path(path), suffixes=VIDEO_SUFFIXES, audio_from=audio_from) as temporary:
        encode(temporary, black, fps=Fraction(25), crf=16, audio_from=audio_from)


def write_clip(
    path: Path, frames: np.ndarray, *, fps: Fraction, audio_from: Path | None = None, crf: int = 16
) -> None:
    """Writes H.264 (yuv420p, or yuv444p for odd sizes, which 4:2:0 cannot hold), whole or not at all.

    Args:
        path: one of `VIDEO_SUFFIXES`, in a folder that exists.
        frames: uint8 RGB `[T, H, W, 3]`.
        fps: written exactly.
        audio_from: a video whose sound is copied, bit for bit and in time with its pictures, as far as
            the frames last.
        crf: x264's constant rate factor; 0 is lossless, 16 is hard to tell from it.

    Raises:
        GenPropError: the target cannot be written, or the sound not be copied into it.
    """
    assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and len(frames) and fps > 0
    path = Path(path)
    with _beside(path, suffixes=VIDEO_SUFFIXES, audio_from=audio_from) as temporary:
        encode(temporary, frames, fps=fps, crf=crf, audio_from=audio_from)
        os.replace(temporary, path)


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes uint8 RGB `[H, W, 3]` or grey `[H, W]` as png or jpg, whole or not at all."""
    path = Path(path)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    with _beside(path, suffixes=IMAGE_SUFFIXES) as temporary:
        _, data = cv2.imencode(path.suffix.lower(), bgr)  # jpg at cv2's quality of 95
        temporary.write_bytes(data.tobytes())
        os.replace(temporary, path)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


@contextmanager
def _beside(path: Path, *, suffixes: tuple[str, ...], audio_from: Path | None = None) -> Iterator[Path]:
    """A path to write to before moving it to `path`; whatever is left there is removed.

    It lies in a folder of its own beside the target: the same file system, so the move is atomic; the
    same name, so FFmpeg sees the suffix; and the file gets the permissions that any new file gets.
    """
    if path.suffix.lower() not in suffixes:
        raise GenPropError(
            f"{path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(suffixes)}",
            f"Call it {path.stem}{suffixes[0]}.",
        )
    if path.is_dir():
        raise GenPropError(f"{path} is a folder, expected a file name", "Choose another name.")
    if not path.parent.is_dir():
        raise GenPropError(f"the folder {path.parent} does not exist", "Create it, or choose another.")
    if audio_from is not None and not Path(audio_from).exists():
        raise GenPropError(f"{audio_from} does not exist, expected a video to take the sound from")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".genprop-") as folder:
            yield Path(folder) / path.name
    except (FFmpegError, OSError, ValueError) as error:
        sound = f" with the sound of {audio_from}" if audio_from is not None else ""
        hint = "Check the disk and the folder's permissions"
        raise GenPropError(
            f"{path} cannot be written{sound}: {error}",
            f"{hint}; .mkv holds kinds of sound that .mp4 does not." if sound else f"{hint}.",
        ) from error
