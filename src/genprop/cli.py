"""The command line. Every command parses, then calls one function.

What a person reads goes to stderr; with `--json`, stdout holds one JSON document and nothing else. A
`GenPropError` is two lines and exit 1, and so is what the system refuses later on (a full disk); a wrong
usage is exit 2. No traceback for any of them.
"""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from genprop.errors import GenPropError

app = typer.Typer(
    name="genprop",
    help="Carry the edit of one frame through a whole video, in 1 to 4 steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare data for training.", no_args_is_help=True)
app.add_typer(data_app, name="data")

stderr = Console(stderr=True, markup=False, highlight=False)  # a path may hold [brackets]
if not stderr.is_terminal:  # a table in a log file is not cut to 80 columns
    stderr.width = 120

LARGEST_SEED = 2**32 - 1

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of all that is random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")]


class Stage(StrEnum):
    """What `genprop train` trains."""

    autoencoder = "autoencoder"
    backbone = "backbone"
    carry = "carry"
    teacher = "teacher"


class Target(StrEnum):
    """What `genprop export` writes."""

    onnx = "onnx"


QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def main() -> None:
    """Run the application; a `GenPropError` becomes two lines on stderr and exit 1."""
    # The libraries' own bars and notices are not for a person who carries an edit through a video; that
    # weights are missing, which they only warn of, is an error here (`teacher.base`).
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except GenPropError as error:
        refuse(error.message, error.hint)
    except OSError as error:
        refuse(str(error), "check that the file is whole, and that there is room and permission to write")


def refuse(message: str, hint: str) -> NoReturn:
    """The two lines, and exit 1."""
    stderr.print(f"error: {message}", style="bold red", soft_wrap=True)
    if hint:
        say(f"hint: {hint}")
    sys.exit(1)


def say(text: str) -> None:
    """A line for a person; it stays one line, however long."""
    stderr.print(text, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, videos and the report.")] = Path("demo_out"),
    clips: Annotated[int, typer.Option(min=1, help="Unseen procedural clips.")] = 8,
    seed: Seed = 0,
    model: Annotated[str, typer.Option(help="The student.")] = "tiny",
    teacher: Annotated[str, typer.Option(help="Its teacher.")] = "tiny-teacher",
    as_json: AsJson = False,
) -> None:
    """Remove objects from unseen clips with student and teacher, and compare."""
    from genprop.evaluate.protocol import run_demo
    from genprop.evaluate.report import Report, reference_table, table

    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("demo", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, description=what, completed=done, total=total)

        document = run_demo(
            clips=clips, seed=seed, student=model, teacher=teacher, out=out, progress=progress
        )
    report = Report.model_validate(document)
    stderr.print(reference_table(report))
    stderr.print(table(report))
    say(f"look at {out / 'comparison.png'}")
    if as_json:
        print_json(document)


