"""The commands as such: help, exit codes, what goes to stdout, and the script that is installed."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genprop import __version__
from genprop.cli import print_json
from genprop.errors import GenPropError
from genprop.video import write_image

Genprop = Callable[..., Any]
Refused = Callable[..., None]

COMMANDS = ("demo", "run", "train", "distill", "export", "bench", "data", "data encode", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(genprop: Genprop, command: str) -> None:
    outcome = genprop(*command.split(), "--help")
    assert outcome.code == 0 and f"Usage: genprop {command}" in outcome.out and not outcome.err


def test_help_lists_every_command(genprop: Genprop) -> None:
    outcome = genprop("--help")
    assert outcome.code == 0
    assert all(f" {command.split()[0]} " in outcome.out for command in COMMANDS)


def test_an_unknown_command_is_exit_2(genprop: Genprop) -> None:
    outcome = genprop("paint")
    assert (outcome.code, outcome.out) == (2, "") and "paint" in outcome.err


def test_info(genprop: Genprop) -> None:
    outcome = genprop("info", "--json")
    facts = outcome.document
    assert facts["genprop"] == __version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "diffusers", "onnxruntime", "device", "libraries", "models"} <= set(facts)
    assert all(key in outcome.err for key in facts)  # the table, for a person
    assert genprop("info").out == ""


def test_the_installed_script_prints_one_document() -> None:
    script = shutil.which("genprop", path=str(Path(sys.executable).parent))
    assert script, "no genprop beside the interpreter: pip install -e ."
    done = subprocess.run([script, "info", "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["genprop"] == __version__


def test_numbers_that_json_does_not_have_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("nan"), "b": [float("inf"), -1.5], 2: Path("x")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, -1.5],
        "2": "x",
    }


@pytest.mark.parametrize(
    ("raised", "error", "hint"),
    [
        (GenPropError("got [b]1[/x], expected 2", "use 2"), "got [b]1[/x], expected 2", "use 2"),
        (GenPropError("long " * 100 + "end"), "long " * 100 + "end", None),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "'a/b'", "there is room"),
    ],
)
def test_an_error_is_a_line_and_a_hint_another(
    genprop: Genprop, monkeypatch: pytest.MonkeyPatch, raised: Exception, error: str, hint: str | None
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("genprop.runtime.info.describe", fail)
    outcome = genprop("info", "--json")
    lines = outcome.err.splitlines()
    assert (outcome.code, outcome.out, len(lines)) == (1, "", 1 if hint is None else 2)
    assert lines[0].startswith("error: ") and error in lines[0]
    assert hint is None or (lines[1].startswith("hint: ") and hint in lines[1])


def test_a_bug_keeps_its_traceback(genprop: Genprop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genprop.runtime.info.describe", lambda: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        genprop("info")


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("MODEL", "--out", "/proc/export"), ["/proc/export cannot be written", "give another --out"]),
        (("MODEL", "--out", "a file"), ["a file is a file, expected a folder"]),
        (("MODEL", "--out", "."), ["holds other things than an export", "expected an empty folder"]),
        (("missing",), ["no model named 'missing'", "tiny"]),
        ((".",), [". is not a bundle", "no bundle.json"]),
    ],
)
def test_an_export_that_cannot_be(
    refused: Refused,
    students: dict[str, Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    naming: list[str],
) -> None:
    (tmp_path / "a file").write_text("")
    model = {"MODEL": students["nowhere"]}
    refused("export", *(model.get(part, part) for part in arguments), naming=naming)


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (("--teacher", "missing"), ["no model named 'missing'", "tiny"]),
        (("--teacher", "MODEL"), ["is a student, expected a teacher"]),
    ],
)
def test_a_demo_that_cannot_be(
    refused: Refused, students: dict[str, Path], arguments: tuple[str, ...], naming: list[str]
) -> None:
    model = {"MODEL": students["nowhere"]}
    chosen = (model.get(part, part) for part in arguments)
    refused("demo", "--model", students["nowhere"], *chosen, naming=naming)


@pytest.mark.slow  # captures a denoiser
def test_export_and_run_what_was_exported(
    genprop: Genprop, students: dict[str, Path], clip: Callable[..., Any], tmp_path: Path
) -> None:
    write_image(tmp_path / "edited.png", clip()[0])
    export = tmp_path / "export"
    manifest = genprop("export", students["everywhere"], "--out", export, "--json").document
    assert manifest["checks"] and all(check["error"] < 1e-4 for check in manifest["checks"])
    assert {path.name for path in export.iterdir()} == {*manifest["files"], "manifest.json"}
    document = genprop(
        "run",
        tmp_path / "clip.mp4",
        "--no-guide",
        "--edited",
        tmp_path / "edited.png",
        "--model",
        export,
        "--json",
    ).document
    assert (document["backend"], document["evaluations"], document["frames"]) == ("onnxruntime", 8, 4)
