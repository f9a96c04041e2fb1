"""How the figures look: small multiples, few colours, lines named where they are.

Figures are matplotlib's own objects, drawn with Agg and without pyplot: nothing global is touched, and no
display is needed. matplotlib is imported where a figure begins: most commands draw nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from genprop.distill.report.records import Curve, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6bb3", "#d1541f", "#148060", "#9a4fa3", "#b8860b", "#c2336e", "#4aa3c7", "#7a5230")
"""Of runs, in their order; where there is one run, the student is the first."""
INK, QUIET, GRID = "#2b2b30", "#77777f", "#e4e4e9"
DPI = 130
SMALL = 8.5


def panels(count: int, *, columns: int, width: float, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """So many empty panels, each `width` x `height` inches, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr]
    made = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=QUIET)
        axes.grid(axis="y", color=GRID, lw=0.8)
        axes.set_axisbelow(True)
    return figure, made


def title(axes: Axes, text: str, note: str = "") -> None:
    """Above the panel, and a quieter note below it."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK, pad=16 if note else 6)
    if note:
        axes.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
            fontsize=SMALL, color=QUIET,
        )  # fmt: skip


def trace(axes: Axes, curve: Curve, colour: str, *, label: bool, marked: bool = False) -> None:
    """A curve over updates: faint as logged, strong as a moving average, with its last value beside it."""
    if marked:
        axes.plot(curve.steps, curve.values, color=colour, lw=1.6, marker="o", ms=4)
        last = curve.values[-1]
    else:
        average = smooth(curve.values)
        axes.plot(curve.steps, curve.values, color=colour, lw=0.8, alpha=0.3)
        axes.plot(curve.steps, average, color=colour, lw=1.8)
        last = average[-1]
    if label:
        beside(axes, curve.steps[-1], last, f"{last:.3g}", colour)


def beside(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """To the right of a point, outside of the panel if need be."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=SMALL,
        color=colour, fontweight="bold", annotation_clip=False,
    )  # fmt: skip


def above(axes: Axes, x: float, y: float, text: str, colour: str, *, side: str = "right") -> None:
    """Over a point; `side` is the end of the text that is there."""
    axes.annotate(
        text, (x, y), xytext=(0, 6), textcoords="offset points", ha=side, fontsize=SMALL + 0.5,
        color=colour, fontweight="bold", annotation_clip=False,
    )  # fmt: skip


def level(
    axes: Axes, value: float, text: str, colour: str, *, style: str, side: str = "right", under: bool = False
) -> None:
    """A horizontal line with its name over or `under` it, on white, so that other lines do not strike it."""
    axes.axhline(value, color=colour, lw=1.1, ls=style, zorder=1)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    axes.annotate(
        text, (0.01 if side == "left" else 0.99, value), xycoords=("axes fraction", "data"),
        xytext=(0, -3 if under else 3), textcoords="offset points", ha=side, va="top" if under else "bottom",
        fontsize=SMALL, color=colour, bbox=white,
    )  # fmt: skip


def at_edge(axes: Axes, value: float, text: str, *, up: bool, side: str) -> None:
    """What lies beyond the panel, above (`up`) or below, as a note on its edge."""
    axes.annotate(
        f"{'↑' if up else '↓'} {text} {value:.3g}", (0.01 if side == "left" else 0.99, 0.99 if up else 0.01),
        xycoords="axes fraction", ha=side, va="top" if up else "bottom", fontsize=SMALL, color=QUIET,
    )  # fmt: skip


def updates(axes: Sequence[Axes], *, columns: int) -> None:
    """The axis of updates; it is named under the last row."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    short = FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n >= 1000 else f"{n:g}")
    for i, panel in enumerate(axes):
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.xaxis.set_major_formatter(short)
        if i // columns == (len(axes) - 1) // columns:
            panel.set_xlabel("updates", fontsize=SMALL, color=QUIET)


def logarithmic(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis with ticks that can be read, over decades and within one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = np.quantile(values, (0.002, 0.998))
    axes.set_yscale("log")
    if high / low < 6:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def lines_at(axes: Iterable[Axes], updates_at: Iterable[float]) -> None:
    """Dotted lines where something changes in a training."""
    for panel in axes:
        for update in updates_at:
            panel.axvline(update, color=QUIET, lw=1, ls=":")


def legend(figure: Figure, names: Sequence[tuple[str, str, str]]) -> None:
    """(name, colour, line style) above the figure, where there is more than one."""
    from matplotlib.lines import Line2D

    if len(names) > 1:
        handles = [Line2D([], [], color=colour, lw=2.4, ls=style) for _, colour, style in names]
        figure.legend(
            handles, [name for name, *_ in names], loc="outside upper left", ncols=min(4, len(names)),
            frameon=False, fontsize=10,
        )  # fmt: skip


def coloured(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Each run and its colour; they begin again where there are more runs than colours."""
    return [(run, COLOURS[i % len(COLOURS)]) for i, run in enumerate(runs)]


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred moving average over a twelfth of the curve, of what there is at its ends."""
    width = max(1, len(values) // 12) | 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
