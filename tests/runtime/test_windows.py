"""Where windows lie: everything is covered, and an edit is only handed on from a frame that exists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genprop.runtime.windows import windows

TOTALS, LENGTHS = st.integers(1, 400), st.integers(2, 40)


@given(TOTALS, LENGTHS)
def test_each_window_starts_at_a_frame_that_was_made_before_it(total: int, length: int) -> None:
    made = {0}  # the edited frame is given
    for window in windows(total, length):
        assert window.start in made
        made.update(window)
    assert made == set(range(total))


@given(TOTALS, LENGTHS)
def test_all_are_as_long_as_the_model_or_the_clip(total: int, length: int) -> None:
    assert {len(window) for window in windows(total, length)} == {min(total, length)}


@given(TOTALS, LENGTHS)
def test_there_are_no_more_than_needed(total: int, length: int) -> None:
    # Every window but the first brings length - 1 new frames at most.
    assert len(windows(total, length)) == max(1, -(-(total - 1) // (length - 1)))


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, [(0, 1)]),
        (8, [(0, 8)]),
        (9, [(0, 8), (1, 9)]),
        (15, [(0, 8), (7, 15)]),
        (16, [(0, 8), (7, 15), (8, 16)]),
        (22, [(0, 8), (7, 15), (14, 22)]),
    ],
)
def test_neighbours_share_one_frame_and_the_last_ends_with_the_clip(
    total: int, expected: list[tuple[int, int]]
) -> None:
    assert windows(total, 8) == [range(*bounds) for bounds in expected]


@pytest.mark.parametrize(("total", "length"), [(0, 8), (5, 1)])
def test_what_cannot_be_done_is_refused(total: int, length: int) -> None:
    with pytest.raises(ValueError, match=f"got {total} and {length}"):
        windows(total, length)
