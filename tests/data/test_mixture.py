"""Mixtures: weights, passes, the same item everywhere, and what becomes of broken clips."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.random import Generator
from torch.utils.data import DataLoader

from genprop.config import Config, load_config, parse_config
from genprop.data.faults import FaultLog
from genprop.data.footage import Note
from genprop.data.mixture import EditClips
from genprop.data.procedural import ProceduralClips
from genprop.data.sources import open_source
from genprop.data.triplets import FOLDERS
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.teacher.base import Base, save_base
from genprop.teacher.train import train
from genprop.types import EditSample, MaskedClip

if TYPE_CHECKING:
    from conftest import Maker

SIZE = ["clip.frames=4", "clip.height=16", "clip.width=16"]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("tiny", SIZE)


class Numbered:
    """Clips whose pixels are their number, with a square object; `broken` ones cannot be read."""

    def __init__(
        self, where: str, count: int, *, pairs: bool = True, broken: tuple[int, ...] = (), first: int = 0
    ) -> None:
        self.where, self.pairs, self.broken, self.first = where, pairs, broken, first
        self.names = [f"{where}-{i}" for i in range(count)]

    def read(
        self, index: int, rng: Generator, view: View, *, note: Note = lambda _: None
    ) -> MaskedClip | EditSample:
        if index in self.broken:
            raise GenPropError(f"{self.names[index]} is\nbroken", "Mend it.")
        frames = np.full((view.frames, view.height, view.width, 3), self.first + index, np.uint8)
        mask = np.zeros(frames.shape[:3], bool)
        mask[:, 4:12, 4:12] = True
        return (
            EditSample(frames, frames + np.uint8(rng.integers(100)), mask)
            if self.pairs
            else MaskedClip(frames, mask)
        )


def clips(data: EditClips) -> list[int]:
    return [int(data[i].source[0, 0, 0, 0]) for i in range(len(data))]


def test_sources_come_by_weight_and_clips_once_in_a_pass(config: Config) -> None:
    sources = [(Numbered("a", 7), 3.0), (Numbered("b", 11, first=100), 1.0)]
    data = EditClips(sources, config, count=800, seed=1)
    found = clips(data)
    assert abs(np.mean(np.array(found) < 100) - 0.75) < 0.04
    for low, size in ((0, 7), (100, 11)):
        own = [c - low for c in found if (c >= 100) == (low == 100)]
        passes = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert all(sorted(p) == list(range(size)) for p in passes)
        assert len({tuple(p) for p in passes}) > len(passes) / 2  # each in another order
    assert clips(EditClips(sources, config, count=50, seed=1)) == found[:50]
    assert clips(EditClips(sources, config, count=50, seed=2)) != found[:50]


def test_an_item_is_the_same_in_any_order_and_by_any_worker(
    make: Maker, triplet: Callable[..., None], tmp_path: Path
) -> None:
    config = load_config("tiny", [*SIZE, "data.stride=3", 'data.crop="random"'])
    for name in "abc":
        triplet(tmp_path / "triplets", name)
        frames = make.frames(9, height=32, width=40)
        make.folder(tmp_path / "davis" / "JPEGImages" / "480p" / name, frames, suffix="jpg")
        labels = np.zeros((9, 32, 40), np.uint8)
        labels[:, 8:24, 8:20], labels[:, 8:24, 24:36] = 1, 2
        make.labels(tmp_path / "davis" / "Annotations" / "480p" / name, labels)
    sources = [(open_source(tmp_path / "triplets"), 1.0), (open_source(tmp_path / "davis"), 1.0)]
    data = EditClips([*sources, (open_source("procedural"), 0.5)], config, count=18, seed=3)
    backwards = [data[i] for i in reversed(range(18))][::-1]
    loader = DataLoader(data, batch_size=None, num_workers=2)
    for i, (one, other) in enumerate(zip(backwards, loader, strict=True)):
        assert one.task == other.task and one.mask.any(), i
        for part in ("source", "target", "mask"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    assert len({sample.source.tobytes() for sample in backwards}) > 15


def test_procedural_clips_alone_are_what_they_always_were(config: Config) -> None:
    data = EditClips([(open_source("procedural"), 1.0)], config, count=3, seed=7)
    before = ProceduralClips(3, 7, frames=4, height=16, width=16)
    for i in range(3):
        np.testing.assert_array_equal(data[i].source, before[i].source)
        np.testing.assert_array_equal(data[i].target, before[i].target)


def test_donors_are_other_clips_with_masks(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def stand_in(
        clip: MaskedClip, *, donor: Callable[[], MaskedClip], rng: Generator, config: object
    ) -> EditSample:
        asked.append((int(clip.frames[0, 0, 0, 0]), int(donor().frames[0, 0, 0, 0])))
        return EditSample(clip.frames, clip.frames, clip.mask)

    monkeypatch.setattr("genprop.data.mixture.draw_edit", stand_in)
    masked = [
        (Numbered("a", 5, pairs=False), 1.0),
        (Numbered("b", 5, pairs=False, broken=(0, 1), first=50), 3.0),
    ]
    data = EditClips([*masked, (Numbered("pairs", 5, first=100), 1.0)], config, count=400, seed=0)
    clips(data)
    assert all(clip != donor for clip, donor in asked)
    assert {donor for _, donor in asked} == {0, 1, 2, 3, 4, 52, 53, 54}
    assert 0.5 < np.mean([donor >= 50 for _, donor in asked]) < 0.75  # 3 * 3/5 to 1 of those that can be read
    asked.clear()
    for only in (Numbered("one", 1, pairs=False), Numbered("two", 2, pairs=False, broken=(1,))):
        clips(EditClips([(only, 1.0)], config, count=2, seed=0))
    assert asked == [(0, 0)] * 4  # its own object is better than none


def test_a_broken_clip_is_stood_in_for_and_named_once(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    faults = FaultLog()
    data = EditClips([(Numbered("a", 6, broken=(1, 4)), 1.0)], config, count=60, seed=0, faults=faults)
    found = clips(data)
    assert found == clips(data) and set(found) == {0, 2, 3, 5}
    assert min(Counter(found).values()) >= 10
    assert faults.counts() == {"skipped": 2}
    assert sorted(r.getMessage() for r in caplog.records) == [
        f"skipped a-{i}, a clip of a: a-{i} is broken" for i in (1, 4)
    ]


def test_an_unusual_clip_is_read_and_named(make: Maker, tmp_path: Path, config: Config) -> None:
    for part in FOLDERS:
        make.clip(tmp_path / part / "odd.mp4", make.half(6, height=25, width=33))
    faults = FaultLog(tmp_path / "faults.jsonl")
    clips(EditClips([(open_source(tmp_path), 1.0)], config, count=3, seed=0, faults=faults))
    assert faults.counts() == {"read": 1}
    line = json.loads((tmp_path / "faults.jsonl").read_text())
    assert line["fault"] == "odd size 33x25: resized"  # once, though all three parts are


def test_another_source_stands_in_for_one_that_is_all_broken(config: Config) -> None:
    sources = [(Numbered("a", 2, broken=(0, 1)), 5.0), (Numbered("b", 3, first=100), 1.0)]
    assert set(clips(EditClips(sources, config, count=20, seed=0))) <= {100, 101, 102}


def test_if_everything_is_broken_it_is_an_error(config: Config) -> None:
    data = EditClips([(Numbered("a", 2, broken=(0, 1)), 1.0)], config, count=1, seed=0)
    with pytest.raises(
        GenPropError, match=r"none of the 2 clips can be read; the first is a-. *: a-. is broken"
    ):
        data[0]


def test_a_bug_is_not_taken_for_a_broken_clip(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Numbered, "read", bug)
    with pytest.raises(ZeroDivisionError):
        EditClips([(Numbered("a", 2), 1.0)], config, count=1, seed=0)[0]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [-1.0]])
def test_weights_are_above_zero(config: Config, weights: list[float]) -> None:
    with pytest.raises(GenPropError, match="all above 0"):
        EditClips([(Numbered("a", 1), w) for w in weights], config, count=1, seed=0)


def test_items_end_with_the_count(config: Config) -> None:
    data = EditClips([(Numbered("a", 1), 1.0)], config, count=2, seed=0)
    assert len(data) == 2
    for item in (-1, 2):
        with pytest.raises(IndexError):
            data[item]


# 200 clips, 20 of them broken, each in its own way: what the line in the log has to say of it, and whether
# the clip is read all the same.

BROKEN: dict[str, tuple[str, str]] = {
    "truncated-video": ("original_videos/truncated-video.mp4: truncated", "skipped"),
    "truncated-edited": ("edited_videos/truncated-edited.mp4: truncated", "skipped"),
    "truncated-mask": ("masks/truncated-mask.mp4: truncated", "skipped"),
    "truncated-index": ("its index cannot be read", "skipped"),
    "zero-video": ("original_videos/zero-video.mp4: zero bytes", "skipped"),
    "zero-mask": ("masks/zero-mask.mp4: zero bytes", "skipped"),
    "unknown-codec": ("codec cannot be decoded", "skipped"),
    "other-codec": ("codec mpeg4, expected one of", "read"),
    "no-video": ("cannot be decoded as a video", "skipped"),
    "no-mask": ("mask missing", "skipped"),
    "no-edited": ("edited video missing", "skipped"),
    "short-mask": ("the mask has 5 frames, the video 6", "skipped"),
    "long-edited": ("the edited video has 7 frames, the video 6", "skipped"),
    "too-short": ("it has 3 frames, expected at least 4", "skipped"),
    "odd": ("odd size 33x25: resized", "read"),
    "other-size": ("the edited video has frames of 48x24, expected 32x24", "skipped"),
    "variable": ("variable frame rate: frames are taken as they come", "read"),
    "turned": ("rotated by -90 degrees: turned upright", "read"),
    "turned-video": ("rotated by -90 degrees: turned upright; ", "skipped"),
    "ten-bit": ("10 bit: reduced to 8", "read"),
}


@pytest.fixture(scope="module")
def two_hundred(make: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triplets")
    frames, mask = make.noise(6), make.half(6)
    for part, content in zip(FOLDERS, (frames, frames, mask), strict=True):
        first = make.clip(root / part / "000.mp4", content)
        for name in (*(f"{i:03d}" for i in range(1, 180)), *BROKEN):
            shutil.copy(first, root / part / f"{name}.mp4")

    def at(part: int, name: str) -> Path:
        return root / FOLDERS[part] / f"{name}.mp4"

    for part, name in enumerate(("truncated-video", "truncated-edited", "truncated-mask")):
        make.clip(at(part, name), frames)  # a mask of the left half is too small a file to lose frames
        make.cut(at(part, name))
    make.cut(make.video(at(0, "truncated-index"), frames))
    at(0, "zero-video").write_bytes(b"")
    at(2, "zero-mask").write_bytes(b"")
    at(0, "unknown-codec").write_bytes(at(0, "000").read_bytes().replace(b"avc1", b"zzzz"))
    make.video(at(0, "other-codec"), frames, codec="mpeg4")
    at(1, "no-video").write_text("not a video, " * 99)
    at(2, "no-mask").unlink()
    at(1, "no-edited").unlink()
    make.clip(at(2, "short-mask"), make.half(5))
    make.clip(at(1, "long-edited"), make.noise(7))
    for part in range(3):
        make.clip(at(part, "too-short"), make.half(3))
        make.clip(at(part, "odd"), make.half(6, height=25, width=33))
        make.turned(at(part, "turned"))
    make.clip(at(1, "other-size"), make.noise(6, width=48))
    make.video(at(0, "variable"), frames, times=[0, 1, 2, 6, 7, 8])
    make.turned(at(0, "turned-video"))
    make.video(at(0, "ten-bit"), frames, pix_fmt="yuv420p10le")
    return root


def test_of_200_clips_20_broken_ones_are_named_in_20_lines(
    two_hundred: Path, tmp_path: Path, config: Config
) -> None:
    source = open_source(two_hundred)
    assert len(source.names) == 200
    path = tmp_path / "faults.jsonl"
    data = EditClips([(source, 1.0)], config, count=200, seed=0, faults=FaultLog(path))
    loader = DataLoader(data, batch_size=None, num_workers=2)
    assert sum(sample.target.shape == (4, 16, 16, 3) for sample in loader) == 200
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["source"] for line in lines} == {str(two_hundred)}
    assert len(lines) == 20 and {line["clip"] for line in lines} == set(BROKEN)
    for line in lines:
        words, action = BROKEN[line["clip"]]
        assert words in line["fault"] and line["action"] == action, line
    assert FaultLog(path).counts() == {"skipped": 15, "read": 5}
    # a resumed run meets them again, and adds nothing
    again = EditClips([(source, 1.0)], config, count=400, seed=0, faults=FaultLog(path))
    for item in range(200, 240):
        again[item]
    assert len(path.read_text().splitlines()) == 20


@pytest.mark.slow
def test_200_clips_train_through_with_20_lines(
    two_hundred: Path, tmp_path: Path, small_base: Base, small_config: Config
) -> None:
    """Straight from the clips: every one of them is met, for training or held out."""
    save_base(small_base, tmp_path / "base")
    table = small_config.model_dump()
    table["clip"]["frames"] = 4
    table["data"] |= {"cache": False, "count": 208, "validation": 40}
    table["teacher"] |= {"steps": 26, "batch_size": 8, "workers": 1}
    summary = train(
        "teacher", parse_config(table), data=[str(two_hundred)], base=tmp_path / "base", out=tmp_path / "run"
    )
    assert summary["steps"] == 26 and np.isfinite(summary["loss"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and {line["clip"] for line in lines} == set(BROKEN)
    assert all(BROKEN[line["clip"]][0] in line["fault"] for line in lines)
