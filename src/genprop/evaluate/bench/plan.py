"""Every lane that was asked for: planned, made ready, probed, opened; or skipped, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from genprop.errors import GenPropError
from genprop.evaluate.bench.document import Opened, Skipped
from genprop.evaluate.bench.jobs import PEERS, Asked, Job, open_runner
from genprop.evaluate.bench.lanes import Open
from genprop.evaluate.bench.probe import probe
from genprop.evaluate.bench.sources import Ready, Source, make_ready
from genprop.manifest import Precision
from genprop.settings import ClipConfig

Progress = Callable[[int, int, str], None]
"""Told how many of how many are done, and what is being done now."""

TEACHER_BACKENDS = ("torch", "onnxruntime")
"""A teacher is there to be compared with: its guided steps on every backend would take most of the time.
Of a backend that is asked for in several precisions it runs in the first."""
PEER_STEPS = 25


@dataclass(frozen=True)
class Planned:
    """A lane that was asked for, and how to make it ready."""

    job: Job
    weights: str
    steps: tuple[int, ...]
    prepare: Callable[[], Ready]


def make_plan(
    sources: Sequence[Source],
    asked: Sequence[Asked],
    *,
    peers: bool,
    exports: Path,
) -> list[Planned]:
    """Every source on every backend, and the peers."""
    first = {one.backend: one for one in reversed(asked) if one.backend in TEACHER_BACKENDS and not one.light}
    plan: list[Planned] = []
    for source in sources:
        for one in asked:
            if source.role == "teacher" and one != first.get(one.backend):
                continue
            job = Job(source.role, source.name, one.name, one.precision or "fp32")
            prepare = partial(make_ready, source, one, exports=exports)
            plan.append(Planned(job, source.weights, source.steps, prepare))
    if peers:
        base = next((source.name for source in sources if source.bundle), "")
        half: Precision = "fp16" if torch.cuda.is_available() else "fp32"
        for backend in PEERS:
            job = Job("peer", base, backend, half)
            plan.append(Planned(job, "", (PEER_STEPS,), partial(_ready_peer, job)))
    return plan


def open_all(
    plan: Sequence[Planned], *, clip: ClipConfig, seed: int, tell: Progress
) -> tuple[list[Open], list[Skipped]]:
    """Everything that was asked for, ready, probed and opened; or why not.

    All are probed before one is opened: a GPU's memory is still free then.
    """
    probed: list[tuple[Planned, Ready, Opened]] = []
    skipped: list[Skipped] = []

    def skip(job: Job, error: GenPropError) -> None:
        reason = error.message
        skipped.append(Skipped(role=job.role, model=job.model, backend=job.backend, reason=reason))

    for i, planned in enumerate(plan):
        job = planned.job
        tell(i, len(plan), f"{job.role}, {job.backend}: first run")
        try:
            ready = planned.prepare()
            fewest, threads = min(planned.steps), torch.get_num_threads()
            opened = probe(ready.job, clip=clip, steps=fewest, seed=seed, threads=threads)
        except GenPropError as error:
            skip(job, error)
        else:
            probed.append((planned, ready, opened))
    lanes: list[Open] = []
    for planned, ready, opened in probed:
        tell(len(lanes), len(probed), f"{planned.job.role}, {planned.job.backend}: opening")
        try:
            runner = open_runner(ready.job)
        except GenPropError as error:
            skip(planned.job, error)
        else:
            lanes.append(Open(ready, planned.job.model, planned.weights, planned.steps, opened, runner))
    return lanes, skipped


def _ready_peer(job: Job) -> Ready:
    if not job.model:
        raise GenPropError("diffusers' pipeline needs the base of a bundle, and only exports are benched")
    return Ready(job, None, None)
