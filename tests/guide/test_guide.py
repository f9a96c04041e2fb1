"""The guide as a whole: known motions, with the truth behind the object."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from genprop.errors import GenPropError
from genprop.guide.ahead import ahead
from genprop.guide.edit import edit_mask
from genprop.guide.guide import follow, measure_motion, track
from genprop.guide.network import TrackerNet
from genprop.guide.propagation import BLOCK, LOOK_AHEAD, propagate
from genprop.guide.tracker import load_tracker, save_tracker


def run(video: np.ndarray, net: TrackerNet, masks: dict[int, np.ndarray], edited: np.ndarray | None) -> list:
    return list(follow(video, net, edited=edited, masks=masks.get))


@pytest.mark.parametrize("speed", [0, 2])
def test_given_masks_bring_back_the_ground(scene: SimpleNamespace, tracker: TrackerNet, speed: int) -> None:
    clean = scene.pan(speed)
    video, mask = scene.with_square(clean, speed=6)
    done = run(video, tracker, dict(enumerate(mask)), clean[0])
    assert [item.tracked.index for item in done] == list(range(len(video)))
    for t, item in enumerate(done):
        hole = item.tracked.hole
        assert np.array_equal(item.known[~hole], item.tracked.frame[~hole]) and (item.trust[~hole] == 1).all()
        assert not item.unseen.any()
        if t:
            assert hole[mask[t]].all() and item.tracked.confidence == 1
            assert scene.psnr(item.known, clean[t], hole) > (45 if not speed else 30)


def test_the_tracker_follows_a_square_from_its_first_mask(
    scene: SimpleNamespace, tracker: TrackerNet
) -> None:
    clean = scene.pan(1)
    video, mask = scene.with_square(clean)
    done = run(video, tracker, {0: mask[0]}, clean[0])
    for item, truth in zip(done[1:], mask[1:], strict=True):
        found = item.tracked.mask
        assert (found & truth).sum() / (found | truth).sum() > 0.7
    assert scene.psnr(done[-1].known, clean[-1], mask[-1]) > 25


def test_a_first_frame_is_filled_from_those_that_show_it(scene: SimpleNamespace, tracker: TrackerNet) -> None:
    clean = scene.pan(0, 12)
    video, mask = scene.with_square(clean, speed=5)
    done = run(video, tracker, dict(enumerate(mask)), None)
    assert scene.psnr(done[0].known, clean[0], mask[0]) > 30


def test_what_no_frame_shows_is_unseen(scene: SimpleNamespace, tracker: TrackerNet) -> None:
    """The square goes with the camera, over ground that comes in at the border behind it."""
    clean = scene.pan(6, 6)
    video, mask = clean.copy(), np.zeros(clean.shape[:3], bool)
    mask[:, 30:60, 100:] = True  # to the border at which the ground appears
    video[mask] = 255
    done = run(video, tracker, dict(enumerate(mask)), clean[0])
    assert not done[0].unseen.any()
    assert done[-1].unseen.sum() > 200 and (done[-1].trust[done[-1].unseen] == 0).all()


def test_a_mask_that_is_empty_for_a_while_is_believed(scene: SimpleNamespace, tracker: TrackerNet) -> None:
    clean = scene.pan(0, 4)
    video, mask = scene.with_square(clean)
    video[2], mask[2] = clean[2], False
    done = run(video, tracker, dict(enumerate(mask)), clean[0])
    assert not done[2].tracked.hole.any() and np.array_equal(done[2].known, clean[2])


def test_frames_are_read_no_further_ahead_than_is_needed(scene: SimpleNamespace, tracker: TrackerNet) -> None:
    clean = scene.pan(0, 1)[0]
    mask = np.zeros(clean.shape[:2], bool)
    mask[30:40, 30:40] = True
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in itertools.count():
            read += 1
            yield clean

    stream = follow(endless(), tracker, edited=clean, masks=lambda index: mask)
    for _ in range(BLOCK):
        next(stream)
    stream.close()
    assert read <= BLOCK + LOOK_AHEAD + 10
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_a_long_clip_keeps_what_was_seen_only_at_its_start(
    scene: SimpleNamespace, tracker: TrackerNet
) -> None:
    """A square that stands still: only the edited first frame shows what is behind, far beyond its reach."""
    clean = np.repeat(scene.pan(0, 1), 60, axis=0)
    video, mask = scene.with_square(clean, speed=0)
    tracked = track(measure_motion(video, lambda index: mask[index]), tracker, edited=clean[0], filled=True)
    last = list(propagate(tracked))[-1]
    assert not last.unseen.any() and scene.psnr(last.known, clean[-1], mask[-1]) > 40


def test_an_edit_is_where_the_frames_differ() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(60, 180, (64, 80, 3), dtype=np.uint8)
    edited = (frame + rng.integers(-2, 3, frame.shape)).astype(np.uint8)  # saved again
    edited[20:40, 30:50] = 20
    mask = edit_mask(frame, edited)
    assert mask[20:40, 30:50].all() and not mask[:, :22].any() and not mask[:12].any()
    with pytest.raises(GenPropError, match="equals the video"):
        edit_mask(frame, frame)
    with pytest.raises(GenPropError, match=r"differs from the video's first frame on \d+%"):
        edit_mask(frame, 255 - frame // 4)


def test_what_goes_wrong_ahead_is_raised_where_it_is_read() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    stream = ahead(broken())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    assert list(ahead(range(100), depth=3)) == list(range(100))


def test_weights_come_back_and_others_are_refused(tmp_path, tracker: TrackerNet) -> None:
    save_tracker(tracker, tmp_path / "t.safetensors")
    again = load_tracker(tmp_path / "t.safetensors")
    assert all(
        (a - b).abs().max() < 1e-3 for a, b in zip(again.parameters(), tracker.parameters(), strict=True)
    )
    with pytest.raises(GenPropError, match="holds no weights"):
        load_tracker(tmp_path / "missing.safetensors")
