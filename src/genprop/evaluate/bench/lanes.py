"""Opened lanes: their frames against eager, their quality, and what the document says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from genprop.data.procedural import ProceduralClips
from genprop.evaluate.bench.document import STAGES, Lane, Machine, Opened, Percentiles, Row, Stage
from genprop.evaluate.bench.floor import floors
from genprop.evaluate.bench.jobs import BUNDLES, ModelRunner, Runner, Timed
from genprop.evaluate.bench.sources import Ready
from genprop.evaluate.bench.timing import stage_times
from genprop.evaluate.bench.work import ModelWork
from genprop.evaluate.measure import measure
from genprop.evaluate.protocol import DEMO_SEED
from genprop.evaluate.report import Regions
from genprop.hub import locate
from genprop.manifest import ENCODER, Precision, of_encoder, read_manifest
from genprop.metrics import SquaredError
from genprop.settings import ClipConfig
from genprop.types import EditSample

Key = tuple[int, int]
"""Which lane, and a number of steps."""


@dataclass(frozen=True)
class Open:
    """A lane that runs; `model` is how it was asked for."""

    ready: Ready
    model: str
    weights: str
    steps: tuple[int, ...]
    opened: Opened
    runner: Runner

    @property
    def label(self) -> str:
        """Role and backend, as it is asked for."""
        job = self.ready.job
        precision = f":{job.precision}" if job.precision != "fp32" else ""
        return f"{job.role} {job.backend}{precision}{'+light' if job.light else ''}"

    @property
    def eager(self) -> bool:
        """Whether others are held against it."""
        return self.ready.job.backend == "torch" and not self.ready.job.light


def decoded_psnr(got: Tensor, expected: Tensor) -> float:
    """In dB, of frames in [-1, 1]; the first, which is given, does not count."""
    error = SquaredError()
    error.add(got[:, 1:].double().numpy(), expected[:, 1:].double().numpy())
    return error.psnr(peak=2.0)


def eager_psnr(lanes: Sequence[Open], example: EditSample, *, seed: int) -> dict[Key, float]:
    """PSNR of each lane's frames against those of the same weights in torch eager, from the same noise.

    The eager of most bits is the reference, which is compared with itself no more.
    """
    eager = {lane.weights: lane for lane in reversed(lanes) if lane.eager}
    eager |= {lane.weights: lane for lane in lanes if lane.eager and lane.ready.job.precision == "fp32"}
    found: dict[Key, float] = {}
    for weights, reference in eager.items():
        for n in reference.steps:
            expected = reference.runner.frames(example, steps=n, seed=seed)
            for i, lane in enumerate(lanes):
                if lane is reference or lane.weights != weights or n not in lane.steps or expected is None:
                    continue
                if (got := lane.runner.frames(example, steps=n, seed=seed)) is not None:
                    found[i, n] = decoded_psnr(got, expected)
    return found


def quality_of(lanes: Sequence[Open], clip: ClipConfig, *, count: int, seed: int) -> dict[Key, Regions]:
    """PSNR against the truth of `count` procedural clips, those of the demo of that seed."""
    dataset = ProceduralClips(
        count, DEMO_SEED + seed, frames=clip.frames, height=clip.height, width=clip.width
    )
    samples = [dataset[index] for index in range(count)]
    found: dict[Key, Regions] = {}
    for i, lane in enumerate(lanes if samples else ()):
        if isinstance(lane.runner, ModelRunner):
            for n in lane.steps:
                run = measure(lane.runner.stages, samples, steps=n, seed=seed)[0].run
                found[i, n] = Regions(hole_psnr=run.hole_psnr, keep_psnr=run.keep_psnr)
    return found


def document_lane(
    lane: Open,
    *,
    work: ModelWork | None,
    machine: Machine,
    times: Mapping[int, Sequence[Timed]],
    psnr: Mapping[int, float | None],
    quality: Mapping[int, Regions | None],
    frames: int,
) -> Lane:
    """A lane as it stands in the document."""
    job = lane.ready.job
    rows = []
    for n, runs in times.items():
        seconds: dict[Stage, Percentiles] = {s: Percentiles.of(stage_times(runs, s)) for s in STAGES}
        evaluations, regions = runs[0].evaluations, quality[n]
        floor = {}
        if work is not None:
            floor = floors(
                work,
                machine,
                precisions=_precisions(lane, work),
                evaluations=evaluations,
                seconds=seconds,
                light=job.light,
            )
        rows.append(
            Row(
                steps=n,
                evaluations=evaluations,
                seconds=seconds,
                totals=tuple(stage_times(runs, "total")),
                fps=frames / seconds["total"].p50,
                psnr_eager=psnr[n],
                hole_psnr=regions.hole_psnr if regions else None,
                keep_psnr=regions.keep_psnr if regions else None,
                floor=floor,
            )
        )
    return Lane(
        name=lane.label,
        role=job.role,
        model=lane.model,
        backend=job.backend,
        precision=job.precision,
        light=job.light,
        weights=lane.weights,
        build=lane.ready.build,
        size=lane.ready.size,
        opened=lane.opened,
        rows=tuple(rows),
        note=lane.runner.note,
    )


def _precisions(lane: Open, work: ModelWork) -> dict[str, Precision]:
    """Of each graph: an export's own; a bundle's one for all, but for its encoder."""
    job = lane.ready.job
    if job.backend not in BUNDLES:
        return {name: spec.precision for name, spec in read_manifest(locate(job.model)).graphs.items()}
    return {**dict.fromkeys(work.graphs, job.precision), ENCODER: of_encoder(job.precision)}
