"""Contact sheets: the right frames in the right places, and text that can be seen."""

from __future__ import annotations

import numpy as np

from genprop.sheet import contact_sheet


def grey(levels: list[int], height: int = 32, width: int = 48) -> np.ndarray:
    """A clip whose frames are flat and tell by their level which they are."""
    return np.repeat(np.array(levels, np.uint8), height * width * 3).reshape(-1, height, width, 3)


def cells(sheet: np.ndarray, level: int) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of everything in one colour."""
    ys, xs = np.nonzero((sheet == level).all(axis=-1))
    assert len(ys), f"level {level} is not on the sheet"
    top, left = ys.min(), xs.min()
    height, width = ys.max() - top + 1, xs.max() - left + 1
    assert len(ys) == height * width, f"level {level} is not one box"
    return int(top), int(left), int(height), int(width)


def test_frames_lie_in_a_grid() -> None:
    a, b = [100, 101, 102, 103], [110, 111, 112, 113]
    # Odd levels of blue keep the cells apart from the greys of smoothed text.
    rows = [("first", grey(a)), ("second", grey(b))]
    for _, clip in rows:
        clip[..., 2] = 7
    sheet = contact_sheet(rows, height=64)
    assert sheet.dtype == np.uint8
    boxes = np.array([[box(sheet, level) for level in levels] for levels in (a, b)])
    assert (boxes[..., 2:] == (64, 96)).all()
    assert (boxes[:, :, 0] == boxes[:, :1, 0]).all()
    assert (boxes[:, :, 1] == boxes[:1, :, 1]).all()
    assert (np.diff(boxes[..., 1], axis=1) == 96 + 4).all()
    assert (np.diff(boxes[..., 0], axis=0) == 64 + 4).all()


def box(sheet: np.ndarray, level: int) -> tuple[int, int, int, int]:
    match = (sheet == (level, level, 7)).all(axis=-1)
    return cells(np.where(match[..., None], 1, 0), 1)


def test_picks_first_and_last_and_at_most_eight() -> None:
    clip = grey(list(range(60, 85)))
    clip[..., 2] = 7
    sheet = contact_sheet([("a", clip)])
    shown = {level for level in range(60, 85) if (sheet == (level, level, 7)).all(axis=-1).any()}
    assert len(shown) == 8
    assert {60, 84} <= shown


def test_chosen_frames_in_the_order_asked_for() -> None:
    clip = grey([50, 60, 70])
    clip[..., 2] = 7
    sheet = contact_sheet([("a", clip)], frames=[2, 0])
    assert box(sheet, 70)[1] < box(sheet, 50)[1]
    assert not (sheet == (60, 60, 7)).all(axis=-1).any()


def test_masks_are_black_and_white_and_short_clips_leave_blanks() -> None:
    mask = np.zeros((1, 32, 48), bool)
    mask[:, :16] = True
    clip = grey([90, 91])
    clip[..., 2] = 7
    sheet = contact_sheet([("clip", clip), ("mask", mask)], height=32)
    top, left, height, width = box(sheet, 90)
    cell = sheet[top + height + 4 : top + 2 * height + 4, left : left + width]
    assert (cell[:16] == 255).all()
    assert (cell[16:] == 0).all()
    blank = sheet[top + height + 4 : top + 2 * height + 4, left + width : left + 2 * width + 4]
    assert (blank == 255).all()


def test_labels_numbers_and_title_are_drawn() -> None:
    clip = grey([200, 200])
    plain = contact_sheet([("", clip)])
    labelled = contact_sheet([("student, 4 steps", clip)])
    titled = contact_sheet(
        [("", clip)], title="one boy removed, and a title wider than the two frames of the row"
    )
    assert labelled.shape[1] > plain.shape[1] + 50
    assert labelled[:, : labelled.shape[1] - plain.shape[1]].min() < 60  # ink where the label is
    assert titled.shape[0] > plain.shape[0]
    assert titled[: titled.shape[0] - plain.shape[0]].min() < 60
    assert (titled[:, -12:] == 255).all()  # the whole of it fits
    assert plain[:20].min() < 60  # the frame numbers
    one, two = (contact_sheet([("", clip)], frames=[index])[:30] for index in (0, 1))
    assert not np.array_equal(one, two)


def test_small_frames_grow_by_whole_pixels() -> None:
    checker = (np.indices((8, 8)).sum(axis=0) % 2).astype(bool)[None]
    sheet = contact_sheet([("", checker)], height=64)
    expected = np.kron(checker[0], np.ones((8, 8))) * 255
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (64, 64))
    assert (windows == expected).all(axis=(2, 3)).any()
