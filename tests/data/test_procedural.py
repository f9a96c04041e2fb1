"""Procedural clips: the truth is exact, the same for a seed at any size, and varied."""

import cv2
import numpy as np
import pytest
from numpy.random import PCG64, Generator

from genprop.data.procedural import ProceduralClips, make_sample
from genprop.data.scene import Camera, Shadow, Thing, draw_scene
from genprop.data.textures import CANVAS, background, palette, surface
from genprop.types import EditSample


@pytest.fixture(scope="module")
def samples() -> list[EditSample]:
    return [make_sample(seed, frames=3, height=48, width=48) for seed in range(40)]


def test_shapes_and_dtypes() -> None:
    sample = make_sample(0, frames=2, height=40, width=64)
    assert sample.source.shape == sample.target.shape == (2, 40, 64, 3)
    assert sample.source.dtype == sample.target.dtype == np.uint8
    assert sample.mask.shape == (2, 40, 64) and sample.mask.dtype == bool
    assert sample.task == "remove"
    assert np.array_equal(sample.edited, sample.target[0])


def test_source_and_target_are_equal_outside_the_mask_and_differ_inside(samples: list[EditSample]) -> None:
    for sample in samples:
        assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])
        changed = (sample.source != sample.target).any(-1)
        assert changed[sample.mask].mean() > 0.8


def test_the_object_is_evident(samples: list[EditSample]) -> None:
    """In the first frame of every clip, in nearly all frames, and in contrast to what is behind it."""
    areas = np.array([sample.mask.mean((1, 2)) for sample in samples])
    assert areas[:, 0].min() > 0.015
    assert (areas > 0.01).mean() > 0.97
    assert areas.max() < 0.5
    for sample in samples:
        difference = (sample.source.astype(int) - sample.target)[sample.mask]
        assert np.sqrt((difference**2).mean()) > 0.08 * 255


def test_a_seed_is_one_clip() -> None:
    one, same, other = (make_sample(seed, frames=2, height=32, width=32) for seed in (5, 5, 6))
    assert np.array_equal(one.source, same.source)
    assert np.array_equal(one.target, same.target)
    assert np.array_equal(one.mask, same.mask)
    assert not np.array_equal(one.target, other.target)


@pytest.mark.parametrize("seed", range(4))
def test_a_seed_is_the_same_scene_at_another_size_and_length(seed: int) -> None:
    small, large = (make_sample(seed, frames=t, height=s, width=s) for t, s in ((2, 48), (3, 96)))
    for t in range(2):
        shrunk = cv2.resize(large.source[t], (48, 48), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - small.source[t]).mean() < 4
        covered = cv2.resize(large.mask[t].astype(np.float32), (48, 48), interpolation=cv2.INTER_AREA) > 0.5
        assert (covered & small.mask[t]).sum() > 0.85 * (covered | small.mask[t]).sum()


def test_dataset_items_depend_on_seed_and_index() -> None:
    train = ProceduralClips(3, 0, frames=1, height=24, width=24)
    longer = ProceduralClips(9, 0, frames=1, height=24, width=24)
    demo = ProceduralClips(3, 1, frames=1, height=24, width=24)
    assert len(train) == 3
    assert np.array_equal(train[2].source, longer[2].source)
    clips = [c[i].source.tobytes() for c in (train, demo) for i in range(3)]
    assert len(set(clips)) == 6
    with pytest.raises(IndexError):
        train[3]


def test_the_mixture_has_every_ingredient() -> None:
    """Statics, shadows, company, occluders and borders come in about the shares that were asked for."""
    scenes = [draw_scene(Generator(PCG64(seed)), aspect=1.0) for seed in range(100)]
    edited = [scene.things[scene.edited] for scene in scenes]
    static = np.mean([scene.camera.pan == 0 for scene in scenes])
    shadows = np.mean([thing.shadow is not None for thing in edited])
    foreground = np.mean([any(np.isinf(x.room.real) for x in scene.things) for scene in scenes])
    company = np.mean([sum(np.isfinite(x.room.real) for x in scene.things) == 2 for scene in scenes])
    crossing = np.mean([max(thing.room.real, thing.room.imag) > 0.5 for thing in edited])
    shares = np.array([static, shadows, foreground, company, crossing])
    assert np.abs(shares - [0.15, 0.5, 0.2, 0.15, 0.2]).max() < 0.12
    assert {scene.edited for scene in scenes} == {0, 1}
    assert all(np.isfinite(thing.room.real) for thing in edited), "what is in front is never edited away"


