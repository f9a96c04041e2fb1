"""Filling a hole in one picture from its surroundings: smoothly, or with pieces of them.

Three ways, from the cheapest: `push_pull` is smooth and fast, for flow; `membrane` is harmonic, the base of
every seam in the gradient domain; `paint` copies texture from around the hole, for a frame that nothing else
shows. Shapes: H W pixels, h w cells of several pixels, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from genprop.errors import GenPropError
from genprop.guide.geometry import Region, box, shrink

CYCLES = 4
"""Steps of the membrane's solver: within half a grey level of the exact membrane on real pictures."""
SWEEPS = 2
"""Relaxations before and after each visit to a coarser level."""
DAMPING = np.float32(0.8)
"""Of a relaxation, so that it takes away what a coarser level cannot show."""

CELLS = 5000
"""The most cells of a hole that are painted: the time of a shift map grows with them, 0.1 ms each."""
LONGEST = 400
"""The most cells along a side of what is painted from; beyond 600 OpenCV's shift map scales by itself."""
RIM = 2
"""How many cells of a hole's edge are guessed smoothly for the shift map, which fits its pieces to them."""
CODE = np.float32(1 / 65536)
"""A cell's row and column travel through the shift map as this fraction of a grey level."""

NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4


def push_pull(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Smooth values where there are none, from those around, by a pyramid (Gortler et al. 1996, section 3.4).

    Args:
        values: float32 `[H, W, C]`, C at most 4.
        known: bool `[H, W]`; there values stay as they are. With none known, the result is 0.
    """
    values = values.astype(np.float32, copy=False)
    if known.all() or not known.any():
        return values.copy() if known.all() else np.zeros_like(values)
    mask = known.astype(np.uint8)
    sums, weights = [cv2.copyTo(values, mask).reshape(values.shape)], [mask.astype(np.float32)]
    while weights[-1].min() < 1 and max(weights[-1].shape) > 1:
        coarse, weight = cv2.pyrDown(sums[-1]), cv2.pyrDown(weights[-1])
        gain = np.minimum(4, 1 / np.maximum(weight, 1e-12))  # a quarter known is as good as all of it
        sums.append(coarse.reshape(*weight.shape, -1) * gain[..., None])
        weights.append(weight * gain)
    level, weight = sums[-1], weights[-1]
    for finer, share in zip(sums[-2:0:-1], weights[-2:0:-1], strict=True):
        level = finer + (1 - share)[..., None] * _up(level, like=finer)
        weight = share + (1 - share) * _up(weight, like=share)
    smooth = _up(level / np.maximum(weight, 1e-12)[..., None], like=sums[0])
    return cv2.copyTo(values, mask, smooth).reshape(values.shape)


def membrane(values: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The smoothest values in a hole that meet those around it: Laplace's equation.

    It is what a gradient-domain seam adds to a patch (Perez et al. 2003, equation 8). At the picture's border
    the values are level.

    Args:
        values: float32 `[H, W, C]`.
        hole: bool `[H, W]`; outside of it values stay as they are.

    Raises:
        GenPropError: the hole covers everything.
    """
    if hole.all():
        raise _nothing_left()
    result = values.astype(np.float32, copy=True)
    if hole.any():
        rows, columns = box(hole, margin=2)
        gap = hole[rows, columns]
        start = push_pull(result[rows, columns], ~gap)
        result[rows, columns] = start + _poisson(_means(start) - start, gap)
    return result


def paint(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill a hole with pieces of what is around it: a shift map (Pritch et al. 2009), its seams made smooth.

    The pieces are chosen on cells of some pixels, and copied at the picture's own size, so that the time
    does not grow with it and no detail is lost. Where no piece is found, the hole is filled smoothly.
    The same input gives the same output.

    Args:
        image: uint8 `[H, W, 3]`, unchanged outside of the hole.
        hole: bool `[H, W]`.

    Raises:
        GenPropError: the hole covers the whole picture.
    """
    if hole.all():
        raise _nothing_left()
    result = image.copy()
    if not hole.any():
        return result
    area = int(hole.sum())
    rows, columns = box(hole, margin=max(24, round(0.6 * np.sqrt(area))))
    height, width = hole[rows, columns].shape
    size = max(1, int(np.ceil(np.sqrt(area / CELLS))), int(np.ceil(max(height, width) / LONGEST)))
    region = Region(columns.start, rows.start, -(-width // size) * size, -(-height // size) * size)
    crop, gap = region.cut(image), region.cut(hole)
    pieces = _pieces(crop, gap, size=size)
    filled = membrane(crop.astype(np.float32), gap) if pieces is None else _seamless(crop, gap, pieces)
    filled = np.where(gap[..., None], filled.round().clip(0, 255), crop).astype(np.uint8)
    region.paste(filled, result)
    return result


class _Pieces(NamedTuple):
    """From how far a pixel of a hole is copied, int `[H, W, 2]` (down, right), and whether it is at all."""

    shift: np.ndarray
    copied: np.ndarray

    def fetch(self, image: np.ndarray, *, down: int = 0, right: int = 0) -> np.ndarray:
        """Each pixel's source in the image, or the source's neighbour; the border's pixels beyond it."""
        height, width = self.copied.shape
        y = np.arange(height)[:, None] + self.shift[..., 0] + down
        x = np.arange(width) + self.shift[..., 1] + right
        return image[y.clip(0, height - 1), x.clip(0, width - 1)]


def _pieces(crop: np.ndarray, gap: np.ndarray, *, size: int) -> _Pieces | None:
    """Where each pixel of the gap is copied from, by a shift map on cells of `size` pixels; None if it fails.

    OpenCV's shift map tells colours only, but copies them exactly: so each cell's row and column go in as a
    tiny fraction of its colour, and come out with it.
    """
    height, width = gap.shape[0] // size, gap.shape[1] // size
    cells = cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)
    hollow = np.asarray(gap.reshape(height, size, width, size).any((1, 3)))
    if min(height, width) < 16 or hollow.sum() < 16 or (~hollow).sum() < 256:
        return None
    core = shrink(hollow, RIM + 0.2)
    if core.sum() < 0.2 * hollow.sum():
        core = hollow
    cells[hollow] = membrane(cells.astype(np.float32), hollow)[hollow].round()
    coded = cv2.cvtColor(cells, cv2.COLOR_RGB2LAB).astype(np.float32)
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    coded[..., 0] += (y + 1) * CODE
    coded[..., 1] += (x + 1) * CODE
    shown = np.zeros_like(coded)
    cv2.setRNGSeed(0)
    try:
        cv2.xphoto.inpaint(coded, np.where(core, 0, 255).astype(np.uint8), shown, cv2.xphoto.INPAINT_SHIFTMAP)
    except cv2.error:
        return None
    cell_y, cell_x = (np.rint(shown[..., axis] % 1 / CODE).astype(int) - 1 for axis in (0, 1))
    shift = np.stack([cell_y - y, cell_x - x], axis=-1)
    shift, copied = _complete(shift, hollow, copied=(cell_y >= 0) & (cell_x >= 0) & hollow)
    if copied.sum() < 0.5 * hollow.sum():
        return None
    return _Pieces(_enlarge(shift * size, size), _enlarge(copied, size) & gap)


def _complete(shift: np.ndarray, hollow: np.ndarray, *, copied: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts whose source is known, and, where one is missing, that of the nearest cell, if that will do."""
    height, width = hollow.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None]

    def known(shift: np.ndarray) -> np.ndarray:
        source_y, source_x = y + shift[..., 0], x + shift[..., 1]
        inside = (source_y >= 0) & (source_y < height) & (source_x >= 0) & (source_x < width)
        return inside & ~hollow[source_y.clip(0, height - 1), source_x.clip(0, width - 1)]

    copied = copied & known(shift)
    for _ in range(4):
        if not copied.any() or copied.sum() == hollow.sum():
            break
        away = (~copied).astype(np.uint8)
        _, labels = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        nearest = labels.astype(np.intp)
        table = np.zeros((int(nearest.max()) + 1, 2), int)
        table[nearest[copied]] = shift[copied]
        guess = table[nearest]
        fits = hollow & ~copied & known(guess)
        shift, copied = np.where(fits[..., None], guess, shift), copied | fits
    return np.where(copied[..., None], shift, 0), copied


def _seamless(crop: np.ndarray, gap: np.ndarray, pieces: _Pieces) -> np.ndarray:
    """The crop with its pieces in the gap, every seam between them and around them taken away.

    A picture is sought whose differences between neighbours are the pieces' own (Perez et al. 2003,
    equation 3). Across a seam it is the mean of what the two pieces say.
    """
    image, known = crop.astype(np.float32), ~gap
    start = np.where(pieces.copied[..., None], pieces.fetch(image), image)
    start = push_pull(start, known | pieces.copied)
    residual = np.zeros_like(start)
    for axis, (down, right) in enumerate([(1, 0), (0, 1)]):
        first = (slice(None, -1), slice(None))[:: 1 - 2 * axis]
        second = (slice(1, None), slice(None))[:: 1 - 2 * axis]
        after, before = (
            pieces.fetch(image, down=down, right=right),
            pieces.fetch(image, down=-down, right=-right),
        )
        says_after = (pieces.copied & pieces.fetch(known, down=down, right=right))[first][..., None]
        says_before = (pieces.copied & pieces.fetch(known, down=-down, right=-right))[second][..., None]
        apart = says_after * (start[second] - after[first]) + says_before * (before[second] - start[first])
        apart = apart / np.maximum(says_after.astype(np.float32) + says_before, 1)
        apart = np.where(says_after | says_before, apart, start[second] - start[first]) / 4
        residual[first] += apart
        residual[second] -= apart
    return start + _poisson(residual, gap)


def _poisson(residual: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """What is 0 outside of the hole, and has this difference to its neighbours' mean inside.

    Conjugate gradients (Polak-Ribiere), each step made by a multigrid cycle. A cycle alone may diverge: thin
    parts of a hole are lost, or merge, on coarse levels.
    """
    channels = residual.shape[2]
    insides = []
    level = hole
    while True:
        insides.append(np.repeat(level[..., None].astype(np.float32), channels, axis=-1))
        coarser = level[::2, ::2]
        if min(level.shape) < 5 or coarser.all() or not coarser.any():
            break
        level = coarser
    inside = insides[0]
    residual = residual * inside
    total = np.zeros_like(residual)
    direction = step = last = None
    for _ in range(CYCLES):
        last_step, step = step, _cycle(residual, insides)
        if direction is None or last_step is None or last is None:
            direction = step
        else:
            share = np.vdot(step, residual - last) / max(float(np.vdot(last_step, last)), 1e-20)
            direction = step + np.float32(share) * direction
        change = (direction - _means(direction)) * inside
        length = np.float32(np.vdot(direction, residual) / max(float(np.vdot(direction, change)), 1e-20))
        total += length * direction
        last, residual = residual, residual - length * change
    return total


def _cycle(residual: np.ndarray, insides: list[np.ndarray]) -> np.ndarray:
    """About what has this residual: relaxations, the rest on a coarser level, relaxations."""
    inside = insides[0]
    error = DAMPING * residual
    for _ in range(SWEEPS - 1):
        error += DAMPING * (residual - (error - _means(error)) * inside)
    if len(insides) > 1:
        rest = residual - (error - _means(error)) * inside
        coarse = cv2.pyrDown(rest).reshape(insides[1].shape) * (
            4 * insides[1]
        )  # 4: the square of the spacing
        error += _up(_cycle(coarse, insides[1:]), like=error) * inside
    for _ in range(SWEEPS):
        error += DAMPING * (residual - (error - _means(error)) * inside)
    return error


def _means(values: np.ndarray) -> np.ndarray:
    """The mean of each pixel's four neighbours."""
    return cv2.filter2D(values, -1, NEIGHBOURS, borderType=cv2.BORDER_REPLICATE).reshape(values.shape)


def _up(coarse: np.ndarray, *, like: np.ndarray) -> np.ndarray:
    return cv2.pyrUp(coarse, dstsize=(like.shape[1], like.shape[0])).reshape(like.shape)


def _enlarge(cells: np.ndarray, size: int) -> np.ndarray:
    return cells.repeat(size, axis=0).repeat(size, axis=1)


def _nothing_left() -> GenPropError:
    return GenPropError(
        "the mask covers the whole frame, nothing is left to fill from", "Mask the object only."
    )
