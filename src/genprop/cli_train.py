"""The commands `train` and `data`: as in `cli`, each calls one function."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from genprop.console import AsJson, Overrides, Preset, log_to_stderr, print_json, say, stderr
from genprop.errors import GenPropError

if TYPE_CHECKING:
    from genprop.teacher.plan import Plan

DATA = (
    "procedural; a folder of triplets, DAVIS, YouTube-VOS or ROVI, or a split of one; or encoded samples. "
    "May be repeated, with weights: --data DAVIS=3 --data procedural=1."
)
Data = Annotated[list[str] | None, typer.Option(metavar="DATA[=WEIGHT]", help=DATA)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print parameters and the memory plan, and stop.")]

data_app = typer.Typer(help="Prepare data for training.", no_args_is_help=True)


class Stage(StrEnum):
    """What `genprop train` trains."""

    autoencoder = "autoencoder"
    backbone = "backbone"
    carry = "carry"
    teacher = "teacher"
    tracker = "tracker"


MADE = {
    Stage.autoencoder: "base",
    Stage.backbone: "base",
    Stage.carry: "teacher",
    Stage.teacher: "teacher",
    Stage.tracker: "tracker.safetensors",
}
"""What each stage writes into its folder."""


def train(
    config: Preset = "tiny",
    stage: Annotated[Stage, typer.Option(help="What to train.")] = Stage.teacher,
    data: Data = None,
    base: Annotated[
        str | None,
        typer.Option(help="A folder, hub id or tiny-base; base.path of the configuration if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    start: Annotated[str | None, typer.Option(help="A teacher to go on from.")] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train the teacher (carry first, where it has one), or a base of your own (autoencoder, backbone)."""
    from genprop.checkpoint import check_folder
    from genprop.config import load_config
    from genprop.loop import is_main_process
    from genprop.teacher.plan import here, plan
    from genprop.teacher.train import train as train_stage

    settings = load_config(config, overrides or ())
    name = base if base is not None else settings.base.path
    if dry_run:
        if stage is Stage.tracker:
            raise GenPropError(
                "--dry-run plans no tracker: it needs about 3 GB and no GPU", "Leave --dry-run out."
            )
        return show(plan(settings, stage=stage.value, base=name, how=here()), as_json=as_json)
    check_folder(out)
    log_to_stderr()
    if name is None and stage not in (Stage.autoencoder, Stage.tracker):
        raise GenPropError(
            f"--stage {stage.value} needs a base, got none",
            "give --base DIR, for example runs/autoencoder/base",
        )
    summary = train_stage(
        stage.value, settings, data=data or ["procedural"], base=name, out=out, start=start, resume=resume
    )
    if not is_main_process():
        return
    made = str(out / MADE[stage])
    say(f"{made}: the {stage.value}, after {summary['steps']} steps")
    if as_json:
        print_json({"out": made, **summary})


def show(plan: Plan, *, as_json: bool) -> None:
    """Parameters and memory, for a person and for a program."""
    for table in plan.tables():
        stderr.print(table)
    if as_json:
        print_json(plan.document())


@data_app.command("encode")
def encode(
    data: Annotated[list[str], typer.Argument(metavar="DATA[=WEIGHT]...", help=DATA)],
    base: Annotated[str, typer.Option(help="The base whose autoencoder encodes.")],
    out: Annotated[Path, typer.Option(help="Folder of the encoded samples.")],
    config: Preset = "tiny",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode or draw for each encoder.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Processes that encode.")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Encode samples once, for any number of trainings."""
    from genprop.checkpoint import check_folder
    from genprop.config import load_config
    from genprop.teacher.base import load_base
    from genprop.teacher.samples import latent_samples

    settings = load_config(config, overrides or ())
    check_folder(out)
    log_to_stderr()
    loaded = load_base(base, settings.base)
    samples, _ = latent_samples(data, settings, loaded, out, workers=workers, processes=processes)
    count = len(samples)  # type: ignore[arg-type]
    say(f"{out}: {count} samples for training, the rest held out")
    if as_json:
        print_json({"out": str(out), "training": count})


@data_app.command("check")
def check(
    data: Annotated[str, typer.Argument(help="A folder of triplets, DAVIS, YouTube-VOS or ROVI.")],
    as_json: AsJson = False,
) -> None:
    """Read every clip of a folder and say what is wrong with each."""
    from genprop.data.check import check_source
    from genprop.data.sources import open_source

    reports = check_source(open_source(data))
    table = Table("clip", "frames", "size", "fps", "", box=SIMPLE_HEAD)
    for report in reports:
        size = "-" if report.size is None else f"{report.size[0]}x{report.size[1]}"
        frames = "-" if report.frames is None else str(report.frames)
        fps = "-" if report.fps is None else f"{float(report.fps):.3g}"
        kind = "" if report.usable else "left out: "
        table.add_row(report.clip, frames, size, fps, kind + "; ".join(report.faults) or "fine")
    stderr.print(table)
    broken = sum(not report.usable for report in reports)
    say(f"{data}: {len(reports)} clips, {broken} of them cannot be used")
    if as_json:
        print_json([report._asdict() for report in reports])


@data_app.command("split")
def split(
    data: Annotated[str, typer.Argument(help="A folder of triplets, DAVIS, YouTube-VOS or ROVI.")],
    out: Annotated[Path, typer.Option(help="The list; it can be given as --data.")] = Path("split.json"),
    fraction: Annotated[float, typer.Option(help="Share of the clips for validation.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of who goes where.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Split a folder's clips into training and validation, without moving a file."""
    from genprop.data.sources import open_source
    from genprop.data.split import write_split

    parts = write_split(out, open_source(data), fraction, seed)
    counts = {part: len(names) for part, names in parts.items()}
    say(f"{out}: {counts['train']} clips for training, {counts['validation']} for validation")
    if as_json:
        print_json({"out": str(out), **counts})
