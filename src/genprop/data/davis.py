"""DAVIS 2016 and 2017 (Perazzi et al. 2016; Pont-Tuset et al. 2017) and YouTube-VOS (Xu et al. 2018).

Both keep a clip as a folder of jpg frames below `JPEGImages/` and a folder of palette PNGs of the same names
below `Annotations/`, where a pixel's index is its instance (255 for the one object of DAVIS 2016). Where only
some frames are annotated (every fifth in YouTube-VOS), a clip is its annotated frames: a window's stride
counts those, and frames between them are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from genprop.data.captions import read_captions
from genprop.data.footage import Note, Pictures, read_labels
from genprop.data.recordings import Recording, Recordings
from genprop.errors import GenPropError
from genprop.video import image_files

IMAGES = "JPEGImages"
ANNOTATIONS = ("Annotations", "Annotations_unsupervised")
LISTS = ("2017", "2016", "480p", "1080p")
"""Below `ImageSets/`; the first that has a list is read."""
LISTED = {"train": "train.txt", "validation": "val.txt"}


class AnnotatedClips(Recordings):
    """Clips as folders of frames, `images/<name>/`, and of labels, `annotations/<name>/`.

    Args:
        instance: the label to take in every clip; None draws one of those in the window.
    """

    def __init__(
        self, where: Path, images: Path, annotations: Path, names: list[str], *, instance: int | None = None
    ) -> None:
        captions = read_captions(where, clip_folders(images))
        super().__init__(str(where), names, pairs=False, captions=captions)
        self.images, self.annotations, self.instance = images, annotations, instance

    def open(self, index: int, note: Note) -> Recording:
        frames, labels = aligned(self.images / self.names[index], self.annotations / self.names[index], note)
        return Recording(frames, labels, instance=self.instance)


def davis(
    root: Path, *, part: str = "train", resolution: str | None = None, instance: int | None = None
) -> AnnotatedClips:
    """DAVIS as it is unpacked: `JPEGImages/<resolution>/<clip>/`, `Annotations/<resolution>/<clip>/`.

    Args:
        part: "train" or "validation", by `ImageSets/*/train.txt` or `val.txt`; without such lists, all clips
            are for training.
        resolution: "480p", "Full-Resolution" or "1080p"; None prefers 480p.

    Raises:
        GenPropError: there is no such resolution or part.
    """
    found = sorted(p.name for p in (root / IMAGES).iterdir() if p.is_dir())
    resolution = resolution or ("480p" if "480p" in found else found[0])
    images = root / IMAGES / resolution
    annotations = next((root / a / resolution for a in ANNOTATIONS if (root / a / resolution).is_dir()), None)
    if resolution not in found or annotations is None:
        raise GenPropError(
            f"{root} has no {resolution} in both {IMAGES} and {ANNOTATIONS[0]}; "
            f"frames are in {', '.join(found)}",
            "Unpack frames and annotations of one resolution into one folder.",
        )
    file = _list_of(root, part)
    if file is not None:
        # 2017 has a name in each line, 2016 "/JPEGImages/480p/<clip>/00000.jpg <annotation>".
        words = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
        names = sorted({Path(word).parent.name if "/" in word else word for word in words})
    elif part == "train":
        names = clip_folders(images)
    else:
        raise GenPropError(f"{root} has no ImageSets/*/{LISTED[part]}", "Make a split: `genprop data split`.")
    return AnnotatedClips(root, images, annotations, names, instance=instance)


def has_list(root: Path, part: str) -> bool:
    """Whether a folder of DAVIS says itself which clips are for `part`."""
    return _list_of(root, part) is not None


def _list_of(root: Path, part: str) -> Path | None:
    lists = (root / "ImageSets" / year / LISTED[part] for year in LISTS)
    return next((path for path in lists if path.is_file()), None)


def youtube_vos(root: Path, *, instance: int | None = None) -> AnnotatedClips:
    """YouTube-VOS: `JPEGImages/<id>/` and `Annotations/<id>/` below `root` or `root/train`, the part of it
    that is annotated throughout. `meta.json` beside them says which clips there are.

    Raises:
        GenPropError: `meta.json` cannot be read.
    """
    folder = root / "train" if (root / "train" / IMAGES).is_dir() else root
    names = clip_folders(folder / IMAGES)
    meta = folder / "meta.json"
    if meta.is_file():
        try:
            names = sorted(json.loads(meta.read_text())["videos"])
        except (ValueError, KeyError, TypeError) as error:
            raise GenPropError(
                f"{meta} is not YouTube-VOS's: {error!r}, expected a table 'videos'", "Unpack it again."
            ) from error
    return AnnotatedClips(root, folder / IMAGES, folder / ANNOTATIONS[0], names, instance=instance)


def clip_folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def aligned(images: Path, annotations: Path, note: Note) -> tuple[Pictures, Pictures]:
    """Frames and labels of a clip, paired by their names; frames without labels are left out.

    It is noted only where it is irregular: with every fifth frame annotated, motion stays even.

    Raises:
        GenPropError: either folder is missing, or no frame has labels.
    """
    for folder, what in ((images, "video"), (annotations, "mask")):
        if not folder.is_dir():
            raise GenPropError(f"{what} missing: there is no folder {folder}", "Unpack the dataset again.")
    frames, masks = image_files(images), {path.stem: path for path in image_files(annotations)}
    at = [i for i, path in enumerate(frames) if path.stem in masks]
    if not at:
        raise GenPropError(
            f"{annotations}: mask missing, for every frame of {len(frames)}", "Remove the clip."
        )
    gaps = np.diff([-1, *at, len(frames)])
    inner = gaps[1:-1] if len(at) > 1 else gaps
    if np.ptp(inner) or gaps.max() > inner.max():
        note(f"mask missing for {len(frames) - len(at)} of {len(frames)} frames: those are left out")
    if strays := len(masks) - len(at):
        note(f"{strays} of {len(masks)} masks have no frame: those are left out")
    kept = [frames[i] for i in at]
    return Pictures(images, kept), Pictures(annotations, [masks[p.stem] for p in kept], read_labels)
