"""What `--data` names: one `Source` for a folder of any known layout, or for procedural clips."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.random import Generator

from genprop.data.davis import ANNOTATIONS, IMAGES, clip_folders, davis, has_list, youtube_vos
from genprop.data.footage import Note
from genprop.data.procedural import make_sample
from genprop.data.recordings import Recordings, Source
from genprop.data.rovi import Rovi, inpainted_folder
from genprop.data.split import Part, divide, read_split, source_of
from genprop.data.triplets import FOLDERS, Triplets
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.types import EditSample
from genprop.video import image_files

PROCEDURAL = "procedural"
PARTS: tuple[Part, Part] = ("train", "validation")
HELD_OUT = 0.1
"""Share of the clips that are held out where nothing says which."""

logger = logging.getLogger(__name__)


class Procedural:
    """Scenes without end, each drawn from the seed of the generator that is handed in.

    Item `i` of `EditClips` over this alone is item `i` of `ProceduralClips` with the same seed.
    """

    where, pairs = PROCEDURAL, True

    def __init__(self) -> None:
        self.names = ["scene"]

    def read(self, index: int, rng: Generator, view: View, *, note: Note = lambda _: None) -> EditSample:
        sequence = rng.bit_generator.seed_seq
        assert isinstance(sequence, np.random.SeedSequence)
        seed = int(sequence.generate_state(1, np.uint64)[0])
        return make_sample(seed, frames=view.frames, height=view.height, width=view.width)


def open_source(
    path: str | Path,
    *,
    split: Path | None = None,
    part: Part = "train",
    resolution: str | None = None,
    instance: int | None = None,
) -> Source:
    """The clips of a folder, or `procedural`, ready to be read.

    Args:
        path: a folder of triplets, ROVI, DAVIS 2016 or 2017, or YouTube-VOS, or the word "procedural".
        split: a file that `write_split` wrote; without one, a dataset's own lists decide what is for
            training, and where it has none, everything is.
        part: of the clips.
        resolution: of DAVIS; None prefers 480p.
        instance: the label to take in every clip of DAVIS and YouTube-VOS; None draws one.

    Raises:
        GenPropError: no known layout, a part that does not exist, or no clips in it.
    """
    if str(path) == PROCEDURAL:
        return Procedural()
    source = _recognise(Path(path), "train" if split else part, resolution, instance)
    if split is not None:
        chosen = read_split(split)
        strays = sorted(set(source.names) - set(chosen["train"]) - set(chosen["validation"]))
        if strays:
            logger.warning(
                "%s: %d clips are in no part of %s, %s for one; they are left out until it is made again",
                *(path, len(strays), split, strays[0]),
            )
        source.names = [name for name in source.names if name in set(chosen[part])]
    if not source.names:
        raise GenPropError(f"{path} has no clips for {part}, expected at least one", "Check path and split.")
    return source


def open_parts(path: str | Path, *, seed: int) -> dict[Part, Source]:
    """What is for training and what is held out of one `--data`.

    A file of `write_split` says it; else the dataset's own lists; else a tenth of the clips, by a hash of
    their names, are held out. Procedural scenes are without end: other seeds are other scenes.

    Args:
        path: as for `open_source`, or a file of `write_split`.
    """
    if str(path) == PROCEDURAL:
        return {"train": Procedural(), "validation": Procedural()}
    if Path(path).is_file():
        where = source_of(Path(path))
        return {part: open_source(where, split=Path(path), part=part) for part in PARTS}
    train = open_source(path)
    if _layout(Path(path)) == "davis" and has_list(Path(path), "validation"):
        return {"train": train, "validation": open_source(path, part="validation")}
    if len(train.names) == 1:
        logger.warning("%s has one clip only: it is trained on and held out", path)
        return {"train": train, "validation": train}
    parts = divide(train.names, HELD_OUT, seed)
    held_out = open_source(path)
    train.names, held_out.names = parts["train"], parts["validation"]
    return {"train": train, "validation": held_out}


def _recognise(root: Path, part: Part, resolution: str | None, instance: int | None) -> Recordings:
    if not root.is_dir():
        raise GenPropError(f"{root} is not a folder", f"Give the folder of a dataset, or {PROCEDURAL!r}.")
    layout = _layout(root)
    if layout == "davis":
        return davis(root, part=part, resolution=resolution, instance=instance)
    if part != "train":
        raise GenPropError(
            f"{root} has no split, so all of it is for training", "Make one: `genprop data split`."
        )
    if layout == "triplets":
        return Triplets(root)
    return Rovi(root) if layout == "rovi" else youtube_vos(root, instance=instance)


def _layout(root: Path) -> Literal["triplets", "rovi", "davis", "youtube-vos"]:
    if any((root / name).is_dir() for name in FOLDERS[:2]):  # others have `masks`, too
        return "triplets"
    if inpainted_folder(root) is not None:
        return "rovi"
    for folder in (root, root / "train"):
        if not (folder / IMAGES).is_dir():
            continue
        # The folders there are resolutions, and hold no frames, or clips, and do.
        first = next(iter(clip_folders(folder / IMAGES)), None)
        if folder == root and first is not None and not image_files(folder / IMAGES / first):
            return "davis"
        return "youtube-vos"
    raise GenPropError(
        f"{root} is no dataset that is known here: there is no {', '.join(FOLDERS)} (triplets), "
        f"no {IMAGES} beside a folder of inpainted frames (ROVI), no {IMAGES}/<resolution>/<clip> beside "
        f"{' or '.join(ANNOTATIONS)} (DAVIS), and no {IMAGES}/<clip> in it or in train/ (YouTube-VOS)",
        "Give the folder that holds these, or arrange your clips as triplets.",
    )
