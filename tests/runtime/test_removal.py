"""A removal as it streams: exact outside of the hole, every frame accounted for, a model for the unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from genprop.edm import Anchored
from genprop.errors import GenPropError
from genprop.runtime.backends import Stages, open_stages
from genprop.runtime.removal import Finished, remove
from genprop.runtime.review import MOST, Review
from genprop.runtime.task import run_video
from genprop.runtime.unseen import crop_around
from genprop.types import Cond
from genprop.video import read_clip, read_image, write_clip, write_image

HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="module")
def tiny() -> Stages:
    return open_stages("tiny")


@pytest.fixture(scope="module")
def panning() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean clip, the same with a bar at the border at which the ground comes in, and its masks."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (16, 30, 3), dtype=np.uint8)
    whole = cv2.resize(coarse, (240, HEIGHT), interpolation=cv2.INTER_CUBIC)
    clean = np.stack([whole[:, 6 * t : 6 * t + WIDTH] for t in range(10)])
    video, mask = clean.copy(), np.zeros(clean.shape[:3], bool)
    mask[:, 20:70, 96:] = True
    video[mask] = (250, 240, 0)
    return clean, video, mask


def test_what_is_known_replaces_what_was_denoised_as_far_as_it_is_trusted() -> None:
    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: Cond) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(x, 2.0), torch.zeros(1)

    known, trust = torch.full((1, 2, 3, 4, 4), 6.0), torch.zeros(1, 2, 1, 4, 4)
    trust[:, 1], trust[:, 0, :, 0] = 1.0, 0.25
    cond = Cond(*(torch.zeros(1) for _ in range(4)))
    x0, _ = Anchored(denoiser, known, trust)(torch.zeros_like(known), torch.ones(1), cond)
    assert (x0[:, 1] == 6).all() and (x0[:, 0, :, 0] == 3).all() and (x0[:, 0, :, 1:] == 2).all()


def test_the_crop_holds_what_is_unseen_keeps_the_aspect_and_lies_in_the_frame() -> None:
    unseen = np.zeros((360, 640), bool)
    unseen[300:350, 600:640] = True
    crop = crop_around(unseen, height=96, width=96)
    assert crop.width == crop.height == 96 and crop.x + 96 == 640 and crop.y + 96 == 360
    unseen[40:350, 20:640] = True
    crop = crop_around(unseen, height=72, width=128)
    assert crop.width / crop.height == pytest.approx(128 / 72, abs=0.01) and crop.width > 1100
    assert crop.x < 0 and crop.x + crop.width > 640  # larger than the frame: about its middle


@pytest.mark.parametrize("with_model", [False, True])
def test_outside_of_the_hole_every_pixel_is_the_sources(
    tiny: Stages, panning: tuple[np.ndarray, np.ndarray, np.ndarray], with_model: bool
) -> None:
    clean, video, mask = panning
    done = remove(
        video,
        edited=clean[0],
        masks=dict(enumerate(mask)),
        stages=tiny if with_model else None,
        steps=1,
    )
    assert done.frames.shape == video.shape and np.array_equal(done.mask, mask)
    assert np.array_equal(done.frames[0], clean[0])
    far = ~np.stack([cv2.dilate(m.astype(np.uint8), np.ones((11, 11))) > 0 for m in mask])
    assert np.array_equal(done.frames[1:][far[1:]], video[1:][far[1:]])
    assert done.unseen[-1] > 0.3 and done.unseen[0] == 0
    assert np.abs(done.frames[5][mask[5]].astype(int) - (250, 240, 0)).mean() > 40  # the bar is gone
    assert ("model" in done.seconds) == with_model


def test_the_model_is_asked_only_where_something_is_unseen(
    tiny: Stages, panning: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    clean, video, mask = panning
    still, masks = np.repeat(clean[:1], 4, axis=0), dict(enumerate(mask[:4]))
    done = remove(still, edited=clean[0], masks=masks, stages=tiny, steps=1)
    assert "model" not in done.seconds
    one, two = (
        remove(video, edited=clean[0], masks=dict(enumerate(mask)), stages=tiny, steps=4, seed=seed).frames
        for seed in (0, 0)
    )
    assert np.array_equal(one, two)


def test_without_a_mask_of_the_first_frame_there_is_nothing_to_follow() -> None:
    with pytest.raises(GenPropError, match="first frame has no mask"):
        remove(np.zeros((2, 32, 32, 3), np.uint8), masks={1: np.ones((32, 32), bool)}, stages=None)


# --- files ---


@pytest.fixture
def files(tmp_path: Path, panning: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Path:
    clean, video, mask = panning
    write_clip(tmp_path / "clip.mp4", video, fps=Fraction(30000, 1001))
    write_image(tmp_path / "mask.png", mask[0].astype(np.uint8) * 255)
    write_image(tmp_path / "edited.png", clean[0])
    (tmp_path / "masks").mkdir()
    for t in (0, 5):
        write_image(tmp_path / "masks" / f"frame_{t:04d}.png", mask[t].astype(np.uint8) * 255)
    return tmp_path


def test_masks_of_some_frames_a_first_frame_and_a_review(files: Path) -> None:
    told: list[tuple[int, int | None]] = []
    document = run_video(
        files / "clip.mp4",
        None,
        masks=files / "masks",
        out=files / "out.mp4",
        save_mask=files / "seen.mp4",
        save_first=files / "first.png",
        review=files / "review",
        progress=lambda done, total: told.append((done, total)),
    )
    result, seen = read_clip(files / "out.mp4"), read_clip(files / "seen.mp4")
    assert document["frames"] == len(result.frames) == len(seen.frames) == 10
    assert result.fps == Fraction(30000, 1001) and document["backend"] == "none"
    assert told[-1] == (10, 10)
    first = read_image(files / "first.png")
    assert np.abs(first[30:60, 100:].astype(int) - (250, 240, 0)).mean() > 40
    listed = json.loads((files / "review" / "review.json").read_text())
    assert listed == document["review"] and listed["doubtful"] >= 1
    assert (files / "review" / "review.png").is_file()
    assert (seen.frames[5, 30:60, 100:] > 200).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing says what to remove"),
        ({"edited": "first_frame"}, "equals the video's first frame"),
        ({"masks": "late"}, "first frame has no mask"),
        ({"mask": "mask.png", "out": "mask.png"}, "is an input"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_leaves_nothing(
    files: Path, given: dict[str, str], message: str
) -> None:
    first = read_clip(files / "clip.mp4").frames[0]
    write_image(files / "first_frame.png", first)
    (files / "late").mkdir()
    (files / "masks" / "frame_0005.png").rename(files / "late" / "frame_0005.png")
    paths: dict[str, Any] = {
        name: files / (f"{value}.png" if value == "first_frame" else value) for name, value in given.items()
    }
    before = sorted(path.name for path in files.iterdir())
    with pytest.raises(GenPropError, match=message):
        run_video(files / "clip.mp4", None, **{"out": files / "out.mp4", **paths})
    assert sorted(path.name for path in files.iterdir()) == before


def test_masks_for_another_number_of_frames_are_refused(files: Path) -> None:
    write_clip(files / "masks.mp4", np.zeros((7, HEIGHT, WIDTH, 3), np.uint8), fps=Fraction(24))
    with pytest.raises(GenPropError, match="7"):
        run_video(files / "clip.mp4", None, masks=files / "masks.mp4", out=files / "out.mp4")
    assert not (files / "out.mp4").exists()


# --- what to look at ---


def finished(index: int, *, pixels: int, confidence: float = 1.0, unseen: float = 0.0) -> Finished:
    frame, mask = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), bool)
    mask.ravel()[:pixels] = True
    return Finished(index, frame, frame, mask, mask, confidence, unseen)


def test_a_review_names_what_is_unsure_jumps_is_gone_or_guessed() -> None:
    review = Review()
    for item in (
        finished(0, pixels=100),
        finished(1, pixels=110),
        finished(2, pixels=110, confidence=0.4),
        finished(3, pixels=300),
        finished(4, pixels=0),
        finished(5, pixels=0),
        finished(6, pixels=100, unseen=0.5),
    ):
        review.add(item)
    reasons = {row["frame"]: " ".join(row["reasons"]) for row in review.document()["frames"]}
    assert list(reasons) == [2, 3, 4, 6]
    assert "unsure (0.40)" in reasons[2] and "jumps from 110 to 300" in reasons[3]
    assert "gone" in reasons[4] and "50% of the hole" in reasons[6]


def test_a_review_keeps_the_worst_frames_only(tmp_path: Path) -> None:
    review = Review()
    for index in range(MOST + 10):
        review.add(replace(finished(index, pixels=10), confidence=0.5 - 0.01 * index))
    document = review.document()
    assert document["doubtful"] == MOST + 10 and len(document["frames"]) == MOST
    assert document["frames"][-1]["frame"] == MOST + 9
    Review().write(tmp_path / "none")
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["review.json"]
