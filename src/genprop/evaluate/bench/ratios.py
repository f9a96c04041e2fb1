"""The figures that the project is judged by, out of the rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from genprop.evaluate.bench.document import Lane, Ratio, Row

TEACHER_BAR = 15.0
"""One step of a student over the guided teacher's own number of steps."""
PEER_BARS = {1: 15.0, 4: 8.0}
"""By number of steps: a compiled student over diffusers' eager pipeline."""
ONNXRUNTIME_BAR = 1.3
"""ONNX Runtime over torch eager: the same model, steps and precision."""


def ratio(fast: tuple[Lane, Row], slow: tuple[Lane, Row], *, bar: float | None = None) -> Ratio:
    """How many times as fast a row is as another, end to end."""
    (fast_lane, fast_row), (slow_lane, slow_row) = fast, slow
    value = slow_row.seconds["total"].p50 / fast_row.seconds["total"].p50
    each = [a / b for a, b in zip(slow_row.totals, fast_row.totals, strict=True)]
    names = [f"{lane.name}, {steps(row)}" for lane, row in (fast, slow)]
    return Ratio(
        name=f"{names[0]} over {names[1]}",
        fast=fast_lane.name,
        slow=slow_lane.name,
        value=value,
        paired=float(np.median(each)),
        bar=bar,
        met=None if bar is None else value >= bar,
    )


def ratios(lanes: Sequence[Lane]) -> tuple[Ratio, ...]:
    """Students over the teacher on the same backend, over torch eager, and over the peers."""
    found = []
    students = [lane for lane in lanes if lane.role == "student"]
    for lane in students:
        for teacher in lanes:
            alike = (teacher.backend, teacher.precision) == (lane.backend, lane.precision)
            if teacher.role == "teacher" and alike:
                most = max(teacher.rows, key=lambda row: row.steps)
                found += [
                    ratio((lane, row), (teacher, most), bar=TEACHER_BAR if row.steps == 1 else None)
                    for row in lane.rows
                ]
    for eager, lane in itertools.product(lanes, lanes):
        if eager.backend != "torch" or eager.light or lane is eager or lane.weights != eager.weights:
            continue
        alike = lane.role == "student" and not lane.light and lane.precision == eager.precision
        bar = ONNXRUNTIME_BAR if alike and lane.backend == "onnxruntime" else None
        for row in lane.rows:
            if (base := eager.row(row.steps)) is not None:
                found.append(ratio((lane, row), (eager, base), bar=bar))
    for peer, lane in itertools.product((lane for lane in lanes if lane.role == "peer"), students):
        barred = (peer.backend, lane.backend) == ("diffusers", "compile")
        for row in lane.rows:
            found.append(
                ratio((lane, row), (peer, peer.rows[0]), bar=PEER_BARS.get(row.steps) if barred else None)
            )
    return tuple(found)


def steps(row: Row) -> str:
    """ "1 step", "4 steps"."""
    return f"{row.steps} step{'s' if row.steps > 1 else ''}"
