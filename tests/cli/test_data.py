"""`genprop data check` and `split`, what `--data` takes, and `--dry-run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genprop.config import load_config
from genprop.data.triplets import FOLDERS
from genprop.errors import GenPropError
from genprop.teacher.samples import cached, edit_samples, parse_source
from genprop.video import write_clip

Genprop = Callable[..., Any]


@pytest.fixture
def triplets(tmp_path: Path) -> Path:
    """Six triplets of four frames, one of them without a mask and one with an empty file."""
    rng = np.random.default_rng(0)
    for index in range(6):
        for part in FOLDERS:
            frames = rng.integers(0, 256, (4, 24, 32, 3), np.uint8)
            (tmp_path / "clips" / part).mkdir(parents=True, exist_ok=True)
            write_clip(tmp_path / "clips" / part / f"{index}.mp4", frames, fps=Fraction(8))
    (tmp_path / "clips" / "masks" / "1.mp4").unlink()
    (tmp_path / "clips" / "original_videos" / "4.mp4").write_bytes(b"")
    return tmp_path / "clips"


def test_check_says_of_every_clip_what_is_wrong(genprop: Genprop, triplets: Path) -> None:
    outcome = genprop("data", "check", triplets, "--json")
    reports = {report["clip"]: report for report in outcome.document}
    assert sorted(reports) == list("012345")
    assert [name for name, report in reports.items() if not report["usable"]] == ["1", "4"]
    assert "mask missing" in reports["1"]["faults"][0] and "zero bytes" in reports["4"]["faults"][0]
    assert (reports["0"]["frames"], reports["0"]["size"], reports["0"]["faults"]) == (4, [32, 24], [])
    assert "6 clips, 2 of them cannot be used" in outcome.err and "zero bytes" in outcome.err


def test_a_split_moves_nothing_and_is_data(genprop: Genprop, triplets: Path, tmp_path: Path) -> None:
    before = sorted(path.relative_to(triplets) for path in triplets.rglob("*"))
    out = tmp_path / "split.json"
    outcome = genprop("data", "split", triplets, "--out", out, "--fraction", 0.4, "--seed", 1, "--json")
    counts = outcome.document
    assert counts["train"] + counts["validation"] == 6 and counts["train"] > counts["validation"] > 0
    assert sorted(path.relative_to(triplets) for path in triplets.rglob("*")) == before
    parts = json.loads(out.read_text())
    training, held_out = edit_samples([str(out)], load_config("tiny"))
    assert training.sources[0].names == parts["train"]
    assert held_out.sources[0].names == parts["validation"]


def test_without_a_split_a_part_is_held_out(triplets: Path) -> None:
    training, held_out = edit_samples([f"{triplets}=3", "procedural"], load_config("tiny"))
    names = [set(samples.sources[0].names) for samples in (training, held_out)]
    assert names[0] | names[1] == set("012345") and not names[0] & names[1]
    assert training.weights.tolist() == held_out.weights.tolist() == [0.75, 0.25]
    assert training.seed != held_out.seed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", ("a/b", 1.0)),
        ("a=0.5", ("a", 0.5)),
        ("a=b=2", ("a=b", 2.0)),
        ("procedural", ("procedural", 1)),
    ],
)
def test_a_weight_follows_the_last_sign(text: str, expected: tuple[str, float]) -> None:
    assert parse_source(text) == expected


def test_a_path_with_a_sign_in_it_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a=3").mkdir()
    assert parse_source(str(tmp_path / "a=3")) == (str(tmp_path / "a=3"), 1.0)


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(GenPropError, match="the weight of a is 'much', expected a number"):
        parse_source("a=much")


def test_encoded_samples_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    assert cached([str(tmp_path)]) == tmp_path and cached(["procedural"]) is None
    with pytest.raises(GenPropError, match="cannot be mixed with 1 more"):
        cached([str(tmp_path), "procedural"])


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_dry_run_plans_and_touches_nothing(
    genprop: Genprop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("--base", "tiny-base") if command == "train" else ()
    outcome = genprop(command, *base, "--dry-run", "--json")
    document = outcome.document
    parts = {part["name"]: part for part in document["parts"]}
    assert parts["backbone"]["parameters"] > 3e6 and parts["content encoder"]["trained"] > 5e5
    assert 0 < document["trained"] < document["parameters"]
    assert document["peak"] == max(piece["total"] for piece in document["memory"]) > 0
    assert "of the parameters train" in outcome.err and "forward and backward" in outcome.err
    assert not list(tmp_path.iterdir())


def test_what_cannot_fit_is_refused_before_anything_is_loaded(
    genprop: Genprop, students: dict[str, Path], preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genprop.teacher.train.available_memory", lambda: 1_000_000)
    base = students["nowhere"].parent / "base"
    outcome = genprop("train", "--config", preset, "--base", base, "--out", tmp_path / "run")
    error, hint = outcome.err.splitlines()[-2:]
    assert outcome.code == 1 and not (tmp_path / "run").exists()
    assert "teacher does not fit" in error and "expected at most 0.001 GB" in error
    assert "--set teacher.checkpointing=true" in hint or "--set clip.frames=2" in hint
