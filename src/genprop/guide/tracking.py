"""Tracking an edit from its mask in the first frame, one frame at a time.

The edited first frame is clean, so the next clean frame can be *predicted*: the last one, moved by the
ground's flow. The edit is where the video differs from that prediction, near where the motion carries the
last mask, and where it looks like the object did. `inputs` lays all of that into a crop around the object,
the network decides, and the prediction replaces what it found: that is the next clean frame.

All of it is at the size that motion is measured at (`motion.SIDE`): frames of h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from genprop.guide.appearance import Colours
from genprop.guide.geometry import Region, grid, grow, place, sample
from genprop.guide.motion import ground_flow
from genprop.guide.network import SIDE

SMALLEST = 20
"""A mask of fewer pixels counts as empty: the object is hidden, or has left."""

MARGIN = 4.0
"""How far around the mask a frame is replaced by its prediction, in pixels: edges are soft."""

REMEMBER_EVERY = 5
SURE = 0.75
"""Every so many frames, one of at least this confidence takes the second place in the memory."""


class Inputs(NamedTuple):
    """What the network reads for one frame.

    `crop` is uint8 `[SIDE, SIDE, 11]` of `region`; `predicted` the clean frame that was predicted, uint8
    `[side, side, 3]` over the region.
    """

    crop: np.ndarray
    region: Region
    predicted: np.ndarray


@dataclass(frozen=True)
class State:
    """What is known after a frame.

    Attributes:
        frame: uint8 `[h, w, 3]`.
        clean: the same without the edit.
        mask: probability of the object, float32 `[h, w]`.
        centre: of the object, when it was last seen, moved as the ground moves (x, y).
        extent: its longer side then.
        missing: frames since.
        remembered: the crops in memory, uint8 `[SIDE, SIDE, 4]`: frame 0's, and the latest sure one.
        index: frames since the first.
    """

    frame: np.ndarray
    clean: np.ndarray
    mask: np.ndarray
    centre: tuple[float, float]
    extent: float
    colours: Colours
    remembered: tuple[np.ndarray, np.ndarray]
    missing: int = 0
    index: int = 0


def begin(frame: np.ndarray, edited: np.ndarray, mask: np.ndarray) -> State:
    """Of the first frame: it and the edited one, uint8 `[h, w, 3]`, and its mask, bool `[h, w]`."""
    centre, extent = _place(mask)
    region = around(centre, extent)
    first = remember(frame, mask.astype(np.float32), region)
    return State(frame, edited, mask.astype(np.float32), centre, extent, Colours(frame, mask), (first, first))


def inputs(state: State, frame: np.ndarray, flow: np.ndarray) -> Inputs:
    """What the network reads of the next frame, whose flow to the last one is given."""
    points = grid(*state.mask.shape)
    moved = sample(state.mask, points + flow)
    ground = ground_flow(flow, grow(moved > 0.3, 8))
    seen = moved > 0.5
    if np.count_nonzero(seen) >= SMALLEST:
        region = around(*_place(seen))
    else:  # where it was last seen, ever wider
        region = around(state.centre, state.extent * (1 + 0.1 * min(state.missing, 15)))
    now, at, ground_at = region.cut(frame), region.cut(points + flow), region.cut(points + ground)
    predicted = sample(state.clean, ground_at)
    maps = np.stack([region.cut(moved), state.colours.likeness(now)], axis=-1)
    parts = [now, predicted, sample(state.frame, at), (maps * 255).clip(0, 255).astype(np.uint8)]
    crop = np.concatenate([crop_of(part) for part in parts], axis=-1)
    return Inputs(crop, region, predicted)


def probability_of(logits: np.ndarray, region: Region, size: tuple[int, int]) -> np.ndarray:
    """The network's logits `[SIDE, SIDE]` as the probability of the object in a frame of `size`, `[h, w]`."""
    probability = np.zeros(size, np.float32)
    large = cv2.resize(logits, (region.width, region.height), interpolation=cv2.INTER_LINEAR)
    region.paste(1 / (1 + np.exp(-large.clip(-20, 20))), probability)
    return probability


def advance(state: State, frame: np.ndarray, given: Inputs, probability: np.ndarray, sure: float) -> State:
    """The state after a frame.

    Args:
        given: what `inputs` said of it.
        probability: of the object, float32 `[h, w]`, from the network or a person.
        sure: the confidence in it, 0 to 1.
    """
    mask = probability > 0.5
    predicted = frame.copy()
    given.region.paste(given.predicted, predicted)
    clean = np.where(grow(mask, MARGIN)[..., None], predicted, frame)
    index = state.index + 1
    there = np.count_nonzero(mask) >= SMALLEST
    centre, extent = _place(mask) if there else (state.centre, state.extent)
    remembered = state.remembered
    if there and index % REMEMBER_EVERY == 0 and sure >= SURE:
        remembered = (remembered[0], remember(frame, probability, around(centre, extent)))
    return replace(
        state,
        frame=frame,
        clean=clean,
        mask=probability,
        centre=centre,
        extent=extent,
        missing=0 if there else state.missing + 1,
        remembered=remembered,
        index=index,
    )


def remember(frame: np.ndarray, mask: np.ndarray, region: Region) -> np.ndarray:
    """A crop with its mask, float `[h, w]`, as it is kept in memory, uint8 `[SIDE, SIDE, 4]`."""
    share = (region.cut(mask) * 255).astype(np.uint8)
    return crop_of(np.concatenate([region.cut(frame), share[..., None]], axis=-1))


def around(centre: tuple[float, float], extent: float) -> Region:
    """The region for an object: half as large again and something more, so that a jump stays inside."""
    side = round(max(1.5 * extent + 40, 96))
    return Region.about(centre, side, side)


def _place(mask: np.ndarray) -> tuple[tuple[float, float], float]:
    """The middle (x, y) and the longer side of a mask's box."""
    middle, width, height = place(mask)
    return middle, float(max(width, height))


def crop_of(image: np.ndarray) -> np.ndarray:
    """A region's pixels at the network's size; averaged where they shrink."""
    how = cv2.INTER_AREA if image.shape[0] > SIDE else cv2.INTER_LINEAR
    return cv2.resize(image, (SIDE, SIDE), interpolation=how)
