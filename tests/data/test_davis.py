"""DAVIS, YouTube-VOS and ROVI: what is read, which instance, which frames, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.random import PCG64, Generator

from genprop.data.check import check_source
from genprop.data.davis import davis, youtube_vos
from genprop.data.recordings import Source
from genprop.data.rovi import Rovi
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.types import EditSample, MaskedClip
from genprop.video import read_clip

if TYPE_CHECKING:
    from conftest import Maker

VIEW = View(4, 24, 32)


def three(count: int = 8, *, height: int = 24, width: int = 32) -> np.ndarray:
    """Labels: instance 1 on the left throughout, 2 on the right at first, 3 below at the end."""
    labels = np.zeros((count, height, width), np.uint8)
    labels[:, :12, :8] = 1
    labels[: count // 2, :12, 24:] = 2
    labels[-1:, 16:] = 3
    return labels


def read(source: Source, *, index: int = 0, seed: int = 0, view: View = VIEW) -> MaskedClip:
    clip = source.read(index, Generator(PCG64(seed)), view, note=pytest.fail)
    assert isinstance(clip, MaskedClip)
    return clip


def add_davis(make: Maker, root: Path, name: str, labels: np.ndarray, *, resolution: str = "480p") -> None:
    frames = make.frames(len(labels), height=labels.shape[1], width=labels.shape[2])
    make.folder(root / "JPEGImages" / resolution / name, frames, suffix="jpg")
    make.labels(root / "Annotations" / resolution / name, labels)


def test_the_mask_is_one_instance_by_its_index(make: Maker, tmp_path: Path) -> None:
    add_davis(make, tmp_path, "bear", three())
    whole = View(8, 24, 32)
    shapes = Counter()
    for seed in range(60):
        clip = read(davis(tmp_path), seed=seed, view=whole)
        which = next(k for k in (1, 2, 3) if np.array_equal(clip.mask, three() == k))
        shapes[which] += 1
        np.testing.assert_array_equal(clip.frames[:, 0, 0, 0], 10 * np.arange(8))
    # Instance 3 is not in the first frame, where an edit begins.
    assert set(shapes) == {1, 2} and min(shapes.values()) > 18
    assert np.array_equal(read(davis(tmp_path, instance=2), view=whole).mask, three() == 2)


def test_an_instance_that_is_nowhere_is_a_fault(make: Maker, tmp_path: Path) -> None:
    add_davis(make, tmp_path, "bear", three())
    with pytest.raises(GenPropError, match="the mask of instance 7 is empty in all frames"):
        read(davis(tmp_path, instance=7))


def test_davis_2016_has_one_object_of_255(make: Maker, tmp_path: Path) -> None:
    make.folder(tmp_path / "JPEGImages" / "480p" / "bear", make.frames(5), suffix="jpg")
    make.folder(tmp_path / "Annotations" / "480p" / "bear", make.half(5))
    clip = read(davis(tmp_path))
    assert clip.mask[..., :16].all() and not clip.mask[..., 16:].any()


def test_what_is_undecided_beside_instances_is_no_instance(make: Maker, tmp_path: Path) -> None:
    labels = three()
    labels[:, 20:, :] = 255
    add_davis(make, tmp_path, "bear", labels)
    for seed in range(12):
        assert not read(davis(tmp_path), seed=seed).mask[0, 20:].any()


@pytest.mark.parametrize("year", ["2017", "2016", "480p"])
def test_the_datasets_own_lists_say_what_is_for_training(make: Maker, tmp_path: Path, year: str) -> None:
    for name in ("bear", "camel", "dog"):
        add_davis(make, tmp_path, name, three())
    assert davis(tmp_path).names == ["bear", "camel", "dog"]
    with pytest.raises(GenPropError, match="no ImageSets"):
        davis(tmp_path, part="validation")
    lists = tmp_path / "ImageSets" / year
    lists.mkdir(parents=True)
    line = "/JPEGImages/480p/{0}/00000.jpg /Annotations/480p/{0}/00000.png\n" if year == "480p" else "{0}\n"
    (lists / "train.txt").write_text("".join(line.format(name) for name in ("dog", "bear", "bear", "gone")))
    (lists / "val.txt").write_text(line.format("camel"))
    assert davis(tmp_path).names == ["bear", "dog", "gone"]
    assert davis(tmp_path, part="validation").names == ["camel"]
    with pytest.raises(GenPropError, match=r"video missing: there is no folder .*gone"):
        read(davis(tmp_path), index=2)


def test_a_resolution_can_be_chosen(make: Maker, tmp_path: Path) -> None:
    add_davis(make, tmp_path, "bear", three())
    add_davis(make, tmp_path, "bear", three(height=48, width=64), resolution="Full-Resolution")
    assert davis(tmp_path).images.name == "480p"
    source = davis(tmp_path, resolution="Full-Resolution")
    assert check_source(source)[0].size == (64, 48)
    with pytest.raises(GenPropError, match=r"no 1080p in both .* frames are in 480p, Full-Resolution"):
        davis(tmp_path, resolution="1080p")


def test_unsupervised_annotations_will_do(make: Maker, tmp_path: Path) -> None:
    add_davis(make, tmp_path, "bear", three())
    (tmp_path / "Annotations").rename(tmp_path / "Annotations_unsupervised")
    assert read(davis(tmp_path)).mask.any()


def test_missing_masks_are_said(make: Maker, tmp_path: Path, notes: list[str]) -> None:
    for name in ("a", "b", "c", "d"):
        add_davis(make, tmp_path, name, three())
    masks = tmp_path / "Annotations" / "480p"
    for path in (masks / "a").iterdir():
        path.unlink()
    (masks / "b").rename(tmp_path / "elsewhere")
    (masks / "c" / "00003.png").unlink()
    (tmp_path / "JPEGImages" / "480p" / "d" / "00007.jpg").unlink()
    source = davis(tmp_path)
    for index, words in enumerate(("mask missing, for every frame of 8", "mask missing: there is no folder")):
        with pytest.raises(GenPropError, match=words):
            read(source, index=index)
    source.read(2, Generator(PCG64(0)), VIEW, note=notes.append)
    source.read(3, Generator(PCG64(0)), VIEW, note=notes.append)
    assert notes == [
        "mask missing for 1 of 8 frames: those are left out",
        "1 of 8 masks have no frame: those are left out",
    ]


def test_a_corrupt_frame_is_named(make: Maker, tmp_path: Path) -> None:
    add_davis(make, tmp_path, "a", three(4))
    for file, data in (("00002.jpg", b"no picture"), ("00002.jpg", b"")):
        (tmp_path / "JPEGImages" / "480p" / "a" / file).write_bytes(data)
        with pytest.raises(GenPropError, match=r"00002\.jpg.*(is not a picture|zero bytes)"):
            read(davis(tmp_path))


@pytest.mark.parametrize("below", ["train", "."])
def test_youtube_vos_reads_annotated_frames_only(make: Maker, tmp_path: Path, below: str) -> None:
    """Frames 0 to 22, of which every fifth has labels: 5 frames, evenly spaced, no complaint."""
    folder = tmp_path / below
    make.folder(folder / "JPEGImages" / "003234408d", make.frames(23), suffix="jpg")
    make.labels(folder / "Annotations" / "003234408d", three(5), every=5)
    (folder / "meta.json").write_text(json.dumps({"videos": {"003234408d": {"objects": {}}, "gone": {}}}))
    source = youtube_vos(tmp_path)
    assert source.names == ["003234408d", "gone"]
    clip = read(source, view=View(5, 24, 32))
    np.testing.assert_array_equal(clip.frames[:, 0, 0, 0], [0, 50, 100, 150, 200])
    (folder / "meta.json").unlink()
    assert youtube_vos(tmp_path).names == ["003234408d"]
    (folder / "meta.json").write_text("{}")
    with pytest.raises(GenPropError, match="expected a table 'videos'"):
        youtube_vos(tmp_path)


def test_rovi_pairs_frames_with_their_inpainting(make: Maker, tmp_path: Path, notes: list[str]) -> None:
    """A video with shared palette masks and two results, one with a mask of its own, one incomplete."""
    for video in ("v", "w"):
        make.folder(tmp_path / "JPEGImages" / video, make.frames(6), suffix="jpg")
    for thing in (1, 2):
        make.folder(tmp_path / "InpaintImages" / "v" / str(thing), make.frames(6) + thing)
    make.labels(tmp_path / "Annotations" / "v", three(6))
    make.folder(tmp_path / "InpaintImages" / "w" / "the dog", make.frames(5) + 9)
    make.folder(tmp_path / "Annotations" / "w" / "the dog", make.half(6))
    source = Rovi(tmp_path)
    assert source.names == ["v/1", "v/2", "w/the dog"] and source.pairs
    for index, (level, mask) in enumerate([(1, three(6)[:, :, :] == 1), (2, three(6) == 2)]):
        sample = source.read(index, Generator(PCG64(0)), View(6, 24, 32), note=pytest.fail)
        assert isinstance(sample, EditSample)
        np.testing.assert_array_equal(sample.target, sample.source + level)
        np.testing.assert_array_equal(sample.mask, mask)
    sample = source.read(2, Generator(PCG64(0)), View(5, 24, 32), note=notes.append)
    assert isinstance(sample, EditSample) and sample.mask[..., :16].all()
    assert notes == ["edited video missing for 1 of 6 frames: those are left out"]


def test_what_rovi_lacks_is_named(make: Maker, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="no JPEGImages beside"):
        Rovi(tmp_path)
    make.folder(tmp_path / "train" / "JPEGImages" / "v", make.frames(2))
    (tmp_path / "train" / "inpainted" / "v").mkdir(parents=True)
    with pytest.raises(GenPropError, match="no Annotations or masks"):
        Rovi(tmp_path)
    make.folder(tmp_path / "train" / "masks" / "v", make.half(2))
    source = Rovi(tmp_path)
    assert source.names == ["v"]
    with pytest.raises(GenPropError, match="edited video missing, no frame is inpainted"):
        source.read(0, Generator(PCG64(0)), View(1, 8, 8))


CLIPS = ("boys-beach", "camel", "cat-reflection", "kite-walk")


@pytest.fixture(scope="module")
def real_davis(shared_clips: Path, make: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 10 frames of the four real clips, at a quarter of their size, as DAVIS has them."""
    root = tmp_path_factory.mktemp("davis")
    for name in CLIPS:

        def small(file: Path, how: int) -> np.ndarray:
            frames = read_clip(file, max_frames=10).frames
            return np.stack([cv2.resize(f, None, fx=0.25, fy=0.25, interpolation=how) for f in frames])

        make.folder(
            root / "JPEGImages" / "480p" / name,
            small(shared_clips / name / "video.mp4", cv2.INTER_AREA),
            suffix="jpg",
        )
        labels = np.uint8(0)
        for number, mask in enumerate(sorted((shared_clips / name).glob("mask-[0-9].mp4")), start=1):
            labels = np.where(small(mask, cv2.INTER_NEAREST).max(-1) > 127, np.uint8(number), labels)
        assert isinstance(labels, np.ndarray)
        make.labels(root / "Annotations" / "480p" / name, labels)
    return root


def test_the_real_clips_go_through_the_davis_layout(real_davis: Path) -> None:
    source = davis(real_davis)
    assert source.names == list(CLIPS)
    for report in check_source(source):
        assert report.faults == [] and report.usable and report.frames == 10
    for index, name in enumerate(CLIPS):
        clips = [
            read(source, index=index, seed=seed, view=View(4, 64, 64, stride=3, crop="random"))
            for seed in range(8)
        ]
        for clip in clips:
            assert clip.frames.shape == (4, 64, 64, 3) and clip.frames.std() > 10
            assert clip.mask.any() and clip.mask.mean() < 0.6, name
        assert len({clip.mask.tobytes() for clip in clips}) > 4
