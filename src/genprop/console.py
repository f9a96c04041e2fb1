"""What every command shares: where a person is told things, how they are refused, and the common options.

What a person reads goes to stderr; with `--json`, stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

stderr = Console(stderr=True, markup=False, highlight=False)  # a path may hold [brackets]
if not stderr.is_terminal:  # a table in a log file is not cut to 80 columns
    stderr.width = 120

LARGEST_SEED = 2**32 - 1

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
Preset = Annotated[str, typer.Option("--config", "--preset", help="A preset, or a TOML file.")]
Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of all that is random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@contextmanager
def frame_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar over a video's frames, with their rate and the time left; told how many of how many are done."""
    columns = (
        TextColumn("{task.completed} of {task.total} frames"),
        BarColumn(),
        TextColumn("{task.fields[rate]} a second"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task: TaskID | None = None
        began = time.perf_counter()

        def told(done: int, total: int | None) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("frames", total=total, rate="")
            bar.update(task, completed=done, total=total, rate=f"{done / (time.perf_counter() - began):.1f}")

        yield told


def refuse(message: str, hint: str) -> NoReturn:
    """The two lines, and exit 1."""
    stderr.print(f"error: {message}", style="bold red", soft_wrap=True)
    if hint:
        say(f"hint: {hint}")
    sys.exit(1)


def say(text: str) -> None:
    """A line for a person; it stays one line, however long."""
    stderr.print(text, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout. JSON has no nan and no infinity: they are null."""
    text = json.dumps(document, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1))


def log_to_stderr() -> None:
    """The trainings' lines, for a person, on stderr."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
