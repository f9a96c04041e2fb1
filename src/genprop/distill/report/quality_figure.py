"""Quality against evaluations of the network, as a figure: what a distillation is for.

Student and teacher are lines, baselines and truth levels. A baseline far from the lines stands at the edge as
a number: the axis is for what is being compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from genprop.distill.report.plotting import (
    COLOURS,
    INK,
    QUIET,
    SMALL,
    above,
    at_edge,
    coloured,
    legend,
    level,
    panels,
    title,
)
from genprop.distill.report.records import QualityRow, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUALITY = {
    "hole_psnr": ("hole", "PSNR, dB"),
    "keep_psnr": ("kept region", "PSNR, dB"),
    "endpoint_db": ("endpoint", "dB to the teacher's full sampling"),
    "sharpness": ("sharpness of the hole", "over the truth's"),
    "motion": ("motion in the hole", "over the truth's"),
    "mask_iou": ("mask", "IoU"),
}
"""Figures of a row, in the order of their panels: what they are, and of what unit."""
RATIOS = ("sharpness", "motion")
"""Of these the truth's is 1."""


def quality(runs: Sequence[Run]) -> Figure | None:
    """Quality against evaluations of the network: students, the (first run's) teacher, baselines, truth."""
    rows = [row for run in runs for row in run.quality if row.evaluations > 0]
    shown = [key for key in QUALITY if any(math.isfinite(figure_of(row, key)) for row in rows)]
    if not shown:
        return None
    figure, grid = panels(len(shown), columns=3, width=3.6, height=2.8)
    ticks = sorted({row.evaluations for row in rows})
    for i, (axes, key) in enumerate(zip(grid, shown, strict=True)):
        title(axes, *QUALITY[key])
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(ticks[0] / 1.4, ticks[-1] * 1.4)
        if i + 3 >= len(shown):
            axes.set_xlabel("evaluations of the network", fontsize=SMALL, color=QUIET)
        students = [_line(axes, run.quality_of("student"), key, colour) for run, colour in coloured(runs)]
        teacher = _line(axes, runs[0].quality_of("teacher"), key, INK, dashed=len(runs) > 1)
        _references(axes, runs[0], key, [y for line in (*students, teacher) for _, y in line])
        if len(runs) == 1:
            for line, name, colour in ((students[0], "student", COLOURS[0]), (teacher, "teacher", INK)):
                if line:
                    above(axes, *line[-1], name, colour)
    named = [(run.name, colour, "-") for run, colour in coloured(runs)]
    legend(figure, [*named, ("teacher", INK, "--")] if len(runs) > 1 else [])
    return figure


def figure_of(row: QualityRow, key: str) -> float:
    """A figure of a row by its name."""
    value = vars(row)[key]
    return float(value) if isinstance(value, int | float) else math.nan


def _line(
    axes: Axes, rows: Sequence[QualityRow], key: str, colour: str, *, dashed: bool = False
) -> list[tuple[int, float]]:
    """The rows' figures over their evaluations, where they are finite."""
    points = [(row.evaluations, figure_of(row, key)) for row in rows]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, lw=1.8, marker="o", ms=5, zorder=3, ls="--" if dashed else "-")
    return points


def _references(axes: Axes, run: Run, key: str, values: Sequence[float]) -> None:
    """The truth's 1 and the baselines, and limits that have room for what is near."""
    truth = [1.0] if key in RATIOS else []
    low, high = min([*values, *truth]), max([*values, *truth])
    span = max(high - low, 0.05 * abs(high), 1e-3)
    baselines = {row.name: figure_of(row, key) for row in run.quality if row.evaluations == 0}
    baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    near = {name: value for name, value in baselines.items() if low - span < value < high + span}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    room = high - low or span
    axes.set_ylim(low - 0.16 * room, high + 0.2 * room)
    for value in truth:
        level(axes, value, "truth", INK, style="-", side="left", under=any(y > value for y in near.values()))
    far = 0
    for name, value in baselines.items():
        if name in near:
            level(axes, value, name, QUIET, style="--", under=value > (low + high) / 2)
        else:
            at_edge(axes, value, name, up=value > high, side=("right", "left")[far % 2])
            far += 1
