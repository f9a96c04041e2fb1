"""The tables of a distillation's pages: quality, schedule, rewards, settings.

A cell is text; what is not there, or not finite, is a dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from genprop.config import load_config, presets
from genprop.distill.report.page import folded, paragraph, table
from genprop.distill.report.records import QualityRow, Run, flat

NOTHING = "-"
NOTE = (
    "sharp, motion: of the hole, the truth's is 1. endpoint: latents of the deterministic sample against the "
    f"teacher's full sampling from the same noise. {NOTHING}: nothing to measure, or exact. The truth itself "
    "has no row: it is what all are measured against."
)
HEADER = ("evaluations", "hole dB", "keep dB", "sharp", "motion", "endpoint dB", "mask IoU")


def quality_table(rows: Sequence[QualityRow]) -> str:
    """Every row; rewards get a column each."""
    scored = scores(rows)
    body = [[row_name(row), *cells(row, scored)] for row in rows]
    return table(["", *header(scored)], body) + paragraph(NOTE, "quiet") if rows else ""


def scores(rows: Sequence[QualityRow]) -> list[str]:
    """The rewards that any row has."""
    return list(dict.fromkeys(name for row in rows for name in row.rewards))


def header(scored: Sequence[str]) -> list[str]:
    """Of the columns of `cells`."""
    return [*HEADER, *scored, "s a clip"]


def cells(row: QualityRow, scored: Sequence[str], *, against: QualityRow | None = None) -> list[str]:
    """The figures of a row, below each its difference to that of another, if there is one."""

    def cell(of: Callable[[QualityRow], float], digits: int) -> str:
        value = number(of(row), digits)
        difference = of(row) - of(against) if against is not None else math.nan
        if not math.isfinite(difference):
            return value
        return f"{value}\n{difference:+.{digits}f}" if round(difference, digits) else f"{value}\n="

    return [
        str(row.evaluations or NOTHING),
        cell(lambda r: r.hole_psnr, 2),
        cell(lambda r: r.keep_psnr, 2),
        cell(lambda r: r.sharpness, 2),
        cell(lambda r: r.motion, 2),
        cell(lambda r: r.endpoint_db, 2),
        cell(lambda r: r.mask_iou, 3),
        *(cell(lambda r, name=name: r.rewards.get(name, math.nan), 3) for name in scored),
        cell(lambda r: r.seconds, 3),
    ]


def row_name(row: QualityRow) -> str:
    """A row's name, with the share of fresh noise where a sampler of several steps draws some."""
    return f"{row.name}, eta {row.eta:g}" if row.name == "student" and row.steps > 1 else row.name


def schedule_table(schedule: dict[str, Any]) -> str:
    """The sigmas of each number of steps, and, folded, all that was tried."""
    sigmas, eta, tried = (schedule.get(name) for name in ("sigmas", "eta", "rows"))
    chosen = [[n, words(levels), words(dict(eta or {}).get(n))] for n, levels in dict(sigmas or {}).items()]
    rows = [row for row in tried if isinstance(row, dict)] if isinstance(tried, list) else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    trials = table(names, [[words(row.get(name)) for name in names] for row in rows], text=0)
    return table(["steps", "sigmas", "eta"], chosen, text=2) + folded(f"{len(rows)} measurements", trials)


def reward_cards(cards: Sequence[dict[str, Any]]) -> str:
    """Where each reward's weights come from, and their licence."""
    names = ["name", "weight", "reference", "frames", "hinge", "source", "licence"]
    rows = [[words(card.get(name)) for name in names] for card in cards]
    return table(names, rows, text=len(names))


def configuration(run: Run) -> list[tuple[str, bool]]:
    """The configuration as TOML has it, line by line; True where its preset differs."""
    theirs = preset_of(run)
    text: list[tuple[str, bool]] = []
    at: str | None = None
    for key, value in sorted(run.settings.items(), key=lambda item: "." in item[0]):
        place, _, leaf = key.rpartition(".")
        if place != at and place:
            text += [("", False), (f"[{place}]", False)]
        at = place
        line = f"# {leaf} is not set" if value is None else f"{leaf} = {words(value, quoted=True)}"
        text.append((line, bool(theirs) and theirs.get(key) != value))
    return text


def preset_of(run: Run) -> dict[str, Any]:
    """The settings of the preset that the run's configuration is named after; empty if there is none."""
    name = run.settings.get("name")
    return flat(load_config(name).model_dump(mode="json")) if name in presets() else {}


def changed(run: Run) -> str:
    """What differs from the preset."""
    theirs, ours = preset_of(run), run.settings
    if not theirs:
        return ""
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    rows = [[key, words(ours[key]), words(theirs.get(key))] for key in keys]
    title = f"preset {ours['name']}"
    return table(["", "this run", title], rows, text=3) or paragraph(f"As {title}.", "quiet")


def pairs(about: dict[str, Any], names: Sequence[str]) -> str:
    rows = [[key, words(value)] for name in names for key, value in flat(about.get(name) or {}).items()]
    return table(["", ""], rows, text=2)


def number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def words(value: Any, *, quoted: bool = False) -> str:
    """A value of a configuration as TOML would write it, or, without quotes, as a person would."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        inner = ", ".join(words(item, quoted=quoted) for item in value)
        return f"[{inner}]" if quoted else inner
    if isinstance(value, str) and quoted:
        return f'"{value}"'
    return NOTHING if value is None else str(value)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
