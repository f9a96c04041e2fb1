"""A folder of recorded edits: the original videos, the same edited, and masks of where they differ.

The layout is the one that GenProp's pairs are kept in: `original_videos/`, `edited_videos/` and `masks/`
hold the same names, each an mp4 file (or another video) or a folder of frames.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from torch.utils.data import Dataset

from genprop.errors import GenPropError
from genprop.types import EditSample
from genprop.video import read_clip, read_mask_clip

FOLDERS = ("original_videos", "edited_videos", "masks")


class TripletFolder(Dataset[EditSample]):
    """One item for each triplet: `frames` consecutive frames at `height` x `width`.

    The window starts at a frame drawn from `(seed, index)`, so an item is the same in every epoch.
    Frames are resized to cover the size (area averaging, aspect kept) and cropped around the centre.

    Raises:
        GenPropError: at once, where folders or names do not match; on reading an item, where its three
            parts differ in length or size, or are shorter than `frames`.
    """

    def __init__(
        self, folder: Path, *, frames: int, height: int, width: int, seed: int = 0, task: str = "remove"
    ) -> None:
        self.frames, self.height, self.width = frames, height, width
        self.seed, self.task = seed, task
        self.triplets = _pair(Path(folder))

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> EditSample:
        original, edited, masks = self.triplets[index]
        source, target = read_clip(original), read_clip(edited)
        if source.frames.shape != target.frames.shape:
            raise GenPropError(
                f"{edited} is {_describe(target.frames)}, {original} is {_describe(source.frames)}",
                "The parts of a triplet need the same number of frames and the same size.",
            )
        mask = read_mask_clip(masks, like=source)
        spare = len(mask) - self.frames
        if spare < 0:
            raise GenPropError(
                f"{original} has {len(mask)} frames, expected at least {self.frames}",
                "Give longer clips, or ask for fewer frames.",
            )
        rng = Generator(PCG64(SeedSequence(self.seed, spawn_key=(index,))))
        start = int(rng.integers(spare + 1))
        window = slice(start, start + self.frames)
        return EditSample(
            self._fit(source.frames[window]),
            self._fit(target.frames[window]),
            self._fit(mask[window].astype(np.uint8) * 255) > 127,
            self.task,
        )

    def _fit(self, frames: np.ndarray) -> np.ndarray:
        """Covers `height` x `width` and crops around the centre; `[T, H, W]` or `[T, H, W, 3]`."""
        h, w = frames.shape[1:3]
        scale = max(self.height / h, self.width / w)
        size = (max(round(w * scale), self.width), max(round(h * scale), self.height))
        # Area averaging is for shrinking; enlarging with it would repeat pixels.
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        resized = np.stack([cv2.resize(frame, size, interpolation=how) for frame in frames])
        top, left = (size[1] - self.height) // 2, (size[0] - self.width) // 2
        return resized[:, top : top + self.height, left : left + self.width]


def _pair(folder: Path) -> list[tuple[Path, Path, Path]]:
    """The triplets in the order of their names."""
    missing = [name for name in FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise GenPropError(
            f"{folder} has no {', '.join(missing)}; expected the folders {', '.join(FOLDERS)}",
            "Put the videos, the edited videos and the masks there, under the same names.",
        )
    parts = [_stems(folder / name) for name in FOLDERS]
    stems = sorted(set().union(*parts))
    lacks = [f"{name}/{s}" for s in stems for name, part in zip(FOLDERS, parts, strict=True) if s not in part]
    if lacks:
        more = f" and {len(lacks) - 5} more" if len(lacks) > 5 else ""
        raise GenPropError(
            f"{folder} lacks {', '.join(lacks[:5])}{more}; expected each name in all of {', '.join(FOLDERS)}",
            "Add what is missing, or remove the rest of those triplets.",
        )
    if not stems:
        raise GenPropError(f"{folder} holds no videos, expected at least one triplet", "Check the path.")
    original, edited, masks = parts
    return [(original[s], edited[s], masks[s]) for s in stems]


def _stems(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        stem = path.name if path.is_dir() else path.stem
        if stem in found:
            raise GenPropError(
                f"{folder} holds both {found[stem].name} and {path.name}, expected one {stem}",
                "Remove one of them.",
            )
        found[stem] = path
    return found


def _describe(frames: np.ndarray) -> str:
    return f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"
