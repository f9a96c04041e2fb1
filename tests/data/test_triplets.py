"""Triplet folders: pairing, windows, sizes, and each way in which a triplet can be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.random import PCG64, Generator

from genprop.data.triplets import FOLDERS, Triplets
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.types import EditSample

if TYPE_CHECKING:
    from conftest import Maker

Write = Callable[..., None]


def read(folder: Path, view: View, *, index: int = 0, seed: int = 0) -> EditSample:
    sample = Triplets(folder).read(index, Generator(PCG64(seed)), view, note=pytest.fail)
    assert isinstance(sample, EditSample)
    return sample


def fault(folder: Path, view: View = View(2, 8, 8)) -> str:  # noqa: B008
    with pytest.raises(GenPropError) as error:
        read(folder, view)
    return error.value.message


def test_an_item_is_one_window_of_all_three_parts(triplet: Write, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        triplet(tmp_path, name)
    source = Triplets(tmp_path)
    assert source.names == ["a", "b", "c"] and source.pairs and source.where == str(tmp_path)
    sample = read(tmp_path, View(4, 12, 12, stride=3), index=1)
    assert sample.source.shape == (4, 12, 12, 3) and sample.mask.shape == (4, 12, 12)
    levels = sample.source[:, 0, 0, 0].astype(int)
    assert set(np.diff(levels)) < {10, 20, 30} and len(set(np.diff(levels))) == 1
    assert np.array_equal(sample.target, sample.source + 5)
    assert sample.task == "remove"
    # The crop keeps the centre: half of it is masked still.
    assert sample.mask[:, :, :5].all() and not sample.mask[:, :, 7:].any()


def test_a_random_crop_is_the_same_in_all_three_parts(make: Maker, tmp_path: Path) -> None:
    ramp = np.zeros((1, 24, 40, 3), np.uint8)
    ramp[0, ..., 0] = 6 * np.arange(40)
    make.folder(tmp_path / "original_videos" / "a", ramp)
    make.folder(tmp_path / "edited_videos" / "a", ramp + 1)
    make.folder(
        tmp_path / "masks" / "a", np.where(ramp[..., :1] > 90, np.uint8(255), np.uint8(0)).repeat(3, -1)
    )
    lefts = set()
    for seed in range(20):
        sample = read(tmp_path, View(1, 24, 24, crop="random"), seed=seed)
        assert np.array_equal(sample.target, sample.source + 1)
        assert np.array_equal(sample.mask, sample.source[..., 0] > 90)
        lefts.add(int(sample.source[0, 0, 0, 0]) // 6)
    assert len(lefts) > 6


def test_the_whole_clip_is_a_window(triplet: Write, tmp_path: Path) -> None:
    triplet(tmp_path, "a", counts=(4, 4, 4))
    assert read(tmp_path, View(4, 12, 20)).source[:, 0, 0, 0].tolist() == [0, 10, 20, 30]


def test_mp4_and_frame_folders_mix(make: Maker, tmp_path: Path) -> None:
    frames = make.frames(6)
    for part in FOLDERS[:2]:
        make.clip(tmp_path / part / "b.mp4", frames)
    make.folder(tmp_path / "masks" / "b", np.full_like(frames, 255))
    sample = read(tmp_path, View(6, 24, 32))
    assert np.abs(sample.source.astype(int) - frames).max() <= 4
    assert sample.mask.all()


def test_windows_are_drawn_until_the_object_is_in_the_first_frame(make: Maker, tmp_path: Path) -> None:
    """An edit begins in the first frame; only frames 8 and 9 of 12 have one."""
    for part in FOLDERS[:2]:
        make.folder(tmp_path / part / "a", make.frames(12))
    mask = make.half(12)
    mask[:8], mask[10:] = 0, 0
    make.folder(tmp_path / "masks" / "a", mask)
    samples = [read(tmp_path, View(2, 24, 32), seed=seed) for seed in range(40)]
    levels = Counter(int(sample.source[0, 0, 0, 0]) // 10 for sample in samples)
    assert set(levels) == {8, 9} and min(levels.values()) > 8
    mask[:11], mask[11:] = 0, 255  # the last frame cannot be the first of two: it is found all the same
    make.folder(tmp_path / "masks" / "b", mask)
    (tmp_path / "masks" / "a").rename(tmp_path / "old")
    (tmp_path / "masks" / "b").rename(tmp_path / "masks" / "a")
    assert read(tmp_path, View(2, 24, 32)).mask.any((1, 2)).tolist() == [False, True]


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "original_videos").mkdir()
    with pytest.raises(GenPropError, match="has no edited_videos, masks"):
        Triplets(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    for part in FOLDERS:
        (tmp_path / part).mkdir()
    with pytest.raises(GenPropError, match="holds no videos"):
        Triplets(tmp_path)


def test_a_part_that_is_missing_is_a_fault_of_that_triplet_alone(
    make: Maker, triplet: Write, tmp_path: Path
) -> None:
    triplet(tmp_path, "b")
    make.folder(tmp_path / "masks" / "a", make.half(1))
    assert "original video and edited video missing" in fault(tmp_path)
    assert read(tmp_path, View(2, 8, 8), index=1).mask.any()


def test_a_name_that_occurs_twice_is_a_fault(triplet: Write, tmp_path: Path) -> None:
    triplet(tmp_path, "a", counts=(1, 1, 1))
    (tmp_path / "masks" / "a.mp4").write_bytes(b"")
    assert "holds both a and a.mp4" in fault(tmp_path)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((5, 4, 5), "the edited video has 4 frames, the video 5"),
        ((5, 5, 3), "the mask has 3 frames, the video 5"),
    ],
)
def test_counts_that_differ_are_named(
    triplet: Write, tmp_path: Path, counts: tuple[int, int, int], words: str
) -> None:
    triplet(tmp_path, "a", counts=counts)
    assert words in fault(tmp_path)


def test_sizes_that_differ_are_named(make: Maker, tmp_path: Path) -> None:
    for part, width in zip(FOLDERS, (32, 44, 32), strict=True):
        make.folder(tmp_path / part / "a", make.half(3, width=width))
    assert "the edited video has frames of 44x24, expected 32x24" in fault(tmp_path)


def test_frames_of_several_sizes_are_named(make: Maker, tmp_path: Path) -> None:
    for part in FOLDERS:
        make.folder(tmp_path / part / "a", make.half(3))
    other = make.folder(tmp_path / "x", make.half(3, width=44))
    (other / "00001.png").rename(tmp_path / "masks" / "a" / "00001.png")
    assert "44x24" in fault(tmp_path, View(3, 8, 8))


def test_a_clip_shorter_than_the_window_is_a_fault(triplet: Write, tmp_path: Path) -> None:
    triplet(tmp_path, "a", counts=(3, 3, 3))
    assert "it has 3 frames, expected at least 4" in fault(tmp_path, View(4, 8, 8))


def test_a_mask_that_is_empty_everywhere_is_a_fault(make: Maker, tmp_path: Path) -> None:
    for part in FOLDERS:
        make.folder(tmp_path / part / "a", 0 * make.half(3))
    assert "the mask is empty in all frames" in fault(tmp_path)


def test_an_object_that_no_crop_shows_is_a_fault(make: Maker, tmp_path: Path) -> None:
    frames = 0 * make.half(3, width=96)
    frames[:, :, :8] = 255
    for part in FOLDERS:
        make.folder(tmp_path / part / "a", frames)
    assert "the object is outside of all 9 crops" in fault(tmp_path, View(2, 24, 24))
    assert read(tmp_path, View(2, 24, 96)).mask.any()
