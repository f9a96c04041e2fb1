"""Procedural clips with known truth: an object over a moving background, and the same without it.

Why: what is behind an object is known only where somebody drew it. The edit removes one object and its
shadow; other objects, and whatever passes in front, stay. As in GenProp's data (supplementary S1) the
mask covers the effects of the object too. Frames are drawn supersampled and area-averaged down, so
there is no aliasing and edges are soft as a camera's are.
"""

from __future__ import annotations

from math import ceil

import cv2
import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from torch.utils.data import Dataset

from genprop.data.scene import SWAY, Scene, Thing, draw_scene, similarity
from genprop.data.textures import CANVAS, TEXELS
from genprop.types import EditSample

VISIBLE = 0.04
"""An effect weaker than this share of a pixel does not belong to the mask, and is not drawn."""


def make_sample(seed: int, *, frames: int, height: int, width: int) -> EditSample:
    """A clip and the same clip without one of its objects.

    Args:
        seed: names the scene; the same seed at another size or length is the same scene.
        frames, height, width: the size of the clip.

    Returns:
        `source` with and `target` without the object and its shadow, and `mask` where they may differ;
        outside the mask they are equal bit for bit.
    """
    scene = draw_scene(Generator(PCG64(seed)), aspect=width / height)
    shots = [_shoot(scene, t, height=height, width=width) for t in range(frames)]
    source, target, mask = (np.stack(part) for part in zip(*shots, strict=True))
    return EditSample(source, target, mask)


class ProceduralClips(Dataset[EditSample]):
    """`count` samples. Item `i` depends on `(seed, i)` only, and pairs do not share scenes."""

    def __init__(self, count: int, seed: int, *, frames: int, height: int, width: int) -> None:
        self.count, self.seed = count, seed
        self.frames, self.height, self.width = frames, height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> EditSample:
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count}")
        seed = int(SeedSequence(self.seed, spawn_key=(index,)).generate_state(1, np.uint64)[0])
        return make_sample(seed, frames=self.frames, height=self.height, width=self.width)


def _shoot(scene: Scene, t: int, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame `t` with and without the edited thing, and where they differ."""
    factor = max(2, ceil(TEXELS / height))
    size = (width * factor, height * factor)
    view = scene.camera.view(t, height=size[1], width=size[0])
    ground = _warp(scene.background, view, size)
    plates = [_warp(thing.texture, view @ thing.pose(t), size) for thing in scene.things]
    alphas = [_fill(_apply(view @ thing.pose(t), thing.contour(t)), size) for thing in scene.things]
    shades = [_shade(thing, view, t, size) for thing in scene.things]
    light = _light(scene, t, height=height, width=width)

    def compose(kept: list[int]) -> np.ndarray:
        frame = ground
        for shade in (shades[i] for i in kept):  # on the ground only
            frame = frame if shade is None else frame * (1 - shade)
        for i in kept:
            frame = frame + alphas[i] * (plates[i] - frame)
        frame = _shrink(frame, height=height, width=width) * light
        return (frame.clip(0, 1) * 255).round().astype(np.uint8)

    every, edited = range(len(alphas)), scene.edited
    effect, shade = alphas[edited], shades[edited]
    for i in every[edited + 1 :]:
        effect = effect * (1 - alphas[i])
    if shade is not None:
        for i in every:
            shade = shade * (1 - alphas[i])
        effect = effect + shade
    mask = _shrink(effect, height=height, width=width) > VISIBLE
    target = compose([i for i in every if i != edited])
    return np.where(mask[..., None], compose(list(every)), target), target, mask


def _shade(thing: Thing, view: np.ndarray, t: int, size: tuple[int, int]) -> np.ndarray | None:
    """The share of light that a thing takes from the ground, `[h, w, 1]`."""
    if thing.shadow is None:
        return None
    # Drawn and blurred at a quarter of the size: it is soft anyway, and a wide blur is slow.
    small = (size[0] // 4, size[1] // 4)
    pose = similarity(0.25, 0) @ view @ similarity(1, thing.shadow.offset) @ thing.pose(t)
    soft = cv2.GaussianBlur(
        _fill(_apply(pose, thing.contour(t)), small), (0, 0), thing.shadow.blur * small[1]
    )
    return thing.shadow.strength * cv2.resize(soft, size)[..., None]


def _light(scene: Scene, t: int, *, height: int, width: int) -> np.ndarray:
    """Vignette and exposure, float32 `[H, W, 1]`."""
    y, x = np.ogrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    exposure = np.exp(scene.exposure * SWAY * np.sin(t / SWAY))
    return ((1 - scene.vignette * (x**2 + y**2)) * exposure)[..., None].astype(np.float32)


def _warp(texture: np.ndarray, pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A canvas, mirrored beyond its border, under `pose` (from its own coordinates to pixels)."""
    texels = similarity(TEXELS, complex(CANVAS - 1, CANVAS - 1) / 2) @ np.linalg.inv(pose)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(texture, texels[:2], size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _fill(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The antialiased coverage of a polygon `[2, N]`, float32 `[h, w, 1]`."""
    canvas = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(canvas, [(points.T * 16).round().astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas[..., None].astype(np.float32) / 255


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return matrix[:2, :2] @ np.stack([np.real(points), np.imag(points)]) + matrix[:2, 2:]


def _shrink(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
