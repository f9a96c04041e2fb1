"""The command `eval`: the score on real footage."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatch
from glob import escape
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
    "better_than_frozen": "> frozen",
    "better_than_telea": "> Telea",
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
    from genprop.evaluate.methods import check_names, known_names
    from genprop.evaluate.real import run_pasted, run_tracked
    from genprop.evaluate.report import write_json
    from genprop.runtime.backends import open_stages

    names = tuple(method or known_names(has_model=model != "none"))
    check_names(names, has_model=model != "none")
    left_out = clips_left_out(clips, only=only or (), exclude=exclude or ())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenPropError(f"{out} cannot be written: {error.strerror}", "Give another --out.") from error
    chosen = open_corpus(f"clips={clips}", leave_out=left_out).clips
    if protocol is Protocol.tracked:
        document = run_tracked(chosen, most=frames, out=out, say=say)
    else:
        stages = None if model == "none" else open_stages(model)
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


def clips_left_out(folder: Path, *, only: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Names of the clips that are not wanted, escaped as patterns: they need not be read.

    Raises:
        GenPropError: the folder is none, holds no clip, or none that is wanted.
    """
    hint = "Give a folder of clips, each a folder with video.mp4 and mask-0.mp4."
    if not folder.is_dir():
        raise GenPropError(f"{folder} is not a folder", hint)
    names = sorted(path.parent.name for path in folder.glob("*/video.mp4"))
    if not names:
        raise GenPropError(f"{folder} holds no clips, expected folders with a video.mp4", hint)
    wanted = [n for n in names if not only or any(fnmatch(n, pattern) for pattern in only)]
    wanted = [n for n in wanted if not any(fnmatch(n, pattern) for pattern in exclude)]
    if not wanted:
        raise GenPropError(
            f"none of the clips of {folder} is chosen, expected some of: {', '.join(names)}",
            "Check the patterns of --only and --exclude.",
        )
    return [escape(name) for name in names if name not in wanted]


def table(document: dict[str, Any]) -> Table:
    """The rows of a document; of the hole with its interval, the others' are in the JSON."""
    rows: dict[str, dict[str, Any]] = document["rows"]
    keys = list(COLUMNS) if document["protocol"] == "pasted" else list(next(iter(rows.values()), {}))
    shown = Table("", *(COLUMNS.get(key, key.replace("_", " ")) for key in keys), box=SIMPLE_HEAD)
    for name, row in rows.items():
        cells = [_number(row.get(key)) for key in keys]
        if document["protocol"] == "pasted":
            _, low, high = row["hole"]
            cells[0] += f" ({_number(low)} to {_number(high)})"
        shown.add_row(name, *cells)
    return shown


def _number(value: Any) -> str:
    """A figure, or the mean of one with its interval."""
    number = value[0] if isinstance(value, list | tuple) else value
    return "-" if number is None or number != number else f"{number:.4g}"
