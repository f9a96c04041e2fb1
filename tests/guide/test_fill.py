"""Filling: closed forms of smooth fills, and what painting may and may not touch."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from genprop.errors import GenPropError
from genprop.guide import fill
from genprop.guide.fill import membrane, paint, push_pull

HEIGHT, WIDTH = 90, 120


def disc(radius: int = 25, *, at: tuple[int, int] = (45, 60)) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2


def noise(seed: int = 0, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (HEIGHT, WIDTH, channels)).astype(np.float32)


def plane() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    return np.stack([x, 200 - y, 0.5 * x + 0.7 * y], axis=-1)


def texture() -> np.ndarray:
    """Smooth noise: it has no pattern, and a size."""
    values = cv2.GaussianBlur(noise(1), (0, 0), 1.5)
    return (128 + 3 * (values - 128)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("function", [lambda v, h: push_pull(v, ~h), membrane], ids=["push_pull", "membrane"])
def test_known_values_stay_and_a_constant_is_continued(function, channels: int) -> None:
    hole = disc()
    filled = function(noise(channels=channels), hole)
    assert filled.dtype == np.float32 and filled.shape == (HEIGHT, WIDTH, channels)
    assert np.array_equal(filled[~hole], noise(channels=channels)[~hole])
    constant = np.where(hole[..., None], -50, np.full_like(filled, 7))
    assert function(constant, hole) == pytest.approx(7, abs=1e-3)


@pytest.mark.parametrize("function", [lambda v, h: push_pull(v, ~h), membrane], ids=["push_pull", "membrane"])
def test_what_lies_in_the_hole_is_not_read_and_no_input_is_written_to(function) -> None:
    values, hole = noise(), disc()
    masked = np.where(hole[..., None], np.nan, values).astype(np.float32)
    before = values.copy()
    assert np.array_equal(function(masked, hole), function(values, hole))
    assert np.array_equal(values, before)


def test_push_pull_without_anything_known_is_zero_and_with_all_known_is_a_copy() -> None:
    values = noise()
    assert not push_pull(values, np.zeros((HEIGHT, WIDTH), bool)).any()
    copy = push_pull(values, np.ones((HEIGHT, WIDTH), bool))
    assert np.array_equal(copy, values) and copy is not values


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (7, 5)])
def test_push_pull_carries_one_value_over_pictures_of_any_size(size: tuple[int, int]) -> None:
    known = np.zeros(size, bool)
    known.flat[-1] = True
    assert push_pull(np.full((*size, 2), 3, np.float32), known) == pytest.approx(3, abs=1e-5)


def test_the_membrane_of_a_plane_is_the_plane() -> None:
    hole = disc()
    assert np.abs(membrane(np.where(hole[..., None], 0, plane()), hole) - plane()).max() < 0.05


def test_the_membrane_of_a_saddle_is_the_saddle() -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    saddle = (((x - 60) ** 2 - (y - 45) ** 2) / 10)[..., None]
    assert np.abs(membrane(np.where(disc()[..., None], 0, saddle), disc()) - saddle).max() < 0.2


def test_the_membrane_is_level_at_the_border_of_the_picture() -> None:
    # The right third is open, as is its border: what meets it from the left goes on to the right.
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[:, 80:] = True
    assert membrane(np.full((HEIGHT, WIDTH, 1), 9, np.float32) * ~hole[..., None], hole) == pytest.approx(
        9, abs=1e-3
    )


@pytest.mark.parametrize("hole", [disc(), disc(60, at=(0, 0)), disc(3), ~disc(2)], ids=str)
def test_the_membrane_of_noise_solves_laplaces_equation_and_keeps_within_its_border(hole: np.ndarray) -> None:
    values = noise()
    filled = membrane(values, hole)
    edge = hole & (cv2.erode(hole.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    assert np.abs(fill._means(filled) - filled)[hole].mean() < 0.5
    assert filled[hole].max() <= values[~hole].max() + 1 and filled[hole].min() >= values[~hole].min() - 1
    assert np.ptp(filled[edge]) < np.ptp(values[~hole]) if edge.any() else True


def test_the_membrane_is_within_a_grey_level_of_what_many_more_steps_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A hole of thin parts and a wide one, whose coarse levels differ from it the most.
    hole = disc(40)
    hole[::7] |= disc(44, at=(45, 60))[::7]
    hole[40:44] = True
    soon = membrane(noise(), hole)
    monkeypatch.setattr(fill, "CYCLES", 40)
    assert np.abs(soon - membrane(noise(), hole)).max() < 1.5  # noise of 0 to 255: far worse than a picture


def test_no_hole_changes_nothing_and_a_hole_of_everything_is_an_error() -> None:
    image, everything = texture(), np.ones((HEIGHT, WIDTH), bool)
    assert np.array_equal(paint(image, ~everything), image)
    assert np.array_equal(membrane(noise(), ~everything), noise())
    for function, values in ((paint, image), (membrane, noise())):
        with pytest.raises(
            GenPropError, match="covers the whole frame, nothing is left to fill from"
        ) as error:
            function(values, everything)
        assert error.value.hint


HOLES = {
    "disc": disc(),
    "corner": disc(40, at=(0, 0)),
    "pixel": disc(1),
    "line": np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // WIDTH == 30,
    "half": np.broadcast_to(np.arange(WIDTH) < WIDTH // 2, (HEIGHT, WIDTH)).copy(),
    "all but a bit": ~disc(3),
    "all but a pixel": ~disc(1),
}


@pytest.mark.parametrize("name", HOLES)
def test_painting_changes_the_hole_alone_and_always_in_the_same_way(name: str) -> None:
    image, hole = texture(), HOLES[name]
    painted = paint(image, hole)
    assert painted.dtype == np.uint8 and np.array_equal(painted[~hole], image[~hole])
    cv2.setRNGSeed(5)
    assert np.array_equal(paint(np.where(hole[..., None], 99, image).astype(np.uint8), hole), painted)


@pytest.mark.parametrize("size", [(1, 2), (3, 40), (15, 15), (17, 33)])
def test_painting_takes_small_pictures(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    hole = np.zeros(size, bool)
    hole[:, size[1] // 2 :] = True
    assert np.array_equal(paint(image, hole)[~hole], image[~hole])


def test_painting_keeps_texture_where_a_membrane_is_smooth() -> None:
    image, hole = texture(), disc(20)

    def roughness(values: np.ndarray) -> float:
        return float(np.abs(np.diff(values.astype(float), axis=1))[disc(17)[:, 1:]].mean())

    smooth = roughness(membrane(image.astype(np.float32), hole))
    assert roughness(paint(image, hole)) > 0.6 * roughness(image) > 3 * smooth


def test_painting_continues_stripes() -> None:
    stripes = np.broadcast_to((np.arange(WIDTH) // 6 % 2 * 160 + 40)[None, :, None], (HEIGHT, WIDTH, 3))
    stripes = stripes.astype(np.uint8)
    hole = disc(18)
    difference = np.abs(paint(stripes, hole).astype(int) - stripes)[hole]
    assert (difference < 30).mean() > 0.8


def test_painting_large_holes_works_on_cells_and_copies_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "CELLS", 300)  # as if the picture were of several megapixels
    image = cv2.resize(texture(), (241, 179)) // 3 + 60
    image += np.random.default_rng(4).integers(0, 60, image.shape, dtype=np.uint8)
    hole = cv2.resize(disc().astype(np.uint8), (241, 179), interpolation=cv2.INTER_NEAREST) > 0
    painted = paint(image, hole)
    assert np.array_equal(painted[~hole], image[~hole])
    inner = cv2.erode(hole.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    detail = [np.abs(cv2.Laplacian(i.astype(np.float32), -1))[inner].mean() for i in (painted, image)]
    assert detail[0] > 0.5 * detail[1]  # cells are of six pixels, whose mean has next to none of it


def test_where_the_shift_map_fails_the_hole_is_filled_smoothly(monkeypatch: pytest.MonkeyPatch) -> None:
    image, hole = texture(), disc()

    def fails(*_: object) -> None:
        raise cv2.error("no")

    smooth = membrane(image.astype(np.float32), hole).round()
    monkeypatch.setattr(cv2.xphoto, "inpaint", fails)
    assert np.array_equal(paint(image, hole), smooth)
    monkeypatch.setattr(cv2.xphoto, "inpaint", lambda *_: None)  # leaves its output black
    assert np.array_equal(paint(image, hole), smooth)
