"""Every metric against a figure worked out by hand, and pooling against concatenation."""

from __future__ import annotations

from math import inf, isnan, log10

import numpy as np
import pytest
import torch

from genprop.metrics import (
    EndpointPsnr,
    MaskIoU,
    Motion,
    RegionPsnr,
    RegionSsim,
    Sharpness,
    SquaredError,
    ssim_map,
)

T, H, W = 4, 6, 8


@pytest.fixture
def hole() -> np.ndarray:
    """The left half of every frame."""
    mask = np.zeros((T, H, W), bool)
    mask[:, :, : W // 2] = True
    return mask


def grey(level: int) -> np.ndarray:
    return np.full((T, H, W, 3), level, np.uint8)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (T, H, W, 3), dtype=np.uint8)


def test_psnr_has_its_closed_form() -> None:
    pool = SquaredError()
    pool.add(np.full(400, 1.1), np.ones(400))
    assert pool.psnr() == pytest.approx(20)
    assert pool.psnr(peak=10.0) == pytest.approx(40)
    assert SquaredError(0.0, 400).psnr() == inf
    assert isnan(SquaredError().psnr())


def test_regions_are_told_apart(hole: np.ndarray) -> None:
    frames = np.where(hole[..., None], grey(51), grey(3))  # 0.2 and 3/255 off
    quality = RegionPsnr()
    quality.add(frames, grey(0), hole)
    assert quality.hole == pytest.approx(-20 * log10(0.2))
    assert quality.keep == pytest.approx(-20 * log10(3 / 255))


def test_ssim_of_flat_pictures_has_its_closed_form(hole: np.ndarray) -> None:
    """Without variance the structure term is 1, and luminance alone counts."""
    a, b, c1 = 51 / 255, 102 / 255, 0.01**2
    similarity = RegionSsim()
    similarity.add(np.where(hole[..., None], grey(51), grey(51)), grey(102), hole)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert similarity.hole == pytest.approx(expected) and similarity.keep == pytest.approx(expected)


def test_ssim_is_its_definition_pixel_by_pixel() -> None:
    """Against sums over each window, written out."""
    a, b = (np.random.default_rng(seed).random((14, 15, 3)) for seed in (0, 1))
    b = 0.5 * a + 0.5 * b
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps)[..., None] / taps.sum() ** 2
    y, x = 7, 6
    one, other = (image[y - 5 : y + 6, x - 5 : x + 6] for image in (a, b))
    means = [(window * image).sum((0, 1)) for image in (one, other)]
    variances = [(window * (i - m) ** 2).sum((0, 1)) for i, m in zip((one, other), means, strict=True)]
    covariance = (window * (one - means[0]) * (other - means[1])).sum((0, 1))
    luminance = (2 * means[0] * means[1] + 0.01**2) / (means[0] ** 2 + means[1] ** 2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variances[0] + variances[1] + 0.03**2)
    np.testing.assert_allclose(ssim_map(a, b)[y, x], luminance * structure, rtol=1e-6)


def test_ssim_tells_regions_apart(hole: np.ndarray) -> None:
    truth = noise(0)
    similarity = RegionSsim()
    similarity.add(np.where(hole[..., None], noise(1), truth), truth, hole)
    assert similarity.hole < 0.5 < similarity.keep < 1  # windows reach across the border
    same = RegionSsim()
    same.add(truth, truth, hole)
    assert same.hole == same.keep == pytest.approx(1)
    nothing = RegionSsim()
    nothing.add(truth, truth, np.zeros_like(hole))
    assert isnan(nothing.hole) and nothing.keep == pytest.approx(1)


def test_the_given_frame_does_not_count(hole: np.ndarray) -> None:
    frames, truth = grey(10), grey(0)
    frames[0] = 255
    first, second = RegionPsnr(), RegionPsnr()
    first.add(frames, truth, hole)
    second.add(grey(10), truth, hole)
    assert first == second
    masks, truth_mask = hole.copy(), hole.copy()
    masks[0] = False
    iou = MaskIoU()
    iou.add(masks, truth_mask)
    assert iou.value == 1


def test_an_exact_clip_does_not_make_the_pool_infinite(hole: np.ndarray) -> None:
    quality = RegionPsnr()
    quality.add(grey(0), grey(0), hole)
    assert quality.hole == quality.keep == inf
    quality.add(grey(51), grey(0), hole)
    assert quality.hole == pytest.approx(-10 * log10(0.2**2 / 2))  # half the pixels are exact


