"""Sequences for the tracker, from drawn material in the layout of a real corpus."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from genprop.data.corpus import is_corpus, open_corpus
from genprop.data.removals import SIZE, Removals
from genprop.errors import GenPropError
from genprop.video import write_clip, write_image


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, one of them with a mask; a photograph; a cut-out."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    photo = cv2.resize(coarse, (480, 320), interpolation=cv2.INTER_CUBIC)
    for part in ("photos", "cutouts", "clips/moving", "clips/still"):
        (folder / part).mkdir(parents=True)
    write_image(folder / "photos" / "a.png", photo)
    cutout = np.zeros((120, 100, 4), np.uint8)
    cutout[20:100, 20:80] = (30, 200, 40, 255)
    cv2.imwrite(str(folder / "cutouts" / "a.png"), cutout)
    frames, mask = np.repeat(photo[None], 12, axis=0), np.zeros((12, 320, 480, 3), np.uint8)
    for t in range(12):
        mask[t, 100:200, 100 + 5 * t : 180 + 5 * t] = 255
        frames[t][mask[t, ..., 0] > 0] = (200, 20, 20)
    write_clip(folder / "clips" / "moving" / "video.mp4", frames, fps=Fraction(24))
    write_clip(folder / "clips" / "moving" / "mask-0.mp4", mask, fps=Fraction(24))
    write_clip(folder / "clips" / "still" / "video.mp4", np.repeat(photo[None], 12, axis=0), fps=Fraction(24))
    return folder


def named(folder: Path, *kinds: str) -> str:
    return ",".join(f"{kind}={folder / kind}" for kind in kinds)


def test_a_corpus_is_what_its_folders_hold(corpus: Path) -> None:
    name = named(corpus, "photos", "cutouts", "clips")
    found = open_corpus(name)
    assert is_corpus(name) and not is_corpus("procedural")
    assert [clip.name for clip in found.clips] == ["moving", "still"]
    assert [len(clip.masks) for clip in found.clips] == [1, 0] and len(found.photos) == len(
        found.cutouts
    ) == 1
    assert found.clips[0].masks[0].shape == found.clips[0].frames.shape[:3]
    assert [clip.name for clip in open_corpus(name, leave_out=["mov*"]).clips] == ["still"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("films=.", "names no folder of real material"),
        ("photos=missing", "names no folder of real material"),
        ("clips=.", "holds no clips"),
    ],
)
def test_what_is_no_corpus_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GenPropError, match=message):
        open_corpus(name)


@pytest.mark.parametrize("natural", [0.0, 1.0])
def test_a_sequence_depends_on_its_seed_and_index_only(corpus: Path, natural: float) -> None:
    found = open_corpus(named(corpus, "photos", "cutouts", "clips"))
    items = Removals(found, count=8, length=4, seed=0, natural=natural)
    assert len(items) == 8
    for index in range(8):
        item = items[index]
        assert item.frames.shape == (4, *SIZE, 3) and item.masks.shape == (4, *SIZE)
        assert item.edited.shape == (*SIZE, 3) and item.flows.shape == (3, *SIZE, 2)
        assert item.masks[0].sum() >= 150
        outside = ~cv2.dilate(item.masks[0].astype(np.uint8), np.ones((25, 25))).astype(bool)
        apart = np.abs(item.edited[outside].astype(int) - item.frames[0][outside]).mean()
        assert apart < 12  # the same but for noise and compression
    again = Removals(found, count=3, length=4, seed=0, natural=natural)[2]
    assert all(np.array_equal(getattr(again, n), getattr(items[2], n)) for n in ("frames", "masks", "edited"))
    with pytest.raises(IndexError):
        items[8]


def test_cut_outs_alone_go_over_photographs(corpus: Path) -> None:
    items = Removals(open_corpus(named(corpus, "photos", "cutouts")), count=3, length=3, seed=1)
    assert all(items[i].masks[0].any() for i in range(3))
