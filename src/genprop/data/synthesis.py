"""Pairs made of any clip with masks (GenProp, supplementary S1): what the teacher learns propagation from.

No pair of real videos differs by one object alone, so one of the two is made. The made one is what the
content encoder reads and the real one is the target, so that the model never learns to paint artefacts;
filling with a colour is the exception, since there the artefact is the edit.

| task | source | target |
|---|---|---|
| remove (copy-and-paste) | another clip's object pasted in | real |
| insert (mask-and-fill) | the object filled over | real |
| track (colour fill) | real, or the object in a colour | the object in a colour, or in a second one |
| deblur (masked blur) | the object blurred | real |

Outside the mask, which holds effects too, source and target are equal bit for bit. The edit is always in the
first frame, which is all that the model is told of it.
"""

from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb

import cv2
import numpy as np
from numpy.random import Generator

from genprop.data.cutout import cut_out, fit, in_view, place
from genprop.data.procedural import VISIBLE
from genprop.data.shadow import cast, draw_shadow
from genprop.errors import GenPropError
from genprop.settings import SynthesisConfig
from genprop.types import TASKS, EditSample, MaskedClip

LINES = 256
"""The height of frame that `box_margin` and the margin below are meant for."""

TELEA_LINES = 128
"""Telea fills at this height: its fills have no detail, and it is slow."""

TELEA_MARGIN = 8
TELEA_RADIUS = 3

GROWTH = (0.005, 0.02)
"""People's masks are this much larger than their objects, in frame heights."""

GAINS = (0.8, 1.25)
"""How far a pasted object is brought to the brightness of its new clip."""

DONORS = 16
"""So many donors without an object are more than chance."""


def draw_task(rng: Generator, config: SynthesisConfig) -> str:
    """One of `TASKS`, by the configured frequencies."""
    frequencies = np.array([config.copy_paste, config.mask_fill, config.colour_fill, config.masked_blur])
    return TASKS[rng.choice(len(TASKS), p=frequencies / frequencies.sum())]


def draw_edit(
    clip: MaskedClip, *, donor: Callable[[], MaskedClip], rng: Generator, config: SynthesisConfig
) -> EditSample:
    """One pair made of `clip`: a function of what `rng` and `donor` yield, and of nothing else.

    Where the clip's own object is not in frame 0 (or hardly: less than `SEEN` of it), the edit would not be
    in the edited first frame; the pair is then one of copy-and-paste, which needs a donor's object only. The
    frequency of that task is a little above its setting for it. The real clip is not copied.

    Args:
        clip: what the pair is made of.
        donor: yields clips of any size and length; asked only where an object is to be pasted.
        rng: all that is drawn, is drawn from it.
        config: frequencies of the tasks, and their settings.

    Raises:
        GenPropError: none of `DONORS` donors shows an object.
    """
    task = draw_task(rng, config)
    if task == "remove" or not in_view(clip.mask[:1])[0]:
        for _ in range(DONORS):
            given = donor()
            if in_view(given.mask).any():
                return copy_paste(clip, given, rng=rng, config=config)
        raise GenPropError(
            f"none of {DONORS} donors shows an object in any frame, expected one to paste",
            "Check the masks: an object is white, and each clip has a frame that shows it.",
        )
    return {"insert": mask_fill, "track": colour_fill, "deblur": masked_blur}[task](
        clip, rng=rng, config=config
    )


def copy_paste(clip: MaskedClip, donor: MaskedClip, *, rng: Generator, config: SynthesisConfig) -> EditSample:
    """Task "remove": the donor's object, with its own motion, is in the source and not in the target.

    Its size, side and place are drawn once for the clip; `config.shadow` of the objects cast a shadow.

    Raises:
        GenPropError: the donor's object is in no frame.
    """
    size = clip.mask.shape[1:]
    cutout = fit(cut_out(donor, len(clip.frames)), size[0], rng=rng)
    corner = place(cutout, size, rng=rng)
    shadow = draw_shadow(rng) if rng.random() < config.shadow else None
    gain = _gain(cutout.frames[0].mean() / (cutout.matte[0].mean() / 255 + 1e-6), clip.frames[0].mean())
    source, mask = clip.frames.copy(), np.zeros(clip.mask.shape, bool)
    for t, (frame, matte) in enumerate(zip(cutout.frames, cutout.matte, strict=True)):
        alpha = _lay(matte, corner=corner, size=size).astype(np.float32) / 255
        light = 1 - alpha
        if shadow:
            light *= 1 - cast(shadow, matte, corner=corner, size=size)
        mask[t] = light < 1 - VISIBLE
        window = _window(mask[t], margin=0)
        if window is None:
            continue
        pasted = gain * _lay(frame, corner=corner, size=size)[window].astype(np.float32)
        mixed = source[t][window] * light[window][..., None] + pasted
        inside = mask[t][window]
        source[t][window][inside] = mixed[inside].clip(0, 255).round()
    return EditSample(source, clip.frames, mask, "remove", clip.caption)


