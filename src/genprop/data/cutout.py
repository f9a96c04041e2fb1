"""An object cut out of a clip: what copy-and-paste (GenProp, supplementary S1) lays over another clip.

Two things give a paste away: a rim of the old background, and a straight cut where the object left its own
frame. So the matte lies a pixel inside the mask and is soft, and a side at which the object was cut off is
laid at, or beyond, the same side of the new frame.

Shapes: T frames, H W pixels of the new clip, h w pixels of the cutout.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from genprop.errors import GenPropError
from genprop.types import MaskedClip

SEEN = 0.002
"""An object of a smaller share of its frame counts as not there: nobody would see the edit."""

SIZES = (0.25, 0.7)
"""What the longer side of a pasted object is brought to, in heights of the new frame."""

SCALES = (0.35, 1.5)
"""As far as its pixels allow: larger ones would be blurred, smaller ones have lost their detail."""


@dataclass(frozen=True)
class Cutout:
    """An object in the smallest box that holds it in every frame.

    Attributes:
        frames: uint8 RGB times the matte, `[T, h, w, 3]`: resized, no colour of the old ground comes in.
        matte: its coverage, uint8 `[T, h, w]`.
        cut: whether the box ends at its clip's border: ((top, bottom), (left, right)).
    """

    frames: np.ndarray
    matte: np.ndarray
    cut: tuple[tuple[bool, bool], tuple[bool, bool]]


def in_view(mask: np.ndarray) -> np.ndarray:
    """In which frames the object is large enough to be edited, bool `[T]`, from its mask `[T, H, W]`."""
    share = np.array([cv2.countNonZero(frame.view(np.uint8)) for frame in mask]) / mask[0].size
    return (share > 0) & (share >= SEEN)


def cut_out(donor: MaskedClip, length: int) -> Cutout:
    """The object for `length` frames, in view in the first of them.

    The edited first frame is all that a model is told of the edit, so the donor is played from where its
    object comes into view, and back and forth if it ends too early: the motion stays steady.

    Raises:
        GenPropError: the object is in no frame.
    """
    view = in_view(donor.mask)
    if not view.any():
        raise GenPropError(
            f"the mask is below {SEEN:.1%} in all {len(view)} frames of the donor, expected an object",
            "Give a clip with an object in it.",
        )
    order = np.pad(np.arange(view.argmax(), len(view)), (0, length), mode="reflect")[:length]
    mask = donor.mask[order]
    height, width = mask.shape[1:]
    rows, columns = _span(mask.max((0, 2))), _span(mask.max((0, 1)))
    soft = max(0.6, height / 512)  # pixels
    margin = int(3 * soft) + 1
    window = [slice(max(span.start - margin, 0), span.stop + margin) for span in (rows, columns)]
    matte = mask[:, *window].astype(np.uint8) * 255
    # What lies beyond the border goes on as the object does, or it would be soft, and eroded, there too.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(soft) + 1,) * 2)
    core = [cv2.erode(frame, kernel, borderType=cv2.BORDER_REPLICATE) for frame in matte]
    if 2 * cv2.countNonZero(core[0]) < cv2.countNonZero(matte[0]):
        core = list(matte)  # a thin object would vanish
    matte = np.stack([cv2.GaussianBlur(m, (0, 0), soft, borderType=cv2.BORDER_REPLICATE) for m in core])
    cut = ((rows.start == 0, rows.stop == height), (columns.start == 0, columns.stop == width))
    frames = [
        cv2.multiply(donor.frames[t][*window], cv2.merge([m, m, m]), scale=1 / 255)
        for t, m in zip(order, matte, strict=True)
    ]
    return Cutout(np.stack(frames), matte, cut)


def fit(cutout: Cutout, height: int, *, rng: Generator) -> Cutout:
    """The object at a drawn size for frames of `height` lines, every second time mirrored."""
    h, w = cutout.matte.shape[1:]
    scale = float(np.clip(rng.uniform(*SIZES) * height / max(h, w), *SCALES))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    step = -1 if rng.random() < 0.5 else 1
    frames, matte = (
        np.stack([cv2.resize(frame, size, interpolation=how)[:, ::step] for frame in part])
        for part in (cutout.frames, cutout.matte)
    )
    left, right = cutout.cut[1][::step]
    return Cutout(frames, matte, (cutout.cut[0], (left, right)))


def place(cutout: Cutout, size: tuple[int, int], *, rng: Generator) -> tuple[int, int]:
    """Where the cutout's corner (row, column) goes in frames of `size`; it may lie outside.

    The object's innermost pixel of frame 0 lies in the new frame, so that something of it is seen there.
    """
    depth = cv2.distanceTransform((cutout.matte[0] == cutout.matte[0].max()).astype(np.uint8), cv2.DIST_L2, 3)
    anchor = np.unravel_index(depth.argmax(), depth.shape)
    row, column = (
        _draw_corner(side, length=length, anchor=int(a), cut=cut, rng=rng)
        for side, length, a, cut in zip(size, depth.shape, anchor, cutout.cut, strict=True)
    )
    return row, column


def _draw_corner(side: int, *, length: int, anchor: int, cut: tuple[bool, bool], rng: Generator) -> int:
    """Along one axis: the anchor is drawn from the inner part of the frame, as far as the cuts allow."""
    low, high = int(0.1 * side), int(0.9 * side)
    if cut[0]:
        high = min(high, anchor)
        low = min(low, high)
    if cut[1]:
        low = max(low, side - length + anchor)
        high = max(high, low)
    return int(rng.integers(low, high + 1)) - anchor


def _span(line: np.ndarray) -> slice:
    """From the first true to the last."""
    return slice(int(line.argmax()), len(line) - int(line[::-1].argmax()))
