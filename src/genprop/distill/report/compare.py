"""`genprop distill compare`: several runs on one page, each against the first.

Curves over each other, quality with its differences, the settings that differ and no others, and the last
contact sheets side by side. `compare.json` has the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from genprop.distill.report.page import bullets, heading, page, paragraph, picture, side_by_side, table
from genprop.distill.report.records import QualityRow, Run, flat, quality_document, read_run, write_whole
from genprop.distill.report.tables import NOTE, cells, header, row_name, scores, words
from genprop.distill.report.write import CAPTIONS, draw, facts, section, sheet
from genprop.errors import GenPropError


def compare_runs(runs: Sequence[Path], *, out: Path) -> Path:
    """Write `compare.html`, `compare.json` and `figures/*.png` into `out`, all or none; return the page.

    Args:
        runs: folders of distillations; what differs is told against the first.

    Raises:
        GenPropError: fewer than two runs, or a folder that is not one.
    """
    if len(runs) < 2:
        raise GenPropError(f"got {len(runs)} runs to compare, expected at least 2", "name the runs' folders")
    found = named(list(map(read_run, runs)))
    pictures = draw(found)
    files = {f"figures/{name}.png": content for name, content in pictures.items()}
    text = json.dumps(document(found), indent=1, allow_nan=False) + "\n"
    html = page("Distillations compared", _parts(found, pictures))
    write_whole(out, {**files, "compare.json": text.encode(), "compare.html": html})
    return out / "compare.html"


def named(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that tell them apart: the folder's, with its parent's where that is not enough."""
    short = [run.name for run in runs]
    names = [
        run.name if short.count(run.name) == 1 else f"{run.folder.resolve().parent.name}/{run.name}"
        for run in runs
    ]
    return [
        replace(run, name=name if names.count(name) == 1 else f"{name} ({i})")
        for i, (run, name) in enumerate(zip(runs, names, strict=True), start=1)
    ]


def differing(tables: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys that are not alike in all tables, and each table's value; None where it has none."""
    keys = dict.fromkeys(key for each in tables for key in each)
    found = {key: [each.get(key) for each in tables] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def settings_of(run: Run) -> dict[str, Any]:
    """What was chosen: configuration, teacher and data. Empty for a run that does not say."""
    chosen = {name: run.about[name] for name in ("teacher", "data") if name in run.about}
    return {**chosen, **run.settings}


def place_of(run: Run) -> dict[str, Any]:
    """Hardware and versions."""
    return flat({name: run.about[name] for name in ("hardware", "versions") if run.about.get(name)})


def quality_rows(runs: Sequence[Run]) -> list[tuple[Run, QualityRow, QualityRow | None]]:
    """Each way with the runs below each other, and the first run's row to compare with.

    What the runs share, teacher and baselines that came out alike, is there once.
    """
    first = {(row.name, row.evaluations): row for row in runs[0].quality}
    keys = dict.fromkeys((row.name, row.evaluations) for run in runs for row in run.quality)
    found = []
    for key in keys:
        for run in runs:
            for row in run.quality:
                if (row.name, row.evaluations) != key:
                    continue
                against = first.get(key) if run is not runs[0] else None
                if row.name == "student" or against is None or not _alike(row, against):
                    found.append((run, row, against))
    return found


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """`compare.json`: the runs, what differs, the quality, and where each curve ended (its last value)."""
    curves = dict.fromkeys(name for run in runs for name in run.training)
    validated = dict.fromkeys(name for run in runs for name in run.validation)
    return {
        "runs": [
            {"name": run.name, "folder": str(run.folder), "updates": run.updates, "missing": run.missing}
            for run in runs
        ],
        "settings": differing([settings_of(run) for run in runs if settings_of(run)]),
        "place": differing([place_of(run) for run in runs if place_of(run)]),
        "quality": {run.name: quality_document(run.quality)["rows"] for run in runs},
        "last": {name: [_last(run.training, name) for run in runs] for name in curves},
        "last_validation": {name: [_last(run.validation, name) for run in runs] for name in validated},
    }


def _parts(runs: Sequence[Run], pictures: dict[str, bytes]) -> list[str]:
    def shown(name: str, note: str = "") -> str:
        return picture(pictures.get(name), f"{CAPTIONS[name]} {note}".strip())

    last = [sheet(run, max(run.sheets), f"{run.name}, after {max(run.sheets):,} updates")
            for run in runs if run.sheets]  # fmt: skip
    return [
        heading("Distillations compared", 1),
        table(["", ""], [[run.name, facts(run)] for run in runs], text=2),
        *section("Settings that differ", _differences(runs)),
        *section("Quality", shown("quality", "Teacher and baselines are the first run's."), _quality(runs)),
        *section("Samples", side_by_side(last)),
        *section("Loss", shown("losses")),
        *section("Validation", shown("validation")),
        *section("Rewards", shown("rewards")),
        *section("Time and memory", shown("cost")),
        *section("Where they ran", _table_of(place_of, runs)),
        *section("Not there", bullets([f"{run.name}: {what}" for run in runs for what in run.missing])),
    ]


def _differences(runs: Sequence[Run]) -> str:
    told = [run for run in runs if settings_of(run)]
    if len(told) < 2:
        return paragraph("Fewer than two of the runs have their settings in run.json.", "quiet")
    return _table_of(settings_of, told) or paragraph("None: the runs have the same settings.", "quiet")


def _table_of(of: Any, runs: Sequence[Run]) -> str:
    """What differs of the runs that say anything, a column each."""
    told = [run for run in runs if of(run)]
    rows = [[key, *map(words, values)] for key, values in differing([of(run) for run in told]).items()]
    return table(["", *(run.name for run in told)], rows, text=len(told) + 1)


def _quality(runs: Sequence[Run]) -> str:
    rows = quality_rows(runs)
    if not rows:
        return ""
    scored = scores([row for _, row, _ in rows])
    body = [[row_name(row), run.name, *cells(row, scored, against=other)] for run, row, other in rows]
    note = "Below a figure: its difference to the first run's. " + NOTE
    return table(["", "run", *header(scored)], body, text=2) + paragraph(note, "quiet")


def _alike(a: QualityRow, b: QualityRow) -> bool:
    """Whether two rows say the same of the pictures: not how long they took, to what is shown of them."""
    names = scores([a, b])
    return cells(replace(a, seconds=math.nan), names) == cells(replace(b, seconds=math.nan), names)


def _last(curves: dict[str, Any], name: str) -> float | None:
    return float(curves[name].values[-1]) if name in curves else None
