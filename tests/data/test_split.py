"""Splits: seeded, stable, near the fraction, and never empty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator

from genprop.data.footage import Note
from genprop.data.split import read_split, write_split
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.types import EditSample


class Names:
    """A source with names, which is all that a split looks at."""

    where, pairs = "names", True

    def __init__(self, count: int) -> None:
        self.names = [f"clip-{i}" for i in range(count)]

    def read(self, index: int, rng: Generator, view: View, *, note: Note = lambda _: None) -> EditSample:
        raise NotImplementedError


def test_each_clip_is_in_one_part_and_the_fraction_is_near(tmp_path: Path) -> None:
    source = Names(2000)
    parts = write_split(tmp_path / "split.json", source, 0.1, 0)
    assert sorted(parts["train"] + parts["validation"]) == sorted(source.names)
    assert abs(len(parts["validation"]) - 200) < 50
    assert read_split(tmp_path / "split.json") == parts
    table = json.loads((tmp_path / "split.json").read_text())
    assert (table["source"], table["seed"], table["fraction"]) == ("names", 0, 0.1)
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


def test_the_seed_decides(tmp_path: Path) -> None:
    one, again, other = (
        write_split(tmp_path / f"{i}.json", Names(300), 0.3, seed) for i, seed in enumerate((5, 5, 6))
    )
    assert one == again
    both = set(one["validation"]) & set(other["validation"])
    assert 5 < len(both) < 60  # 27 expected of independent halves


@pytest.mark.parametrize("count", [2, 3, 10, 50])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_neither_part_is_empty_and_more_clips_move_none(tmp_path: Path, count: int, fraction: float) -> None:
    path = tmp_path / "split.json"
    before = write_split(path, Names(count), fraction, 0)
    assert all(before.values())
    after = write_split(path, Names(count + 40), fraction, 0)
    for part in ("train", "validation"):
        assert set(before[part]) <= set(after[part])


def test_without_the_old_file_the_names_alone_decide(tmp_path: Path) -> None:
    small = write_split(tmp_path / "a.json", Names(200), 0.3, 0)
    large = write_split(tmp_path / "b.json", Names(400), 0.3, 0)
    assert set(small["validation"]) == set(large["validation"]) & set(Names(200).names)
    # another fraction of the same seed is a larger part, and replaces the file
    more = write_split(tmp_path / "a.json", Names(200), 0.5, 0)
    assert set(small["validation"]) < set(more["validation"])


def test_the_shares_are_right_on_average(tmp_path: Path) -> None:
    counts = [len(write_split(tmp_path / f"{s}", Names(40), 0.25, s)["validation"]) for s in range(60)]
    assert abs(np.mean(counts) - 10) < 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_fraction_that_leaves_a_part_empty_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(GenPropError, match="expected one between 0 and 1"):
        write_split(tmp_path / "split.json", Names(9), fraction, 0)


def test_one_clip_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="has 1 clip, expected at least 2"):
        write_split(tmp_path / "split.json", Names(1), 0.5, 0)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"train": 3, "validation": []}'])
def test_what_is_no_split_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "split.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GenPropError, match=r"split\.json (cannot be read|is not a split)"):
        read_split(path)
    if text is not None:
        with pytest.raises(GenPropError, match="is not a split"):
            write_split(path, Names(5), 0.5, 0)
