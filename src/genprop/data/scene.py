"""What a procedural clip shows: a textured plane, a drifting camera, things that move, and chance.

Geometry is in frame heights with the origin in the centre of frame 0, y down; points are complex
numbers `x + iy` and motions are similarities. No draw depends on the size or the length of the clip, so
a seed is one scene at any size (another aspect ratio spreads the things over the wider frame).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from genprop.data.textures import CANVAS, TEXELS, background, surface

SWAY = 20.0
"""Frames; what drifts goes as SWAY * sin(t / SWAY + phase): nearly steady, and bounded in long clips."""

VERTICES = 72


@dataclass(frozen=True)
class Camera:
    """Pan (heights), zoom (natural log) and turn (radians) per frame, and the phase of their sway."""

    pan: complex
    zoom: float
    turn: float
    phase: float

    def view(self, t: int, *, height: int, width: int) -> np.ndarray:
        """The matrix `[3, 3]` from the scene to the pixels of frame `t`."""
        drift = SWAY * (np.sin(t / SWAY + self.phase) - np.sin(self.phase))
        lens = similarity(np.exp(drift * (self.zoom + 1j * self.turn)), 0)
        sensor = similarity(height, complex(width - 1, height - 1) / 2)  # pixel centres at integers
        return sensor @ lens @ similarity(1, -drift * self.pan)


@dataclass(frozen=True)
class Shadow:
    """A silhouette moved by `offset` and blurred by `blur` (standard deviation, heights)."""

    offset: complex
    blur: float
    strength: float


@dataclass(frozen=True)
class Thing:
    """A textured shape that moves.

    Attributes:
        texture: float32 `[CANVAS, CANVAS, 3]`, fixed to the thing.
        outline: its contour at rest, around 0, complex `[N]`.
        waves: rows (harmonic, amplitude, phase, radians per frame) that deform the contour, `[K, 4]`.
        start: where it is in frame 0.
        velocity: heights per frame in frame 0, turning by `bend` (not 0) radians per frame.
        spin: rotation of the thing, radians per frame.
        room: half the sides of the box that its centre bounces in; infinite for none.
    """

    texture: np.ndarray
    outline: np.ndarray
    waves: np.ndarray
    start: complex
    velocity: complex = 0j
    bend: float = 1e-6
    spin: float = 0.0
    room: complex = complex(np.inf, np.inf)
    shadow: Shadow | None = None

    def pose(self, t: int) -> np.ndarray:
        """The matrix `[3, 3]` from the thing to the scene."""
        p = self.start + self.velocity * (np.exp(1j * self.bend * t) - 1) / (1j * self.bend)
        p = complex(_bounce(p.real, self.room.real), _bounce(p.imag, self.room.imag))
        return similarity(np.exp(1j * self.spin * t), p)

    def contour(self, t: int) -> np.ndarray:
        """The deformed outline in the thing's own coordinates, complex `[N]`."""
        harmonic, amplitude, phase, speed = self.waves.T[..., None]
        waves = amplitude * np.cos(harmonic * np.angle(self.outline) + phase + speed * t)
        return self.outline * (1 + waves.sum(0))


@dataclass(frozen=True)
class Scene:
    """All that a clip shows.

    Attributes:
        background: float32 `[CANVAS, CANVAS, 3]`.
        camera: sees the background and the things alike.
        things: from back to front.
        edited: the index of the thing that the edit removes.
        vignette: loss of light at the border, times the squared distance from the centre.
        exposure: change of brightness per frame, natural log.
    """

    background: np.ndarray
    camera: Camera
    things: list[Thing]
    edited: int
    vignette: float
    exposure: float


def draw_scene(rng: Generator, *, aspect: float) -> Scene:
    """All the random choices of one clip; `aspect` is width over height."""
    ground = background(rng)
    moving = rng.random() > 0.15
    camera = Camera(
        pan=moving * rng.uniform(0.004, 0.014) * _direction(rng),
        zoom=moving * rng.uniform(-0.01, 0.01),
        turn=moving * np.deg2rad(rng.uniform(-0.4, 0.4)),
        phase=rng.uniform(-0.6, 0.6),
    )
    half = complex(aspect, 1) / 2
    crossing, hidden, company = rng.random(3) < (0.2, 0.2, 0.15)
    radius = rng.uniform(0.12 if crossing or hidden else 0.09, 0.21)
    inner = half - complex(radius, radius)
    place = 0.8 * complex(rng.uniform(-1, 1) * inner.real, rng.uniform(-1, 1) * inner.imag)
    room = half - 0.8 * complex(radius, radius)
    side, depth, sideways = rng.choice([-1, 1]), rng.uniform(0, 0.8) * radius, rng.random() < 0.5
    if crossing:  # the centre leaves the frame by a little at most, so that something is always seen
        past = half + 0.1 * complex(radius, radius)
        edge = side * (half - complex(depth, depth))
        room = complex(past.real, room.imag) if sideways else complex(room.real, past.imag)
        place = complex(edge.real, place.imag) if sideways else complex(place.real, edge.imag)
    subject = _object(rng, ground, radius=radius, place=place, room=room)
    things, edited = [subject], 0
    if company:
        other = rng.uniform(0.09, 0.15)
        limit = half - 0.5 * complex(other, other)
        away = place - (radius + other) * rng.uniform(0.9, 1.3) * _direction(rng, towards=place)
        away = complex(*np.clip((away.real, away.imag), (-limit.real, -limit.imag), (limit.real, limit.imag)))
        edited = int(rng.integers(2))
        things.insert(1 - edited, _object(rng, ground, radius=other, place=away, room=limit))
    if hidden:
        things.append(_foreground(rng, subject, radius=radius))
    vignette, exposure = (rng.random(2) < 1 / 3) * (rng.uniform(0.1, 0.5), rng.uniform(-0.015, 0.015))
    return Scene(ground, camera, things, edited, float(vignette), float(exposure))


