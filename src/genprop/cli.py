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
from genprop.cli_eval import evaluate
from genprop.cli_export import Inside, export, size_of
from genprop.cli_train import data_app, train
from genprop.console import AsJson, Seed, frame_progress, print_json, refuse, say, stderr
from genprop.errors import GenPropError

app = typer.Typer(
    name="genprop",
    help="Carry the edit of one frame through a whole video, in 1 to 4 steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(export)
app.command("eval")(evaluate)
app.add_typer(distill_app, name="distill")
app.add_typer(data_app, name="data")


class Decoder(StrEnum):
    """What turns latents into frames."""

    full = "full"
    light = "light"


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
    edited: Annotated[Path | None, typer.Option(help="The edited first frame: the object gone.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="A mask of the first frame, the object white; without --edited it is filled for you."
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Masks of all frames or some, a video or a folder; the others are tracked between them."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="For what no frame shows: tiny, tiny-teacher, a bundle, an export, or none, the guide "
            "alone. Without --model: none, and with --no-guide tiny."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the model's own if not given.")] = None,
    backend: Annotated[
        str,
        typer.Option(help="auto, torch, compile, onnxruntime, onnxruntime-tensorrt, tensorrt, tensorrt-rtx."),
    ] = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="With auto, refuse rather than pass a faster backend over.")
    ] = False,
    precision: Annotated[
        Inside | None, typer.Option(help="Of a bundle's weights; an export has its own.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH to work at, where the model has more than one.")
    ] = None,
    decoder: Annotated[
        Decoder, typer.Option(help="full, or the light one of a model that has one.")
    ] = Decoder.full,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Run an export that was not checked against PyTorch.")
    ] = False,
    seed: Seed = 0,
    task: Annotated[
        str, typer.Option(help="The kind of edit, for a model that is told: remove, insert, track, deblur.")
    ] = "remove",
    guidance: Annotated[
        float | None,
        typer.Option(help="The guidance scale, for a teacher or a student that is told it."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The output; VIDEO-genprop.mp4 if not given.")] = None,
    guide: Annotated[
        bool,
        typer.Option(
            help="Let motion and tracking lead; without, the model works alone, on squashed frames."
        ),
    ] = True,
    composite: Annotated[
        bool,
        typer.Option(help="With --no-guide: take only the predicted mask's pixels from the model."),
    ] = True,
    save_mask: Annotated[Path | None, typer.Option(help="Write the masks as a video, too.")] = None,
    save_first: Annotated[
        Path | None,
        typer.Option(help="Write the first frame without the object, to retouch it for --edited."),
    ] = None,
    review: Annotated[
        Path | None, typer.Option(help="A folder for the frames to look at: a list and a contact sheet.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Carry the edit of the first frame through VIDEO: an object goes, whatever it hid comes back."""
    from genprop.runtime.propagate import Model, load
    from genprop.runtime.task import run_video

    if edited is None and mask is None and masks is None:
        raise typer.BadParameter("give --mask, --masks or --edited")
    # What else a model is told of than a removal moves with its object, which the guide does not do.
    guide = guide and composite and task == "remove"
    if model is None:  # on real footage the embedded model fills worse than the guide does (docs/guide.md)
        model = "none" if guide else "tiny"
    if model == "none" and not guide:
        raise typer.BadParameter("--model none is the guide alone: it only removes, and needs the guide")
    wanted, chosen = size_of(size, "--size"), model

    def open_model() -> Model:
        return load(
            chosen,
            backend=backend,
            precision=precision.value if precision else None,
            strict=strict,
            unverified=unverified,
            light=decoder is Decoder.light,
            size=wanted,
        )

    with frame_progress() as progress:
        result = run_video(
            video,
            None if model == "none" else open_model,
            edited=edited,
            mask=mask,
            masks=masks,
            steps=steps,
            seed=seed,
            task=task,
            guidance=guidance,
            out=out,
            guide=guide,
            composite=composite,
            save_mask=save_mask,
            save_first=save_first,
            review=review,
            progress=progress,
        )
    say(
        f"{result['out']}: {result['frames']} frames of {result['width']}x{result['height']} in "
        f"{result['seconds']['total']:.1f} s"
    )
    say(f"{result['backend']}: {result['why']}")
    if doubtful := result["review"]["doubtful"]:
        say(f"the mask is in doubt in {doubtful} frames: --review DIR shows them, --masks corrects them")
    if as_json:
        print_json(result)


@app.command()
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(help="Bundles and export folders; tiny if none.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A teacher to compare with; the embedded one for tiny.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Of these backends alone; may be repeated.")
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(min=1, help="Of these numbers of steps alone; may be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before that.")] = 1,
    peers: Annotated[bool, typer.Option(help="Time diffusers' pipeline of the same base, too.")] = False,
    quality_clips: Annotated[
        int | None, typer.Option(min=0, help="Procedural clips to measure quality on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of bench.json and bench.png.")] = Path("bench_out"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Time models on every backend present, beside the hardware's floor, in one run."""
    from genprop.evaluate.bench.document import Bench
    from genprop.evaluate.bench.run import BACKENDS, run_bench
    from genprop.evaluate.bench.table import lanes_table, ratios_table, rows_table

    chosen = models or ["tiny"]
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("bench", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, description=what, completed=done, total=total)

        document = run_bench(
            chosen,
            teacher=teacher or ("tiny-teacher" if "tiny" in chosen else None),
            backends=backend or BACKENDS,
            steps=steps,
            repeats=repeats,
            warmup=warmup,
            seed=seed,
            peers=peers,
            quality_clips=quality_clips,
            out=out,
            progress=progress,
        )
    measured = Bench.model_validate(document)
    for table_of in (rows_table, lanes_table, ratios_table):
        stderr.print(table_of(measured))
    say(f"{out / 'bench.json'}: all figures")
    if as_json:
        print_json(document)


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
