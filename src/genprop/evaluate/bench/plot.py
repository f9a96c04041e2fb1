"""Quality against latency, as a picture: what a person chooses a backend and a number of steps by.

One line a lane, its points named by their number of steps. Left is fast, up is good. Where backends agree to
the decibel their lines differ in x alone, which is the point.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from genprop.distill.report.plotting import COLOURS, GRID, INK, QUIET, SMALL, panels, png, title
from genprop.evaluate.bench.document import Bench, Lane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = {"student": "o", "teacher": "s"}


def write_plot(bench: Bench, path: Path) -> bool:
    """Write the picture, whole or not at all; without quality to show, none. Says whether it did."""
    lanes = [lane for lane in bench.lanes if points(lane)]
    if not lanes:
        return False
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(picture(bench, lanes))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def points(lane: Lane) -> list[tuple[float, float, int]]:
    """(median seconds, PSNR in the hole, steps) of each row that has both, fastest first."""
    found = [(r.seconds["total"].p50, r.hole_psnr, r.steps) for r in lane.rows]
    return sorted((x, y, n) for x, y, n in found if y is not None)


def picture(bench: Bench, lanes: list[Lane]) -> bytes:
    """The PNG of lanes that have points."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, (axes,) = panels(1, columns=1, width=7.6, height=4.6)
    title(axes, "Quality against latency", f"{bench.title}; numbers are steps")
    colours = {backend: COLOURS[i] for i, backend in enumerate(dict.fromkeys(_backend(x) for x in lanes))}
    for i, lane in enumerate(lanes):
        _line(axes, lane, colours[_backend(lane)], under=i % 2 == 1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.margins(x=0.08, y=0.16)
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.set_xlabel(f"seconds a clip, end to end: median of {bench.repeats}", fontsize=SMALL, color=QUIET)
    axes.set_ylabel(f"PSNR in the hole, dB (clips: {bench.quality_clips})", fontsize=SMALL, color=QUIET)
    axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="best")
    return png(figure)


def _backend(lane: Lane) -> str:
    return f"{lane.backend} {lane.precision}{', light decoder' if lane.light else ''}"


def _line(axes: Axes, lane: Lane, colour: str, *, under: bool) -> None:
    """A lane's points, each with its number of steps over it, or `under` it; a teacher's are hollow."""
    xs, ys, counts = zip(*points(lane), strict=True)
    filled = colour if lane.role == "student" else "white"
    axes.plot(
        xs, ys, color=colour, lw=1.6, ms=7, marker=MARKS[lane.role], mfc=filled, mec=colour, mew=1.6,
        label=f"{lane.role}, {_backend(lane)}",
    )  # fmt: skip
    for x, y, n in zip(xs, ys, counts, strict=True):
        axes.annotate(
            str(n), (x, y), xytext=(0, -15 if under else 7), textcoords="offset points", ha="center",
            fontsize=SMALL, color=colour, fontweight="bold",
        )  # fmt: skip
