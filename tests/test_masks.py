"""Masks for the first frame, for some and for all: what fits is read, what does not is named."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from genprop import masks as module
from genprop.errors import GenPropError
from genprop.video import MaskReader, open_masks, read_mask, write_clip, write_image


def moving(count: int = 6, height: int = 48, width: int = 64) -> np.ndarray:
    """bool `[T, H, W]`: a square that walks to the right and is gone in the last frame."""
    masks = np.zeros((count, height, width), bool)
    for index in range(count - 1):
        masks[index, 8:24, 4 * index : 4 * index + 16] = True
    return masks


def as_video(path: Path, masks: np.ndarray) -> Path:
    frames = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    write_clip(path, frames, fps=Fraction(16))
    return path


def as_folder(path: Path, masks: Sequence[np.ndarray] | np.ndarray, names: Sequence[object]) -> Path:
    path.mkdir()
    for name, mask in zip(names, masks, strict=True):
        write_image(path / f"{name}.png", mask.astype(np.uint8) * 255)
    return path


def opened(path: Path, frames: int | None = 6, *, height: int = 48, width: int = 64) -> MaskReader:
    return open_masks(path, height=height, width=width, frames=frames)


# What fits


@pytest.mark.parametrize("frames", [6, None])
def test_a_video_of_masks(tmp_path: Path, frames: int | None) -> None:
    with opened(as_video(tmp_path / "m.mp4", moving()), frames) as masks:
        assert masks.indices is None
        for index, expected in enumerate(moving()):
            mask = masks.get(index)
            assert mask is not None and mask.dtype == bool
            np.testing.assert_array_equal(mask, expected)
            assert masks.get(index) is mask  # asked for again
        masks.finish(6)


def test_masks_may_be_passed_over_but_not_gone_back_to(tmp_path: Path) -> None:
    with opened(as_video(tmp_path / "m.mp4", moving())) as masks:
        np.testing.assert_array_equal(masks.get(3), moving()[3])
        with pytest.raises(AssertionError):
            masks.get(2)


def test_masks_for_some_frames(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "m", moving()[:3], ["take2-90", "take2-0", "take2-0040"])
    with opened(path, 100) as masks:
        assert masks.indices == (0, 40, 90)
        given = {index: mask for index in range(100) if (mask := masks.get(index)) is not None}
        masks.finish(100)
    assert list(given) == [0, 40, 90]
    for index, expected in zip((90, 0, 40), moving(), strict=False):
        np.testing.assert_array_equal(given[index], expected)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("read", [False, True], ids=["opened", "read"])
def test_a_folder_with_one_for_each_frame_counts_from_0_or_from_1(
    tmp_path: Path, first: int, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_folder(tmp_path / "m", moving(), range(first, first + 6))
    if not read:  # opening reads no picture
        monkeypatch.setattr(module, "read_image", None)
    with opened(path) as masks:
        assert masks.indices is None
        if read:
            np.testing.assert_array_equal(np.stack([masks.get(i) for i in range(6)]), moving())  # type: ignore


def test_from_1_is_the_second_frame_where_the_number_of_files_is_another(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "m", moving()[:3], [1, 2, 3])
    for frames in (6, None):
        with opened(path, frames) as masks:
            assert masks.indices == (1, 2, 3)
            assert masks.get(0) is None
            np.testing.assert_array_equal(masks.get(1), moving()[0])


# What does not


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="does not exist, expected a video of masks or a folder"):
        opened(tmp_path / "none")
    with pytest.raises(GenPropError, match="holds no pictures, expected masks"):
        opened(tmp_path)
    write_image(tmp_path / "m.png", moving()[0].astype(np.uint8) * 255)
    with pytest.raises(GenPropError, match="is a picture, expected a video of masks") as error:
        opened(tmp_path / "m.png")
    assert "masks/0.png" in error.value.hint
    (tmp_path / "m.mp4").write_text("no video")
    with pytest.raises(GenPropError, match="cannot be decoded"):
        opened(tmp_path / "m.mp4")


def test_another_size_is_known_at_opening(tmp_path: Path) -> None:
    video = as_video(tmp_path / "m.mp4", moving(6, 48, 60))
    folder = as_folder(tmp_path / "m", [moving()[0], moving(6, 48, 60)[0]], [0, 1])
    for path, file in ((video, r"m\.mp4"), (folder, r"1\.png")):
        with pytest.raises(GenPropError, match=rf"{file} is 60x48, the video is 64x48"):
            opened(path)


@pytest.mark.parametrize("frames", [5, 7])
def test_a_video_of_another_length_is_known_at_opening(tmp_path: Path, frames: int) -> None:
    path = as_video(tmp_path / "m.mp4", moving())
    with pytest.raises(GenPropError, match=rf"have 6 frames, the video has {frames}$") as error:
        opened(path, frames)
    assert "folder" in error.value.hint


def test_packets_that_show_nothing_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_video(tmp_path / "m.mp4", moving())
    monkeypatch.setattr(module, "count_packets", lambda path: 9)
    opened(path, 6).close()


def test_a_video_of_another_length_is_found_at_its_end(tmp_path: Path) -> None:
    path = as_video(tmp_path / "m.mp4", moving())
    with opened(path, None) as masks:
        masks.get(5)
        with pytest.raises(GenPropError, match="have 6 frames, the video has at least 7"):
            masks.get(6)
    with opened(path, None) as masks:
        masks.get(3)
        with pytest.raises(GenPropError, match="have 6 frames, the video has 4"):
            masks.finish(4)
    with opened(path, None) as masks, pytest.raises(GenPropError, match=r"have 6 frames, .* at least 8"):
        masks.finish(8)


def test_an_index_beyond_the_clip(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "m", moving()[:2], [0, 6])
    with pytest.raises(GenPropError, match=r"6\.png is for frame 6, the video has 6 frames, 0 to 5") as error:
        opened(path, 6)
    assert "first frame is 0" in error.value.hint
    with opened(path, None) as masks, pytest.raises(GenPropError, match="for frame 6, the video has 6"):
        masks.finish(6)
    path = as_folder(tmp_path / "from 1", moving()[:3], [1, 2, 4])
    with pytest.raises(GenPropError, match=r"4\.png is for frame 4, the video has 3 frames, 1 to 3"):
        opened(path, 3)


def test_names_that_do_not_say_one_frame(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match=r"mask\.png has no number in its name"):
        opened(as_folder(tmp_path / "a", moving()[:1], ["mask"]))
    with pytest.raises(GenPropError, match=r"x04\.png and y4\.png are both for frame 4"):
        opened(as_folder(tmp_path / "b", moving()[:2], ["x04", "y4"]))


@pytest.mark.parametrize("kind", ["video", "folder", "some"])
def test_all_of_them_empty(tmp_path: Path, kind: str) -> None:
    empty = np.zeros((6, 48, 64), bool)
    count = 2 if kind == "some" else 6
    if kind == "video":
        path = as_video(tmp_path / "m.mp4", empty)
    else:
        path = as_folder(tmp_path / "m", empty[:count], range(count))
    with opened(path) as masks:
        for index in range(count - 1):
            mask = masks.get(index)
            assert mask is not None and not mask.any()
        with pytest.raises(GenPropError, match=r"are empty: their brightest pixel is [0-9], expected more"):
            masks.get(count - 1)
    with open_masks(path, height=48, width=64, frames=None) as masks:
        for index in range(1 if kind == "some" else 6):
            with contextlib.suppress(GenPropError):  # a folder's last is known
                masks.get(index)
        with pytest.raises(GenPropError, match="all masks"):
            masks.finish(6)


def test_white_all_over(tmp_path: Path) -> None:
    white = moving()
    white[2] = True
    for path, name in (
        (as_video(tmp_path / "m.mp4", white), r"frame 2 in .*m\.mp4"),
        (as_folder(tmp_path / "m", white, range(6)), r"2\.png"),
    ):
        with opened(path) as masks:
            masks.get(1)
            with pytest.raises(GenPropError, match=f"{name} covers the whole frame: 100 %") as error:
                masks.get(2)
            assert "only the object white" in error.value.hint


def test_a_picture_that_changes_after_opening(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "m", moving()[:1], [0])
    with opened(path) as masks:
        write_image(path / "0.png", moving(6, 48, 60)[0].astype(np.uint8) * 255)
        with pytest.raises(GenPropError, match="is 60x48"):
            masks.get(0)


# The mask of the first frame


def test_one_mask_that_is_white_all_over(tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.full((48, 64), 255, np.uint8))
    with pytest.raises(GenPropError, match=r"m\.png covers the whole frame: 100 % of it is white") as error:
        read_mask(tmp_path / "m.png", size=(48, 64))
    assert "Paint only the object white" in error.value.hint


def test_one_mask_out_of_many(tmp_path: Path) -> None:
    video = as_video(tmp_path / "m.mp4", moving())
    folder = as_folder(tmp_path / "m", moving(), range(6))
    for path in (video, folder, folder / "0.png"):
        np.testing.assert_array_equal(read_mask(path, size=(48, 64)), moving()[0])
