"""The command line. Every command parses, then calls one function.

What a person reads goes to stderr; with `--json`, stdout holds one JSON document and nothing else. A
`GenPropError` is two lines and exit 1, and so is what the system refuses later on (a full disk); a wrong
usage is exit 2. No traceback for any of them.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from genprop.cli_distill import distill_app
from genprop.cli_train import data_app, train
from genprop.console import AsJson, Seed, print_json, refuse, say, stderr
from genprop.errors import GenPropError

app = typer.Typer(
    name="genprop",
    help="Carry the edit of one frame through a whole video, in 1 to 4 steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.add_typer(distill_app, name="distill")
app.add_typer(data_app, name="data")


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
    guidance: Annotated[
        float | None,
        typer.Option(help="The guidance scale, for a teacher or a student that is told it."),
    ] = None,
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
            guidance=guidance,
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
