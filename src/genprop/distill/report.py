"""`genprop distill report`: one run as a page that a person reads at a glance.

What the student is worth comes first, then what it looks like, then how it came to be. The page holds
everything inside itself; the figures lie beside it for whoever needs one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genprop.config import load_config, presets
from genprop.distill import figures
from genprop.distill.page import (
    bullets,
    folded,
    heading,
    lines,
    page,
    paragraph,
    picture,
    table,
)
from genprop.distill.plotting import png
from genprop.distill.records import QualityRow, Run, flat, read_run, write_whole

SHEETS = 6
"""Contact sheets on the page: first, last, and evenly between."""
NOTHING = "–"

CAPTIONS = {
    "quality": "Student and teacher at the same number of evaluations of the network; a step of the guided teacher "
    "takes two. Against the truth's decoded latents, on held-out clips, as decoded, nothing composited.",
    "losses": "Faint: means as logged. Strong: their moving average, with its last value. Logarithmic where it can be.",
    "validation": "Sampled held-out clips, with the averaged weights.",
    "rewards": "The student's frames in training; dashed, the teacher's, above which a hinged reward asks for no more.",
    "cost": "Mean seconds of an update by part; updates a second; the peak of the memory so far.",
}


def write_report(run: Path, *, out: Path | None = None) -> Path:
    """Write `report.html` and `figures/*.png`, all or none, and return the page's path.

    Args:
        run: the folder of a distillation, finished or not.
        out: where the report goes; the run's own folder if None.

    Raises:
        GenPropError: `run` is not a run's folder.
    """
    found, folder = read_run(run), out or run
    pictures = draw([found])
    files = {f"figures/{name}.png": content for name, content in pictures.items()}
    write_whole(folder, {**files, "report.html": page(f"{found.name}: distillation", _parts(found, pictures))})
    return folder / "report.html"


def draw(runs: Sequence[Run]) -> dict[str, bytes]:
    """The figures that there is something to show in, as PNGs by name."""
    made = {
        "quality": figures.quality(runs),
        "losses": figures.losses(runs),
        "validation": figures.validation(runs),
        "rewards": figures.rewards(runs),
        "cost": figures.cost(runs),
    }
    return {name: png(figure) for name, figure in made.items() if figure is not None}


def _parts(run: Run, pictures: dict[str, bytes]) -> list[str]:
    def shown(name: str, note: str = "") -> str:
        return picture(pictures.get(name), f"{CAPTIONS[name]} {note}".strip())

    changes = "; ".join(f"{update:,.0f}: {what}" for update, what in figures.changes(run).items())
    has_cost = "cost" in pictures
    return [
        heading(run.name, 1),
        paragraph(facts(run), "quiet"),
        paragraph(verdict(run.quality), "lead"),
        *_section("Quality", shown("quality"), quality_table(run.quality)),
        *_section("Samples over training", *sheets(run)),
        *_section("Loss", shown("losses", f"Dotted, after update {changes}." if changes else "")),
        *_section("Validation", shown("validation")),
        *_section("Rewards", shown("rewards"), reward_cards(run.rewards)),
        *_section("Time and memory" if has_cost else "", shown("cost")),
        *_section("Sampling schedule", schedule_table(run.schedule)),
        *_section("Configuration", _changed(run), folded("all settings", lines(configuration(run)))),
        *_section("Versions and hardware", _pairs(run.about, ("hardware", "versions"))),
        *_section("Not there", bullets(run.missing)),
    ]


def _section(title: str, *parts: str) -> list[str]:
    """A heading and its parts; nothing where none has anything in it."""
    return [heading(title), *parts] if any(parts) else []


def facts(run: Run) -> str:
    """How long, of what, on what: one line."""
    about, hardware = run.about, run.about.get("hardware")
    planned = run.settings.get("student.steps")
    done = f"{run.updates:,} updates" if planned in (None, run.updates) else f"{run.updates:,} of {planned:,} updates"
    said = [done]
    if isinstance(about.get("seconds"), int | float):
        said.append(duration(about["seconds"]))
    if about.get("resumed_from"):
        said.append(f"resumed from update {about['resumed_from']:,}")
    if isinstance(hardware, dict):
        said.append(str(hardware.get("gpu") or hardware.get("cpu") or ""))
    if about.get("teacher"):
        said.append(f"teacher {about['teacher']}")
    if about.get("data"):
        said.append(f"data {words(about['data'])}")
    return " · ".join(part for part in said if part)


def verdict(rows: Sequence[QualityRow]) -> str:
    """The fewest evaluations of the student against all of the teacher's, in a sentence or two."""
    by_name = {name: sorted((r for r in rows if r.name == name), key=lambda r: r.evaluations)
               for name in ("student", "teacher", "frozen first frame")}  # fmt: skip
    if not by_name["student"] or not by_name["teacher"]:
        return ""
    student, teacher = by_name["student"][0], by_name["teacher"][-1]
    said = (
        f"With {counted(student.evaluations)} the student is at {number(student.hole_psnr, 1)} dB in the hole and "
        f"{number(student.keep_psnr, 1)} dB in the kept region; its teacher, with {counted(teacher.evaluations)}, "
        f"at {number(teacher.hole_psnr, 1)} and {number(teacher.keep_psnr, 1)} dB"
    )
    if by_name["frozen first frame"]:
        said += f", the frozen first frame at {number(by_name['frozen first frame'][0].hole_psnr, 1)} dB in the hole"
    said += (
        f". The hole is {number(student.sharpness, 2)} times as sharp as the truth (teacher: "
        f"{number(teacher.sharpness, 2)}) and moves {number(student.motion, 2)} times as much "
        f"({number(teacher.motion, 2)})."
    )
    if student.seconds > 0 and teacher.seconds > 0:
        said += f" It denoises {teacher.seconds / student.seconds:.3g} times as fast."
    return said


