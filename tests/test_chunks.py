"""A clip in windows of one length: nothing is lost, nothing is done twice that need not be."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genprop.chunks import by_windows, cut, even_size

TOTALS, SIZES = st.integers(1, 60), st.integers(1, 16)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    """Total, size, overlap."""
    size = draw(SIZES)
    return draw(TOTALS), size, draw(st.integers(0, size - 1))


@given(cuts())
def test_what_is_kept_is_a_partition_of_the_clip(given: tuple[int, int, int]) -> None:
    total, size, overlap = given
    windows = cut(total, size, overlap=overlap)
    assert [i for window in windows for i in window.kept] == [*range(total)]


@given(cuts())
def test_every_window_has_the_same_length_lies_in_the_clip_and_holds_what_is_kept(
    given: tuple[int, int, int],
) -> None:
    total, size, overlap = given
    for frames, kept in cut(total, size, overlap=overlap):
        assert len(frames) == min(size, total) and len(kept) > 0
        assert 0 <= frames.start <= kept.start < kept.stop <= frames.stop <= total


@given(cuts())
def test_neighbours_share_the_overlap_and_the_last_two_at_least_that(given: tuple[int, int, int]) -> None:
    total, size, overlap = given
    windows = [window.frames for window in cut(total, size, overlap=overlap)]
    shared = [a.stop - b.start for a, b in itertools.pairwise(windows)]
    assert all(n == overlap for n in shared[:-1]) and all(n >= overlap for n in shared[-1:])


@given(cuts())
def test_a_frame_is_taken_from_the_window_in_which_it_lies_farthest_from_a_cut(
    given: tuple[int, int, int],
) -> None:
    total, size, overlap = given
    windows = cut(total, size, overlap=overlap)

    def distance(frames: range, i: int) -> int:
        """To the nearest frame that the window lacks and the clip has."""
        before = i - frames.start + 1 if frames.start > 0 else total
        after = frames.stop - i if frames.stop < total else total
        return min(before, after)

    for frames, kept in windows:
        for i in kept:
            assert distance(frames, i) == max(distance(w.frames, i) for w in windows if i in w.frames)


@given(TOTALS, SIZES)
def test_an_even_size_takes_no_more_windows_and_is_the_smallest_that_does(total: int, limit: int) -> None:
    size = even_size(total, limit)
    count = -(-total // min(limit, total))
    assert size <= limit and -(-total // size) == count
    assert size == 1 or -(-total // (size - 1)) > count


@given(cuts())
def test_a_function_of_single_frames_gives_the_same_however_the_clip_is_cut(
    given: tuple[int, int, int],
) -> None:
    total, size, overlap = given
    x = torch.arange(2.0 * total).view(1, total, 2)
    assert torch.equal(by_windows(lambda part: 3 * part + 1, x, size, overlap=overlap), 3 * x + 1)


@given(TOTALS, SIZES)
def test_with_padding_the_function_sees_one_length_and_the_last_frame_again(total: int, size: int) -> None:
    seen: list[Tensor] = []

    def remember(part: Tensor) -> Tensor:
        seen.append(part)
        return part

    x = torch.arange(float(total)).view(1, total, 1)
    assert torch.equal(by_windows(remember, x, size, pad=True), x)
    assert {part.shape[1] for part in seen} == {size}
    if total < size:
        assert (seen[0][0, total:] == x[0, -1]).all()


@pytest.mark.parametrize(("total", "size", "overlap"), [(8, 4, 4), (8, 4, -1), (0, 4, 0), (8, 0, 0)])
def test_what_cannot_be_cut_is_refused(total: int, size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"got {overlap}, {size}, {total}"):
        cut(total, size, overlap=overlap)
