"""`genprop export` and what `genprop run` says of an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genprop.manifest import FILE, Manifest, read_manifest
from genprop.video import write_image

Genprop = Callable[..., Any]
Refused = Callable[..., Any]


def test_explain_says_what_would_be_made_and_makes_nothing(genprop: Genprop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = genprop("export", "tiny", "--out", out, "--explain", "--json").document
    assert document["explain"] == [f"graphs: would be exported, for {out} holds no export"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--min-size", "small"), ["--min-size is 'small'", "HEIGHTxWIDTH"]),
        (("--min-size", "64x64"), ["carry", "one size"]),
    ],
)
def test_a_size_that_cannot_be_is_refused(
    refused: Refused, tmp_path: Path, arguments: tuple[str, ...], naming: list[str]
) -> None:
    refused("export", "tiny", "--out", tmp_path / "out", *arguments, naming=naming)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--size", "100x96"), ["the size is 100x96", "in steps of 16"]),
        (
            ("--model", "tiny-teacher", "--decoder", "light"),
            ["has no light decoder", "genprop distill --stage decoder"],
        ),
        (("--backend", "tensorrt-rtx"), ["is a bundle", "genprop export tiny --to tensorrt-rtx"]),
    ],
)
def test_run_refuses_what_the_model_has_not(
    refused: Refused, clip: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], naming: list[str]
) -> None:
    write_image(tmp_path / "edited.png", clip()[0])
    given = ("run", tmp_path / "clip.mp4", "--no-guide", "--edited", tmp_path / "edited.png")
    refused(*given, *arguments, naming=naming)


def test_run_at_another_size_and_says_why_this_backend(
    genprop: Genprop, clip: Callable[..., Any], tmp_path: Path
) -> None:
    write_image(tmp_path / "edited.png", clip()[0])
    given = (
        "run",
        tmp_path / "clip.mp4",
        "--no-guide",
        "--edited",
        tmp_path / "edited.png",
        "--size",
        "64x80",
    )
    document = genprop(*given, "--steps", "1", "--json").document
    assert document["why"].startswith("bundle on") and document["evaluations"] >= 1


@pytest.mark.slow  # captures a denoiser
def test_an_export_without_checks_is_run_only_when_told_to(
    genprop: Genprop, refused: Refused, students: dict[str, Path], clip: Callable[..., Any], tmp_path: Path
) -> None:
    write_image(tmp_path / "edited.png", clip()[0])
    export, video = (
        tmp_path / "export",
        ("run", tmp_path / "clip.mp4", "--no-guide", "--edited", tmp_path / "edited.png"),
    )
    genprop("export", students["everywhere"], "--out", export, "--no-verify")
    assert read_manifest(export).checks == ()
    refused(*video, "--model", export, naming=["without verification", "--unverified"])
    assert genprop(*video, "--model", export, "--unverified", "--json").document["backend"] == "onnxruntime"
    document = genprop("export", students["everywhere"], "--out", export, "--json").document
    assert Manifest.model_validate(document).verified  # the graphs were kept, and checked
    assert genprop(*video, "--model", export, "--strict", "--json").document["backend"] == "onnxruntime"
    repository = tmp_path / "models"
    genprop("export", students["everywhere"], "--out", export, "--triton", repository)
    assert (repository / "genprop" / "1" / "export" / FILE).is_file()


def test_a_repository_of_what_is_not_verified_is_refused_early(refused: Refused, tmp_path: Path) -> None:
    given = ("export", "tiny", "--out", tmp_path / "out", "--triton", tmp_path / "models", "--no-verify")
    refused(*given, naming=["--triton serves what was verified", "--no-verify"])


def test_a_light_decoder_is_trained_for_the_student_that_was_named(
    genprop: Genprop, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(student: str, config: Any, *, data: list[str], out: Path, resume: bool) -> dict[str, Any]:
        return {"student": f"{out}/student", "steps": config.decoder.steps, "of": student, "data": data}

    monkeypatch.setattr("genprop.distill.decoder.distill_decoder", train)
    run = ("distill", "--stage", "decoder", "--student", "mine", "--out", tmp_path / "run")
    document = genprop(*run, "--set", "decoder.steps=7", "--json").document
    assert document["out"] == f"{tmp_path}/run/student" and document["of"] == "mine"
    assert (document["steps"], document["data"]) == (7, ["procedural"])
    refused(*run, "--dry-run", naming=["--dry-run", "--stage decoder"])
