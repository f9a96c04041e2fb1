"""`genprop run`: the same video back but for the edit, and a clear word about whatever cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genprop.video import read_clip, write_image

Genprop = Callable[..., Any]
Refused = Callable[..., None]
Clip = Callable[..., np.ndarray]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def with_square(frame: np.ndarray) -> np.ndarray:
    """An edit that nobody could take for compression."""
    edited = frame.copy()
    edited[8:24, 8:24] = 230
    return edited


@pytest.fixture
def student(students: dict[str, Path]) -> Path:
    return students["nowhere"]


# --- what comes out ---


@pytest.mark.parametrize(
    ("frames", "height", "width", "fps"),
    [
        pytest.param(3, 32, 48, "24", id="one window"),
        pytest.param(2, 32, 48, "25", id="shorter than a window"),
        pytest.param(1, 32, 48, "25", id="one frame"),
        pytest.param(8, 33, 47, "30000/1001", id="several windows, odd sizes"),
    ],
)
def test_frames_rate_and_size_are_the_inputs_and_the_first_frame_is_the_edited_one(
    genprop: Genprop,
    student: Path,
    clip: Clip,
    tmp_path: Path,
    frames: int,
    height: int,
    width: int,
    fps: str,
) -> None:
    source = clip(frames, height, width, fps=fps)
    edited = with_square(source[0])
    write_image(tmp_path / "edited.png", edited)
    outcome = genprop(
        "run", tmp_path / "clip.mp4", "--edited", tmp_path / "edited.png", "--model", student,
        "--out", tmp_path / "out.mp4", "--steps", 2, "--json",
    )  # fmt: skip
    result = read_clip(tmp_path / "out.mp4")
    assert result.frames.shape == source.shape and result.fps == Fraction(fps)
    assert psnr(result.frames[0], edited) > 30 > psnr(source[0], edited)
    assert psnr(result.frames[:, :, 36:], source[:, :, 36:]) > 35  # away from the edit all is the source
    document = outcome.document
    assert {key: document[key] for key in ("out", "frames", "height", "width")} == {
        "out": str(tmp_path / "out.mp4"),
        "frames": frames,
        "height": height,
        "width": width,
    }
    assert frames > 3 or document["evaluations"] == 0  # the edited frame shows all of it
    assert document["backend"] == "torch" and 0 < document["edited_share"] < 0.4
    assert document["fps"] == pytest.approx(float(Fraction(fps)))
    stages = {"motion", "tracking", "propagation", "composite", "writing", "total"}
    assert set(document["seconds"]) - {"model"} == stages
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "edited.png", "out.mp4"]


def test_without_compositing_every_pixel_is_the_models(
    genprop: Genprop, student: Path, clip: Clip, tmp_path: Path
) -> None:
    source = clip()
    write_image(tmp_path / "edited.png", source[0])
    files = {}
    calls = {
        "laid over": ("--no-guide",),
        "a": ("--no-composite",),
        "a again": ("--no-composite", "--seed", 0),
        "b": ("--no-composite", "--seed", 1),
    }
    for name, options in calls.items():
        files[name] = tmp_path / f"{name}.mp4"
        outcome = genprop(
            "run", tmp_path / "clip.mp4", "--edited", tmp_path / "edited.png", "--model", student,
            "--steps", 1, "--out", files[name], *options,
        )  # fmt: skip
        assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert psnr(read_clip(files["laid over"]).frames[1:], source[1:]) > 35
    assert psnr(read_clip(files["a"]).frames[1:], source[1:]) < 25
    assert files["a"].read_bytes() == files["a again"].read_bytes() != files["b"].read_bytes()


def test_the_predicted_mask_is_written_beside_the_video(
    genprop: Genprop, students: dict[str, Path], clip: Clip, tmp_path: Path
) -> None:
    source = clip(5, 33, 47, fps="30000/1001")
    write_image(tmp_path / "edited.png", source[0])
    for name, brightness in (("everywhere", 255), ("nowhere", 0)):
        document = genprop(
            "run", tmp_path / "clip.mp4", "--edited", tmp_path / "edited.png", "--model", students[name],
            "--steps", 1, "--out", tmp_path / "out.mp4", "--save-mask", tmp_path / f"{name}.mp4", "--json",
            "--no-guide",
        ).document  # fmt: skip
        mask = read_clip(tmp_path / f"{name}.mp4")
        assert mask.frames.shape == source.shape and mask.fps == Fraction(30000, 1001)
        assert np.abs(mask.frames.astype(int) - brightness).max() <= 2
        assert document["edited_share"] == brightness / 255


def test_a_mask_fills_the_first_frame(genprop: Genprop, student: Path, clip: Clip, tmp_path: Path) -> None:
    frames = clip()
    frames[:, 10:18, 20:28] = 255  # an object on the gradient
    for index, frame in enumerate(frames):
        (tmp_path / "frames").mkdir(exist_ok=True)
        write_image(tmp_path / "frames" / f"{index}.png", frame)
    mask = np.zeros((32, 48), np.uint8)
    mask[10:18, 20:28] = 255
    write_image(tmp_path / "mask.png", mask)
    outcome = genprop("run", tmp_path / "frames", "--mask", tmp_path / "mask.png", "--model", student)
    assert outcome.code == 0, outcome.err
    result = read_clip(tmp_path / "frames-genprop.mp4")  # the default name, and a folder's default rate
    assert result.frames.shape == frames.shape and result.fps == 16
    assert result.frames[:, 12:16, 22:26].max() < 215  # gone from every frame


def test_a_folder_called_dot_has_a_name_all_the_same(
    genprop: Genprop, student: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames").mkdir()
    write_image(tmp_path / "frames" / "0.png", clip()[0])
    write_image(tmp_path / "edited.png", with_square(clip()[0]))
    monkeypatch.chdir(tmp_path / "frames")
    assert genprop("run", ".", "--edited", "../edited.png", "--model", student, "--steps", 1).code == 0
    assert (tmp_path / "frames-genprop.mp4").is_file()


# --- what is refused ---


@pytest.fixture
def arguments(clip: Clip, student: Path, tmp_path: Path) -> dict[str, object]:
    """A call that would work."""
    write_image(tmp_path / "edited.png", with_square(clip()[0]))
    return {"": "clip.mp4", "--edited": "edited.png", "--model": student, "--out": "out.mp4"}


def flat(arguments: dict[str, object]) -> list[object]:
    """Options and values in a row; None leaves an option out, and the positional one has no name."""
    return [part for pair in arguments.items() if pair[1] is not None for part in pair if part != ""]


def test_the_call_that_the_refusals_change_one_thing_of_works(
    genprop: Genprop, arguments: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert genprop("run", *flat(arguments)).code == 0 and Path("out.mp4").is_file()


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        ({"": "missing.mp4"}, ["missing.mp4 does not exist", "expected a video"]),
        ({"": "edited.png"}, ["edited.png is a picture", "expected a video"]),
        ({"--edited": "missing.png"}, ["missing.png cannot be read", "No such file"]),
        ({"--edited": "clip.mp4"}, ["clip.mp4 is not a picture", "expected png or jpg"]),
        ({"--out": "missing/out.mp4"}, ["folder missing does not exist"]),
        ({"--out": "/proc/out.mp4"}, ["/proc"]),
        ({"--out": "edited.png/out.mp4"}, ["edited.png does not exist"]),
        ({"--out": "out.gif"}, ["out.gif ends in '.gif'", ".mp4"]),
        ({"--out": "clip.mp4"}, ["clip.mp4 is an input", "expected a file of its own"]),
        ({"--save-mask": "./out.mp4"}, ["out.mp4 is an input or another output"]),
        ({"--save-mask": "missing/mask.mp4"}, ["folder missing does not exist"]),
        ({"--save-mask": "/proc/mask.mp4"}, ["/proc"]),
        ({"--steps": 3}, ["does not know 3 steps", "expected one of 1, 2, 4"]),
        ({"--steps": 0}, ["does not know 0 steps", "expected one of 1, 2, 4"]),
        ({"--task": "paint"}, ["no task 'paint'", "remove, insert, track, deblur"]),
        ({"--task": "track"}, ["the model has no task embedding", "expected 'remove'"]),
        ({"--guidance": 2}, ["the guidance is 2", "has its own baked in", "distil a student"]),
        ({"--model": "huge"}, ["no model named 'huge'", "tiny"]),
        ({"--model": "."}, [". is not a bundle", "no bundle.json"]),
        ({"--backend": "cuda"}, ["no backend named 'cuda'", "torch, compile, onnxruntime"]),
        ({"--backend": "onnxruntime"}, ["runs export folders", "genprop export"]),
    ],
)
def test_arguments_that_do_not_fit(
    refused: Refused, arguments: dict[str, object], change: dict[str, object], naming: list[str]
) -> None:
    refused("run", *flat(arguments | change), naming=naming)


def test_what_is_not_a_video(refused: Refused, arguments: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video\n" * 100)
    arguments[""] = "notes.mp4"
    refused("run", *flat(arguments), naming=["notes.mp4 cannot be decoded as a video", "complete video"])


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_a_truncated_mp4(
    refused: Refused, arguments: dict[str, object], clip: Clip, tmp_path: Path, keep: float
) -> None:
    clip(24)
    data = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data[: int(keep * len(data))])
    refused("run", *flat(arguments), naming=["clip.mp4", "Give a complete video"])


def test_no_frames(refused: Refused, arguments: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments[""] = "empty"
    refused("run", *flat(arguments), naming=["empty holds no frames", "expected at least one"])


@pytest.mark.parametrize(
    ("size", "naming"),
    [
        ((64, 96), ["edited frame is 96x64", "video is 48x32", "another size", "Resize the edited frame"]),
        (
            (32, 32),
            ["edited frame is 32x32", "video is 48x32", "another aspect ratio (1.000, expected 1.500)"],
        ),
    ],
)
def test_an_edited_frame_of_another_size_or_aspect(
    refused: Refused,
    arguments: dict[str, object],
    tmp_path: Path,
    size: tuple[int, int],
    naming: list[str],
) -> None:
    write_image(tmp_path / "edited.png", np.zeros((*size, 3), np.uint8))
    refused("run", *flat(arguments), naming=naming)


@pytest.mark.parametrize(
    ("size", "value", "naming"),
    [
        ((32, 48), 0, ["mask.png is empty", "brightest pixel is 0", "expected more than 127"]),
        ((32, 48), 120, ["mask.png is empty", "brightest pixel is 120", "expected more than 127"]),
        ((16, 24), 255, ["mask.png is 24x16", "video is 48x32"]),
        ((32, 48), 255, ["covers the whole frame"]),
    ],
)
def test_a_mask_that_is_empty_full_or_of_another_size(
    refused: Refused,
    arguments: dict[str, object],
    tmp_path: Path,
    size: tuple[int, int],
    value: int,
    naming: list[str],
) -> None:
    write_image(tmp_path / "mask.png", np.full(size, value, np.uint8))
    refused("run", *flat(arguments | {"--edited": None, "--mask": "mask.png"}), naming=naming)


@pytest.mark.parametrize(
    ("damaged", "naming"),
    [
        ("nowhere/net.safetensors", ["net.safetensors has SHA-256", "expected", "damaged"]),
        ("base/unet/*.safetensors", ["base has SHA-256", "was trained on", "use the base"]),
    ],
)
def test_a_bundle_with_a_wrong_hash(
    refused: Refused,
    arguments: dict[str, object],
    student: Path,
    tmp_path: Path,
    damaged: str,
    naming: list[str],
) -> None:
    shutil.copytree(student.parent, tmp_path / "models")
    (file,) = (tmp_path / "models").glob(damaged)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    arguments["--model"] = "models/nowhere"
    refused("run", *flat(arguments), naming=naming)


@pytest.mark.parametrize(
    "change",
    [
        {"--edited": None},
        {"--seed": -1},
        {"--seed": 2**64},
        {"--steps": "few"},
        {"--strength": 1},
        {"": None},
    ],
)
def test_wrong_usage_is_exit_2(
    genprop: Genprop,
    arguments: dict[str, object],
    change: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = genprop("run", *flat(arguments | change))
    assert (outcome.code, outcome.out) == (2, "") and "Usage: genprop run" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "edited.png"]
