"""The figures of a training over its updates, of one run or of several over each other.

One idea a figure; a figure with nothing to show is None. How they look is `plotting`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from genprop.distill.report.plotting import (
    GRID,
    INK,
    above,
    beside,
    coloured,
    legend,
    lines_at,
    logarithmic,
    panels,
    smooth,
    title,
    trace,
    updates,
)
from genprop.distill.report.records import Curve, Run

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
VALIDATION = {
    "hole": "squared error of latents",
    "keep": "squared error of latents",
    "hole_psnr": "decoded, dB",
    "keep_psnr": "decoded, dB",
    "hole_ssim": "decoded",
    "keep_ssim": "decoded",
    "iou": "mask IoU, in pixels",
    "injection_ratio": "injected over backbone",
}
COST = {"steps_per_second": "updates a second", "memory_gb": "peak memory, GB"}


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
    return _curves([*names], runs, lambda run, name: run.validation.get(name), notes=VALIDATION, marked=True)


def rewards(runs: Sequence[Run]) -> Figure | None:
    """Each reward of the student over updates; dashed, what the teacher's own frames score."""
    names = [*reward_names(runs)]
    figure = _curves(names, runs, lambda run, name: run.training.get(f"reward_{name}"), linear=True)
    if figure is not None:
        for axes, name in zip(figure.axes, names, strict=True):
            axes.margins(y=0.18)
            _teachers_score(axes, runs, name)
    return figure


def reward_names(runs: Sequence[Run]) -> dict[str, None]:
    """Rewards in the logs, in their order; beside `reward_x` stand the teacher's score and the hinged one."""
    logged = (name for run in runs for name in run.training)
    beside_it = ("_teacher", "_hinged")
    return dict.fromkeys(
        n.removeprefix("reward_") for n in logged if n.startswith("reward_") and not n.endswith(beside_it)
    )


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
        for run, colour in coloured(runs):
            if name in run.training:
                trace(axes, run.training[name], colour, label=len(runs) == 1)
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
    updates(grid[timed:], columns=columns)
    legend(figure, [(run.name, colour, "-") for run, colour in coloured(runs)])
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
        for run, colour in coloured(runs):
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
    legend(figure, [(run.name, colour, "-") for run, colour in coloured(runs)])
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


def _shares(axes: Axes, runs: Sequence[Run]) -> None:
    """Seconds of an update by part: bars with their share for one run, points for several."""
    title(axes, "seconds of an update")
    names = [*dict.fromkeys(name for run in runs for name in parts(run))]
    for i, (run, colour) in enumerate(coloured(runs)):
        found = parts(run)
        places = [names.index(name) for name in found]
        if len(runs) > 1:
            apart = [place + 0.6 * ((i + 0.5) / len(runs) - 0.5) for place in places]
            axes.plot([*found.values()], apart, "o", color=colour, ms=6)
            continue
        axes.barh(places, [*found.values()], color=colour, height=0.62)
        for place, value in zip(places, found.values(), strict=True):
            beside(axes, value, place, f"{value / sum(found.values()):.0%}", colour)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, lw=0.8)
