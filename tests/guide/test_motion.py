"""Flow of known motions, and the ground's flow behind an object."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from genprop.guide.motion import camera, flow, grey, ground_flow, small


@pytest.mark.parametrize("speed", [0, 2, 9])
def test_a_pan_is_measured_to_a_fraction_of_a_pixel(scene: SimpleNamespace, speed: int) -> None:
    clip = scene.pan(speed, 2)
    found = flow(grey(clip[1]), grey(clip[0]))
    inner = found[8:-8, 16:-16]
    assert np.abs(inner - (speed, 0)).mean() < 0.1
    if not speed:
        matrix = camera(grey(clip[1]), grey(clip[0]))
        assert matrix is not None and np.array_equal(matrix, np.eye(3))


def test_a_frame_without_texture_or_of_a_few_pixels_has_no_camera_but_a_flow() -> None:
    flat = np.full((40, 50), 128, np.uint8)
    assert camera(flat, flat) is None and np.abs(flow(flat, flat)).max() < 0.1
    tiny = np.zeros((8, 9), np.uint8)
    assert flow(tiny, tiny).shape == (8, 9, 2)


def test_behind_an_object_the_flow_is_the_grounds(scene: SimpleNamespace) -> None:
    video, mask = scene.with_square(scene.pan(2), speed=7)
    measured = flow(grey(video[1]), grey(video[0]))
    hole = mask[1] | mask[0]
    behind = ground_flow(measured, hole)[mask[1]]
    assert np.abs(measured[mask[1]] - (2, 0)).mean() > 3  # the object's own
    assert np.abs(behind - (2, 0)).mean() < 0.2
    assert np.array_equal(ground_flow(measured, np.zeros_like(hole)), measured)


def test_motion_is_measured_on_a_smaller_frame() -> None:
    assert small(np.zeros((100, 1280, 3), np.uint8)).shape == (50, 640, 3)
    frame = np.zeros((96, 128, 3), np.uint8)
    assert small(frame) is frame
