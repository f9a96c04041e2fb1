"""Textures for procedural clips: coloured fractal noise, gradients, patterns, blobs and polygons.

Natural images have a spectrum near 1/f^2 in power, few colours at a time and hard edges; an
autoencoder trained on these textures alone should still serve real footage. A canvas is square and of
fixed resolution, whatever the size of the clip, and is mirrored beyond its border.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

TEXELS = 192
"""Texels in a frame height."""

CANVAS = 288
"""Texels in a side of a canvas: 1.5 frame heights, room for the camera."""

NOISE = 192
"""Side of the noise before it is enlarged: finer grain would be averaged away at 96 pixels anyway."""


def background(rng: Generator) -> np.ndarray:
    """A scene on one plane, float32 `[CANVAS, CANVAS, 3]` in [0, 1]."""
    image = _layer(rng, palette(rng))
    if rng.random() < 0.5:  # a horizon, or the edge of a wall
        below = _half_plane(rng)
        image = image + below * (_layer(rng, palette(rng)) - image)
    for _ in range(rng.choice([0, 1, 2, 4, 7, 12])):
        image = image + _polygon(rng) * (_detail(rng, palette(rng)) - image)
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        image = image + 0.8 * _blob(rng) * (palette(rng)[0] - image)
    mean, contrast = float(image.mean()), rng.uniform(0.85, 1.4)
    level = 0.6 * mean + 0.4 * rng.uniform(0.25, 0.75)
    return np.clip((image - mean) * contrast + level, 0, 1)


def surface(rng: Generator, *, unlike: np.ndarray) -> np.ndarray:
    """The skin of an object, float32 `[CANVAS, CANVAS, 3]`; its colours keep away from `unlike`, `[3]`."""
    palettes = [palette(rng) for _ in range(6)]
    colours = max(palettes, key=lambda p: float(np.linalg.norm(p - unlike, axis=1).min()))
    light = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    shading = 1 + 1.2 * (rng.uniform(-1, 1) * light[:, None] + rng.uniform(-1, 1) * light)
    return np.clip(_detail(rng, colours) * shading[..., None], 0, 1)


def palette(rng: Generator) -> np.ndarray:
    """2 to 4 related colours, `[n, 3]` in [0, 1]: near in hue, apart in value, at times with an accent."""
    n = int(rng.integers(2, 5))
    muted, usual, vivid = rng.uniform(0, 0.25), rng.uniform(0.2, 0.6), rng.uniform(0.6, 1)
    saturation = rng.choice([muted, usual, vivid], p=[0.45, 0.4, 0.15])
    hue = rng.uniform() + rng.normal(0, 0.05, n)
    hue[-1] += 0.5 * rng.uniform() * (rng.random() < 0.35)
    value = np.clip(rng.uniform(0.25, 0.85) + rng.uniform(0.15, 0.4) * rng.standard_normal(n), 0.04, 1)
    if rng.random() < 0.6:
        value = np.sort(value)
    chroma = np.clip(saturation + rng.normal(0, 0.1, n), 0, 1)[:, None]
    wheel = np.clip(np.abs((hue[:, None] + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)
    return (value[:, None] * (1 - chroma + chroma * wheel)).astype(np.float32)


def _layer(rng: Generator, colours: np.ndarray) -> np.ndarray:
    return _gradient(rng, colours) if rng.random() < 0.25 else _detail(rng, colours)


def _detail(rng: Generator, colours: np.ndarray) -> np.ndarray:
    """Noise in the palette's colours, in a third of the cases under a pattern."""
    field = 0.5 + rng.uniform(0.12, 0.3) * _fractal(rng, slope=rng.uniform(2, 3.2))
    if rng.random() < 0.35:
        share = rng.uniform(0.25, 0.65)
        field = (1 - share) * field + share * _pattern(rng)
    return _colour(field, colours)


def _gradient(rng: Generator, colours: np.ndarray) -> np.ndarray:
    """Sky: a ramp, nearly vertical, with faint clouds."""
    ramp = _plane(rng.normal(np.pi / 2, 0.5)) / 1.5 + 0.5
    return _colour(ramp + rng.uniform(0, 0.1) * _fractal(rng, slope=3), colours)


def _fractal(rng: Generator, *, slope: float) -> np.ndarray:
    """Noise of power spectrum 1/f^slope and unit variance, float32 `[CANVAS, CANVAS]`."""
    fy, fx = np.fft.fftfreq(NOISE)[:, None], np.fft.rfftfreq(NOISE)
    frequency = np.hypot(fy, fx).astype(np.float32)
    frequency[0, 0] = np.inf
    white = rng.standard_normal((2, *frequency.shape), np.float32)
    field = np.fft.irfft2((white[0] + 1j * white[1]) * frequency ** (-slope / 2), s=(NOISE, NOISE))
    field = (field / field.std()).astype(np.float32)
    return cv2.resize(field, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _pattern(rng: Generator) -> np.ndarray:
    """Stripes, checks or bricks in [0, 1], of random period and orientation."""
    angle, period, edge = rng.uniform(0, np.pi), rng.uniform(0.12, 0.5), rng.uniform(1, 8)
    u, v = _plane(angle) / period, _plane(angle + np.pi / 2) / period
    kind = rng.integers(3)
    if kind == 0:
        wave = np.sin(2 * np.pi * u)
    elif kind == 1:
        wave = np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)
    else:
        row = np.floor(2 * u)
        joint = np.minimum(np.abs((2 * u) % 1 - 0.5), 2 * np.abs((v + row / 2) % 1 - 0.5))
        wave = 0.4 - joint
    return (0.5 + 0.5 * np.tanh(edge * wave)).astype(np.float32)


def _colour(field: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A scalar field in [0, 1] through the palette."""
    ramp = np.linspace(0, 1, 256)
    lookup = np.stack([np.interp(ramp, np.linspace(0, 1, len(colours)), c) for c in colours.T], 1)
    level = (np.clip(field, 0, 1) * 255).astype(np.uint8)
    return cv2.LUT(cv2.merge([level] * 3), lookup[:, None].astype(np.float32))


def _plane(angle: float) -> np.ndarray:
    """Distance along a direction, frame heights, `[CANVAS, CANVAS]`."""
    axis = (np.arange(CANVAS, dtype=np.float32) - CANVAS / 2) / TEXELS
    return np.float32(np.cos(angle)) * axis + np.float32(np.sin(angle)) * axis[:, None]


def _half_plane(rng: Generator) -> np.ndarray:
    distance = _plane(rng.normal(np.pi / 2, 0.5)) - rng.uniform(-0.3, 0.3)
    return np.clip(distance * TEXELS / int(rng.choice([1, 1, 10])) + 0.5, 0, 1)[..., None]


def _polygon(rng: Generator) -> np.ndarray:
    """A rectangle, seldom a triangle, upright or not; coverage `[CANVAS, CANVAS, 1]`."""
    half = rng.uniform(0.04, 0.3, 2)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])[: rng.choice([3, 4, 4, 4])] * half
    angle = rng.choice([0, rng.uniform(0, np.pi)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (corners @ turn.T + rng.uniform(-0.65, 0.65, 2)) * TEXELS + CANVAS / 2
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.fillPoly(canvas, [(points * 16).round().astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas[..., None].astype(np.float32) / 255


def _blob(rng: Generator) -> np.ndarray:
    x, y = _plane(0) - rng.uniform(-0.6, 0.6), _plane(np.pi / 2) - rng.uniform(-0.6, 0.6)
    return np.exp(-(x**2 + y**2) / (2 * rng.uniform(0.05, 0.25) ** 2))[..., None]
