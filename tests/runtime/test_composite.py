"""Compositing: exact beyond the mask, wholly generated within it, soft and of the right colour between."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from genprop.runtime.composite import colour_offset, composite, resize, upsample_mask

HEIGHT, WIDTH = 200, 240
RADIUS = 3  # 1.5 % of the height


def noise(seed: int, low: int = 0, high: int = 256, frames: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def disc(radius: int = 30) -> np.ndarray:
    """A disc in frame 0, one across the border in frame 1."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([(y - cy) ** 2 + (x - cx) ** 2 < radius**2 for cy, cx in [(100, 120), (5, 230)]])


def grown(mask: np.ndarray, radius: int) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) > 0 for m in mask])


def test_pixels_beyond_the_grown_mask_are_the_sources_bit_for_bit() -> None:
    source, mask = noise(0), disc()
    result = composite(source, noise(1), mask.astype(np.float32))
    assert np.array_equal(result[~grown(mask, RADIUS)], source[~grown(mask, RADIUS)])
    assert not np.array_equal(result[grown(mask, RADIUS)], source[grown(mask, RADIUS)])


def test_pixels_inside_the_mask_are_the_generated_ones() -> None:
    # The same colours around the hole, so nothing is corrected: both are 100 there.
    source, mask = np.full_like(noise(0), 100), disc()
    generated = np.where(grown(mask, RADIUS)[..., None], noise(1), 100).astype(np.uint8)
    result = composite(source, generated, mask.astype(np.float32))
    assert (
        np.abs(result[mask].astype(int) - generated[mask]).max() <= 1
    )  # a float32 Gaussian's sum is not quite 1


def test_the_edge_is_soft_and_falls_outwards() -> None:
    source = np.zeros_like(noise(0))
    generated = source + 200 * grown(disc(), 10)[..., None].astype(np.uint8)
    result = composite(source, generated, disc().astype(np.float32), dilate=0.04)
    profile = result[0, 100, 120:, 0].astype(int)  # from the centre of the disc outwards
    assert profile[0] == 200 and profile[-1] == 0
    assert (np.diff(profile) <= 0).all()
    assert len(set(profile)) >= 6
    assert np.abs(np.diff(profile)).max() < 100


def test_without_growth_the_mask_is_a_hard_cut() -> None:
    source, generated, mask = np.zeros_like(noise(0)), np.full_like(noise(0), 90), disc()
    result = composite(source, generated, mask.astype(np.float32), dilate=0.0)
    # Around the hole the generated pixels are 90 too bright, and are corrected to what is there.
    assert not result.any()
    generated[~mask] = 0
    result = composite(source, generated, mask.astype(np.float32), dilate=0.0)
    assert np.array_equal(result[..., 0] == 90, mask)


def test_the_threshold_decides_which_pixels_are_edited() -> None:
    source, generated = np.zeros_like(noise(0)), np.full_like(noise(0), 90)
    mask = np.full(source.shape[:3], 0.4, np.float32)
    assert np.array_equal(composite(source, generated, mask), source)
    assert np.array_equal(composite(source, generated, mask, threshold=0.3), generated)


def test_a_shift_of_the_generated_colours_is_taken_back() -> None:
    source, mask = noise(0, 60, 190), disc()
    shift = np.array([[12, -7, 3], [-20, 0, 9]])[:, None, None]
    generated = (source + shift).astype(np.uint8)
    assert np.abs(composite(source, generated, mask.astype(np.float32)).astype(int) - source).max() <= 1


def test_a_shift_is_found_though_the_ring_holds_a_bit_of_the_object() -> None:
    truth, hole = noise(0, 60, 190)[0], disc()[0].astype(np.uint8)
    source = truth.copy()
    source[:, 140:][hole[:, 140:] == 0] = 255  # what the mask has missed, a third of the ring
    offset = colour_offset(source, truth.astype(np.float32) + 5, hole, width=6)
    assert colour_offset(truth, truth.astype(np.float32) + 5, hole, width=6) == pytest.approx([-5, -5, -5])
    assert offset == pytest.approx([-5, -5, -5])


def test_a_mask_of_the_whole_frame_has_no_ring() -> None:
    source, generated = noise(0), noise(1)
    assert np.array_equal(composite(source, generated, np.ones(source.shape[:3], np.float32)), generated)


def test_an_empty_mask_changes_nothing_and_no_input_is_written_to() -> None:
    source, generated = noise(0), noise(1)
    before = source.copy(), generated.copy()
    assert np.array_equal(composite(source, generated, np.zeros(source.shape[:3], np.float32)), source)
    composite(source, generated, disc().astype(np.float32))
    assert np.array_equal(source, before[0]) and np.array_equal(generated, before[1])


def test_masks_are_upsampled_as_logits_and_stay_finite() -> None:
    logits = torch.tensor([[float("-inf"), float("inf")]]).expand(1, 2, 1, 2, 2)
    mask = upsample_mask(logits, height=8, width=12)
    assert mask.shape == (2, 8, 12) and mask.dtype == np.float32
    assert mask[0, 0, 0] == pytest.approx(0, abs=1e-9) and mask[0, 0, -1] == 1
    # Cell centres are at x = 3 and 9. Logits of -1 and 3 cross 0 a quarter of the way, at x = 4.5:
    mask = upsample_mask(torch.tensor([[-1.0, 3.0]]).expand(1, 1, 1, 2, 2), height=8, width=12)
    assert mask[0, 0, 3] < 0.5 < mask[0, 0, 4 + 1]
    assert mask[0, 0, 4] == pytest.approx(0.5)


@pytest.mark.parametrize("size", [(12, 8), (48, 64), (12, 64), (48, 8), (24, 32)])
def test_resizing_keeps_a_ramp_in_place(size: tuple[int, int]) -> None:
    def ramp(height: int, width: int) -> np.ndarray:
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        channels = np.broadcast_arrays(y[:, None] * 200, x[None] * 200, y[:, None] * 100 + x[None] * 100)
        return np.stack(channels, axis=-1).round().astype(np.uint8)[None]

    resized = resize(ramp(24, 32), height=size[0], width=size[1])
    difference = resized.astype(int) - ramp(*size)
    assert resized.dtype == np.uint8
    assert np.abs(difference[:, 2:-2, 2:-2]).max() <= 2


def test_shrinking_averages() -> None:
    checker = np.indices((16, 16)).sum(axis=0) % 2 * 200
    frames = np.repeat(checker[None, ..., None], 3, axis=-1).astype(np.uint8)
    assert (resize(frames, height=4, width=32)[:, :, 2:-2] == 100).mean() > 0.2
    assert (resize(frames, height=4, width=4) == 100).all()


def test_no_frames_are_resized_to_no_frames() -> None:
    assert resize(np.zeros((0, 4, 6, 3), np.uint8), height=2, width=3).shape == (0, 2, 3, 3)
