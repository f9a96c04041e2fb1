"""`genprop distill` and what belongs to it: a student's schedule, its adapter, the report of a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genprop.cli_train import Data, DryRun, Resume, show
from genprop.console import AsJson, Overrides, Preset, Seed, log_to_stderr, print_json, say
from genprop.errors import GenPropError

if TYPE_CHECKING:
    from genprop.config import Config

distill_app = typer.Typer(
    help="Distil a teacher into a student of 1 to 4 steps; or choose its sigmas, merge it, report on a run.",
    invoke_without_command=True,
)


class Stage(StrEnum):
    """What `genprop distill` trains."""

    student = "student"
    decoder = "decoder"


Teacher = Annotated[str, typer.Option(help="The teacher's bundle.")]


@distill_app.callback()
def distill(
    context: typer.Context,
    teacher: Teacher = "tiny-teacher",
    config: Preset = "tiny",
    data: Data = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/student"),
    stage: Annotated[Stage, typer.Option(help="A student; or a light decoder for one.")] = Stage.student,
    student: Annotated[str, typer.Option(help="The student that gets a light decoder.")] = "tiny",
    start: Annotated[str | None, typer.Option(help="A student to go on from.")] = None,
    trajectories: Annotated[
        Path | None,
        typer.Option(help="Where the teacher's trajectories are, or will be; several runs may share them."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Distil a teacher into a student of 1 to 4 steps; or choose its sigmas, merge it, report on a run."""
    if context.invoked_subcommand is not None:
        return
    from genprop.checkpoint import check_folder
    from genprop.config import load_config

    settings = load_config(config, overrides or ())
    if stage is Stage.decoder:
        if dry_run:
            raise GenPropError("--dry-run plans a student's training, got --stage decoder", "leave one out")
        return _light_decoder(student, settings, data=data, out=out, resume=resume, as_json=as_json)
    from genprop.distill.plan import plan_distillation
    from genprop.distill.train import distill as distill_teacher
    from genprop.loop import is_main_process

    if dry_run:
        return show(plan_distillation(teacher, settings), as_json=as_json)
    check_folder(out)
    log_to_stderr()
    summary = distill_teacher(
        teacher,
        settings,
        data=data or ["procedural"],
        out=out,
        start=start,
        trajectories=trajectories,
        resume=resume,
    )
    if not is_main_process():
        return
    made = str(out / "student")
    say(f"{made}: the student, after {summary['steps']} steps; {summary['report']}: how it went")
    if as_json:
        print_json({"out": made, **summary})


def _light_decoder(
    student: str, settings: Config, *, data: list[str] | None, out: Path, resume: bool, as_json: bool
) -> None:
    """`--stage decoder`."""
    from genprop.checkpoint import check_folder
    from genprop.distill.decoder import distill_decoder
    from genprop.loop import is_main_process

    check_folder(out)
    log_to_stderr()
    summary = distill_decoder(student, settings, data=data or ["procedural"], out=out, resume=resume)
    if not is_main_process():
        return
    say(f"{summary['student']}: the student with a light decoder, after {summary['steps']} steps")
    if as_json:
        print_json({"out": summary["student"], **summary})


@distill_app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="A run's --out, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes, instead of the run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report.html and figures."""
    from genprop.distill.report.write import write_report

    page = write_report(run, out=out)
    say(f"{page}: the report")
    if as_json:
        print_json({"report": str(page)})


@distill_app.command("compare")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two runs or more; differences are to the first.")],
    out: Annotated[Path, typer.Option(help="Where the comparison goes.")] = Path("comparison"),
    as_json: AsJson = False,
) -> None:
    """Compare runs: curves, quality, and the settings that differ."""
    from genprop.distill.report.compare import compare_runs

    page = compare_runs(runs, out=out)
    say(f"{page}: the comparison of {len(runs)} runs")
    if as_json:
        print_json({"report": str(page)})


@distill_app.command("schedule")
def schedule(
    student: Annotated[str, typer.Argument(help="The student's bundle.")],
    teacher: Teacher = "tiny-teacher",
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle that gets the schedule; the student itself if not given.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Held-out clips to measure on.")] = 8,
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "1,2,4,8",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Choose a student's sigmas and eta by measurement, and write them into its bundle."""
    from genprop.distill.reschedule import schedule_bundle

    try:
        counts = tuple(int(count) for count in steps.split(","))
    except ValueError:
        message = f"--steps is {steps!r}, expected whole numbers with commas between them"
        raise GenPropError(message, "for example --steps 1,2,4") from None
    log_to_stderr()
    found = schedule_bundle(
        student,
        teacher,
        data=data or ["procedural"],
        out=out,
        clips=clips,
        steps=counts,
        seed=seed,
    )
    say(f"{found['student']}: the schedules for {steps} steps")
    if as_json:
        print_json(found)


@distill_app.command("merge")
def merge(
    student: Annotated[str, typer.Argument(help="A student's bundle with a LoRA.")],
    out: Annotated[Path, typer.Option(help="The merged bundle.")],
    as_json: AsJson = False,
) -> None:
    """Fold a student's LoRA into its backbone: a bundle that needs no peft."""
    from genprop.student.clone import merge_bundle

    merge_bundle(student, out)
    say(f"{out}: {student} with its LoRA merged")
    if as_json:
        print_json({"out": str(out)})