def test_pooled_is_concatenated() -> None:
    rng = np.random.default_rng(3)
    masks = [rng.random((T, H, W)) < share for share in (0.1, 0.7)]
    clips, truths = [noise(0), noise(1)], [noise(2), noise(4)]
    # Frame 0 of the second clip counts for nothing, so it is cut out of the concatenation.
    frames, truth = (np.concatenate([a, b[1:]]) for a, b in (clips, truths))
    mask = np.concatenate([masks[0], masks[1][1:]])
    guess = rng.random(mask.shape) < 0.5

    pooled, whole = RegionPsnr(), RegionPsnr()
    pooled_sharpness, whole_sharpness = Sharpness(), Sharpness()
    for i in range(2):
        pooled.add(clips[i], truths[i], masks[i])
        pooled_sharpness.add(clips[i], truths[i], masks[i])
    whole.add(frames, truth, mask)
    whole_sharpness.add(frames, truth, mask)
    assert (pooled.hole, pooled.keep) == pytest.approx((whole.hole, whole.keep))
    assert pooled_sharpness.value == pytest.approx(whole_sharpness.value)

    pooled_iou, whole_iou = MaskIoU(), MaskIoU()
    pooled_iou.add(guess[:T], masks[0])
    pooled_iou.add(np.concatenate([guess[:1], guess[T:]]), masks[1])
    whole_iou.add(guess, mask)
    assert pooled_iou.value == whole_iou.value

    pooled_end, whole_end = EndpointPsnr(), EndpointPsnr()
    a, b = (torch.randn(2, 1, T, 3, 2, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for got, expected in zip(a, b, strict=True):
        pooled_end.add(got, expected)
    whole_end.add(*(torch.cat([x[0], x[1][:, 1:]], dim=1) for x in (a, b)))
    assert pooled_end.value == pytest.approx(whole_end.value)


def test_iou_has_its_closed_form(hole: np.ndarray) -> None:
    wide = np.zeros_like(hole)
    wide[:, :, : 3 * W // 4] = True
    iou = MaskIoU()
    iou.add(wide, hole)
    assert iou.value == pytest.approx(2 / 3)
    iou.add(~hole, hole)  # adds nothing to the intersection, all pixels to the union
    assert iou.value == pytest.approx(2 / (3 + 4))
    assert isnan(MaskIoU().value)


def test_sharpness_has_its_closed_form(hole: np.ndarray) -> None:
    stripes = grey(0)
    stripes[:, :, ::2] = 200
    weak = grey(0)
    weak[:, :, ::2] = 50
    sharpness = Sharpness()
    sharpness.add(weak, stripes, hole)
    assert sharpness.value == pytest.approx(0.25)


def test_sharpness_does_not_see_the_seam_or_the_surroundings(hole: np.ndarray) -> None:
    truth = noise(0)
    frames = np.where(hole[..., None], truth, noise(1))
    sharpness = Sharpness()
    sharpness.add(frames, truth, hole)
    assert sharpness.value == 1


def test_sharpness_of_a_flat_truth_is_no_number(hole: np.ndarray) -> None:
    sharpness = Sharpness()
    sharpness.add(noise(0), grey(0), hole)
    assert isnan(sharpness.value)


def test_endpoint_has_its_closed_form() -> None:
    endpoint = torch.zeros(1, T, 2, 3, 3)
    endpoint[:, 1:, 0] = 4.0
    endpoint[:, 1:, 1] = -1.0
    endpoint[:, 0] = 1000.0  # given: neither its error nor its range counts
    metric = EndpointPsnr()
    metric.add(torch.where(endpoint == 1000, 0.0, endpoint + 0.5), endpoint)
    assert metric.value == pytest.approx(20 * log10(5 / 0.5))
    assert isnan(EndpointPsnr().value)


def test_motion_is_the_change_from_frame_to_frame_over_the_truths(hole: np.ndarray) -> None:
    """Frames that rise by 10 and by 4 levels, with something else outside of the hole."""
    ours, truth = (np.stack([grey(step * i)[0] for i in range(T)]) for step in (10, 4))
    ours[:, :, W // 2 :] = noise(0)[:, :, W // 2 :]
    motion = Motion()
    motion.add(ours, truth, hole)
    assert motion.value == pytest.approx(10 / 4)
    still = Motion()
    still.add(grey(9), truth, hole)
    assert still.value == 0
    assert isnan(Motion().value)


def test_motion_counts_what_is_in_the_hole_of_both_frames(hole: np.ndarray) -> None:
    """A hole that jumps from side to side has no pixel in two frames; the given frame is no neighbour."""
    jumping = hole.copy()
    jumping[::2] = ~hole[::2]
    motion = Motion()
    motion.add(noise(0), noise(1), jumping)
    assert isnan(motion.value)
    frames, truth = noise(0), noise(1)
    frames[0] = 255
    first, second = Motion(), Motion()
    first.add(frames, truth, hole)
    second.add(noise(0), truth, hole)
    assert first == second
