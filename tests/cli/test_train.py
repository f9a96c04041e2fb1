"""`genprop train`, `distill` and `data encode`: a whole model from nothing, in two steps a stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genprop.bundle import read_bundle
from genprop.data.latents import fingerprint
from genprop.data.procedural import ProceduralClips
from genprop.teacher.base import load_base
from genprop.video import read_clip, write_clip, write_image

Genprop = Callable[..., Any]
Refused = Callable[..., None]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and its content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


# --- the chain: each stage is run once, for all the tests ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def autoencoder(genprop: Genprop, preset: Path, runs: Path) -> Any:
    return genprop(
        "train", "--stage", "autoencoder", "--config", preset, "--out", runs / "autoencoder",
        "--set", "autoencoder.steps=2", "--set", "autoencoder.learning_rate=2e-3", "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def encode(genprop: Genprop, preset: Path, runs: Path, autoencoder: Any) -> Callable[[], Any]:
    base = runs / "autoencoder" / "base"
    arguments = ("--config", preset, "--base", base, "--out", runs / "latents", "--workers", 0, "--json")
    return lambda: genprop("data", "encode", "procedural", *arguments)


@pytest.fixture(scope="module")
def backbone(genprop: Genprop, preset: Path, runs: Path, encode: Callable[[], Any]) -> Any:
    assert encode().code == 0
    return genprop(
        "train", "--stage", "backbone", "--preset", preset, "--base", runs / "autoencoder" / "base",
        "--data", runs / "latents", "--out", runs / "backbone", "--set", "backbone.steps=3", "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def carry(genprop: Genprop, preset: Path, runs: Path, backbone: Any) -> Any:
    return genprop(
        "train", "--stage", "carry", "--preset", preset, "--base", runs / "backbone" / "base",
        "--data", runs / "latents", "--out", runs / "carry", "--set", "carry.steps=2", "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(genprop: Genprop, preset: Path, runs: Path, carry: Any) -> Any:
    """On clips that it encodes itself; with a `--resume` that finds nothing to go on from."""
    return genprop(
        "train", "--config", preset, "--set", f"base.path='{runs / 'backbone' / 'base'}'",
        "--start", runs / "carry" / "teacher", "--out", runs / "teacher", "--set", "teacher.steps=2",
        "--resume", "--json",
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(genprop: Genprop, preset: Path, runs: Path, teacher: Any) -> Any:
    return genprop(
        "distill", "--teacher", runs / "teacher" / "teacher", "--config", preset, "--data", runs / "latents",
        "--out", runs / "student", "--set", "student.steps=2", "--json",
    )  # fmt: skip


# --- what each stage makes ---


@pytest.mark.parametrize(
    ("stage", "made", "steps"),
    [
        ("autoencoder", "base", 2),
        ("backbone", "base", 3),
        ("carry", "teacher", 2),
        ("teacher", "teacher", 2),
        ("student", "student", 2),
    ],
)
def test_a_stage_reports_what_it_made(
    request: pytest.FixtureRequest, runs: Path, stage: str, made: str, steps: int
) -> None:
    outcome = request.getfixturevalue(stage)
    document = outcome.document
    assert document["out"] == str(runs / stage / made) in outcome.err
    assert (document["steps"], document["resumed_from"]) == (steps, 0)
    assert document["loss"] > 0 and all(np.isfinite(value) for value in document["validation"].values())
    assert Path(document["checkpoint"]).is_dir()
    assert Path(document["out"]).is_dir()
    log = [json.loads(line) for line in (runs / stage / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == steps


def test_what_is_set_is_what_is_trained(autoencoder: Any, teacher: Any, runs: Path) -> None:
    state = json.loads((Path(autoencoder.document["checkpoint"]) / "state.json").read_text())
    assert state["config"]["learning_rate"] == 2e-3
    assert read_bundle(runs / "teacher" / "teacher").card.config.teacher.steps == 2


def test_the_student_knows_the_schedules_that_are_reported(student: Any, runs: Path) -> None:
    card = read_bundle(runs / "student" / "student").card
    reported = {int(steps): tuple(sigmas) for steps, sigmas in student.document["sigmas"].items()}
    assert card.kind == "student" and card.sigmas == reported
    assert {1, 2, 4} <= set(reported) and all(len(s) == n and s[0] == 80 for n, s in reported.items())


@pytest.mark.parametrize(
    ("stage", "steps", "evaluations"), [("teacher", None, 4), ("teacher", 1, 2), ("student", None, 4)]
)
def test_what_was_trained_runs(
    request: pytest.FixtureRequest,
    genprop: Genprop,
    runs: Path,
    tmp_path: Path,
    stage: str,
    steps: int | None,
    evaluations: int,
) -> None:
    request.getfixturevalue(stage)
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, fps=Fraction(12))
    write_image(tmp_path / "edited.png", frames[0])
    chosen = () if steps is None else ("--steps", steps)
    document = genprop(
        "run", tmp_path / "clip.mp4", "--no-guide", "--edited", tmp_path / "edited.png", *chosen,
        "--model", runs / stage / stage, "--json",
    ).document  # fmt: skip
    assert document["evaluations"] == evaluations
    result = read_clip(tmp_path / "clip-genprop.mp4")
    assert result.frames.shape == frames.shape and result.fps == 12


# --- ways to distil, and what is done with a run ---


@pytest.fixture(scope="module")
def told(genprop: Genprop, preset: Path, runs: Path, teacher: Any) -> Any:
    """A student that is told its guidance scale, with rewards and an adversary, on shared trajectories."""
    sets = (
        "student.steps=2", "distill.guidance=embedded", "distill.guidance_range=[1.0, 2.0]",
        "distill.rewards.encoder.weight=0.5", "distill.rewards.texture.weight=0.1",
        "distill.adversarial.weight=0.1", "distill.adversarial.width=8", "distill.target_ema=0.9",
        "distill.trajectory=0.5", "distill.adapter.targets=['to_q', 'to_v', 'conv1']",
    )  # fmt: skip
    return genprop(
        "distill", "--teacher", runs / "teacher" / "teacher", "--config", preset, "--data", runs / "latents",
        "--trajectories", runs / "scales", "--out", runs / "told",
        *(part for key in sets for part in ("--set", key)), "--json",
    )  # fmt: skip


def test_a_student_that_is_told_its_scale_follows_it(
    told: Any, genprop: Genprop, runs: Path, tmp_path: Path
) -> None:
    terms = json.loads((runs / "told" / "log.jsonl").read_text().splitlines()[0])
    assert {"reward_encoder", "reward_encoder_teacher", "reward_texture", "adversarial", "r1"} <= terms.keys()
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, fps=Fraction(12))
    write_image(tmp_path / "edited.png", frames[0])
    model = ("--no-guide", "--edited", tmp_path / "edited.png", "--model", runs / "told" / "student")
    assert genprop("run", tmp_path / "clip.mp4", *model, "--guidance", 1.7, "--json").code == 0
    refused = genprop("run", tmp_path / "clip.mp4", *model, "--guidance", 9.0)
    assert refused.code == 1 and "expected one from 1 to 2" in refused.err


def test_what_a_run_notes_of_itself(told: Any, runs: Path) -> None:
    about = json.loads((runs / "told" / "run.json").read_text())
    assert about["config"]["net"]["guidance"] and about["teacher"] == str(runs / "teacher" / "teacher")
    assert {"genprop", "torch", "peft"} <= about["versions"].keys() and about["seconds"] > 0
    cards = {card["reward"]: card for card in json.loads((runs / "told" / "rewards.json").read_text())}
    assert cards.keys() == {"encoder", "texture"} and cards["encoder"]["weight"] == 0.5
    assert all(card["licence"] and card["source"] for card in cards.values())
    rows = json.loads((runs / "told" / "quality.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"student", "teacher", "identity", "frozen first frame"}
    assert (runs / "told" / "report.html").stat().st_size > 10_000


def test_trajectories_of_other_scales_are_refused(
    told: Any, refused: Refused, preset: Path, runs: Path, tmp_path: Path
) -> None:
    refused(
        "distill", "--teacher", runs / "teacher" / "teacher", "--config", preset, "--data", runs / "latents",
        "--trajectories", runs / "scales", "--out", tmp_path / "other",
        naming=["another guidance", "remove the folder"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("distill.adapter.targets=['to_z']", ["distill.adapter.targets names 'to_z'", "to_q"]),
        ("distill.rewards.hps.weight=1", ["HPS", "distill.rewards.hps.weight"]),
        ("distill.rewards.viclip.weight=1", ["iCLIP", "distill.rewards.viclip.weight"]),
        ("distill.rewards.encoder={weight=1, reference='text'}", ["reference is 'text'", "expected one of"]),
    ],
)
def test_what_a_distillation_needs_and_has_not_is_named_before_it_starts(
    teacher: Any, refused: Refused, preset: Path, runs: Path, tmp_path: Path, override: str, naming: list[str]
) -> None:
    refused(
        "distill", "--teacher", runs / "teacher" / "teacher", "--config", preset, "--data", runs / "latents",
        "--out", tmp_path / "run", "--set", override, naming=naming,
    )  # fmt: skip
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_phased_student_is_distilled_with_the_teacher_in_the_step(
    genprop: Genprop, preset: Path, runs: Path, teacher: Any
) -> None:
    sets = (
        "student.steps=2", "distill.precompute=false", "distill.solver=heun", "distill.phases=2",
        "distill.nodes=4", "distill.trajectory=0", "distill.adapter.rank=0",
    )  # fmt: skip
    found = genprop(
        "distill", "--teacher", runs / "teacher" / "teacher", "--config", preset, "--data", runs / "latents",
        "--out", runs / "phased", *(part for key in sets for part in ("--set", key)), "--json",
    ).document  # fmt: skip
    assert not (runs / "phased" / "trajectories").exists()
    assert len(found["sigmas"]["2"]) == 2 and found["eta"]["2"] == 0
    assert read_bundle(runs / "phased" / "student").lora is None


def test_rewards_at_the_teachers_endpoint_need_one(
    refused: Refused, call: Callable[..., list[object]]
) -> None:
    sets = ("distill.precompute=false", "distill.phases=2", "distill.rewards.encoder.weight=1")
    refused(
        *call("distill", *(part for key in sets for part in ("--set", key))),
        naming=["the encoder reward needs the teacher's endpoint", "distill.phases is 2"],
    )


def test_a_run_is_reported_again_and_compared(
    student: Any, told: Any, genprop: Genprop, runs: Path, tmp_path: Path
) -> None:
    page = genprop("distill", "report", runs / "student", "--out", tmp_path / "page", "--json").document
    assert Path(page["report"]) == tmp_path / "page" / "report.html"
    compared = genprop(
        "distill", "compare", runs / "student", runs / "told", "--out", tmp_path / "both", "--json"
    ).document
    text = Path(compared["report"]).read_text()
    assert "distill.guidance" in text and "distill.rewards.encoder.weight" in text


def test_a_schedule_is_measured_again(
    student: Any, genprop: Genprop, preset: Path, runs: Path, tmp_path: Path
) -> None:
    found = genprop(
        "distill", "schedule", runs / "student" / "student", "--teacher", runs / "teacher" / "teacher",
        "--data", runs / "latents", "--out", tmp_path / "again", "--clips", 1, "--steps", "1,2", "--json",
    ).document  # fmt: skip
    card = read_bundle(tmp_path / "again").card
    assert list(card.sigmas[2]) == found["sigmas"]["2"] and card.eta[2] == found["eta"]["2"]
    assert len(found["rows"]) == 6  # one step, and two with five shares of noise


def test_numbers_of_steps_that_are_none_are_refused(refused: Refused) -> None:
    refused("distill", "schedule", "tiny", "--steps", "1,two", naming=["'1,two'", "whole numbers", "1,2,4"])


def test_a_merged_student_needs_no_adapter(
    student: Any, genprop: Genprop, runs: Path, tmp_path: Path
) -> None:
    genprop("distill", "merge", runs / "student" / "student", "--out", tmp_path / "merged")
    assert read_bundle(tmp_path / "merged").lora is None


# --- going on ---


def test_encoding_twice_changes_nothing(encode: Callable[[], Any], runs: Path) -> None:
    first = encode().document
    before = files(runs / "latents")
    assert first == {"out": str(runs / "latents"), "training": 18}
    assert encode().document == first and files(runs / "latents") == before


def test_encoding_goes_on_where_it_stopped(encode: Callable[[], Any], runs: Path) -> None:
    encode()
    before = files(runs / "latents")
    (shard,) = (runs / "latents").glob("*.tar")
    shard.unlink()
    encode()
    after = files(runs / "latents")
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_a_run_goes_on_only_if_that_is_asked_for(
    genprop: Genprop, preset: Path, runs: Path, autoencoder: Any
) -> None:
    arguments = ("train", "--stage", "autoencoder", "--config", preset, "--out", runs / "autoencoder")
    before = files(runs / "autoencoder")
    outcome = genprop(*arguments, "--set", "autoencoder.steps=4", "--json")
    error, hint = outcome.err.splitlines()[-2:]
    assert (outcome.code, outcome.out) == (1, "")
    assert "already holds a run (got step-00000002, expected no checkpoint)" in error
    assert hint == "hint: pass --resume to go on with it, or choose another --out"
    assert files(runs / "autoencoder") == before


def test_a_finished_run_goes_on_to_more_steps(
    genprop: Genprop, preset: Path, runs: Path, backbone: Any
) -> None:
    document = genprop(
        "train", "--stage", "backbone", "--config", preset, "--base", runs / "autoencoder" / "base",
        "--data", runs / "latents", "--out", runs / "backbone", "--set", "backbone.steps=4", "--resume",
        "--json",
    ).document  # fmt: skip
    assert (document["resumed_from"], document["steps"]) == (3, 4)


def test_a_folder_of_triplets_is_data(
    genprop: Genprop, preset: Path, runs: Path, autoencoder: Any, tmp_path: Path
) -> None:
    clips = ProceduralClips(3, 0, frames=4, height=24, width=24)
    for index in range(len(clips)):
        sample = clips[index]
        mask = np.repeat(sample.mask[..., None], 3, axis=-1).astype(np.uint8) * 255
        parts = {"original_videos": sample.source, "edited_videos": sample.target, "masks": mask}
        for folder, frames in parts.items():
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            write_clip(tmp_path / "data" / folder / f"{index}.mp4", frames, fps=Fraction(8))
    document = genprop(
        "data", "encode", tmp_path / "data", "--base", runs / "autoencoder" / "base", "--config", preset,
        "--out", tmp_path / "latents", "--workers", 0, "--json",
    ).document  # fmt: skip
    assert document["training"] == 18 and (tmp_path / "latents" / "index.json").is_file()


# --- what is refused ---

COMMANDS: dict[str, list[object]] = {
    "autoencoder": ["train", "--stage", "autoencoder"],
    "backbone": ["train", "--stage", "backbone", "--base", "BASE"],
    "teacher": ["train", "--base", "BASE"],
    "distill": ["distill", "--teacher", "TEACHER"],
    "encode": ["data", "encode", "procedural", "--base", "BASE", "--out", "out", "--workers", 0],
}


@pytest.fixture
def call(students: dict[str, Path], preset: Path) -> Callable[..., list[object]]:
    """`call(command, *more)`: a call of one of `COMMANDS`, with models that exist, and more options."""
    base, teacher = students["nowhere"].parent / "base", students["nowhere"]
    known = {"BASE": base, "TEACHER": teacher}

    def make(command: str, *more: object) -> list[object]:
        return [*(known.get(str(part), part) for part in COMMANDS[command]), "--config", preset, *more]

    return make


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("nonsense.key=1", ["nonsense: Extra inputs are not permitted", "configuration.md"]),
        ("teacher.nonsense=1", ["teacher.nonsense: Extra inputs are not permitted", "(got 1)"]),
        ("teacher.steps=few", ["teacher.steps: Input should be a valid integer", "(got 'few')"]),
        ("teacher.steps", ["--set takes key=value", "got 'teacher.steps'"]),
    ],
)
def test_an_unknown_key_or_value(
    refused: Refused, call: Callable[..., list[object]], command: str, override: str, naming: list[str]
) -> None:
    refused(*call(command, "--set", override), naming=naming)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["/proc/runs/a", "a file/runs", "a file", "x" * 300])
def test_an_output_that_cannot_be_written_is_known_before_any_work(
    refused: Refused, call: Callable[..., list[object]], tmp_path: Path, command: str, out: str
) -> None:
    (tmp_path / "a file").write_text("")
    refused(*call(command, "--out", out), naming=[f"cannot write to {out}", "expected a folder"])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_preset(refused: Refused, call: Callable[..., list[object]], command: str) -> None:
    refused(*call(command, "--config", "huge"), naming=["no preset or file named 'huge'", "svd-xt, tiny"])


def test_a_preset_that_is_no_toml(
    refused: Refused, call: Callable[..., list[object]], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text("clip = [frames = 8]")
    refused(*call("teacher", "--config", "mine.toml"), naming=["mine.toml is not valid TOML"])


@pytest.mark.parametrize("command", ["backbone", "teacher", "encode"])
@pytest.mark.parametrize(
    ("base", "naming"),
    [("missing", ["no model named 'missing'", "expected a folder"]), (".", ["not a base", "unet/, vae/"])],
)
def test_a_base_that_is_none(
    refused: Refused, call: Callable[..., list[object]], command: str, base: str, naming: list[str]
) -> None:
    refused(*call(command, "--base", base), naming=naming)


@pytest.mark.parametrize("stage", ["backbone", "teacher"])
def test_a_base_is_needed(refused: Refused, preset: Path, stage: str) -> None:
    naming = [f"--stage {stage} needs a base, got none", "--base DIR"]
    refused("train", "--stage", stage, "--config", preset, naming=naming)


@pytest.mark.parametrize("command", ["backbone", "teacher", "encode"])
def test_data_that_is_none(
    refused: Refused, call: Callable[..., list[object]], tmp_path: Path, command: str
) -> None:
    (tmp_path / "data").mkdir()
    data = call(command, "--data", "data")
    if command == "encode":
        data = ["data" if part == "procedural" else part for part in call(command)]
    refused(*data, naming=["data is no dataset that is known here", "original_videos", "DAVIS"])


@pytest.mark.parametrize(
    ("more", "naming"),
    [
        ((), ["is a student, expected a teacher"]),
        (("--teacher", "missing"), ["no model named 'missing'", "tiny-teacher"]),
        (("--teacher", "."), [". is not a bundle", "no bundle.json"]),
    ],
)
def test_a_distillation_that_cannot_be(
    refused: Refused, call: Callable[..., list[object]], more: tuple[object, ...], naming: list[str]
) -> None:
    refused(*call("distill", *more), naming=naming)


def test_latents_of_another_run_are_kept(
    refused: Refused, genprop: Genprop, call: Callable[..., list[object]], tmp_path: Path
) -> None:
    assert genprop(*call("encode", "--set", "data.count=2")).code == 0
    refused(*call("encode", "--set", "data.count=3"), naming=["latents of another run", "use another folder"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--stage", "student"),
        ("train", "--steps", 3),
        ("distill", "--rank", 3),
        ("data", "encode", "procedural", "--out", "out"),
        ("data", "encode", "procedural", "--base", "base", "--out", "out", "--workers", -1),
    ],
)
def test_wrong_usage_is_exit_2(
    genprop: Genprop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = genprop(*arguments)
    assert (outcome.code, outcome.out) == (2, "") and "Usage: genprop" in outcome.err
    assert not list(tmp_path.iterdir())


def test_with_a_base_the_autoencoder_stage_trains_the_decoder_alone(
    genprop: Genprop, preset: Path, runs: Path, autoencoder: Any, tmp_path: Path
) -> None:
    """So latents, and whatever was trained on them, stay valid."""
    before = load_base(runs / "autoencoder" / "base").autoencoder
    outcome = genprop(
        "train", "--stage", "autoencoder", "--config", preset, "--base", runs / "autoencoder" / "base",
        "--out", tmp_path / "decoder", "--set", "autoencoder.steps=2", "--json",
    )  # fmt: skip
    assert outcome.document["steps"] == 2
    after = load_base(tmp_path / "decoder" / "base").autoencoder
    assert fingerprint(after) == fingerprint(before)
    ours, theirs = after.vae.state_dict(), before.vae.state_dict()
    changed = {name.split(".")[0] for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"decoder"}
