"""Removals with a known truth: an object cut out of one clip with its mask is pasted onto another.

The truth is the clip that it was pasted onto, and its first frame is the edited one. Which object goes where,
at what size and in what light is a function of the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from genprop.data.corpus import RealClip
from genprop.data.shadow import CastShadow, cast, draw_shadow
from genprop.errors import GenPropError
from genprop.guide.geometry import grow

SMALLEST = 300
"""Pixels of the object in the first frame."""
LARGEST = 0.3
"""Its largest share of it."""
MARGIN = 3
"""The hole is the mask grown by this, in pixels: the object's edge is soft."""
FAINT = 0.03
"""The share of light below which a shadow is cut off, and above which what is left of it is in the mask."""
TRIES = 200


@dataclass(frozen=True)
class Removal:
    """A clip with a pasted object, and without it.

    Attributes:
        name: what was pasted onto what.
        video, truth: uint8 `[T, H, W, 3]`; the first frame of the truth is the edited frame.
        mask: the object and its shadow, bool `[T, H, W]`.
        hole: what is judged: the mask, grown, and whatever else the pasting changed. Outside of it video and
            truth are the same, bit for bit.
        recipe: how it was pasted, for the record.
    """

    name: str
    video: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    hole: np.ndarray
    recipe: dict[str, Any]


def pasted_removals(clips: Sequence[RealClip], *, pairs: int, frames: int, seed: int) -> Iterator[Removal]:
    """Pairs of an object and a ground, each as often as any other of its kind, as far as it goes.

    They are made one at a time, as they are asked for.

    Raises:
        GenPropError: fewer than two clips, none with a mask, none of so many frames; while they are made, an
            object that fits nowhere.
    """
    fitting = [clip for clip in clips if len(clip.frames) >= frames]
    objects = [(clip, i) for clip in fitting for i in range(len(clip.masks))]
    if not objects or len(fitting) < 2:
        raise GenPropError(
            f"{len(fitting)} clips of at least {frames} frames, with {len(objects)} objects between them: "
            "expected two clips and an object",
            "Give a folder of clips, each a folder with video.mp4 and mask-0.mp4, or fewer --frames.",
        )
    chosen = _choose(objects, fitting, pairs, np.random.default_rng(seed))
    return (
        _pair(source, which, ground, frames=frames, index=i, rng=np.random.default_rng([seed, i]))
        for i, (source, which, ground) in enumerate(chosen)
    )


def _choose(
    objects: Sequence[tuple[RealClip, int]], grounds: Sequence[RealClip], pairs: int, rng: np.random.Generator
) -> list[tuple[RealClip, int, RealClip]]:
    """Objects and grounds in shuffled rounds; no clip onto itself, no pair twice while there are others."""
    chosen: list[tuple[RealClip, int, RealClip]] = []
    together, used = Counter[tuple[str, str]](), Counter[str]()
    waiting: list[int] = []
    for _ in range(pairs):
        waiting = waiting or rng.permutation(len(objects)).tolist()
        source, which = objects[waiting.pop()]
        others = [grounds[g] for g in rng.permutation(len(grounds)) if grounds[g] is not source]
        ground = min(others, key=lambda clip: (together[source.name, clip.name], used[clip.name]))
        together[source.name, ground.name] += 1
        used[ground.name] += 1
        chosen.append((source, which, ground))
    return chosen