def quality_table(rows: Sequence[QualityRow]) -> str:
    """Every row; rewards get a column each."""
    scored = list(dict.fromkeys(name for row in rows for name in row.rewards))
    header = ["", "evaluations", "hole dB", "keep dB", "sharp", "motion", "endpoint dB", "mask IoU", *scored, "s a clip"]
    body = [[row_name(row), *cells(row, scored)] for row in rows]
    note = (
        f"sharp, motion: of the hole, the truth's is 1. endpoint: latents of the deterministic sample against the "
        f"teacher's full sampling from the same noise. {NOTHING}: nothing to measure, or exact. The truth itself "
        "has no row: it is what all are measured against."
    )
    return table(header, body) + paragraph(note, "quiet") if rows else ""


def cells(row: QualityRow, scored: Sequence[str]) -> list[str]:
    return [
        str(row.evaluations or NOTHING),
        *(number(value, 2) for value in (row.hole_psnr, row.keep_psnr, row.sharpness, row.motion)),
        number(row.endpoint_db, 2),
        number(row.mask_iou, 2),
        *(number(row.rewards.get(name, math.nan), 3) for name in scored),
        number(row.seconds, 3),
    ]


def row_name(row: QualityRow) -> str:
    """A row's name, with the share of fresh noise where a sampler of several steps draws some."""
    return f"{row.name}, eta {row.eta:g}" if row.name == "student" and row.steps > 1 else row.name


def schedule_table(schedule: dict[str, Any]) -> str:
    """The sigmas of each number of steps, and, folded, all that was tried."""
    sigmas, eta, tried = (schedule.get(name) for name in ("sigmas", "eta", "rows"))
    chosen = [[n, words(levels), words((eta or {}).get(n, NOTHING))] for n, levels in (sigmas or {}).items()]
    rows = [row for row in tried if isinstance(row, dict)] if isinstance(tried, list) else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    trials = table(names, [[words(row.get(name, NOTHING)) for name in names] for row in rows], text=0)
    return table(["steps", "sigmas", "eta"], chosen, text=2) + folded(f"{len(rows)} measurements", trials)


def reward_cards(cards: Sequence[dict[str, Any]]) -> str:
    """Where each reward's weights come from, and their licence."""
    names = ["name", "weight", "reference", "frames", "hinge", "source", "licence"]
    return table(names, [[words(card.get(name, NOTHING)) for name in names] for card in cards], text=len(names))


def sheets(run: Run) -> list[str]:
    """Contact sheets from the first to the last."""
    steps = list(run.sheets)
    if len(steps) > SHEETS:
        steps = [steps[round(i * (len(steps) - 1) / (SHEETS - 1))] for i in range(SHEETS)]
    return [picture(run.sheets[step].read_bytes(), f"after {step:,} updates", kind="sheet") for step in steps]


def configuration(run: Run) -> list[tuple[str, bool]]:
    """The configuration as TOML has it, line by line; True where the preset of its name has something else."""
    theirs = preset_of(run)
    text: list[tuple[str, bool]] = []
    at: str | None = None
    for key, value in sorted(run.settings.items(), key=lambda item: "." in item[0]):
        place, _, leaf = key.rpartition(".")
        if place != at and place:
            text += [("", False), (f"[{place}]", False)]
        at = place
        text.append((f"{leaf} = {words(value, quoted=True)}", bool(theirs) and theirs.get(key) != value))
    return text


def preset_of(run: Run) -> dict[str, Any]:
    """The settings of the preset that the run's configuration is named after; empty if there is none."""
    name = run.settings.get("name")
    return flat(load_config(name).model_dump(mode="json")) if name in presets() else {}


def _changed(run: Run) -> str:
    """What differs from the preset."""
    theirs, ours = preset_of(run), run.settings
    if not theirs:
        return ""
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    rows = [[key, words(ours[key]), words(theirs.get(key, NOTHING))] for key in keys]
    title = f"preset {ours['name']}"
    return table(["", "this run", title], rows, text=3) or paragraph(f"As {title}.", "quiet")


def _pairs(about: dict[str, Any], names: Sequence[str]) -> str:
    rows = [[key, words(value)] for name in names for key, value in flat(about.get(name) or {}).items()]
    return table(["", ""], rows, text=2)


def number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def counted(evaluations: int) -> str:
    return "1 evaluation" if evaluations == 1 else f"{evaluations} evaluations"


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
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
