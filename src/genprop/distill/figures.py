"""The figures of a distillation, of one run or of several over each other.

One idea a figure; a figure with nothing to show is None. How they look is `plotting`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from genprop.distill.plotting import (
    GRID,
    INK,
    QUIET,
    SMALL,
    above,
    beside,
    colours,
    legend,
    lines_at,
    logarithmic,
    panels,
    smooth,
    title,
    trace,
    updates,
)
from genprop.distill.records import Curve, QualityRow, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = {
    "loss": "what is minimised",
    "consistency": "to the target",
    "target_mse": "squared distance to the target",
    "region": "region-aware: below, weighed",
    "nonmask": "outside of the mask",
    "mask": "inside of the mask",
    "hole": "squared error, hole",
    "keep": "squared error, kept region",
    "mpd": "mask decoder",
    "iou": "mask IoU, on latents",
    "carry": "carried background",
    "gradient": "L_grad",
    "temporal": "between frames",
    "adversarial": "against the discriminator",
    "discriminator": "the discriminator's own",
    "r1": "gradient penalty",
    "grad_norm": "norm of the gradient",
    "injection_ratio": "injected over backbone",
}
"""Terms of the log and a word on each, in the order they are shown; others come after them."""
COST = {"steps_per_second": "updates a second", "memory_gb": "peak memory, GB"}
QUALITY = {
    "hole_psnr": ("hole", "PSNR, dB"),
    "keep_psnr": ("kept region", "PSNR, dB"),
    "endpoint_db": ("endpoint", "dB to the teacher's full sampling"),
    "sharpness": ("sharpness of the hole", "over the truth's"),
    "motion": ("motion in the hole", "over the truth's"),
    "mask_iou": ("mask", "IoU"),
}
"""Figures of a quality row that are panels."""
RATIOS = ("sharpness", "motion")
"""Of these the truth's is 1."""


def losses(runs: Sequence[Run]) -> Figure | None:
    """Every term of the loss over updates."""
    found = dict.fromkeys(name for run in runs for name in run.training)
    hidden = ("reward_", "seconds", "lr", *COST)
    others = [name for name in found if name not in LOSSES and not name.startswith(hidden)]
    names = [name for name in LOSSES if name in found] + others
    return _curves(names, runs, lambda run, name: run.training.get(name), notes=LOSSES)


def validation(runs: Sequence[Run]) -> Figure | None:
    """What validation measured on sampled clips, over updates."""
    names = dict.fromkeys(n for run in runs for n in run.validation if not n.startswith("loss/"))
    return _curves([*names], runs, lambda run, name: run.validation.get(name), marked=True)


def rewards(runs: Sequence[Run]) -> Figure | None:
    """Each reward of the student over updates; dashed, what the teacher's own frames score."""
    names = [*reward_names(runs)]
    figure = _curves(names, runs, lambda run, name: run.training.get(f"reward_{name}"), linear=True)
    if figure is not None:
        for axes, name in zip(figure.axes, names, strict=True):
            _teachers_score(axes, runs, name)
    return figure


def reward_names(runs: Sequence[Run]) -> dict[str, None]:
    """Rewards in the logs, in their order; `reward_x_teacher` is the teacher's score of x."""
    logged = (name for run in runs for name in run.training)
    return dict.fromkeys(
        n.removeprefix("reward_") for n in logged if n.startswith("reward_") and not n.endswith("_teacher")
    )


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
        students = [_line(axes, run.quality_of("student"), key, colour) for run, colour in _coloured(runs)]
        teacher = _line(axes, runs[0].quality_of("teacher"), key, INK, dashed=len(runs) > 1)
        _references(axes, runs[0], key, [y for line in (*students, teacher) for _, y in line])
        if len(runs) == 1:
            for line, at, side, name, colour in (
                (students[0], 0, "left", "student", colours(1)[0]),
                (teacher, -1, "right", "teacher", INK),
            ):
                if line:
                    above(axes, *line[at], name, colour, side=side)
    named = [(run.name, colour, "-") for run, colour in _coloured(runs)]
    legend(figure, [*named, ("teacher", INK, "--")] if len(runs) > 1 else [])
    return figure


def cost(runs: Sequence[Run]) -> Figure | None:
    """Where an update's time goes, updates a second, and the peak of the memory."""
    curves = [name for name in COST if any(name in run.training for run in runs)]
    timed = any(parts(run) for run in runs)
    if not curves and not timed:
        return None
    columns = len(curves) + timed
    figure, grid = panels(columns, columns=columns, width=10.8 / max(2, columns), height=2.6)
    if timed:
        _shares(grid[0], runs)
    for axes, name in zip(grid[timed:], curves, strict=True):
        title(axes, COST[name])
        for run, colour in _coloured(runs):
            if name in run.training:
                trace(axes, run.training[name], colour, label=len(runs) == 1)
        axes.set_ylim(bottom=0)
    updates(grid[timed:], columns=columns)
    legend(figure, [(run.name, colour, "-") for run, colour in _coloured(runs)])
    return figure


def parts(run: Run) -> dict[str, float]:
    """Mean seconds of an update by part, and the rest that no part claims; empty where nothing was timed."""
    found = {
        name.removeprefix("seconds_"): float(curve.values.mean())
        for name, curve in run.training.items()
        if name.startswith("seconds_")
    }
    rate = run.training.get("steps_per_second")
    if found and rate is not None and (rate.values > 0).all():
        rest = float((1 / rate.values).mean()) - sum(found.values())
        found |= {"the rest": rest} if rest > 0 else {}
    return dict(sorted(found.items(), key=lambda part: (part[0] == "the rest", -part[1])))