def similarity(scale: complex, shift: complex) -> np.ndarray:
    """`z -> scale * z + shift` as a matrix `[3, 3]` on (x, y, 1)."""
    a, b = np.real(scale), np.imag(scale)
    return np.array([[a, -b, np.real(shift)], [b, a, np.imag(shift)], [0, 0, 1]])


def _object(rng: Generator, ground: np.ndarray, *, radius: float, place: complex, room: complex) -> Thing:
    """Between an ellipse and a box, wobbling, of colours unlike those of the ground where it starts."""
    angle = np.arange(VERTICES) * 2 * np.pi / VERTICES
    power, stretch = rng.uniform(1.8, 4), rng.uniform(0.6, 1)
    boxy = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle) / stretch) ** power) ** (-1 / power)
    outline = radius / np.sqrt(stretch) * boxy * np.exp(1j * (angle + rng.uniform(0, 2 * np.pi)))
    harmonics = np.arange(2, 6)
    amplitude, phase, speed = rng.uniform(0, 0.3, 4), rng.uniform(0, 2 * np.pi, 4), rng.uniform(-0.5, 0.5, 4)
    column, row = (int(np.clip(c * TEXELS + CANVAS / 2, 0, CANVAS - 1)) for c in (place.real, place.imag))
    reach = int(radius * TEXELS)
    around = ground[max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach]
    fall = complex(rng.choice([-1, 1]) * rng.uniform(0.3, 1), rng.uniform(0.3, 1))
    shadow = Shadow(
        offset=radius * rng.uniform(0.4, 0.9) * fall,
        blur=radius * rng.uniform(0.08, 0.3),
        strength=rng.uniform(0.25, 0.5),
    )
    return Thing(
        texture=surface(rng, unlike=around.mean((0, 1))),
        outline=outline,
        waves=np.stack([harmonics, amplitude / harmonics, phase, speed], 1),
        start=place,
        velocity=rng.uniform(0, 0.04) * _direction(rng, towards=-place),
        bend=float(rng.choice([1e-6, rng.uniform(0.02, 0.15), -rng.uniform(0.02, 0.15)])),
        spin=rng.uniform(-0.12, 0.12),
        room=room,
        shadow=shadow if rng.random() < 0.5 else None,
    )


def _foreground(rng: Generator, subject: Thing, *, radius: float) -> Thing:
    """A bar or a blob of the scene, in front of the subject's way."""
    place = subject.start + rng.uniform(2, 6) * subject.velocity
    if rng.random() < 0.6:
        bar = np.array([-2 - 1j, 2 - 1j, 2 + 1j, -2 + 1j])
        tilt = np.exp(1j * rng.normal(np.pi / 2, 0.4))
        outline = (np.real(bar) + 1j * rng.uniform(0.02, 0.045) * np.imag(bar)) * tilt
        place += 0.5 * radius * _direction(rng)
        bumps = 0.0
    else:
        outline = rng.uniform(0.08, 0.15) * np.exp(2j * np.pi * np.arange(VERTICES) / VERTICES)
        place += (radius + 0.05) * _direction(rng)
        bumps = rng.uniform(0, 0.15)
    still = np.array([[3, bumps, rng.uniform(0, 2 * np.pi), 0]])
    return Thing(surface(rng, unlike=subject.texture.mean((0, 1))), outline, still, place)


def _bounce(x: float, room: float) -> float:
    """`x` folded into [-room, room]."""
    return x if np.isinf(room) else room - abs((x + room) % (4 * room) - 2 * room)


def _direction(rng: Generator, *, towards: complex = 0j) -> complex:
    """A unit vector, within 60 degrees of `towards` where that is given."""
    spread = np.pi / 3 if towards else np.pi
    return complex(np.exp(1j * (np.angle(towards) + rng.uniform(-spread, spread))))
