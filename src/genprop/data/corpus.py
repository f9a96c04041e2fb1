"""Real material to make removals of: photographs, cut-outs and clips, each from a folder of its own.

Named `photos=DIR,cutouts=DIR,clips=DIR`, any of the three. A clip is a folder with `video.mp4` and, where an
object in it is known, `mask-*.mp4`. Clips are held in memory at the size that motion is measured at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np

from genprop.errors import GenPropError
from genprop.guide.motion import small
from genprop.video import THRESHOLD, image_files, read_clip

KINDS = ("photos", "cutouts", "clips")


@dataclass(frozen=True)
class RealClip:
    """A clip, uint8 `[T, h, w, 3]`, and the masks of its objects, each bool `[T, h, w]`."""

    name: str
    frames: np.ndarray
    masks: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Corpus:
    """Photographs and cut-outs by their files, read when they are drawn; clips in memory."""

    photos: tuple[Path, ...] = ()
    cutouts: tuple[Path, ...] = ()
    clips: tuple[RealClip, ...] = ()


def is_corpus(named: str) -> bool:
    """Whether a `--data` names a corpus, rather than a folder or `procedural`."""
    return any(named.startswith(f"{kind}=") for kind in KINDS)


def open_corpus(named: str, *, leave_out: Sequence[str] = ()) -> Corpus:
    """Open `photos=DIR,cutouts=DIR,clips=DIR`.

    Args:
        leave_out: patterns of clips that are not for training (`davis-*`).

    Raises:
        GenPropError: an unknown kind, a folder that is none, or one without what it should hold.
    """
    parts: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for part in named.split(","):
        kind, _, folder = part.partition("=")
        if kind not in KINDS or not Path(folder).is_dir():
            raise GenPropError(
                f"{part!r} of --data names no folder of real material",
                "Write it as photos=DIR,cutouts=DIR,clips=DIR, any of the three.",
            )
        entries = sorted(Path(folder).iterdir()) if kind == "clips" else image_files(Path(folder))
        found = [p for p in entries if kind != "clips" or (p / "video.mp4").is_file()]
        found = [p for p in found if not any(fnmatch(p.name, pattern) for pattern in leave_out)]
        if not found:
            raise GenPropError(f"{folder} holds no {kind}", "Give a folder that does.")
        parts[kind] += found
    return Corpus(tuple(parts["photos"]), tuple(parts["cutouts"]), tuple(map(_clip, parts["clips"])))


def _clip(folder: Path) -> RealClip:
    frames = np.stack([small(frame) for frame in read_clip(folder / "video.mp4").frames])
    size = frames.shape[2], frames.shape[1]
    masks = []
    for path in sorted(folder.glob("mask-[0-9]*.mp4")):
        levels = (cv2.resize(frame.max(-1), size) for frame in read_clip(path).frames)
        masks.append(np.stack([level > THRESHOLD for level in levels])[: len(frames)])
    return RealClip(folder.name, frames, tuple(masks))
