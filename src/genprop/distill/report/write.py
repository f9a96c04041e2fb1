"""`genprop distill report`: one run as a page that a person reads at a glance.

What the student is worth comes first, then what it looks like, then how it came to be. The page holds
everything inside itself; the figures lie beside it for whoever needs one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from genprop.distill.report import figures
from genprop.distill.report.page import bullets, folded, heading, lines, page, paragraph, picture
from genprop.distill.report.plotting import png
from genprop.distill.report.quality_figure import quality
from genprop.distill.report.records import QualityRow, Run, read_run, write_whole
from genprop.distill.report.tables import (
    changed,
    configuration,
    duration,
    number,
    pairs,
    quality_table,
    reward_cards,
    schedule_table,
    words,
)

SHEETS = 6
"""Contact sheets on the page: first, last, and evenly between."""
SHEET_WIDTH = 1600

CAPTIONS = {
    "quality": "Student and teacher at the same number of evaluations of the network; a step of the guided "
    "teacher takes two. Held-out clips against the decoded latents of the truth, nothing composited.",
    "losses": "Faint: means as logged. Strong: their moving average, with its last value. Logarithmic where "
    "all is above 0.",
    "validation": "Sampled held-out clips, with the averaged weights.",
    "rewards": "Of the student's frames in training; dashed, of the teacher's, where a hinge stops.",
    "cost": "Mean seconds of an update by part; updates a second; the peak of the memory.",
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
    text = page(f"{found.name}: distillation", _parts(found, pictures))
    write_whole(folder, {**files, "report.html": text})
    return folder / "report.html"


def draw(runs: Sequence[Run]) -> dict[str, bytes]:
    """The figures that there is something to show in, as PNGs by name."""
    made = {
        "quality": quality(runs),
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
    dotted = f"Dotted, after update {changes}." if changes else ""
    return [
        heading(run.name, 1),
        paragraph(facts(run), "quiet"),
        paragraph(verdict(run.quality), "lead"),
        *section("Quality", shown("quality"), quality_table(run.quality)),
        *section("Samples over training", *sheets(run)),
        *section("Loss", shown("losses", dotted)),
        *section("Validation", shown("validation")),
        *section("Rewards", shown("rewards"), reward_cards(run.rewards)),
        *section("Time and memory", shown("cost")),
        *section("Sampling schedule", schedule_table(run.schedule)),
        *section("Configuration", changed(run), folded("all settings", lines(configuration(run)))),
        *section("Versions and hardware", pairs(run.about, ("hardware", "versions"))),
        *section("Not there", bullets(run.missing)),
    ]


def section(title: str, *parts: str) -> list[str]:
    """A heading and its parts; nothing where none has anything in it."""
    return [heading(title), *parts] if any(parts) else []


def facts(run: Run) -> str:
    """How long, on what, of what: one line."""
    about, hardware = run.about, run.about.get("hardware")
    planned = run.settings.get("student.steps")
    done = f"{run.updates:,}" if planned in (None, run.updates) else f"{run.updates:,} of {planned:,}"
    said = [f"{done} updates"]
    if isinstance(about.get("seconds"), int | float):
        said.append(duration(about["seconds"]))
    if about.get("resumed_from"):
        said.append(f"resumed from update {words(about['resumed_from'])}")
    if isinstance(hardware, dict):
        said.append(words(hardware.get("gpu") or hardware.get("cpu") or ""))
    said += [f"{name} {words(about[name])}" for name in ("teacher", "data") if about.get(name)]
    return " · ".join(part for part in said if part)


def verdict(rows: Sequence[QualityRow]) -> str:
    """The student's fewest evaluations beside all of the teacher's, in two or three sentences."""
    by_name: dict[str, list[QualityRow]] = {}
    for row in sorted(rows, key=lambda row: row.evaluations):
        by_name.setdefault(row.name, []).append(row)
    if "student" not in by_name or "teacher" not in by_name:
        return ""
    student, teacher = by_name["student"][0], by_name["teacher"][-1]
    few = "1 evaluation" if student.evaluations == 1 else f"{student.evaluations} evaluations"

    def reaches(row: QualityRow) -> str:
        return f"{number(row.hole_psnr, 1)} dB in the hole and {number(row.keep_psnr, 1)} dB outside of it"

    said = [
        f"With {few} the student reaches {reaches(student)}; its teacher, with {teacher.evaluations}, "
        f"{reaches(teacher)}.",
        f"Sharpness of the hole is {number(student.sharpness, 2)} of the truth's (teacher: "
        f"{number(teacher.sharpness, 2)}), motion {number(student.motion, 2)} ({number(teacher.motion, 2)}).",
    ]
    if "frozen first frame" in by_name:
        frozen = by_name["frozen first frame"][0]
        said.insert(1, f"The frozen first frame has {number(frozen.hole_psnr, 1)} dB in the hole.")
    if student.seconds > 0 and teacher.seconds > 0:
        said.append(f"The student denoises {teacher.seconds / student.seconds:.3g} times as fast.")
    return " ".join(said)


def sheets(run: Run) -> list[str]:
    """Contact sheets from the first to the last."""
    steps = list(run.sheets)
    if len(steps) > SHEETS:
        steps = [steps[round(i * (len(steps) - 1) / (SHEETS - 1))] for i in range(SHEETS)]
    return [sheet(run, step, f"after {step:,} updates") for step in steps]


def sheet(run: Run, step: int, caption: str) -> str:
    """A contact sheet as a JPEG: an eighth of the PNG in `samples/`, which stays what to judge by."""
    try:
        with Image.open(run.sheets[step]) as opened:
            image = opened.convert("RGB")
    except OSError:  # cut short by a kill, or not a picture
        return paragraph(f"{run.sheets[step].name} cannot be read", "quiet")
    image.thumbnail((SHEET_WIDTH, 16 * SHEET_WIDTH))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return picture(file.getvalue(), caption, kind="jpeg")
