"""Pairs of each task, as a picture: `python scripts/synthesis_sheet.py FOLDER OUT [SEED]`.

FOLDER holds `<name>/video.mp4` and `<name>/mask-0.mp4`. With the word `procedural` for FOLDER, the clips are
drawn, and the sheet may be published.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

from genprop.data.procedural import make_sample
from genprop.data.synthesis import colour_fill, copy_paste, mask_fill, masked_blur
from genprop.settings import SynthesisConfig
from genprop.sheet import contact_sheet
from genprop.types import MaskedClip
from genprop.video import read_clip, read_mask_clip, write_image

FRAMES, STRIDE, LINES = 6, 6, 256
DRAWN = (4, 12, 17, 25, 33)  # seeds of procedural clips whose object casts no shadow of its own

PAIRS = (  # copy-and-paste, which takes a donor too, has no function here
    ("copy-and-paste", None, {"shadow": 0}),
    ("with a shadow", None, {"shadow": 1}),
    ("fill: mean", mask_fill, {"telea": 0}),
    ("fill: Telea", mask_fill, {"telea": 1}),
    ("colour", colour_fill, {"second_colour": 0}),
    ("two colours", colour_fill, {"second_colour": 1}),
    ("blur", masked_blur, {}),
)


def read(folder: Path) -> MaskedClip:
    """Every STRIDE-th frame, at LINES lines."""
    clip = read_clip(folder / "video.mp4")
    mask = read_mask_clip(folder / "mask-0.mp4", like=clip)
    height, width = mask.shape[1:]
    size = (round(width * LINES / height), LINES)
    chosen = range(0, len(mask), STRIDE)[:FRAMES]
    frames = [cv2.resize(clip.frames[t], size, interpolation=cv2.INTER_AREA) for t in chosen]
    masks = [cv2.resize(mask[t].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for t in chosen]
    return MaskedClip(np.stack(frames), np.stack(masks))


def draw(seed: int) -> MaskedClip:
    sample = make_sample(seed, frames=8, height=192, width=192)
    return MaskedClip(sample.source, sample.mask)


def main(source: str, out: Path, seed: int = 0) -> None:
    if source == "procedural":
        clips = [draw(seed) for seed in DRAWN]
    else:
        clips = [read(video.parent) for video in sorted(Path(source).glob("*/video.mp4"))]
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, np.ndarray]] = []
    for i, (title, synthesise, settings) in enumerate(PAIRS):
        config = SynthesisConfig(**settings)
        clip, donor = clips[i % len(clips)], clips[(i + 1) % len(clips)]
        if synthesise:
            sample = synthesise(clip, rng=rng, config=config)
        else:
            sample = copy_paste(clip, donor, rng=rng, config=config)
        rows += [(f"{title}: source", sample.source), (f"{sample.task}: target", sample.target)]
        rows += [("mask", sample.mask)]
    length = min(len(clip) for _, clip in rows)
    shown = [round(t) for t in np.linspace(0, length - 1, 4)]
    write_image(out, contact_sheet(rows, frames=shown, height=80 if source == "procedural" else 160))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
