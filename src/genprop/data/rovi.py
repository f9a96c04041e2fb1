"""ROVI, Remove Objects from Videos by Instructions (Wu et al. 2024, "LGVI"): recorded removals.

Built on YouTube-VOS and A2D-Sentences: original frames, masks of the referred object, and the same frames
inpainted without it, so each is an `EditSample`. How the release names its folders is not documented, so
they are found by what they hold: below the root or its `train/`, `JPEGImages/<video>/`, a folder with
"inpaint" in its name of `<video>/<object>/` (or `<video>/`), and `Annotations/` or `masks/` of the same shape
as either. The instructions are not read: the network is told of an edit by its first frame.
"""

from __future__ import annotations

from pathlib import Path

from genprop.data.captions import read_captions
from genprop.data.davis import IMAGES, aligned, clip_folders
from genprop.data.footage import Note, Pictures
from genprop.data.recordings import Recording, Recordings
from genprop.errors import GenPropError
from genprop.video import image_files

MASKS = ("Annotations", "masks")


def inpainted_folder(root: Path) -> Path | None:
    """The folder of inpainted frames below `root` or `root/train`, if `root` is a ROVI folder."""
    for folder in (root, root / "train"):
        if (folder / IMAGES).is_dir():
            return next(
                (p for p in sorted(folder.iterdir()) if "inpaint" in p.name.lower() and p.is_dir()), None
            )
    return None


class Rovi(Recordings):
    """One clip for each inpainting result, called `<video>/<object>`, or `<video>` where there is but one."""

    def __init__(self, root: Path) -> None:
        inpainted = inpainted_folder(root)
        if inpainted is None:
            raise GenPropError(
                f"{root} has no {IMAGES} beside a folder of inpainted frames", "Unpack ROVI there."
            )
        folder = inpainted.parent
        masks = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
        if masks is None:
            raise GenPropError(f"{folder} has no {' or '.join(MASKS)}", "Unpack the masks beside the frames.")
        self.images, self.inpainted, self.masks = folder / IMAGES, inpainted, masks
        names = [
            f"{video}/{thing}" if thing else video
            for video in clip_folders(inpainted)
            for thing in clip_folders(inpainted / video) or [""]
        ]
        super().__init__(str(root), names, pairs=True, captions=read_captions(root, names))

    def open(self, index: int, note: Note) -> Recording:
        name = self.names[index]
        video, _, thing = name.partition("/")
        whole = self.masks / video
        of_its_own = bool(thing) and (whole / thing).is_dir()
        # A mask that is shared by all objects of a video tells them apart by their number.
        instance = int(thing) if thing.isdigit() and not of_its_own else None
        frames, labels = aligned(self.images / video, whole / thing if of_its_own else whole, note)
        edited = {path.stem: path for path in image_files(self.inpainted / name)}
        kept = [path.stem in edited for path in frames.files]
        if not any(kept):
            raise GenPropError(f"{self.inpainted / name}: edited video missing, no frame is inpainted")
        if not all(kept):
            note(f"edited video missing for {kept.count(False)} of {len(kept)} frames: those are left out")

        def only(pictures: Pictures) -> Pictures:
            files = [file for file, keep in zip(pictures.files, kept, strict=True) if keep]
            return Pictures(pictures.path, files, pictures.load)

        frames, labels = only(frames), only(labels)
        inpainted = Pictures(self.inpainted / name, [edited[path.stem] for path in frames.files])
        return Recording(frames, labels, inpainted, instance)