@app.command()
def run(
    video: Annotated[Path, typer.Argument(help="A video, or a folder of frames.")],
    edited: Annotated[Path | None, typer.Option(help="The edited first frame.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A mask of the first frame, which is then filled (Telea).")
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, tiny-teacher, a bundle, or an export folder.")] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, compile, onnxruntime.")] = "auto",
    seed: Seed = 0,
    task: Annotated[
        str, typer.Option(help="The kind of edit, for a model that is told: remove, insert, track, deblur.")
    ] = "remove",
    out: Annotated[Path | None, typer.Option(help="The output; VIDEO-genprop.mp4 if not given.")] = None,
    composite: Annotated[
        bool, typer.Option(help="Take only the predicted mask's pixels from the model.")
    ] = True,
    save_mask: Annotated[Path | None, typer.Option(help="Write the predicted mask as a video, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Carry the edit of the first frame through VIDEO."""
    from genprop.runtime.propagate import load
    from genprop.runtime.task import run_video

    if (edited is None) == (mask is None):
        raise typer.BadParameter("give either --edited or --mask")
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        row = bar.add_task("propagate", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(row, completed=done, total=total)

        result = run_video(
            video,
            lambda: load(model, backend=backend),
            edited=edited,
            mask=mask,
            steps=steps,
            seed=seed,
            task=task,
            out=out,
            composite=composite,
            save_mask=save_mask,
            progress=progress,
        )
    say(
        f"{result['out']}: {result['frames']} frames of {result['width']}x{result['height']} in "
        f"{result['seconds']['total']:.1f} s"
    )
    if as_json:
        print_json(result)


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", "--preset", help="A preset, or a TOML file.")] = "tiny",
    stage: Annotated[Stage, typer.Option(help="What to train.")] = Stage.teacher,
    data: Annotated[
        str, typer.Option(help="procedural, a folder of triplets, or a folder of encoded samples.")
    ] = "procedural",
    base: Annotated[
        str | None, typer.Option(help="The base to go on from; base.path of the configuration if not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/train"),
    start: Annotated[str | None, typer.Option(help="A teacher to go on from.")] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train the teacher (carry first, where it has one), or a base of your own (autoencoder, backbone)."""
    from genprop.checkpoint import check_folder
    from genprop.config import load_config
    from genprop.teacher.train import train as train_stage

    settings = load_config(config, overrides or ())
    check_folder(out)
    log_to_stderr()
    name = base if base is not None else settings.base.path
    if name is None and stage is not Stage.autoencoder:
        raise GenPropError(
            f"--stage {stage.value} needs a base, got none",
            "give --base DIR, for example runs/autoencoder/base",
        )
    summary = train_stage(stage.value, settings, data=data, base=name, out=out, start=start, resume=resume)
    made = str(out / ("teacher" if stage in (Stage.carry, Stage.teacher) else "base"))
    say(f"{made}: the {stage.value}, after {summary['steps']} steps")
    if as_json:
        print_json({"out": made, **summary})


@app.command()
def distill(
    teacher: Annotated[str, typer.Option(help="The teacher's bundle.")] = "tiny-teacher",
    config: Annotated[str, typer.Option("--config", "--preset", help="A preset, or a TOML file.")] = "tiny",
    data: Annotated[
        str, typer.Option(help="procedural, a folder of triplets, or a folder of encoded samples.")
    ] = "procedural",
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/student"),
    start: Annotated[str | None, typer.Option(help="A student to go on from.")] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Distil a teacher into a student of 1 to 4 steps."""
    from genprop.checkpoint import check_folder
    from genprop.config import load_config
    from genprop.distill.train import distill as distill_teacher

    settings = load_config(config, overrides or ())
    check_folder(out)
    log_to_stderr()
    summary = distill_teacher(teacher, settings, data=data, out=out, start=start, resume=resume)
    made = str(out / "student")
    say(f"{made}: the student, after {summary['steps']} steps")
    if as_json:
        print_json({"out": made, **summary})


@app.command()
def export(
    bundle: Annotated[str, typer.Argument(help="tiny, tiny-teacher, or a bundle.")],
    to: Annotated[Target, typer.Option(help="The format.")] = Target.onnx,
    out: Annotated[Path, typer.Option(help="Folder of the graphs and their manifest.")] = Path("export"),
    as_json: AsJson = False,
) -> None:
    """Export a bundle as verified graphs."""
    from genprop.export.onnx import export_onnx

    manifest = export_onnx(bundle, out)
    say(f"{out}: {to.value}, worst error against PyTorch {manifest.worst:.1e}")
    if as_json:
        print_json(manifest.model_dump(mode="json"))


@data_app.command("encode")
def encode(
    data: Annotated[str, typer.Argument(help="procedural, or a folder of triplets.")],
    base: Annotated[str, typer.Option(help="The base whose autoencoder encodes.")],
    out: Annotated[Path, typer.Option(help="Folder of the encoded samples.")],
    config: Annotated[str, typer.Option("--config", "--preset", help="A preset, or a TOML file.")] = "tiny",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode or draw.")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Encode samples once, for any number of trainings."""
    from genprop.checkpoint import check_folder
    from genprop.config import load_config
    from genprop.teacher.base import load_base
    from genprop.teacher.train import latent_samples

    settings = load_config(config, overrides or ())
    check_folder(out)
    loaded = load_base(base, variant=settings.base.variant)
    samples, _ = latent_samples(data, settings, loaded, out, workers=workers)
    count = len(samples)  # type: ignore[arg-type]
    say(f"{out}: {count} samples for training, the rest held out")
    if as_json:
        print_json({"out": str(out), "training": count})


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, devices, backends and the embedded models."""
    from genprop.runtime.info import describe

    facts = describe()
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, value if isinstance(value, str) else json.dumps(value))
    stderr.print(table)
    if as_json:
        print_json(facts)


def print_json(document: Any) -> None:
    """One JSON document on stdout. JSON has no nan and no infinity: they are null."""
    text = json.dumps(document, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1))


def log_to_stderr() -> None:
    """The trainings' lines, for a person, on stderr."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
