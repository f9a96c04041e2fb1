"""Sequences for the tracker: an object in a clip, its mask in every frame, and the first frame without it.

Three kinds, by a seed of their own each. A clip with its own object: natural motion, and nobody knows what is
behind it, so its first frame is painted. An object of a clip, or a cut-out that is moved, pasted onto a clip:
the clean first frame is known, though it is painted in some, as users' are. The same over a photograph that a
camera moves over. Pasted ones have what confuses a tracker: a like object beside it, something that passes in
front, a shadow, an object that leaves and returns, noise, compression and drifting exposure.

Shapes: L frames of `SIZE` pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from torch.utils.data import Dataset

from genprop.data.corpus import Corpus, RealClip
from genprop.guide.geometry import grow
from genprop.guide.motion import flow, grey
from genprop.video import read_image

SIZE = (240, 400)
"""Height and width: smaller than what is tracked in use, since a sample costs as much as its pixels."""

LEAST = 150
"""Pixels of the object in the first frame."""
MOST = 0.3
"""Its largest share of the first frame."""
TRIES = 200


@dataclass(frozen=True)
class Sequence:
    """`frames` uint8 `[L, h, w, 3]`, the object's `masks` bool `[L, h, w]`, the `edited` first frame.

    `flows` float32 `[L - 1, h, w, 2]` are those from each frame to the one before.
    """

    frames: np.ndarray
    masks: np.ndarray
    edited: np.ndarray
    flows: np.ndarray


Ground = Callable[[int], np.ndarray]
"""Frame to picture, uint8 `[h, w, 3]`."""
Pasted = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Frame to colours (uint8, times the matte) and matte (float32 in [0, 1], `[h, w]`)."""


class Removals(Dataset[Sequence]):
    """`count` sequences of `length` frames; item `i` depends on the seed and `i` only."""

    def __init__(self, corpus: Corpus, *, count: int, length: int, seed: int, natural: float = 0.3) -> None:
        self.corpus, self.count, self.length, self.seed, self.natural = corpus, count, length, seed, natural
        self._own = [(clip, mask) for clip in corpus.clips for mask in clip.masks]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Sequence:
        if not 0 <= item < self.count:
            raise IndexError(f"item {item} of {self.count}")
        rng = Generator(PCG64(SeedSequence(self.seed, spawn_key=(item,))))
        for _ in range(TRIES):
            own = bool(self._own) and rng.random() < self.natural
            found = self._recorded(rng) if own else self._pasted(rng)
            if LEAST <= found.masks[0].sum() <= MOST * found.masks[0].size:
                return found
        raise RuntimeError(f"no object of fitting size in {TRIES} draws")

    def _recorded(self, rng: Generator) -> Sequence:
        """A clip with its own object."""
        clip, mask = self._own[rng.integers(len(self._own))]
        at = _times(rng, len(mask), self.length)
        window = _window(rng, clip, keep=mask[at[0]])
        frames = np.stack([_view(clip.frames[t], window) for t in at])
        masks = np.stack([_view(mask[t].astype(np.uint8) * 255, window) > 127 for t in at])
        return _recorded_by_a_camera(rng, frames, masks, painted(frames[0], masks[0], rng))

    def _pasted(self, rng: Generator) -> Sequence:
        """An object where it never was."""
        still = self.corpus.photos and (not self.corpus.clips or rng.random() < 0.5)
        ground = self._photograph(rng) if still else self._footage(rng)
        thing = self._thing(rng)
        layers = [(self._thing(rng) if rng.random() < 0.5 else thing) for _ in range(rng.random() < 0.35)]
        behind = [_moved(rng, layer) for layer in layers]
        front = _moved(rng, self._thing(rng), fast=True) if rng.random() < 0.25 else None
        paste = _moved(rng, thing)
        shadow = _Shadow(rng) if rng.random() < 0.3 else None
        frames, masks, first = [], [], None
        for k in range(self.length):
            clean = ground(k)
            for other in behind:
                clean = _over(clean, *other(k))
            colours, matte = paste(k)
            shade = shadow(matte) if shadow else np.zeros_like(matte)
            frame = _over((clean * (1 - shade[..., None])).astype(np.uint8), colours, matte)
            mask = (matte > 0.5) | (shade > 0.12)
            if front is not None:
                over = front(k)
                frame, clean, mask = _over(frame, *over), _over(clean, *over), mask & (over[1] < 0.5)
            first = clean if first is None else first
            frames.append(frame)
            masks.append(mask)
        assert first is not None
        if rng.random() < 0.4:
            first = painted(frames[0], masks[0], rng)
        return _recorded_by_a_camera(rng, np.stack(frames), np.stack(masks), first)

    def _footage(self, rng: Generator) -> Ground:
        clip = self.corpus.clips[rng.integers(len(self.corpus.clips))]
        at, window = _times(rng, len(clip.frames), self.length), _window(rng, clip)
        return lambda k: _view(clip.frames[at[k]], window)

    def _photograph(self, rng: Generator) -> Ground:
        """A camera that pans, zooms and turns over a photograph, with a hand's shake."""
        photo = read_image(self.corpus.photos[rng.integers(len(self.corpus.photos))])
        height, width = SIZE
        zoom = max(height / photo.shape[0], width / photo.shape[1]) * rng.uniform(1.1, 1.9)
        moves = rng.random() > 0.2
        speed = rng.normal(0, 2.5, 2) * moves
        grows, turns = rng.normal(0, 0.006) * moves, rng.normal(0, 0.006) * moves
        shake = rng.exponential(0.5) * moves
        shakes = np.cumsum(rng.normal(0, shake, (self.length, 2)), axis=0) * 0.5
        tilt = rng.normal(0, 5e-6, 2) * moves
        centre = np.array(photo.shape[1::-1]) * rng.uniform(0.35, 0.65, 2)

        def at(k: int) -> np.ndarray:
            scale, angle = zoom * np.exp(grows * k), turns * k
            x, y = centre + (speed * k + shakes[k]) / zoom
            cos, sin = scale * np.cos(angle), scale * np.sin(angle)
            place = np.array(
                [
                    [cos, -sin, width / 2 - cos * x + sin * y],
                    [sin, cos, height / 2 - sin * x - cos * y],
                    [tilt[0] * k, tilt[1] * k, 1],
                ]
            )
            return cv2.warpPerspective(
                photo, place, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
            )

        return at

    def _thing(self, rng: Generator) -> Pasted:
        """An object at its own size: of a clip, as it moves there, or a cut-out, which does not move."""
        if self._own and (not self.corpus.cutouts or rng.random() < 0.6):
            clip, mask = self._own[rng.integers(len(self._own))]
            at = _times(rng, len(mask), self.length)
            soft = [cv2.GaussianBlur(mask[t].astype(np.float32), (0, 0), 1) for t in at]
            return lambda k: (clip.frames[at[k]], soft[k])
        path = self.corpus.cutouts[rng.integers(len(self.corpus.cutouts))]
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 3 or image.shape[2] != 4:
            return self._thing(rng)
        colours, matte = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB), image[..., 3] / np.float32(255)
        return lambda k: (colours, matte)


