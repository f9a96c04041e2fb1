"""Windows: which frames, which crop, the same for every part of a clip."""

from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.random import PCG64, Generator

from genprop.config import load_config
from genprop.data.window import View, Window
from genprop.errors import GenPropError


def rng(seed: int = 0) -> Generator:
    return Generator(PCG64(seed))


def test_a_view_is_what_the_configuration_says() -> None:
    config = load_config("tiny", ["data.stride=3", 'data.crop="random"'])
    assert View.of(config) == View(8, 96, 96, 3, "random")


def test_every_stride_and_start_that_fits_is_drawn_and_no_other() -> None:
    """10 frames hold 4 at stride 1 (7 starts), 2 (4) and 3 (1), not at 4."""
    generator = rng()
    windows = [View(4, 8, 8, stride=9).draw(generator, 10).indices for _ in range(4000)]
    expected = {
        tuple(range(start, start + 3 * stride + 1, stride))
        for stride, starts in ((1, 7), (2, 4), (3, 1))
        for start in range(starts)
    }
    assert set(map(tuple, windows)) == expected
    strides = Counter(window[1] - window[0] for window in windows)
    assert all(abs(strides[stride] / 4000 - 1 / 3) < 0.03 for stride in (1, 2, 3))


def test_the_largest_stride_is_kept_to() -> None:
    generator = rng()
    strides = {np.diff(View(3, 8, 8, stride=2).draw(generator, 100).indices)[0] for _ in range(50)}
    assert strides == {1, 2}


def test_a_single_frame_has_every_start() -> None:
    generator = rng()
    assert {View(1, 8, 8, stride=5).draw(generator, 3).indices[0] for _ in range(50)} == {0, 1, 2}


def test_a_clip_that_is_too_short_is_an_error() -> None:
    with pytest.raises(GenPropError, match="it has 3 frames, expected at least 4"):
        View(4, 8, 8).draw(rng(), 3)
    assert View(4, 8, 8, stride=9).draw(rng(), 4).indices == [0, 1, 2, 3]


def test_a_crop_without_resizing_is_a_slice_at_the_place() -> None:
    frame = rng().integers(0, 255, (10, 14, 3), np.uint8)
    for place, left in (((0.0, 0.0), 0), ((0.5, 0.5), 2), ((0.0, 0.999), 4)):
        got = Window([0], 10, 10, place).fit(frame)
        np.testing.assert_array_equal(got, frame[:, left : left + 10])
    np.testing.assert_array_equal(Window([0], 6, 14, (0.999, 0.0)).fit(frame), frame[4:])


def test_random_crops_reach_every_place_and_centre_crops_one() -> None:
    generator, frame = rng(), np.broadcast_to(np.arange(14, dtype=np.uint8), (10, 14)).copy()
    view = View(1, 10, 10, crop="random")
    lefts = Counter(int(view.draw(generator, 1).fit(frame)[0, 0]) for _ in range(1000))
    assert set(lefts) == set(range(5)) and min(lefts.values()) > 150
    assert {int(View(1, 10, 10).draw(generator, 1).fit(frame)[0, 0]) for _ in range(9)} == {2}


def test_shrinking_averages_areas() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[::2, ::2] = 200
    np.testing.assert_array_equal(Window([0], 4, 4).fit(frame), np.full((4, 4, 3), 50))


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 7), (8, 31), (48, 48), (300, 200)])
def test_the_aspect_is_kept(height: int, width: int) -> None:
    """A disc stays a disc, in the middle."""
    mask = cv2.circle(np.zeros((120, 200), np.uint8), (100, 60), 20, 1, -1).astype(bool)
    fitted = Window([0], height, width).fit_mask(mask)
    assert fitted.shape == (height, width) and fitted.dtype == bool
    rows, columns = np.nonzero(fitted)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert abs(rows.mean() - (height - 1) / 2) < 1.5 and abs(columns.mean() - (width - 1) / 2) < 1.5


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.1, 0.9)])
def test_masks_go_with_their_frames(place: tuple[float, float]) -> None:
    mask = np.zeros((60, 90), bool)
    mask[20:50, 30:70] = True
    window = Window([0], 24, 24, place)
    frame = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
    np.testing.assert_array_equal(window.fit_mask(mask), window.fit(frame)[..., 0] > 127)
