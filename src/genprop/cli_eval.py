"""The command `eval`: the score on real footage."""

from __future__ import annotations

from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from genprop.console import AsJson, Seed, print_json, say, stderr
from genprop.errors import GenPropError

COLUMNS = {
    "hole": "hole dB",
    "unseen": "unseen dB",
    "keep": "keep dB",
    "hole_ssim": "SSIM",
    "flicker": "flicker",
    "iou": "IoU",
    "boundary": "F",
    "seconds_a_frame": "s a frame",
}


class Protocol(StrEnum):
    """What is scored: removals with a known truth, or masks over whole natural clips."""

    pasted = "pasted"
    tracked = "tracked"


def evaluate(
    clips: Annotated[
        Path, typer.Option(help="A folder of clips, each a folder with video.mp4 and mask-0.mp4.")
    ],
    protocol: Annotated[Protocol, typer.Option(help="Pasted removals, or tracked natural clips.")] = (
        Protocol.pasted
    ),
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Clips by name, like 'davis-*'; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Not these; may be repeated.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pasted removals.")] = 16,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of each; 24 pasted ones, all tracked ones.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Rows of the table; all if none. May be repeated.")
    ] = None,
    model: Annotated[str, typer.Option(help="tiny, a bundle, an export folder, or none.")] = "tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the model.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of eval.json and the contact sheets.")] = Path("eval_out"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score removals on real footage, beside the trivial baselines."""
    from genprop.data.corpus import open_corpus
    from genprop.evaluate.methods import NAMES
    from genprop.evaluate.real import run_pasted, run_tracked
    from genprop.evaluate.report import write_json
    from genprop.runtime.backends import open_stages

    found = open_corpus(f"clips={clips}", leave_out=exclude or ()).clips
    chosen = [clip for clip in found if not only or any(fnmatch(clip.name, p) for p in only)]
    if not chosen:
        raise GenPropError(f"no clip of {clips} is called {' or '.join(only or ())}", "Check the names.")
    out.mkdir(parents=True, exist_ok=True)
    if protocol is Protocol.tracked:
        document = run_tracked(chosen, most=frames, out=out, say=say)
    else:
        stages = None if model == "none" else open_stages(model)
        names = tuple(method or (name for name in NAMES if stages is not None or "model" not in name))
        document = run_pasted(
            chosen,
            names,
            stages,
            pairs=pairs,
            frames=frames or 24,
            seed=seed,
            steps=steps,
            out=out,
            say=say,
        )
    write_json(out / "eval.json", document)
    stderr.print(table(document))
    say(f"{out / 'eval.json'}: all figures; a contact sheet of each clip beside it")
    if as_json:
        print_json(document)


def table(document: dict[str, Any]) -> Table:
    """The rows of a document; intervals are in the JSON."""
    rows: dict[str, dict[str, Any]] = document["rows"]
    keys = list(COLUMNS) if document["protocol"] == "pasted" else list(next(iter(rows.values()), {}))
    shown = Table("", *(COLUMNS.get(key, key.replace("_", " ")) for key in keys), box=SIMPLE_HEAD)
    for name, row in rows.items():
        shown.add_row(name, *(_number(row.get(key)) for key in keys))
    return shown


def _number(value: Any) -> str:
    """A figure, or the mean of one with its interval."""
    number = value[0] if isinstance(value, list | tuple) else value
    return "-" if number is None or number != number else f"{number:.4g}"