def mask_fill(clip: MaskedClip, *, rng: Generator, config: SynthesisConfig) -> EditSample:
    """Task "insert": the object is filled over in the source and back in the target.

    Each frame by itself: with the mean of what surrounds the object in its box (`config.box_margin` larger),
    or from the border inwards (Telea 2004). The filled region is larger than the object, as people's masks.
    """
    height = clip.mask.shape[1]
    by_telea = rng.random() < config.telea
    radius = max(1, round(rng.uniform(*GROWTH) * height))
    margin = round((TELEA_MARGIN if by_telea else config.box_margin) * height / LINES)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    source, mask = clip.frames.copy(), np.zeros(clip.mask.shape, bool)
    for frame, thing, hole in zip(source, clip.mask, mask, strict=True):
        window = _window(thing, margin=radius + margin)
        if window is None:
            continue
        hole[window] = cv2.dilate(thing[window].astype(np.uint8), kernel) > 0
        inside, around = hole[window], frame[window]
        if by_telea and not inside.all():
            around[inside] = _telea(around, inside, factor=max(1.0, height / TELEA_LINES))[inside]
        else:
            around[inside] = around[~inside if not inside.all() else inside].mean(0).round()
    return EditSample(source, clip.frames, mask, "insert", clip.caption)


def colour_fill(clip: MaskedClip, *, rng: Generator, config: SynthesisConfig) -> EditSample:
    """Task "track": the object is one flat colour in the target, the same in every frame.

    The source is the real clip, or (`config.second_colour` of the draws) has the object in another colour.
    The pair has no caption: the real clip's would not be true of the target.
    """
    hue, second = rng.random(), rng.random() < config.second_colour
    source, target = clip.frames, clip.frames.copy()
    target[clip.mask] = _colour(hue, rng=rng)
    if second:
        source = clip.frames.copy()
        source[clip.mask] = _colour(hue + rng.uniform(0.25, 0.75), rng=rng)
    return EditSample(source, target, clip.mask, "track")


def masked_blur(clip: MaskedClip, *, rng: Generator, config: SynthesisConfig) -> EditSample:
    """Task "deblur": the source is `M * blur(I) + (1 - M) * I`, of deviation `config.blur` heights.

    Nothing is drawn; `rng` is there so that all tasks are called alike.
    """
    sigma = config.blur * clip.mask.shape[1]
    shrink = max(1.0, sigma / 3)  # a wide blur is the same at a smaller size, and slow at full size
    source = clip.frames.copy()
    for frame, thing in zip(source, clip.mask, strict=True):
        window = _window(thing, margin=round(3 * sigma))
        if window is None:
            continue
        around, inside = frame[window], thing[window]
        h, w = inside.shape
        small = cv2.resize(around, _shrunk(h, w, shrink), interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(small, (0, 0), sigma / shrink)
        around[inside] = cv2.resize(soft, (w, h))[inside]
    return EditSample(source, clip.frames, clip.mask, "deblur", clip.caption)


def _telea(frame: np.ndarray, hole: np.ndarray, *, factor: float) -> np.ndarray:
    """The hole `[h, w]` of a frame `[h, w, 3]` filled from its border, at a size smaller by `factor`."""
    h, w = hole.shape
    small = _shrunk(h, w, factor)
    # A cell that the hole only touches is part of it too, or the object's colours would leak into the fill.
    share = cv2.resize(hole.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    coarse = (share > share.min()).astype(np.uint8)
    frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.inpaint(frame, coarse, TELEA_RADIUS, cv2.INPAINT_TELEA), (w, h))


def _shrunk(height: int, width: int, factor: float) -> tuple[int, int]:
    """cv2's size (width, height) of an image that is smaller by `factor`."""
    return max(1, round(width / factor)), max(1, round(height / factor))


def _colour(hue: float, *, rng: Generator) -> np.ndarray:
    """A saturated colour of `hue` (turns), uint8 `[3]`."""
    rgb = hsv_to_rgb(hue % 1, rng.uniform(0.7, 1), rng.uniform(0.7, 1))
    return (255 * np.array(rgb)).round().astype(np.uint8)


def _gain(thing: float, ground: float) -> float:
    """Half the way (in stops) from the mean of an object's pixels to that of the ground, within `GAINS`."""
    return float(np.clip(np.sqrt((ground + 1) / (thing + 1)), *GAINS))


def _lay(image: np.ndarray, *, corner: tuple[int, int], size: tuple[int, ...]) -> np.ndarray:
    """An image `[h, w, ...]` at `corner` of zeros of `size`; what lies beyond is cut off."""
    canvas = np.zeros((*size[:2], *image.shape[2:]), image.dtype)
    (top, left), (h, w) = corner, image.shape[:2]
    part = canvas[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
    rows, columns = max(-top, 0), max(-left, 0)
    part[:] = image[rows : rows + part.shape[0], columns : columns + part.shape[1]]
    return canvas


def _window(mask: np.ndarray, *, margin: int) -> tuple[slice, slice] | None:
    """The box of a mask `[H, W]` with a margin, within the frame; None where the mask is empty."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return None
    return (
        slice(max(top - margin, 0), top + height + margin),
        slice(max(left - margin, 0), left + width + margin),
    )