def _pair(
    source: RealClip, which: int, ground: RealClip, *, frames: int, index: int, rng: np.random.Generator
) -> Removal:
    """One object on one ground: every other one where it was in its own clip, every third with a shadow.

    An object that its own clip's border cuts off is not laid elsewhere, where the cut would be seen. Where an
    object finds no place of its kind in half of the tries, it may have one of the other kind.
    """
    start = int(rng.integers(len(ground.frames) - frames + 1))
    truth = ground.frames[start : start + frames]
    shadow = draw_shadow(rng) if index % 3 == 2 else None
    for attempt in range(TRIES):
        begin = int(rng.integers(len(source.masks[which]) - frames + 1))
        mask = source.masks[which][begin : begin + frames]
        late = attempt >= TRIES // 2
        natural = (index % 2 == 0) != late
        if not mask[0].any() or not (natural or late or not _cut_off(mask)):
            continue
        place = _natural_place(mask, truth) if natural else _drawn_place(mask, truth, rng)
        if place is None or not _fits(mask[0], place, truth.shape[1:3]):
            continue
        gain = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, 3)
        video, pasted = _paste(truth, source.frames[begin : begin + frames], mask, place, gain, shadow)
        hole = np.stack([grow(frame, MARGIN) for frame in pasted]) | (video != truth).any(axis=-1)
        recipe = {
            "source": source.name,
            "object": which,
            "from": begin,
            "ground": ground.name,
            "onto": start,
            "natural": natural,
            "scale": float(place[1, 1]),
            "mirrored": bool(place[0, 0] < 0),
            "gain": gain.tolist(),
            "shadow": shadow is not None,
        }
        return Removal(f"{source.name} on {ground.name}", video, truth, pasted, hole, recipe)
    raise GenPropError(
        f"object {which} of {source.name} covers less than {SMALLEST} pixels or more than {LARGEST:.0%} "
        f"of a frame of {ground.name}, however it is laid",
        "Leave the clip out with --exclude.",
    )


def _cut_off(mask: np.ndarray) -> bool:
    """Whether the object of a mask `[T, h, w]` reaches its frame's border, in any frame."""
    return bool(mask[:, [0, -1]].any() or mask[:, :, [0, -1]].any())


def _natural_place(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The map, `[2, 3]`, that lays the source's frame over the ground's whole frame."""
    size, own = np.array(truth.shape[2:0:-1]), np.array(mask.shape[2:0:-1])
    scale = float((size / own).max())
    return np.column_stack([np.eye(2) * scale, (size - 1 - scale * (own - 1)) / 2])


def _drawn_place(mask: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A map to a drawn size and place, maybe mirrored; None where the first frame cannot hold the object."""
    scale, flip = float(rng.uniform(0.5, 1.3)), float(rng.choice([-1, 1]))
    rows, columns = np.flatnonzero(mask[0].any(axis=1)), np.flatnonzero(mask[0].any(axis=0))
    middle = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
    half = scale * np.array([np.ptp(columns), np.ptp(rows)]) / 2 + MARGIN
    size = np.array(truth.shape[2:0:-1])
    if (2 * half > size - 1).any():
        return None
    turn = np.diag([flip * scale, scale])
    return np.column_stack([turn, rng.uniform(half, size - 1 - half) - turn @ middle])


def _fits(first: np.ndarray, place: np.ndarray, size: tuple[int, ...]) -> bool:
    """Whether the object of the first frame is neither too small nor too large where it is laid."""
    area = int((cv2.warpAffine(first.astype(np.float32), place, size[::-1]) > 0.5).sum())
    return SMALLEST <= area <= LARGEST * size[0] * size[1]


def _paste(
    truth: np.ndarray,
    frames: np.ndarray,
    mask: np.ndarray,
    place: np.ndarray,
    gain: np.ndarray,
    shadow: CastShadow | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The ground with the object on it, and the mask of the object with its shadow."""
    height, width = truth.shape[1:3]
    video, pasted = np.empty_like(truth), np.empty(truth.shape[:3], bool)
    for k, ground in enumerate(truth):
        matte = cv2.warpAffine(mask[k].astype(np.float32), place, (width, height))
        soft = cv2.GaussianBlur(matte, (0, 0), 1)[..., None]
        # Beyond the source's frame its border is repeated: black there would be an outline.
        colours = cv2.warpAffine(frames[k], place, (width, height), borderMode=cv2.BORDER_REPLICATE)
        colours = (colours * gain.astype(np.float32)).clip(0, 255)
        lit = ground.astype(np.float32)
        pasted[k] = matte > 0.5
        if shadow is not None:
            shade = cast(shadow, (matte * 255).astype(np.uint8), corner=(0, 0), size=(height, width))
            shade = (shade - FAINT).clip(0)
            lit = lit * (1 - shade[..., None])
            pasted[k] |= shade > FAINT
        video[k] = (lit * (1 - soft) + colours * soft).round()
    return video, pasted
