"""Triplet folders: pairing, windows, sizes, and each way in which a folder can be wrong."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from genprop.data.triplets import FOLDERS, TripletFolder
from genprop.errors import GenPropError
from genprop.video import write_clip


def numbered(count: int, *, height: int = 24, width: int = 40) -> np.ndarray:
    """Frames `[T, H, W, 3]` whose grey level is 10 times their number."""
    level = 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(level, (count, height, width, 3))


def write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{i:03d}.png"), np.ascontiguousarray(frame[..., ::-1]))


def add(root: Path, name: str, *, counts: tuple[int, int, int] = (12, 12, 12), width: int = 40) -> None:
    """A triplet: edited is 5 brighter; the mask is the left half."""
    source, target, mask = (numbered(c, width=width).copy() for c in counts)
    target += 5
    mask[:] = 0
    mask[:, :, : width // 2] = 255
    for part, frames in zip(FOLDERS, (source, target, mask), strict=True):
        write_frames(root / part / name, frames)


def test_an_item_is_one_window_of_all_three_parts(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        add(tmp_path, name)
    data = TripletFolder(tmp_path, frames=4, height=12, width=12)
    assert len(data) == 3
    assert [original.name for original, _, _ in data.triplets] == ["a", "b", "c"]
    sample = data[1]
    assert sample.source.shape == (4, 12, 12, 3) and sample.mask.shape == (4, 12, 12)
    first = sample.source[0, 0, 0, 0]
    assert np.array_equal(sample.source[:, 0, 0, 0], first + 10 * np.arange(4))
    assert np.array_equal(sample.target, sample.source + 5)
    assert sample.task == "remove"
    # The crop keeps the centre: half of it is masked still.
    assert sample.mask[:, :, :6].all() and not sample.mask[:, :, 6:].any()


def test_windows_depend_on_seed_and_index_only(tmp_path: Path) -> None:
    add(tmp_path, "a")
    starts = []
    for seed in range(12):
        data = TripletFolder(tmp_path, frames=4, height=12, width=20, seed=seed)
        assert np.array_equal(data[0].source, data[0].source)
        starts.append(int(data[0].source[0, 0, 0, 0]) // 10)
    assert len(set(starts)) > 3
    assert min(starts) >= 0 and max(starts) <= 8


def test_the_whole_clip_is_a_window(tmp_path: Path) -> None:
    add(tmp_path, "a", counts=(4, 4, 4))
    sample = TripletFolder(tmp_path, frames=4, height=12, width=20)[0]
    assert sample.source[:, 0, 0, 0].tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize(("height", "width"), [(12, 12), (13, 7), (8, 31), (48, 48)])
def test_the_aspect_is_kept(tmp_path: Path, height: int, width: int) -> None:
    """A disc stays a disc, in the middle."""
    frame = np.zeros((120, 200, 3), np.uint8)
    cv2.circle(frame, (100, 60), 20, (255, 255, 255), -1)
    for part in FOLDERS:
        write_frames(tmp_path / part / "disc", frame[None])
    mask = TripletFolder(tmp_path, frames=1, height=height, width=width)[0].mask[0]
    assert mask.shape == (height, width)
    rows, columns = np.nonzero(mask)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1
    assert abs(rows.mean() - (height - 1) / 2) < 1 and abs(columns.mean() - (width - 1) / 2) < 1


def test_mp4_and_frame_folders_mix(tmp_path: Path) -> None:
    add(tmp_path, "a", counts=(6, 6, 6))
    frames = numbered(6).copy()
    for part in FOLDERS[:2]:
        write_clip(tmp_path / part / "b.mp4", frames, fps=Fraction(8))
    write_frames(tmp_path / "masks" / "b", np.full_like(frames, 255))
    sample = TripletFolder(tmp_path, frames=6, height=24, width=40)[1]
    assert np.abs(sample.source.astype(int) - frames).max() <= 4
    assert sample.mask.all()


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "original_videos").mkdir()
    with pytest.raises(GenPropError, match="has no edited_videos, masks"):
        TripletFolder(tmp_path, frames=1, height=8, width=8)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    for part in FOLDERS:
        (tmp_path / part).mkdir()
    with pytest.raises(GenPropError, match="holds no videos"):
        TripletFolder(tmp_path, frames=1, height=8, width=8)


def test_names_that_do_not_match_are_named(tmp_path: Path) -> None:
    add(tmp_path, "a", counts=(1, 1, 1))
    write_frames(tmp_path / "masks" / "stray", numbered(1))
    with pytest.raises(GenPropError, match="lacks original_videos/stray, edited_videos/stray;"):
        TripletFolder(tmp_path, frames=1, height=8, width=8)


def test_a_name_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    add(tmp_path, "a", counts=(1, 1, 1))
    (tmp_path / "masks" / "a.mp4").write_bytes(b"")
    with pytest.raises(GenPropError, match=r"both a and a\.mp4"):
        TripletFolder(tmp_path, frames=1, height=8, width=8)


@pytest.mark.parametrize(("counts", "lengths"), [((5, 4, 5), ("4 ", "5 ")), ((5, 5, 3), ("3 ", "5 "))])
def test_counts_that_differ_are_named(tmp_path: Path, counts: tuple[int, int, int], lengths: tuple) -> None:
    add(tmp_path, "a", counts=counts)
    data = TripletFolder(tmp_path, frames=2, height=8, width=8)
    with pytest.raises(GenPropError) as error:
        data[0]
    assert all(length in error.value.message for length in lengths)


def test_a_clip_shorter_than_the_window_is_an_error(tmp_path: Path) -> None:
    add(tmp_path, "a", counts=(3, 3, 3))
    data = TripletFolder(tmp_path, frames=4, height=8, width=8)
    with pytest.raises(GenPropError, match="has 3 frames, expected at least 4"):
        data[0]
