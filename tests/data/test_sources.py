"""Which layout a folder has, which part of it is opened, and what a check of it says."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from genprop.data.check import check_source
from genprop.data.davis import AnnotatedClips
from genprop.data.rovi import Rovi
from genprop.data.sources import Procedural, open_source
from genprop.data.split import write_split
from genprop.data.triplets import Triplets
from genprop.errors import GenPropError

if TYPE_CHECKING:
    from conftest import Maker


def test_layouts_are_told_apart(make: Maker, triplet: Callable[..., None], tmp_path: Path) -> None:
    triplet(tmp_path / "triplets", "a", counts=(1, 1, 1))
    davis, vos, train, rovi = (tmp_path / name for name in ("davis", "vos", "vos-train", "rovi"))
    labels = np.ones((1, 24, 32), np.uint8)
    for folder in (
        davis / "JPEGImages/480p",
        vos / "JPEGImages",
        train / "train/JPEGImages",
        rovi / "JPEGImages",
    ):
        make.folder(folder / "a", make.frames(1), suffix="jpg")
    for folder in (
        davis / "Annotations/480p",
        vos / "Annotations",
        train / "train/Annotations",
        rovi / "masks",
    ):
        make.labels(folder / "a", labels)
    make.folder(rovi / "inpainting" / "a", make.frames(1))
    kinds = {"triplets": Triplets, "rovi": Rovi, "davis": AnnotatedClips, "vos": AnnotatedClips}
    for name, kind in (kinds | {"vos-train": AnnotatedClips}).items():
        source = open_source(tmp_path / name)
        assert type(source) is kind and source.names == ["a"]
        assert pickle.loads(pickle.dumps(source)).names == ["a"]
        reports = check_source(source)
        assert [(r.clip, r.frames, r.faults) for r in reports] == [("a", 1, [])]
    chosen = open_source(davis, instance=3, resolution="480p")
    assert isinstance(chosen, AnnotatedClips) and chosen.instance == 3
    assert isinstance(open_source("procedural"), Procedural)


def test_an_unknown_layout_is_told_which_are_known(tmp_path: Path) -> None:
    (tmp_path / "JPEGImage").mkdir()
    with pytest.raises(GenPropError) as error:
        open_source(tmp_path)
    assert all(word in error.value.message for word in ("triplets", "ROVI", "DAVIS", "YouTube-VOS", "masks"))
    with pytest.raises(GenPropError, match="is not a folder") as error:
        open_source(tmp_path / "none")
    assert "'procedural'" in error.value.hint
    with pytest.raises(GenPropError, match="has no edited_videos, masks"):
        (tmp_path / "original_videos").mkdir()
        open_source(tmp_path)


def test_a_split_is_read_in_parts(
    triplet: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, file = tmp_path / "data", tmp_path / "split.json"
    for i in range(8):
        triplet(data, f"{i}", counts=(1, 1, 1))
    before = sorted(data.rglob("*"))
    parts = write_split(file, open_source(data), 0.4, 0)
    assert sorted(data.rglob("*")) == before
    for part in ("train", "validation"):
        assert open_source(data, split=file, part=part).names == parts[part]
    assert not caplog.records
    with pytest.raises(GenPropError, match="has no split"):
        open_source(data, part="validation")
    triplet(data, "new", counts=(1, 1, 1))
    assert open_source(data, split=file).names == parts["train"]
    assert caplog.records[0].levelno == logging.WARNING and "1 clips are in no part" in caplog.text
    file.write_text('{"train": ["gone"], "validation": []}')
    with pytest.raises(GenPropError, match="no clips for train"):
        open_source(data, split=file)


def test_a_check_reads_everything_and_says_what_is_fine_too(make: Maker, tmp_path: Path) -> None:
    for name in ("fine", "bad", "odd"):
        size = {"height": 25, "width": 33} if name == "odd" else {}
        for part in ("original_videos", "edited_videos"):
            make.clip(tmp_path / part / f"{name}.mp4", make.frames(5, **size))
        make.folder(tmp_path / "masks" / name, make.half(5, **size))
    (tmp_path / "masks" / "bad" / "00004.png").write_bytes(b"\x89PNG, almost")  # no window need meet it
    bad, fine, odd = check_source(open_source(tmp_path))
    assert fine == ("fine", 5, (32, 24), Fraction(8), [], True)
    assert odd == ("odd", 5, (33, 25), Fraction(8), ["odd size 33x25: resized"], True)
    assert bad[:4] == ("bad", None, None, None) and not bad.usable
    assert len(bad.faults) == 1 and "00004.png is not a picture" in bad.faults[0]


def test_an_empty_mask_does_not_pass_a_check(make: Maker, tmp_path: Path) -> None:
    for part in ("original_videos", "edited_videos", "masks"):
        make.folder(tmp_path / part / "a", 0 * make.half(2))
    assert "the mask is empty in all frames" in check_source(open_source(tmp_path))[0].faults[0]


def test_what_is_drawn_cannot_be_checked() -> None:
    with pytest.raises(GenPropError, match="procedural clips are drawn"):
        check_source(open_source("procedural"))
