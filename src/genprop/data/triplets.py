"""A folder of recorded edits: the original videos, the same edited, and masks of where they differ.

The layout is the one that GenProp's pairs are kept in: `original_videos/`, `edited_videos/` and `masks/`
hold the same names, each an mp4 file (or another video) or a folder of frames.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from genprop.data.captions import read_captions
from genprop.data.footage import Footage, Labels, Note, open_footage
from genprop.data.recordings import Recording, Recordings
from genprop.errors import GenPropError

FOLDERS = ("original_videos", "edited_videos", "masks")
PARTS = ("original video", "edited video", "mask")


class Triplets(Recordings):
    """The triplets of a folder, in the order of their names. One that lacks a part is a fault of that clip.

    Raises:
        GenPropError: a folder is missing, or there is nothing in any of them.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in FOLDERS if not (folder / name).is_dir()]
        if missing:
            raise GenPropError(
                f"{folder} has no {', '.join(missing)}; expected the folders {', '.join(FOLDERS)}",
                "Put the videos, the edited videos and the masks there, under the same names.",
            )
        self.files = [_by_stem(folder / name) for name in FOLDERS]
        names = sorted(set().union(*self.files))
        if not names:
            raise GenPropError(f"{folder} holds no videos, expected at least one triplet", "Check the path.")
        super().__init__(str(folder), names, pairs=True, captions=read_captions(folder, names))

    def open(self, index: int, note: Note) -> Recording:
        name = self.names[index]
        lacks = [part for part, files in zip(PARTS, self.files, strict=True) if name not in files]
        if lacks:
            raise GenPropError(f"{' and '.join(lacks)} missing", "Add it, or remove the rest of the triplet.")
        original, edited, mask = (_only(files[name], note) for files in self.files)
        return Recording(original, Labels(mask), edited)


def _only(paths: list[Path], note: Note) -> Footage:
    if len(paths) > 1:
        raise GenPropError(
            f"{paths[0].parent} holds both {' and '.join(p.name for p in paths)}, expected one of them",
            "Remove one of them.",
        )
    return open_footage(paths[0], note)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        found[path.name if path.is_dir() else path.stem].append(path)
    return dict(found)
