"""Removals with a known truth: an object cut out of one clip with its mask is pasted onto another.

The truth is the clip that it was pasted onto, and its first frame is the edited one. Which object goes where,
at what size and in what light is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from genprop.data.corpus import RealClip
from genprop.data.shadow import CastShadow, cast, draw_shadow
from genprop.errors import GenPropError
from genprop.guide.geometry import grid, grow, sample
from genprop.guide.motion import flow, grey, small

SMALLEST = 300
"""Pixels of the object in the first frame."""
LARGEST = 0.3
"""Its largest share of it."""
MARGIN = 3
"""The hole is the mask grown by this, in pixels: the object's edge is soft."""
TRIES = 200


@dataclass(frozen=True)
class Removal:
    """A clip with a pasted object, and without it.

    Attributes:
        name: what was pasted onto what.
        video, truth: uint8 `[T, H, W, 3]`; the first frame of the truth is the edited frame.
        mask: the object and its shadow, bool `[T, H, W]`.
        hole: the mask, grown; what is judged.
        recipe: how it was pasted, for the record.
    """

    name: str
    video: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    hole: np.ndarray
    recipe: dict[str, Any]


def pasted_removals(clips: Sequence[RealClip], *, pairs: int, frames: int, seed: int) -> list[Removal]:
    """Pairs of an object and a ground, each clip as often as any other of its kind, as far as it goes.

    Raises:
        GenPropError: fewer than two clips, none with a mask, or none of so many frames.
    """
    fitting = [clip for clip in clips if len(clip.frames) >= frames]
    objects = [(clip, i) for clip in fitting for i in range(len(clip.masks))]
    if not objects or len(fitting) < 2:
        raise GenPropError(
            f"{len(fitting)} clips of at least {frames} frames, with {len(objects)} objects between them: "
            "expected two clips and an object",
            "Give a folder of clips, each a folder with video.mp4 and mask-0.mp4, or fewer --frames.",
        )
    rng = np.random.default_rng(seed)
    first, second = rng.permutation(len(objects)), rng.permutation(len(fitting))
    return [
        _pair(
            *objects[first[i % len(first)]],
            [fitting[second[(i + k) % len(second)]] for k in range(len(second))],
            frames,
            np.random.default_rng([seed, i]),
        )
        for i in range(pairs)
    ]


def _pair(
    source: RealClip, which: int, grounds: Sequence[RealClip], frames: int, rng: np.random.Generator
) -> Removal:
    """One object on the first of the grounds that is another clip."""
    ground = next(clip for clip in grounds if clip is not source)
    start = int(rng.integers(len(ground.frames) - frames + 1))
    truth = ground.frames[start : start + frames]
    for _ in range(TRIES):
        begin = int(rng.integers(len(source.masks[which]) - frames + 1))
        span = slice(begin, begin + frames)
        draw = _draw(rng)
        mask = source.masks[which][span]
        if not mask[0].any():
            continue
        found = _paste(truth, source.frames[span], mask, draw)
        if found is not None:
            video, pasted = found
            hole = np.stack([grow(frame, MARGIN) for frame in pasted])
            recipe = {**draw, "shadow": draw["shadow"] is not None}
            recipe |= {"source": source.name, "ground": ground.name, "from": begin, "onto": start}
            return Removal(f"{source.name} on {ground.name}", video, truth, pasted, hole, recipe)
    raise GenPropError(
        f"the object of {source.name} covers less than {SMALLEST} pixels or more than {LARGEST:.0%} "
        f"of a frame of {ground.name}, however it is laid",
        "Leave the clip out with --exclude.",
    )


