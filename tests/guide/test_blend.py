"""The composite of a frame: exact outside, the known as it is, the generated without seam or shift."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from genprop.guide.blend import blend, grain

HEIGHT, WIDTH = 120, 160


def disc(radius: int = 30, *, at: tuple[int, int] = (60, 80)) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def flat(level: float = 120) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def ramp() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x, 60 + y, 200 - x], axis=-1).astype(np.uint8)


def grainy(level: float, *, blur: float = 0, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)).astype(np.float32)
    if blur:
        values = cv2.GaussianBlur(values, (0, 0), blur)
    return (
        (120 + level * values / values.std()).round().clip(0, 255).astype(np.uint8)[..., None].repeat(3, -1)
    )


def trusted(value: float = 1, *, unseen: np.ndarray | None = None) -> np.ndarray:
    trust = np.full((HEIGHT, WIDTH), value, np.float32)
    if unseen is not None:
        trust[unseen] = 0
    return trust


HOLES = {
    "disc": disc(),
    "corner": disc(50, at=(0, 0)),
    "pixel": disc(1),
    "two": disc(10, at=(20, 20)) | disc(15, at=(90, 120)),
    "all but a pixel": ~disc(1),
}


@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)
@pytest.mark.parametrize("trust", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("with_model", [True, False])
def test_outside_of_the_hole_the_source_is_untouched(
    hole: np.ndarray, trust: float, with_model: bool
) -> None:
    source, before = noise(0), noise(0)
    generated = noise(2).astype(np.float32) if with_model else None
    result = blend(source, hole=hole, known=noise(1), trust=trusted(trust), generated=generated)
    assert result.dtype == np.uint8 and np.array_equal(result[~hole], source[~hole])
    assert not np.array_equal(result[hole], source[hole]) or hole.sum() < 2
    assert np.array_equal(source, before)


def test_an_empty_hole_changes_nothing() -> None:
    result = blend(noise(0), hole=disc(0), known=noise(1), trust=trusted(0), generated=None)
    assert np.array_equal(result, noise(0))


@pytest.mark.parametrize("source", [noise(0), ramp(), flat()], ids=["noise", "ramp", "flat"])
def test_known_pixels_are_taken_as_they_are(source: np.ndarray) -> None:
    hole = disc()
    known = np.where(disc(20)[..., None], noise(1), source)
    result = blend(source, hole=hole, known=known, trust=trusted(), generated=noise(2).astype(np.float32))
    assert np.array_equal(result[hole], known[hole])


@pytest.mark.parametrize("generated", [None, noise(2).astype(np.float32)], ids=["no model", "model"])
def test_a_hole_of_everything_is_what_is_known_and_generated(generated: np.ndarray | None) -> None:
    everything = np.ones((HEIGHT, WIDTH), bool)
    known = blend(noise(0), hole=everything, known=noise(1), trust=trusted(1), generated=generated)
    assert np.array_equal(known, noise(1))
    unseen = blend(noise(0), hole=everything, known=noise(1), trust=trusted(0), generated=generated)
    assert np.array_equal(unseen, noise(1) if generated is None else noise(2))


@pytest.mark.parametrize("shift", [(9, -7, 4), (-30, 25, 0)])
def test_a_shift_of_generated_colours_is_taken_back(shift: tuple[int, int, int]) -> None:
    hole, unseen = disc(), disc(18)
    generated = ramp().astype(np.float32) + np.array(shift, np.float32)
    for open_ in (unseen, hole):
        result = blend(ramp(), hole=hole, known=ramp(), trust=trusted(unseen=open_), generated=generated)
        assert np.abs(result.astype(int) - ramp()).max() <= 1


def test_an_objects_rest_beside_the_hole_does_not_bleed_far_into_it() -> None:
    hole = disc()
    source = np.where((disc(33) & ~hole)[..., None], 20, flat()).astype(np.uint8)
    source[:, 80:] = 120  # on the left it is left over
    result = blend(
        source, hole=hole, known=source, trust=trusted(0), generated=flat().astype(np.float32), seed=0
    )
    assert np.abs(result[hole].astype(int) - 120).max() <= 16


def test_without_a_model_what_is_unseen_is_smooth_from_the_known_around_it() -> None:
    known = np.where(disc(10)[..., None], 0, ramp()).astype(np.uint8)
    source = np.where(disc()[..., None], 7, ramp()).astype(np.uint8)
    result = blend(source, hole=disc(), known=known, trust=trusted(unseen=disc(10)))
    assert np.abs(result.astype(int) - ramp()).max() <= 1


def test_between_unseen_and_trusted_the_known_is_mixed_with_the_generated() -> None:
    hole, middle = disc(), disc(12)
    known = np.where(middle[..., None], 160, flat()).astype(np.uint8)
    levels = []
    for trust in (0.0, 0.125, 0.25, 0.375, 0.5):
        share = np.where(middle, trust, 1).astype(np.float32)
        result = blend(flat(), hole=hole, known=known, trust=share, generated=flat().astype(np.float32))
        levels.append(int(result[60, 80, 0]))
    assert levels == pytest.approx([120, 130, 140, 150, 160], abs=1)
    unmixed = blend(flat(), hole=hole, known=known, trust=np.where(middle, 0.125, 1).astype(np.float32))
    assert unmixed[60, 80, 0] == 160  # with no model, a doubtful pixel is better than none


@pytest.mark.parametrize("step", [6, -6])
def test_a_clear_step_of_exposure_is_softened_at_the_border(step: int) -> None:
    scene = ramp().astype(int) // 2 + 60
    known = (scene + step).astype(np.uint8)
    result = blend(scene.astype(np.uint8), hole=disc(), known=known, trust=trusted()).astype(int) - scene
    border = disc() & ~disc(28)
    assert np.abs(result[border]).mean() < 0.35 * abs(step)
    assert np.abs(result[disc(5)]).mean() > 0.7 * abs(step)  # far from it nothing is known to be wrong


def test_a_step_in_a_part_of_the_border_or_an_objects_soft_edge_is_no_exposure() -> None:
    hole = disc()
    partly = ramp().astype(int)
    partly[:70] += 8  # more than a half of it
    known = partly.astype(np.uint8)
    assert np.array_equal(blend(ramp(), hole=hole, known=known, trust=trusted())[hole], known[hole])
    edged = np.where((disc(32) & ~hole)[..., None], ramp() // 2, ramp()).astype(np.uint8)
    assert np.array_equal(blend(edged, hole=hole, known=ramp(), trust=trusted())[hole], ramp()[hole])


@pytest.mark.parametrize("level", [2.0, 3.0])
@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_what_is_smooth_gets_the_grain_around_it(level: float, blur: float) -> None:
    source, hole = grainy(level, blur=blur), disc(35)
    result = blend(source, hole=hole, known=flat(0), trust=trusted(0), seed=3)
    inner = result[disc(28)].astype(float)[:, 0]
    assert inner.std() == pytest.approx(level, rel=0.25)
    alike = [
        np.corrcoef(i[60, 55:105, 0].astype(float), i[60, 56:106, 0].astype(float))[0, 1]
        for i in (result, source)
    ]
    assert (alike[0] > 0.35) == (blur > 0)
    assert (
        np.ptp(result[disc(28)].astype(int), axis=-1) <= 1
    ).all()  # as film has it: of light, not of colour


def test_texture_close_around_the_hole_is_not_taken_for_grain() -> None:
    texture = 12 * cv2.GaussianBlur(np.random.default_rng(8).standard_normal((HEIGHT, WIDTH)), (0, 0), 1)
    near = disc(74) & ~disc(35)  # all that lies within some pixels of the hole, but not the frame's sides
    source = np.where(near, grainy(2)[..., 0] + texture, grainy(2)[..., 0]).round().clip(0, 255)
    result = blend(
        source.astype(np.uint8)[..., None].repeat(3, -1), hole=disc(35), known=flat(0), trust=trusted(0)
    )
    inner = result[..., 0].astype(np.float32)
    inner -= cv2.GaussianBlur(inner, (0, 0), 3)  # the membrane's own slopes are no grain
    assert inner[disc(28)].std() == pytest.approx(2, rel=0.25)


def test_a_generated_picture_that_has_its_grain_gets_no_more_of_it() -> None:
    hole = disc(35)
    generated = grainy(3, seed=5).astype(np.float32)
    result = blend(grainy(3), hole=hole, known=flat(0), trust=trusted(0), generated=generated)
    # It is met at the border by an average over pixels, so a shift of colour of the grain's own size remains.
    assert np.abs(result - generated)[disc(20)].max() < 1.5
    none = blend(grainy(0.3), hole=hole, known=flat(0), trust=trusted(0), generated=flat().astype(np.float32))
    assert np.ptp(none[disc(20)].astype(int)) <= 1


def test_the_grain_is_that_of_the_seed() -> None:
    def once(seed: int) -> np.ndarray:
        return blend(grainy(3), hole=disc(), known=flat(), trust=trusted(0), seed=seed)

    assert np.array_equal(once(1), once(1))
    assert not np.array_equal(once(1), once(2))


@pytest.mark.parametrize("blur", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("level", [1.0, 2.0, 4.0])
def test_grain_is_measured_beside_edges_and_texture(level: float, blur: float) -> None:
    image = grainy(level, blur=blur).astype(np.float32)
    image[:, 100:] += 40 * (np.arange(60) // 3 % 2)[None, :, None]
    measured, width = grain(image, np.ones((HEIGHT, WIDTH), bool))
    assert measured == pytest.approx(level, rel=0.2)
    assert width == pytest.approx(blur, abs=0.3)


def test_a_flat_or_tiny_region_has_no_grain() -> None:
    assert grain(flat().astype(np.float32), np.ones((HEIGHT, WIDTH), bool)) == (0, 0)
    assert grain(noise(0).astype(np.float32), disc(6)) == (0, 0)
    assert grain(noise(0).astype(np.float32), disc(0)) == (0, 0)
