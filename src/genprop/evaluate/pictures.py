"""The demo's pictures: what the figures of the report look like.

One row a method, time to the right, so that whoever knows nothing of the method sees at once what was
asked for, what each step count gets, and what there is without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from genprop.evaluate.baselines import BASELINES
from genprop.evaluate.measure import Result
from genprop.evaluate.report import Report, Run
from genprop.sheet import contact_sheet
from genprop.types import EditSample
from genprop.video import write_clip, write_image

SHEET_CLIPS = 3
SHEET_COLUMNS = 4
SHEET_HEIGHT = 144
OUTLINE = (255, 0, 0)


def write_pictures(
    out: Path, report: Report, *, samples: Sequence[EditSample], results: Sequence[Result]
) -> None:
    """Writes `comparison.png` and the mp4s (all clips side by side) into `out`.

    They show the teacher at its most steps and every run of the student, on the first backend.
    """
    shown = _shown(results)
    rate = Fraction(8)  # slow enough to follow: the clips are short
    write_clip(out / "original.mp4", _abreast([sample.source for sample in samples]), fps=rate)
    for result in shown:
        name = f"{result.run.name}-{result.run.steps}.mp4"
        write_clip(out / name, _abreast(result.frames), fps=rate)
    write_image(out / "comparison.png", comparison_sheet(report, samples=samples, results=shown))


def comparison_sheet(
    report: Report, *, samples: Sequence[EditSample], results: Sequence[Result]
) -> np.ndarray:
    """The contact sheet, uint8 `[H', W', 3]`: methods below one another, up to three clips side by side.

    Args:
        results: the runs to show, one row each, all of the same backend.
    """
    rows: list[tuple[str, Sequence[np.ndarray]]] = [
        ("original (red: to be removed)", [_outlined(sample) for sample in samples[:SHEET_CLIPS]]),
        ("edited frame 0, then the truth", [sample.target for sample in samples]),
    ]
    for result in results:
        rows.append((f"{_label(result.run)}: {_decibel(result.run.hole_psnr)}", result.frames))
    frozen, telea = report.baselines.frozen_first_frame, report.baselines.telea
    for label, key, quality in (
        ("edited frame 0, frozen", "frozen_first_frame", frozen),
        ("Telea, true masks", "telea", telea),
    ):
        frames = [BASELINES[key](sample) for sample in samples[:SHEET_CLIPS]]
        rows.append((f"{label}: {_decibel(quality.hole_psnr)}", frames))
    if results:
        rows.append((f"mask by {_label(results[-1].run)}", results[-1].masks))

    columns = sorted({int(t) for t in np.linspace(0, report.frames - 1, SHEET_COLUMNS)})
    clips = min(SHEET_CLIPS, len(samples))
    sheets = []
    for index in range(clips):
        title = f"clip {index + 1}"
        if index == 0:
            title += f"  (dB: PSNR in the hole, {report.clips} clips together)"
        labelled = [(label if index == 0 else "", videos[index]) for label, videos in rows]
        sheets.append(contact_sheet(labelled, frames=columns, height=SHEET_HEIGHT, title=title))
    height = max(len(sheet) for sheet in sheets)  # headings differ by a pixel or two: align at the bottom
    white = {"mode": "constant", "constant_values": 255}
    return np.hstack([np.pad(s, ((height - len(s), 0), (0, 0), (0, 0)), **white) for s in sheets])


def _shown(results: Sequence[Result]) -> list[Result]:
    """On the first backend: the teacher at its most steps, then the student from many steps to few."""
    ours = [result for result in results if result.run.backend == results[0].run.backend]
    ours.sort(key=lambda result: -result.run.steps)
    teacher = [result for result in ours if result.run.name == "teacher"]
    return teacher[:1] + [result for result in ours if result.run.name == "student"]


def _outlined(sample: EditSample) -> np.ndarray:
    """The source with the edge of the true mask in red."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    grown = np.stack([cv2.dilate(mask.astype(np.uint8), cross) > 0 for mask in sample.mask])
    return np.where((grown & ~sample.mask)[..., None], np.array(OUTLINE, np.uint8), sample.source)


def _abreast(clips: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(clips), axis=2)


def _label(run: Run) -> str:
    return f"{run.name}, {run.steps} step{'s' if run.steps > 1 else ''}"


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"
