"""Coordinates, masks that grow, regions over the border."""

from __future__ import annotations

import numpy as np
import pytest

from genprop.guide.geometry import Region, box, grid, grow, place, sample, shrink


def test_sampling_at_the_grid_is_the_picture_and_beyond_it_the_border() -> None:
    picture = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(sample(picture, grid(3, 4)), picture)
    assert np.array_equal(sample(picture, grid(3, 4) - 10), np.full((3, 4), picture[0, 0]))


def test_a_point_grows_to_a_disc_and_a_hole_shrinks_alike() -> None:
    mask = np.zeros((21, 21), bool)
    mask[10, 10] = True
    y, x = np.mgrid[0:21, 0:21]
    far = np.hypot(y - 10, x - 10)
    assert np.array_equal(grow(mask, 5)[far < 4.7], np.ones((far < 4.7).sum(), bool))
    assert not grow(mask, 5)[far > 5.4].any()
    assert np.array_equal(shrink(~mask, 5), ~grow(mask, 5))
    assert np.array_equal(grow(mask, 0), mask) and not grow(np.zeros((4, 4), bool), 3).any()


@pytest.mark.parametrize("corner", [(-3, -2), (2, 1), (6, 5), (-40, 3)])
def test_a_region_repeats_the_border_and_pastes_only_what_lies_inside(corner: tuple[int, int]) -> None:
    picture = np.arange(80, dtype=np.uint8).reshape(8, 10)
    region = Region(*corner, 6, 5)
    patch = region.cut(picture)
    padded = np.pad(picture, 50, mode="edge")
    assert np.array_equal(patch, padded[50 + region.y :, 50 + region.x :][:5, :6])
    target = picture.copy()
    region.paste(patch, target)
    assert np.array_equal(target, picture)


def test_the_box_of_a_mask() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert mask[box(mask)].all() and mask[box(mask)].shape == (3, 6)
    assert mask[box(mask, margin=1)].shape == (5, 8)
    assert place(mask) == ((5.5, 3.0), 6, 3)
    assert mask[box(np.zeros_like(mask))].shape == mask.shape
