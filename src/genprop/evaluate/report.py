"""The demo's report: its schema and its tables.

The schema is the contract of `genprop demo --json`; a key that it does not name is an error here, before
it is one for whoever reads the file. A figure is null where it is infinite (a PSNR without any error:
identity keeps exactly) or where there was nothing to measure.
"""

from __future__ import annotations

import json
import math
import os
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, FiniteFloat
from rich.box import SIMPLE_HEAD
from rich.table import Table

from genprop.settings import Model


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Figure = Annotated[FiniteFloat | None, BeforeValidator(_finite)]


class Regions(Model):
    """PSNR in dB inside and outside of the true mask."""

    hole_psnr: Figure
    keep_psnr: Figure


class Baselines(Model):
    identity: Regions
    frozen_first_frame: Regions
    telea: Regions


class Seconds(Model):
    """Medians over the clips, each stage's own: they need not add up."""

    encode: float
    denoise: float
    decode: float
    total: float


class Run(Model):
    """One model on one backend at one step count."""

    name: str
    backend: str
    steps: int
    evaluations: int
    seconds: Seconds
    hole_psnr: Figure
    keep_psnr: Figure
    mask_iou: Figure
    sharpness: Figure
    endpoint_db: Figure


class Hardware(Model):
    """What the times were taken on. `cores` are those that this process may use."""

    cpu: str
    cores: int
    threads: int
    gpu: str | None


class Report(Model):
    """`report.json`."""

    model: str
    frames: int
    height: int
    width: int
    clips: int
    seed: int
    hardware: Hardware
    versions: dict[str, str]
    ceiling: Regions
    baselines: Baselines
    runs: tuple[Run, ...]

    def run(self, name: str, *, backend: str, steps: int) -> Run | None:
        """The run of that name, if there is one."""
        key = (name, backend, steps)
        return next((run for run in self.runs if (run.name, run.backend, run.steps) == key), None)


def write_json(path: Path, document: object) -> None:
    """Writes a JSON document, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def table(report: Report) -> Table:
    """Every run: times, quality, and how much faster than the teacher's most steps it denoises."""
    title = f"{report.model}: {report.clips} clips, {report.frames} frames, {report.width}x{report.height}"
    caption = "seconds: median of a clip; x: denoising is so many times faster than the teacher's longest; "
    caption += "hole, keep, end: PSNR in dB; sharp: 1 is as the truth"
    grid = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("")
    grid.add_column("backend", no_wrap=True)
    times = ("encode", "denoise", "decode", "total", "x")
    for name in ("steps", *times, "hole", "keep", "IoU", "sharp", "end"):
        grid.add_column(name, justify="right")
    for run, following in zip_longest(report.runs, report.runs[1:]):
        s = run.seconds
        cells = [run.name, run.backend, str(run.steps)]
        cells += [f"{value:.2f}" for value in (s.encode, s.denoise, s.decode, s.total)]
        cells += [_speedup(report, run), _number(run.hole_psnr), _number(run.keep_psnr)]
        cells += [_number(run.mask_iou, digits=2), _number(run.sharpness, digits=2), _number(run.endpoint_db)]
        grid.add_row(*cells, end_section=following is None or following.backend != run.backend)
    return grid


def reference_table(report: Report) -> Table:
    """What the runs are to be seen against: the ceiling of the latents, and the baselines."""
    hardware = report.hardware
    title = f"on {hardware.cpu}, {hardware.cores} cores"
    grid = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("reference")
    grid.add_column("hole dB", justify="right")
    grid.add_column("keep dB", justify="right")
    rows = [
        ("ceiling: truth through the autoencoder", report.ceiling),
        ("identity", report.baselines.identity),
        ("frozen first frame", report.baselines.frozen_first_frame),
        ("Telea, true masks", report.baselines.telea),
    ]
    for name, quality in rows:
        grid.add_row(name, _number(quality.hole_psnr), _number(quality.keep_psnr))
    return grid


def _speedup(report: Report, run: Run) -> str:
    peers = [r for r in report.runs if r.name == "teacher" and r.backend == run.backend]
    slowest = max((r.seconds.denoise for r in peers), default=0.0)
    return f"{slowest / run.seconds.denoise:.1f}" if slowest and run.seconds.denoise else "-"


def _number(value: float | None, *, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
