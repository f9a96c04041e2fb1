"""The document as tables for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

from genprop.evaluate.bench.document import Bench, Lane, Row

COLUMNS = ("steps", "encode", "denoise", "decode", "total", "p90", "p99", "fps")
QUALITY = ("dB eager", "hole dB", "floor x")


def rows_table(bench: Bench) -> Table:
    """Every row: medians by stage, the tail of the total, quality, and the total over its floor."""
    grid = _grid(
        bench.title,
        f"seconds: medians of {bench.repeats}, p90 and p99 of the total; floor x: the total over what this "
        "machine needs at least",
    )
    grid.add_column("", no_wrap=True)
    for name in (*COLUMNS, *QUALITY):
        grid.add_column(name, justify="right")
    for lane in bench.lanes:
        for row in lane.rows:
            grid.add_row(lane.name, *_cells(row), end_section=row is lane.rows[-1])
    return grid


def lanes_table(bench: Bench) -> Table:
    """What it takes to get each lane ready; and what was asked for and does not run here."""
    grid = _grid("getting ready", "seconds; MB; peak in a process of its own, libraries included")
    grid.add_column("", no_wrap=True)
    for name in ("build", "load", "first run", "files", "peak", "GPU peak"):
        grid.add_column(name, justify="right")
    for lane in bench.lanes:
        grid.add_row(lane.name, *_ready(lane))
    for skip in bench.skipped:
        grid.add_row(f"{skip.role} {skip.backend}", f"not run: {skip.reason}", style="dim")
    return grid


def ratios_table(bench: Bench) -> Table:
    """Those ratios that a bar is set for."""
    grid = _grid("bars", "end to end; paired: the median over the repetitions of each one's own ratio")
    grid.add_column("", no_wrap=True)
    for name in ("times as fast", "paired", "bar", "met"):
        grid.add_column(name, justify="right")
    for ratio in bench.ratios:
        if ratio.bar is not None:
            met = "yes" if ratio.met else "no"
            grid.add_row(ratio.name, f"{ratio.value:.2f}", f"{ratio.paired:.2f}", f"{ratio.bar:g}", met)
    return grid


def _grid(title: str, caption: str) -> Table:
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _cells(row: Row) -> list[str]:
    total = row.seconds["total"]
    stages = [row.seconds[stage].p50 for stage in ("encode", "denoise", "decode")]
    floor = row.floor.get("total")
    return [
        str(row.steps),
        *(f"{seconds:.3f}" for seconds in (*stages, total.p50, total.p90, total.p99)),
        f"{row.fps:.1f}",
        _number(row.psnr_eager),
        _number(row.hole_psnr),
        _number(floor.ratio if floor is not None else None),
    ]


def _ready(lane: Lane) -> list[str]:
    opened = lane.opened
    sizes = (lane.size, opened.host_memory, opened.device_memory)
    return [
        _number(lane.build),
        f"{opened.load:.1f}",
        f"{opened.first_run:.1f}",
        *("-" if size is None else f"{size / 1e6:.0f}" for size in sizes),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