def painted(frame: np.ndarray, mask: np.ndarray, rng: Generator) -> np.ndarray:
    """A first frame as someone has it who had only a mask: filled from around it."""
    hole = grow(mask, float(rng.uniform(2, 6)))
    if hole.all():
        return frame
    return cv2.inpaint(frame, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def _times(rng: Generator, available: int, length: int) -> np.ndarray:
    """Frame numbers from a drawn start, in steps of 1 or 2, at times backwards; back and forth at the end."""
    step = int(rng.choice([1, 1, 1, 2]))
    start = int(rng.integers(max(1, available - length * step + 1)))
    at = np.pad(np.arange(available), (0, length * step), mode="reflect")[
        start : start + length * step : step
    ]
    return at[::-1] if rng.random() < 0.3 else at


def _window(rng: Generator, clip: RealClip, *, keep: np.ndarray | None = None) -> np.ndarray:
    """A part of a clip's frames, drawn around the object to keep, as the map to `SIZE`, maybe mirrored."""
    height, width = clip.frames.shape[1:3]
    least = max(SIZE[0] / height, SIZE[1] / width)
    zoom = least * float(rng.uniform(1, 1.7))
    middle = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    if keep is not None and keep.any():
        middle = np.argwhere(keep).mean(0)[::-1] + rng.normal(0, 30, 2) / zoom
    half = np.array(SIZE[::-1]) / 2 / zoom
    middle = np.clip(middle, half, np.maximum(np.array([width, height]) - half, half))
    x, y = SIZE[1] / 2 - zoom * middle[0], SIZE[0] / 2 - zoom * middle[1]
    if rng.random() < 0.5:
        return np.array([[-zoom, 0, SIZE[1] - 1 - x], [0, zoom, y]])
    return np.array([[zoom, 0, x], [0, zoom, y]])


def _view(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, window, SIZE[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _moved(rng: Generator, thing: Pasted, *, fast: bool = False) -> Pasted:
    """An object at a drawn place and size, on a path of its own, in another light."""
    _, matte = thing(0)
    ys, xs = np.nonzero(matte > 0.5)
    if not len(ys):
        ys, xs = np.array([0, matte.shape[0]]), np.array([0, matte.shape[1]])
    extent = max(np.ptp(ys), np.ptp(xs), 1)
    scale = float(np.clip(np.exp(rng.uniform(np.log(30), np.log(180))) / extent, 0.15, 1.6))
    flip = rng.choice([-1, 1])
    start = np.array(SIZE[::-1]) * rng.uniform(0.12, 0.88, 2)
    speed = rng.normal(0, 8 if fast else 3, 2) * (fast or rng.random() < 0.7)
    swing = rng.exponential(20, 2) * (rng.random() < 0.3)
    rate, turn, grows = rng.uniform(0.1, 0.5), rng.normal(0, 0.02), rng.normal(0, 0.01)
    gain = rng.uniform(0.7, 1.25, 3)

    def at(k: int) -> tuple[np.ndarray, np.ndarray]:
        colours, matte = thing(k)
        size, angle = scale * np.exp(grows * k), turn * k
        cos, sin = size * np.cos(angle), size * np.sin(angle)
        place = start + speed * k + swing * np.sin(rate * k)
        linear = np.array([[flip * cos, -sin], [flip * sin, cos]])
        offset = place - linear @ np.array([xs.mean(), ys.mean()])
        path = np.column_stack([linear, offset])
        if size < 0.6:  # averaged before it shrinks
            blur = 0.4 / size
            colours, matte = cv2.GaussianBlur(colours, (0, 0), blur), cv2.GaussianBlur(matte, (0, 0), blur)
        matte = cv2.warpAffine(matte, path, SIZE[::-1])
        colours = cv2.warpAffine(colours, path, SIZE[::-1], borderMode=cv2.BORDER_REPLICATE)
        return (colours * gain).clip(0, 255), matte

    return at


class _Shadow:
    """The matte, sheared and squashed about its foot, soft and dark."""

    def __init__(self, rng: Generator) -> None:
        self.lean, self.length = rng.uniform(-0.8, 0.8), rng.choice([-1, 1]) * rng.uniform(0.15, 0.5)
        self.blur, self.strength = rng.uniform(1.5, 5), rng.uniform(0.3, 0.6)

    def __call__(self, matte: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(matte.max(axis=1) > 0.5)
        if not len(rows):
            return np.zeros_like(matte)
        foot = float(rows[-1])
        laid = np.array([[1, -self.lean, self.lean * foot], [0, self.length, (1 - self.length) * foot]])
        shade = cv2.warpAffine(matte, laid, matte.shape[::-1])
        return cv2.GaussianBlur(shade, (0, 0), self.blur) * np.float32(self.strength)


def _over(ground: np.ndarray, colours: np.ndarray, matte: np.ndarray) -> np.ndarray:
    alpha = matte[..., None]
    return (ground * (1 - alpha) + colours * alpha).round().clip(0, 255).astype(np.uint8)


def _recorded_by_a_camera(
    rng: Generator, frames: np.ndarray, masks: np.ndarray, first: np.ndarray
) -> Sequence:
    """Noise, drifting exposure and compression, which differ from frame to frame."""
    noise, quality = rng.exponential(2.0), int(rng.integers(50, 98))
    drift = np.exp(np.cumsum(rng.normal(0, 0.01 * (rng.random() < 0.3), len(frames))))
    grain = Generator(PCG64(int(rng.integers(2**32))))

    def shot(frame: np.ndarray, gain: float) -> np.ndarray:
        noisy = frame * gain + grain.standard_normal(frame.shape, np.float32) * noise
        _, data = cv2.imencode(".jpg", noisy.round().clip(0, 255).astype(np.uint8), [1, quality])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))

    shots = np.stack([shot(f, float(g)) for f, g in zip(frames, drift, strict=True)])
    first = shot(first, 1.0)
    if rng.random() < 0.4:  # colours of other worlds
        order = rng.permutation(3)
        shots, first = np.ascontiguousarray(shots[..., order]), np.ascontiguousarray(first[..., order])
    greys = [grey(frame) for frame in shots]
    flows = [flow(now, last) for last, now in itertools.pairwise(greys)]
    return Sequence(shots, masks, first, np.stack(flows))