def changes(run: Run) -> dict[float, str]:
    """The updates after which a training asks for something else, by the settings of the run."""
    settings = run.settings
    try:
        total = float(settings["student.steps"])
        ends = float(settings["distill.trajectory"])
        blended = ends + float(settings["distill.blend"])
        starts = float(settings["distill.adversarial.start"])
        found = {blended: "every target is consistency's"}
        if blended > ends:
            found[ends] = "targets begin to pass from the trajectory's end to consistency"
        if float(settings["distill.adversarial.weight"]):
            found[starts] = "the adversarial loss sets in"
    except (KeyError, TypeError, ValueError):  # no settings, or those of another version
        return {}
    return {share * total: what for share, what in sorted(found.items()) if 0 < share < 1}


def figure_of(row: QualityRow, key: str) -> float:
    """A figure of a row by its name."""
    value = vars(row)[key]
    return float(value) if isinstance(value, int | float) else math.nan


def _coloured(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return list(zip(runs, colours(len(runs)), strict=True))


def _curves(
    names: Sequence[str],
    runs: Sequence[Run],
    curve_of: Callable[[Run, str], Curve | None],
    *,
    notes: dict[str, str] | None = None,
    marked: bool = False,
    linear: bool = False,
) -> Figure | None:
    """A panel a name with all runs in it; logarithmic where all is above 0 and neither a share nor dB."""
    if not names:
        return None
    columns = min(4, len(names))
    figure, grid = panels(len(names), columns=columns, width=max(2.75, 5.5 / columns))
    for axes, name in zip(grid, names, strict=True):
        title(axes, name, (notes or {}).get(name, ""))
        values: list[np.ndarray] = []
        for run, colour in _coloured(runs):
            curve = curve_of(run, name)
            if curve is not None:
                trace(axes, curve, colour, label=len(runs) == 1, marked=marked)
                values.append(curve.values)
        together = np.concatenate(values)
        if not linear and not name.endswith(("iou", "psnr", "ssim")) and together.min() > 0:
            logarithmic(axes, together)
    if len(runs) == 1:
        lines_at(grid, changes(runs[0]))
    updates(grid, columns=columns)
    legend(figure, [(run.name, colour, "-") for run, colour in _coloured(runs)])
    return figure


def _teachers_score(axes: Axes, runs: Sequence[Run], name: str) -> None:
    """The teacher's line, from the first run that knows it: runs that are compared share their teacher."""
    for run in runs:
        logged, full = run.training.get(f"reward_{name}_teacher"), run.quality_of("teacher")[-1:]
        if logged is not None:
            steps, values = logged.steps, smooth(logged.values)
        elif full and name in full[0].rewards:
            score = full[0].rewards[name]
            steps, values = np.array(axes.get_xlim()), np.array([score, score])
        else:
            continue
        axes.plot(steps, values, color=INK, lw=1.3, ls="--", scalex=False)
        above(axes, steps[0], values[0], "teacher", INK, side="left")
        return


def _line(
    axes: Axes, rows: Sequence[QualityRow], key: str, colour: str, *, dashed: bool = False
) -> list[tuple[int, float]]:
    """The rows' figures over their evaluations, where they are finite."""
    points = [(row.evaluations, figure_of(row, key)) for row in rows]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, lw=1.8, marker="o", ms=5, ls="--" if dashed else "-")
    return points


def _references(axes: Axes, run: Run, key: str, values: Sequence[float]) -> None:
    """The truth's 1, and the baselines: dashed where they are near the lines, at the edge if far off."""
    truth = [1.0] if key in RATIOS else []
    low, high = min([*values, *truth]), max([*values, *truth])
    span = max(high - low, 0.05 * abs(high), 1e-3)
    baselines = {row.name: figure_of(row, key) for row in run.quality if row.evaluations == 0}
    baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    near = {name: value for name, value in baselines.items() if low - span < value < high + span}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    axes.set_ylim(low - 0.16 * (high - low or span), high + 0.2 * (high - low or span))
    for value in truth:
        axes.axhline(value, color=INK, lw=1)
        axes.annotate("truth", (0.99, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
                      textcoords="offset points", ha="right", fontsize=SMALL, color=INK)  # fmt: skip
    for i, (name, value) in enumerate(baselines.items()):
        side, x = ("left", 0.01) if i % 2 else ("right", 0.99)
        if name in near:
            axes.axhline(value, color=QUIET, lw=1.2, ls="--")
            axes.annotate(name, (x, value), xycoords=("axes fraction", "data"), xytext=(0, -3), va="top",
                          textcoords="offset points", ha=side, fontsize=SMALL, color=QUIET)  # fmt: skip
        else:
            under = value < low
            axes.annotate(f"{'↓' if under else '↑'} {name} {value:.3g}", (x, 0.01 if under else 0.99),
                          xycoords="axes fraction", ha=side, va="bottom" if under else "top",
                          fontsize=SMALL, color=QUIET)  # fmt: skip


def _shares(axes: Axes, runs: Sequence[Run]) -> None:
    """Seconds of an update by part: bars with their share for one run, points for several."""
    title(axes, "seconds of an update")
    names = [*dict.fromkeys(name for run in runs for name in parts(run))]
    for run, colour in _coloured(runs):
        found = parts(run)
        places = [names.index(name) for name in found]
        if len(runs) > 1:
            axes.plot([*found.values()], places, "o", color=colour, ms=6)
            continue
        axes.barh(places, [*found.values()], color=colour, height=0.62)
        for place, value in zip(places, found.values(), strict=True):
            beside(axes, value, place, f"{value / sum(found.values()):.0%}", colour)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, lw=0.8)
