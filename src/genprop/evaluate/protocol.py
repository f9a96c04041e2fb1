"""The demo: unseen procedural clips through teacher and student, on every backend, measured alike."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from genprop.bundle import read_bundle
from genprop.data.procedural import ProceduralClips
from genprop.errors import GenPropError
from genprop.evaluate.baselines import BASELINES
from genprop.evaluate.measure import Result, measure, measure_ceiling, measure_frames, noise_seed, run_clip
from genprop.evaluate.pictures import write_pictures
from genprop.evaluate.report import Baselines, Hardware, Regions, Report, write_json
from genprop.export.bundle import export_bundle
from genprop.export.folder import versions
from genprop.hardware import describe_hardware
from genprop.runtime.backends import open_stages
from genprop.settings import ClipConfig
from genprop.video import check_output

DEMO_SEED = 20_000
"""Of the first demo's clips. Trainings draw theirs from seeds near 0."""

TEACHER_STEPS = (25, 4, 2, 1)
STUDENT_STEPS = (4, 2, 1)

Progress = Callable[[int, int, str], None]
"""Told how many of how many clips are done, and what is being done now."""


def run_demo(
    *,
    out: Path,
    clips: int = 8,
    seed: int = 0,
    student: str | Path = "tiny",
    teacher: str | Path = "tiny-teacher",
    backends: Sequence[str] = ("torch", "onnxruntime"),
    progress: Progress | None = None,
) -> dict[str, object]:
    """Measure teacher and student, and write `report.json`, `comparison.png` and the mp4s into `out`.

    The exports that onnxruntime needs are made in `out/onnx-teacher` and `out/onnx-student`, or reused
    where they are still the models'.

    Args:
        clips: how many; at least 1.
        seed: of the clips and of all noise. No seed gives a clip of the training.

    Returns:
        The report as plain JSON; see `report.Report`.

    Raises:
        GenPropError: a folder that cannot be written, a broken model, two models that are no pair.
    """
    if clips < 1 or seed < 0:
        raise GenPropError(f"got {clips} clips and seed {seed}, expected at least 1 and at least 0")
    size = check_pair(teacher, student)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenPropError(f"{out} cannot be written: {error.strerror}", "give another --out") from error
    check_output(out / "original.mp4")

    dataset = ProceduralClips(
        clips, DEMO_SEED + seed, frames=size.frames, height=size.height, width=size.width
    )
    samples = [dataset[index] for index in range(clips)]
    total = clips * len(backends) * (len(TEACHER_STEPS) + len(STUDENT_STEPS))
    done = 0

    def advance(what: str, by: int = 0) -> None:
        nonlocal done
        done += by
        if progress is not None:
            progress(done, total, what)

    ceiling: Regions | None = None
    results: list[Result] = []
    for backend in backends:
        endpoints: list[Tensor] = []
        for role, model, counts in (
            ("teacher", teacher, TEACHER_STEPS),
            ("student", student, STUDENT_STEPS),
        ):
            advance(f"{role}, {backend}")
            if backend == "onnxruntime":
                export_bundle(model, out / f"onnx-{role}")  # kept, where it is of this bundle
                model = out / f"onnx-{role}"
            stages = open_stages(model, backend=backend)
            ceiling = ceiling or measure_ceiling(stages, samples)
            run_clip(stages, samples[0], steps=1, seed=noise_seed(seed, 0))  # warm-up, not timed
            for steps in counts:
                after_clip = partial(advance, f"{role}, {backend}, {steps} steps", by=1)
                result, latents = measure(
                    stages, samples, steps=steps, seed=seed, endpoints=endpoints, after_clip=after_clip
                )
                results.append(result)
                endpoints = endpoints or latents  # the first run: the teacher's most steps
    assert ceiling is not None, "no backends"

    report = Report(
        model=str(student),
        frames=size.frames,
        height=size.height,
        width=size.width,
        clips=clips,
        seed=seed,
        hardware=Hardware(**describe_hardware()),
        versions={"python": platform.python_version(), **versions()},
        ceiling=ceiling,
        baselines=Baselines(**{name: measure_frames(make, samples) for name, make in BASELINES.items()}),
        runs=tuple(result.run for result in results),
    )
    write_pictures(out, report, samples=samples, results=results)
    document = report.model_dump(mode="json")
    write_json(out / "report.json", document)
    return document


def check_pair(teacher: str | Path, student: str | Path) -> ClipConfig:
    """The clip that both models are made for; refuses what the demo could not run to its end.

    Raises:
        GenPropError: a broken bundle, not a teacher and a student, two sizes, step counts unknown.
    """
    cards = {name: read_bundle(name).card for name in (teacher, student)}
    for name, kind in ((teacher, "teacher"), (student, "student")):
        if cards[name].kind != kind:
            raise GenPropError(
                f"{name} is a {cards[name].kind}, expected a {kind}",
                "give the student as --model, and the teacher it was distilled from as --teacher",
            )
    theirs, ours = (cards[name].config.clip for name in (teacher, student))
    if theirs != ours:
        raise GenPropError(
            f"the student {student} is made for clips of {ours}, the teacher {teacher} for {theirs}",
            "give the teacher that the student was distilled from",
        )
    known = sorted(cards[student].sigmas)
    if not set(STUDENT_STEPS) <= set(known):
        raise GenPropError(
            f"the student {student} knows {known} steps, expected {sorted(STUDENT_STEPS)}",
            "give a student that `genprop distill` made",
        )
    return ours