def test_the_background_is_carried_by_the_camera_alone() -> None:
    """With the first frame of the truth and the true camera, later frames are known: the task is solvable."""
    for seed in range(30):
        scene = draw_scene(Generator(PCG64(seed)), aspect=1.0)
        if len(scene.things) == 1 and scene.camera.pan and scene.exposure == scene.vignette == 0:
            break
    else:
        pytest.fail("no plain moving scene among the seeds")
    target = make_sample(seed, frames=6, height=96, width=96).target.astype(np.float32)
    view = [scene.camera.view(t, height=96, width=96) for t in (0, 5)]
    moved = cv2.warpAffine(target[0], (view[1] @ np.linalg.inv(view[0]))[:2], (96, 96))
    inner = slice(16, 80)
    error = np.abs(moved - target[5])[inner, inner].mean()
    frozen = np.abs(target[0] - target[5])[inner, inner].mean()
    assert error < 0.5 * frozen


def test_camera_view_maps_the_origin_to_the_centre_and_keeps_still_without_motion() -> None:
    moving = Camera(pan=0.01 + 0.005j, zoom=0.01, turn=0.005, phase=0.3)
    np.testing.assert_allclose(moving.view(0, height=10, width=20) @ [0, 0, 1], [9.5, 4.5, 1])
    step = moving.view(1, height=10, width=10) @ [0, 0, 1]
    assert step[0] < 4.5 and step[1] < 4.5  # the scene moves against the camera
    still = Camera(pan=0j, zoom=0.0, turn=0.0, phase=0.3)
    np.testing.assert_allclose(still.view(7, height=10, width=10), still.view(0, height=10, width=10))


def test_things_move_straight_spin_and_bounce() -> None:
    dot = np.array([1 + 0j])
    still = np.zeros((1, 4))
    thing = Thing(np.zeros(0), dot, still, 0.1 + 0j, velocity=0.1 + 0.02j, spin=0.5, room=0.35 + 1j)
    np.testing.assert_allclose(thing.pose(2)[:2, 2], [0.3, 0.04], atol=1e-6)
    np.testing.assert_allclose(thing.pose(4)[:2, 2], [0.2, 0.08], atol=1e-6)  # 0.5 is 0.15 beyond the wall
    np.testing.assert_allclose(thing.pose(2)[:2, 0], [np.cos(1), np.sin(1)])
    np.testing.assert_allclose(thing.contour(3), dot)


def test_waves_deform_the_contour() -> None:
    ring = np.exp(2j * np.pi * np.arange(8) / 8)
    thing = Thing(np.zeros(0), ring, np.array([[2, 0.25, 0, np.pi]]), 0j, shadow=Shadow(0j, 0.1, 0.5))
    np.testing.assert_allclose(np.abs(thing.contour(0))[[0, 2]], [1.25, 0.75])
    np.testing.assert_allclose(np.abs(thing.contour(1))[[0, 2]], [0.75, 1.25])


@pytest.mark.parametrize("seed", range(6))
def test_textures_are_float32_in_range_and_not_flat(seed: int) -> None:
    rng = Generator(PCG64(seed))
    for texture in (background(rng), surface(rng, unlike=np.zeros(3))):
        assert texture.shape == (CANVAS, CANVAS, 3) and texture.dtype == np.float32
        assert texture.min() >= 0 and texture.max() <= 1
        assert texture.std() > 0.005


def test_an_object_keeps_away_from_the_colours_behind_it() -> None:
    grey = np.full(3, 0.5)
    near = [np.linalg.norm(palette(Generator(PCG64(s))) - grey, axis=1).min() for s in range(60)]
    skins = [surface(Generator(PCG64(s)), unlike=grey).mean((0, 1)) for s in range(20)]
    assert np.mean([np.linalg.norm(skin - grey) for skin in skins]) > 1.15 * np.mean(near)
