"""Markdown tables of demo reports: `python scripts/results.py report.json [report.json ...]`.

Several reports (other seeds, the same models) are averaged; each figure's range follows where they differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from genprop.evaluate.report import Report, Run


def cell(values: list[float | None], digits: int) -> str:
    """Mean, and the range of more than one."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    text = f"{sum(known) / len(known):.{digits}f}"
    low, high = f"{min(known):.{digits}f}", f"{max(known):.{digits}f}"
    return text if low == high else f"{text} ({low} to {high})"


def main(paths: list[str]) -> None:
    reports = [Report.model_validate_json(Path(path).read_text(encoding="utf-8")) for path in paths]
    first = reports[0]
    clips = sum(report.clips for report in reports)
    print(f"{clips} unseen clips of {first.frames} frames, {first.width}x{first.height}; ", end="")
    print(f"{first.hardware.cpu}, {first.hardware.cores} cores, {first.hardware.threads} threads.\n")
    print("| | evaluations | denoise s | hole dB | keep dB | mask IoU | sharpness | endpoint dB |")
    print("|---|---|---|---|---|---|---|---|")
    references = [("truth through the autoencoder", [r.ceiling for r in reports])]
    for name, title in (
        ("identity", "identity"),
        ("frozen_first_frame", "frozen first frame"),
        ("telea", "Telea, true masks"),
    ):
        references.append((title, [getattr(r.baselines, name) for r in reports]))
    for title, regions in references:
        hole, keep = cell([r.hole_psnr for r in regions], 1), cell([r.keep_psnr for r in regions], 1)
        print(f"| {title} | - | - | {hole} | {keep} | - | - | - |")
    for run in first.runs:
        same: list[Run] = [
            found for r in reports if (found := r.run(run.name, backend=run.backend, steps=run.steps))
        ]
        cells = [
            f"{run.name}, {run.steps} steps, {run.backend}",
            str(run.evaluations),
            cell([r.seconds.denoise for r in same], 2),
            cell([r.hole_psnr for r in same], 1),
            cell([r.keep_psnr for r in same], 1),
            cell([r.mask_iou for r in same], 2),
            cell([r.sharpness for r in same], 2),
            cell([r.endpoint_db for r in same], 1),
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
