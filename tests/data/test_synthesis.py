"""Pairs made of clips with masks: roles, equality outside the mask, and an edit that frame 0 shows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genprop.data.cutout import SEEN, Cutout, cut_out, fit, in_view, place
from genprop.data.shadow import CastShadow, cast, draw_shadow
from genprop.data.synthesis import colour_fill, copy_paste, draw_edit, draw_task, mask_fill, masked_blur
from genprop.errors import GenPropError
from genprop.settings import SynthesisConfig
from genprop.types import TASKS, EditSample, MaskedClip
from genprop.video import read_clip

DEFAULT = SynthesisConfig()


def noise(mask: np.ndarray, *, seed: int = 0) -> MaskedClip:
    frames = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), np.uint8)
    return MaskedClip(frames, mask)


def box(t: int, h: int, w: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((t, h, w), bool)
    mask[:, rows, columns] = True
    return mask


def flat(mask: np.ndarray, *, thing: tuple[int, ...], ground: tuple[int, ...]) -> MaskedClip:
    return MaskedClip(np.where(mask[..., None], np.array(thing, np.uint8), np.array(ground, np.uint8)), mask)


def every_synthesis(clip: MaskedClip, donor: MaskedClip, *, seed: int) -> list[EditSample]:
    rng = np.random.default_rng(seed)
    samples = [copy_paste(clip, donor, rng=rng, config=SynthesisConfig(shadow=share)) for share in (0, 1)]
    samples += [mask_fill(clip, rng=rng, config=SynthesisConfig(telea=share)) for share in (0, 1)]
    samples += [colour_fill(clip, rng=rng, config=SynthesisConfig(second_colour=share)) for share in (0, 1)]
    return [*samples, masked_blur(clip, rng=rng, config=DEFAULT)]


@st.composite
def clips(draw: st.DrawFn, *, seen: bool = False) -> MaskedClip:
    """Of any small size; boxes that reach the border, scattered pixels, empty and full masks."""
    t, h, w = draw(st.integers(1, 3)), draw(st.integers(9, 24)), draw(st.integers(9, 24))
    kind = draw(
        st.sampled_from(["box", "scattered", "full"] if seen else ["box", "scattered", "full", "none"])
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    mask = {"full": np.ones, "none": np.zeros}.get(kind, np.zeros)((t, h, w), bool)
    if kind == "scattered":
        mask = rng.random((t, h, w)) < 0.1
    for frame in mask if kind == "box" else ():
        top, left = rng.integers(-4, h), rng.integers(-4, w)
        frame[max(top, 0) : max(top, 0) + 6, max(left, 0) : max(left, 0) + 9] = True
    if seen:
        mask[-1, h // 2, w // 2] = True
    return MaskedClip(rng.integers(0, 256, (t, h, w, 3), np.uint8), mask)


@settings(max_examples=60)
@given(clips(), clips(seen=True), st.integers(0, 2**16))
def test_source_and_target_are_equal_outside_the_mask_and_the_real_clip_has_its_role(
    clip: MaskedClip, donor: MaskedClip, seed: int
) -> None:
    before = clip.frames.copy(), clip.mask.copy()
    samples = every_synthesis(clip, donor, seed=seed)
    assert [s.task for s in samples] == ["remove"] * 2 + ["insert"] * 2 + ["track"] * 2 + ["deblur"]
    for sample in samples:
        assert sample.source.shape == sample.target.shape == clip.frames.shape
        assert sample.mask.shape == clip.mask.shape and sample.mask.dtype == bool
        assert sample.source.dtype == sample.target.dtype == np.uint8
        assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])
        if sample.task != "track":
            assert np.array_equal(sample.target, before[0])
    assert np.array_equal(samples[4].source, before[0])
    for sample in samples[4:]:
        assert np.array_equal(sample.mask, before[1])
    for sample in samples[2:4]:  # people's masks are larger, and there is none where there is no object
        assert not (before[1] & ~sample.mask).any()
        assert np.array_equal(sample.mask.any((1, 2)), before[1].any((1, 2)))
    assert np.array_equal(clip.frames, before[0]) and np.array_equal(clip.mask, before[1])


@settings(max_examples=60)
@given(clips(), clips(seen=True), st.integers(0, 2**16))
def test_every_edit_is_in_the_first_frame_and_comes_of_the_generator_alone(
    clip: MaskedClip, donor: MaskedClip, seed: int
) -> None:
    config = SynthesisConfig(masked_blur=0.2)
    one, same = (
        draw_edit(clip, donor=lambda: donor, rng=np.random.default_rng(seed), config=config) for _ in range(2)
    )
    assert one.mask[0].any()
    assert one.task == same.task
    for a, b in ((one.source, same.source), (one.target, same.target), (one.mask, same.mask)):
        assert np.array_equal(a, b)


def test_different_draws_differ() -> None:
    clip = noise(box(1, 32, 32, slice(8, 20), slice(10, 24)))
    sources = {
        draw_edit(clip, donor=lambda: clip, rng=np.random.default_rng(seed), config=DEFAULT).source.tobytes()
        for seed in range(8)
    }
    assert len(sources) >= 4  # two fills with a mean may be the same


def test_tasks_come_at_the_configured_frequencies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_task(rng, DEFAULT) for _ in range(4000)]
    assert [drawn.count(task) / 4000 for task in TASKS] == pytest.approx([0.5, 0.375, 0.125, 0], abs=0.025)
    config = SynthesisConfig(copy_paste=1, mask_fill=0, colour_fill=0, masked_blur=3)  # need not add up to 1
    drawn = [draw_task(rng, config) for _ in range(4000)]
    assert [drawn.count(task) / 4000 for task in TASKS] == pytest.approx([0.25, 0, 0, 0.75], abs=0.025)


def test_a_clip_without_an_object_in_frame_0_is_pasted_into() -> None:
    mask = box(4, 32, 32, slice(8, 20), slice(10, 24))
    donor = noise(mask)
    mask = mask.copy()
    mask[0] = False
    config = SynthesisConfig(copy_paste=0, mask_fill=1, colour_fill=1, masked_blur=1)
    for seed in range(6):
        sample = draw_edit(noise(mask), donor=lambda: donor, rng=np.random.default_rng(seed), config=config)
        assert sample.task == "remove" and sample.mask[0].any()


def test_donors_without_an_object_are_passed_over_and_if_all_are_it_is_said() -> None:
    clip, empty = noise(box(1, 32, 32, slice(8, 20), slice(10, 24))), noise(np.zeros((1, 32, 32), bool))
    config = SynthesisConfig(mask_fill=0, colour_fill=0)
    donors = iter([empty, empty, clip])
    draw_edit(clip, donor=lambda: next(donors), rng=np.random.default_rng(0), config=config)
    with pytest.raises(GenPropError, match="none of 16 donors shows an object"):
        draw_edit(clip, donor=lambda: empty, rng=np.random.default_rng(0), config=config)
    with pytest.raises(GenPropError, match="expected an object"):
        copy_paste(clip, empty, rng=np.random.default_rng(0), config=config)


# Copy-and-paste.


def test_an_object_is_played_from_where_it_comes_into_view_and_back_and_forth() -> None:
    mask = box(5, 20, 30, slice(4, 15), slice(6, 20))
    mask[:2] = False
    donor = MaskedClip(
        np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 20, 30, 3)), mask
    )
    assert cut_out(donor, 8).frames[:, 8, 8, 0].tolist() == [2, 3, 4, 3, 2, 3, 4, 3]
    mask[:4] = False
    assert cut_out(donor, 3).frames[:, 8, 8, 0].tolist() == [4, 4, 4]


def test_a_speck_is_not_in_view() -> None:
    mask = np.zeros((3, 100, 100), bool)
    mask[1, 0, : int(SEEN * 1e4) - 1] = True
    mask[2, 0, : int(SEEN * 1e4)] = True
    assert in_view(mask).tolist() == [False, False, True]


def test_a_pasted_object_moves_as_it_did() -> None:
    """A donor at rest stays at rest; one that moves to the right keeps its pace, to one of the sides."""
    ground = noise(np.zeros((4, 64, 64), bool))
    mask = box(4, 64, 64, slice(20, 40), slice(24, 36))
    config = SynthesisConfig(shadow=0)
    for seed in range(8):
        still = copy_paste(ground, noise(mask), rng=np.random.default_rng(seed), config=config)
        assert (still.mask == still.mask[0]).all()
    moving = np.stack([np.roll(frame, 6 * t, axis=1) for t, frame in enumerate(mask)])
    cutout = fit(cut_out(noise(moving), 4), 64, rng=np.random.default_rng(0))
    x = [np.flatnonzero(m.max(0) > 127).mean() for m in cutout.matte]
    scale = cutout.matte.shape[1] / cut_out(noise(moving), 4).matte.shape[1]
    assert np.abs(np.diff(x)) == pytest.approx(6 * scale, abs=1)
    assert len(set(np.sign(np.diff(x)))) == 1


def test_a_cutout_has_nothing_of_its_background_and_a_soft_edge() -> None:
    mask = np.zeros((1, 96, 96), np.uint8)
    cv2.circle(mask[0], (48, 48), 24, 1, -1)
    donor = flat(mask > 0, thing=(200, 0, 0), ground=(0, 255, 0))
    black = MaskedClip(np.zeros((1, 96, 96, 3), np.uint8), np.zeros((1, 96, 96), bool))
    for seed in range(8):
        sample = copy_paste(black, donor, rng=np.random.default_rng(seed), config=SynthesisConfig(shadow=0))
        red, green, _ = np.moveaxis(sample.source[0].astype(int), -1, 0)
        assert green.max() < 10
        assert red.max() > 150
        assert np.count_nonzero((red > 30) & (red < 130)) > 10
        assert np.count_nonzero(red) > 0.9 * sample.mask.sum()  # the mask is tight


def test_a_thin_object_does_not_vanish() -> None:
    donor = flat(box(1, 96, 96, slice(10, 86), slice(40, 41)), thing=(255,) * 3, ground=(0,) * 3)
    black = MaskedClip(np.zeros((1, 96, 96, 3), np.uint8), np.zeros((1, 96, 96), bool))
    for seed in range(8):
        sample = copy_paste(black, donor, rng=np.random.default_rng(seed), config=SynthesisConfig(shadow=0))
        assert sample.source[0].max() > 20


def test_a_side_where_an_object_was_cut_off_lies_at_that_side_or_beyond() -> None:
    """In the air it would be a straight edge. To the left in the donor is to the right when mirrored."""
    mask = box(2, 60, 80, slice(35, 60), slice(0, 30))
    cutout = cut_out(noise(mask), 2)
    assert cutout.cut == ((False, True), (True, False))
    assert cutout.matte[:, -1, 0].min() == 255  # neither soft nor eroded there
    sides = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        fitted = fit(cutout, 60, rng=rng)
        top, left = place(fitted, (60, 80), rng=rng)
        height, width = fitted.matte.shape[1:]
        assert top + height >= 60
        if fitted.cut[1] == (True, False):
            assert left <= 0
        else:
            assert fitted.cut[1] == (False, True) and left + width >= 80
        sides.add(fitted.cut[1])
    assert len(sides) == 2


@pytest.mark.parametrize("shape", [(5, 5), (200, 30), (30, 200), (200, 200)])
@pytest.mark.parametrize("cut", [(False, False), (True, False), (False, True), (True, True)])
def test_an_objects_innermost_pixel_lies_in_the_frame(shape: tuple[int, int], cut: tuple[bool, bool]) -> None:
    matte = np.zeros((1, *shape), np.uint8)
    matte[0, 1:-1, 1:-1] = 255
    cutout = Cutout(np.zeros((1, *shape, 3), np.uint8), matte, (cut, cut))
    y, x = (np.minimum(np.arange(n), n - 1 - np.arange(n)) for n in shape)
    depth = np.minimum(y[:, None], x)
    for seed in range(20):
        top, left = place(cutout, (48, 64), rng=np.random.default_rng(seed))
        shown = depth[max(-top, 0) : max(48 - top, 0), max(-left, 0) : max(64 - left, 0)]
        assert shown.size and shown.max() == depth.max()


def test_pasted_objects_are_of_a_sensible_size() -> None:
    small, large = box(1, 96, 96, slice(40, 60), slice(40, 60)), box(1, 96, 96, slice(4, 92), slice(4, 92))
    sides = [
        max(fit(cut_out(noise(mask), 1), 96, rng=np.random.default_rng(seed)).matte.shape[1:]) / 96
        for mask in (small, large)
        for seed in range(20)
    ]
    assert 0.2 < min(sides) < 0.45 and 0.5 < max(sides) < 0.75


# Shadows.


def test_a_shadow_only_darkens_the_ground_lies_in_the_mask_and_spares_the_object() -> None:
    donor = flat(box(3, 96, 96, slice(30, 60), slice(40, 60)), thing=(90, 60, 30), ground=(255, 255, 255))
    ground = MaskedClip(np.full((3, 96, 96, 3), 180, np.uint8), np.zeros((3, 96, 96), bool))
    grown = 0
    for seed in range(12):
        bare, shaded = (
            copy_paste(ground, donor, rng=np.random.default_rng(seed), config=SynthesisConfig(shadow=share))
            for share in (0, 1)
        )
        assert not (bare.mask & ~shaded.mask).any()
        around = shaded.mask & ~bare.mask
        assert (shaded.source[around] < shaded.target[around]).all()
        assert (shaded.source[around] >= 0.35 * shaded.target[around]).all()
        inside = np.zeros_like(bare.mask)
        for t, frame in enumerate(bare.mask.astype(np.uint8)):
            inside[t] = (
                cv2.erode(frame, np.ones((13, 13)), borderType=cv2.BORDER_CONSTANT, borderValue=[0]) > 0
            )
        assert np.array_equal(bare.source[inside], shaded.source[inside])
        grown += around.sum() > 0.1 * bare.mask.sum()
    assert grown > 6  # others fall behind their object, or out of the frame


def test_the_share_of_shadows_is_the_configured_one() -> None:
    """An object as bright as the ground changes nothing that a mask shows but its shadow."""
    clip = noise(box(1, 48, 48, slice(14, 30), slice(16, 30)))

    def area(seed: int, share: float) -> int:
        config = SynthesisConfig(shadow=share)
        return copy_paste(clip, clip, rng=np.random.default_rng(seed), config=config).mask.sum()

    some = [(area(s, 0), area(s, 0.3), area(s, 1)) for s in range(150)]
    told = [(bare, drawn, full) for bare, drawn, full in some if bare != full]
    assert len(told) > 100
    assert np.mean([drawn == full for _, drawn, full in told]) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(("length", "lean"), [(-0.5, 0.0), (-0.5, 0.6), (0.4, -0.6)])
def test_a_shadow_hangs_at_the_objects_foot(length: float, lean: float) -> None:
    """Closed form: the shadow of a box is a parallelogram, and its centre that of the box, laid down."""
    matte = np.zeros((80, 40), np.uint8)
    matte[10:70, 5:35] = 255
    shade = cast(CastShadow(length, lean, blur=0.005, strength=0.5), matte, corner=(40, 80), size=(160, 200))
    assert shade.shape == (160, 200) and shade.dtype == np.float32
    assert 0.45 < shade.max() <= 0.5 and shade.min() == 0
    y, x = np.mgrid[:160, :200]
    foot, middle, high = 40 + 69, 80 + 19.5, 69 - 39.5
    assert (shade * y).sum() / shade.sum() == pytest.approx(foot - length * high, abs=0.7)
    assert (shade * x).sum() / shade.sum() == pytest.approx(middle + lean * high, abs=0.7)
    assert shade.sum() / 0.5 == pytest.approx(60 * 30 * abs(length), rel=0.06)


def test_no_object_no_shadow() -> None:
    shadow = draw_shadow(np.random.default_rng(0))
    assert not cast(shadow, np.zeros((9, 9), np.uint8), corner=(0, 0), size=(20, 30)).any()


# Mask-and-fill.


def test_the_mean_is_that_of_what_surrounds_the_object() -> None:
    """On a ramp it is the middle's, whatever the object's colours and whatever lies beyond the box."""
    mask = box(2, 128, 128, slice(50, 70), slice(40, 80))
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, None, :, None], (2, 128, 128, 3)).copy()
    ramp[:, :, 100:], ramp[mask] = 255, 255
    config = SynthesisConfig(telea=0)
    sample = mask_fill(MaskedClip(ramp, mask), rng=np.random.default_rng(0), config=config)
    assert np.abs(sample.source[sample.mask].astype(int) - 59.5).max() <= 0.5
    assert mask.sum() < sample.mask.sum() < 1.4 * mask.sum()
    wide = config.model_copy(update={"box_margin": 60})
    other = mask_fill(MaskedClip(ramp, mask), rng=np.random.default_rng(0), config=wide)
    assert other.source[other.mask].min() > 70


@pytest.mark.parametrize("size", [96, 300])
def test_telea_continues_the_ground_and_nothing_of_the_object(size: int) -> None:
    a, b = round(0.4 * size), round(0.6 * size)
    mask = box(1, size, size, slice(a, b), slice(a, b))
    ramp = np.broadcast_to(np.linspace(0, 200, size)[None, None, :, None], (1, size, size, 3))
    frames = ramp.astype(np.uint8)
    frames[mask] = 255
    config = SynthesisConfig(telea=1)
    sample = mask_fill(MaskedClip(frames, mask), rng=np.random.default_rng(0), config=config)
    error = sample.source[sample.mask].astype(float) - ramp[sample.mask]
    assert np.abs(error).max() < 30 and np.abs(error).mean() < 8  # the object is 115 away or more


def test_a_third_of_the_fills_is_telea() -> None:
    clip = noise(box(1, 24, 24, slice(8, 16), slice(8, 16)))

    def flat_fill(seed: int) -> bool:
        sample = mask_fill(clip, rng=np.random.default_rng(seed), config=DEFAULT)
        return len(np.unique(sample.source[sample.mask], axis=0)) == 1

    assert np.mean([flat_fill(seed) for seed in range(400)]) == pytest.approx(2 / 3, abs=0.07)


@pytest.mark.parametrize("telea", [0, 1])
def test_a_full_mask_is_filled_with_its_own_mean(telea: int) -> None:
    clip = noise(np.ones((1, 20, 30), bool))
    sample = mask_fill(clip, rng=np.random.default_rng(0), config=SynthesisConfig(telea=telea))
    assert np.abs(sample.source[0] - clip.frames[0].mean((0, 1))).max() <= 0.5
    assert sample.mask.all()


# Colour fill and blur.


def test_a_colour_is_saturated_flat_and_the_same_in_all_frames() -> None:
    clip = noise(box(3, 24, 24, slice(8, 16), slice(8, 16)))
    for seed in range(10):
        sample = colour_fill(clip, rng=np.random.default_rng(seed), config=SynthesisConfig(second_colour=1))
        (one,) = np.unique(sample.target[sample.mask], axis=0).astype(int)
        (two,) = np.unique(sample.source[sample.mask], axis=0).astype(int)
        assert np.ptp(one) >= 0.45 * 255 and np.ptp(two) >= 0.45 * 255
        assert np.abs(one - two).max() > 60  # the second is another one


def test_some_colour_fills_have_a_second_colour() -> None:
    clip = noise(box(1, 12, 12, slice(3, 8), slice(3, 8)))
    share = np.mean(
        [
            not np.array_equal(
                colour_fill(clip, rng=np.random.default_rng(seed), config=DEFAULT).source, clip.frames
            )
            for seed in range(600)
        ]
    )
    assert share == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("blur", [0.01, 0.05, 0.1])
def test_a_masked_blur_is_the_gaussian_blur_of_the_frame(blur: float) -> None:
    mask = box(1, 120, 160, slice(40, 80), slice(50, 110))
    frames = cv2.resize(noise(mask).frames[0, :12, :16], (160, 120), interpolation=cv2.INTER_CUBIC)[None]
    sample = masked_blur(
        MaskedClip(frames, mask), rng=np.random.default_rng(0), config=SynthesisConfig(blur=blur)
    )
    expected = cv2.GaussianBlur(frames[0].astype(np.float32), (0, 0), blur * 120)
    assert np.abs(sample.source[mask] - expected[mask[0]]).max() < 5


# All of them.


def test_views_of_arrays_and_donors_of_another_size_serve() -> None:
    """A crop that is mirrored has negative strides."""
    whole = noise(box(2, 48, 64, slice(10, 30), slice(20, 50)))
    clip = MaskedClip(whole.frames[:, 4:, ::-1], whole.mask[:, 4:, ::-1])
    donor = noise(box(5, 30, 20, slice(5, 20), slice(5, 15)))
    for sample in every_synthesis(clip, donor, seed=0):
        assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])
        assert (sample.source[sample.mask] != sample.target[sample.mask]).mean() > 0.5
    for sample in every_synthesis(donor, clip, seed=1):
        assert sample.mask[0].any()


@pytest.fixture(scope="module")
def real(shared_clips: Path) -> dict[str, MaskedClip]:
    """Three frames of each, at 96 lines."""

    def read(folder: Path) -> MaskedClip:
        shrink: Callable[[np.ndarray], np.ndarray] = partial(
            cv2.resize, dsize=(160, 96), interpolation=cv2.INTER_AREA
        )
        video, masks = (read_clip(folder / f"{name}.mp4", max_frames=3) for name in ("video", "mask-0"))
        return MaskedClip(
            np.stack([shrink(frame) for frame in video.frames]),
            np.stack([shrink(frame)[..., 0] > 127 for frame in masks.frames]),
        )

    return {
        folder.name: read(folder)
        for folder in sorted(shared_clips.iterdir())
        if (folder / "mask-0.mp4").is_file()
    }


def test_real_clips_serve_every_synthesis(real: dict[str, MaskedClip]) -> None:
    assert len(real) >= 4
    names = list(real)
    for i, name in enumerate(names):
        clip, donor = real[name], real[names[i - 1]]
        assert in_view(clip.mask).all()
        for sample in every_synthesis(clip, donor, seed=i):
            assert np.array_equal(sample.source[~sample.mask], sample.target[~sample.mask])
            assert sample.mask[0].any() and sample.mask.mean() < 0.5, (name, sample.task)
            difference = (sample.source != sample.target).any(-1)
            assert difference[sample.mask].mean() > 0.75, (name, sample.task)
