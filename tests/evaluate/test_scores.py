"""The figures of a removal, against what they are by hand."""

from __future__ import annotations

import numpy as np
import pytest

from genprop.evaluate.scores import CAP, FEWEST, boundary, clip_figures, interval, mask_figures, overlap, psnr


def box(top: int, left: int, *, side: int = 40, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_psnr_is_that_of_the_error_and_capped() -> None:
    truth = np.full((2, 4, 4, 3), 100, np.uint8)
    where = np.ones((2, 4, 4), bool)
    assert psnr(truth, truth, where) == CAP
    assert psnr(truth + np.uint8(51), truth, where) == pytest.approx(20 * np.log10(5))
    assert np.isnan(psnr(truth, truth, ~where))


def test_the_first_frame_counts_nowhere() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    frames = truth.copy()
    frames[0] = 0
    hole = np.zeros((3, 32, 32), bool)
    hole[:, 8:24, 8:24] = True
    figures = clip_figures(frames, truth, hole=hole, unseen=hole & False)
    assert figures["hole"] == figures["keep"] == CAP
    assert figures["hole_ssim"] == figures["keep_ssim"] == pytest.approx(1)
    assert figures["flicker"] == 1 and np.isnan(figures["unseen"])


def test_few_unseen_pixels_have_no_figure_and_many_have_their_own() -> None:
    truth = np.zeros((2, 32, 32, 3), np.uint8)
    frames, hole = truth.copy(), np.zeros((2, 32, 32), bool)
    hole[1] = True
    unseen = np.zeros_like(hole)
    unseen[1, :16] = True
    frames[1, :16] = 51
    figures = clip_figures(frames, truth, hole=hole, unseen=unseen)
    assert figures["unseen"] == pytest.approx(20 * np.log10(5))
    assert figures["hole"] == pytest.approx(20 * np.log10(5) + 10 * np.log10(2))
    unseen[1].ravel()[FEWEST - 1 :] = False
    assert np.isnan(clip_figures(frames, truth, hole=hole, unseen=unseen)["unseen"])


def test_overlap() -> None:
    empty = np.zeros((100, 100), bool)
    assert overlap(box(0, 0), box(0, 0)) == overlap(empty, empty) == 1
    assert overlap(box(0, 0), box(0, 20)) == pytest.approx(1 / 3)
    assert overlap(box(0, 0), box(50, 50)) == overlap(empty, box(0, 0)) == 0


def test_boundary() -> None:
    """The tolerance of a frame of 100x100 is 2 pixels (0.8 % of 141, rounded up)."""
    empty, full = np.zeros((100, 100), bool), np.ones((100, 100), bool)
    here = box(30, 30)
    assert boundary(here, here) == boundary(empty, empty) == boundary(full, full) == 1
    assert boundary(empty, here) == boundary(here, empty) == boundary(full, here) == 0
    assert boundary(here, box(32, 30)) == 1
    # Moved by 10: the two horizontal edges are lost but for 2 pixels beside the other's vertical ones, and of
    # the vertical ones the 10 pixels that stick out but for 2.
    assert boundary(here, box(40, 30)) == pytest.approx((2 * (30 + 2) + 2 * 3) / 160, abs=0.05)
    # The frame's border is no outline: a mask that fills a half has one edge.
    half = np.zeros_like(empty)
    half[:50] = True
    assert boundary(half, np.roll(full & half, 2, axis=0) | half) == 1


def test_figures_of_a_mask_over_time() -> None:
    truth = np.stack([box(30, 30)] * 21)
    found = truth.copy()
    found[0] = False
    found[5] = False
    found[19:] = box(30, 50)
    figures = mask_figures(found, truth)
    assert figures["iou"] == pytest.approx((17 + 2 / 3) / 20)
    assert figures["iou_end"] == pytest.approx(1 / 3) and figures["iou_lowest"] == 0
    assert 17 / 20 < figures["boundary"] < 19 / 20


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(20, 2, 100)
    mean, low, high = interval(list(values))
    assert mean == pytest.approx(values.mean()) and interval(list(values)) == (mean, low, high)
    assert low < mean < high and high - low == pytest.approx(2 * 1.96 * 2 / 10, rel=0.25)
    assert interval([3.0, float("nan")]) == (3, 3, 3)
    assert np.isnan(interval([float("nan")])).all()
