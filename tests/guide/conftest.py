"""A textured ground that a camera moves over, and a square on it."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from genprop.guide.network import TrackerNet
from genprop.guide.tracker import embedded_tracker, load_tracker

HEIGHT, WIDTH, FRAMES = 96, 128, 8


def ground(size: tuple[int, int] = (HEIGHT + 64, WIDTH + 96)) -> np.ndarray:
    """Smooth noise of several scales, uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(0)
    picture = np.zeros((*size, 3), np.float32)
    for scale, weight in ((4, 30), (12, 50), (32, 60)):
        coarse = rng.uniform(-1, 1, (size[0] // scale + 2, size[1] // scale + 2, 3)).astype(np.float32)
        picture += weight * cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return (picture + 128).clip(0, 255).astype(np.uint8)


def pan(speed: int, frames: int = FRAMES) -> np.ndarray:
    """A camera that moves to the right by `speed` pixels a frame, uint8 `[T, H, W, 3]`."""
    whole = ground()
    return np.stack([whole[16 : 16 + HEIGHT, 8 + speed * t : 8 + speed * t + WIDTH] for t in range(frames)])


def with_square(clean: np.ndarray, *, speed: int = 3, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A red square that moves to the right over a clip; the video, and its mask bool `[T, H, W]`."""
    video, mask = clean.copy(), np.zeros(clean.shape[:3], bool)
    for t in range(len(clean)):
        left = 30 + speed * t
        mask[t, 36 : 36 + side, left : left + side] = True
        video[t][mask[t]] = (200, 30, 40)
    return video, mask


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    error = np.square(a[where].astype(np.float64) - b[where]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture(scope="session")
def scene() -> SimpleNamespace:
    """The functions of this file: pytest's import mode gives test files no way to import them."""
    return SimpleNamespace(pan=pan, with_square=with_square, psnr=psnr, frames=FRAMES)


@pytest.fixture(scope="session")
def tracker() -> TrackerNet:
    return load_tracker(embedded_tracker())