def _draw(rng: np.random.Generator) -> dict[str, Any]:
    """Half of the objects lie as they did in their own clip, the others elsewhere, at another size."""
    natural = rng.random() < 0.5
    return {
        "scale": 1.0 if natural else float(rng.uniform(0.5, 1.3)),
        "place": None if natural else rng.uniform(0.2, 0.8, 2).tolist(),
        "mirrored": bool(not natural and rng.random() < 0.5),
        "gain": rng.uniform(0.85, 1.15, 3).tolist(),
        "shadow": draw_shadow(rng) if rng.random() < 1 / 3 else None,
    }


def _paste(
    truth: np.ndarray, frames: np.ndarray, mask: np.ndarray, draw: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Video and mask; None where the object is too small or too large in the first frame."""
    height, width = truth.shape[1:3]
    fit = min(height / mask.shape[1], width / mask.shape[2]) if draw["place"] is None else 1.0
    scale, flip = draw["scale"] * fit, -1 if draw["mirrored"] else 1
    middle = np.argwhere(mask[0]).mean(0)[::-1]
    there = middle * fit if draw["place"] is None else np.array(draw["place"]) * (width, height)
    path = np.array([[flip * scale, 0, 0], [0, scale, 0]])
    path[:, 2] = there - path[:, :2] @ middle
    shadow: CastShadow | None = draw["shadow"]
    video, pasted = np.empty_like(truth), np.empty(truth.shape[:3], bool)
    for k in range(len(truth)):
        matte = cv2.warpAffine(mask[k].astype(np.float32), path, (width, height))
        soft = cv2.GaussianBlur(matte, (0, 0), 1)[..., None]
        colours = cv2.warpAffine(frames[k], path, (width, height)) * np.array(draw["gain"], np.float32)
        ground = truth[k].astype(np.float32)
        pasted[k] = matte > 0.5
        if shadow is not None:
            shade = cast(shadow, (matte * 255).astype(np.uint8), corner=(0, 0), size=(height, width))
            ground = ground * (1 - shade[..., None])
            pasted[k] |= shade > 0.06
        video[k] = (ground * (1 - soft) + colours.clip(0, 255) * soft).round()
    return (video, pasted) if SMALLEST <= pasted[0].sum() <= LARGEST * pasted[0].size else None


def unseen(removal: Removal, *, side: int = 320) -> np.ndarray:
    """Pixels of the hole that no frame of the clip shows, bool `[T, H, W]`; none in the first frame.

    By the motion of the truth, chained from frame to frame both ways: a pixel is seen where its place in some
    other frame is inside the picture and outside that frame's hole. The first frame has none: it is edited.
    """
    truth = [grey(small(frame, side=side)) for frame in removal.truth]
    height, width = truth[0].shape
    holes = [
        cv2.resize(h.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        for h in removal.hole
    ]
    holes[0] = np.zeros_like(holes[0])
    forth = [flow(a, b) for a, b in zip(truth[1:], truth[:-1], strict=True)]
    back = [flow(a, b) for a, b in zip(truth[:-1], truth[1:], strict=True)]
    count = len(truth)
    seen = [_seen(range(count), holes, {t: forth[t - 1] for t in range(1, count)})]
    seen.append(_seen(range(count - 1, -1, -1), holes, dict(enumerate(back))))
    size = removal.hole.shape[2], removal.hole.shape[1]
    result = np.zeros_like(removal.hole)
    for t in range(1, count):
        hidden = holes[t] & ~seen[0][t] & ~seen[1][t]
        large = cv2.resize(hidden.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        result[t] = large & removal.hole[t]
    return result


def _seen(
    order: Sequence[int], holes: list[np.ndarray], flows: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """For each frame, bool `[h, w]`: shown there, or in a frame before it in the order."""
    height, width = holes[0].shape
    points, known, last = grid(height, width), {}, None
    for t in order:
        known[t] = ~holes[t]
        if last is not None:
            at = points + flows[t]
            inside = (at >= 0).all(-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
            there = sample(known[last].astype(np.uint8), at, how=cv2.INTER_NEAREST) > 0
            known[t] = known[t] | (inside & there)
        last = t
    return known
