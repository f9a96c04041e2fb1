"""`genprop bench`: models on backends, timed in turn on one clip, and one document of it all.

    read the models -> make each ready for each backend -> probe it in a process of its own
    -> open all in this one -> frames against eager -> repetitions in turn -> quality -> bench.json, bench.png

All of ours goes through `Model.propagate` and `sample_window`: what is timed is what a person runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from genprop.errors import GenPropError
from genprop.evaluate.bench.document import Bench
from genprop.evaluate.bench.jobs import bench_clip, parse_backend
from genprop.evaluate.bench.lanes import document_lane, eager_psnr, quality_of
from genprop.evaluate.bench.machine import describe_run, measure_machine
from genprop.evaluate.bench.plan import Progress, make_plan, open_all
from genprop.evaluate.bench.plot import write_plot
from genprop.evaluate.bench.ratios import ratios
from genprop.evaluate.bench.sources import read_sources
from genprop.evaluate.bench.timing import interleaved
from genprop.evaluate.bench.work import ModelWork, model_work
from genprop.evaluate.report import write_json

BACKENDS = ("torch", "compile", "onnxruntime", "onnxruntime:fp16", "tensorrt", "tensorrt-rtx")
QUALITY_CLIPS, QUALITY_SIDE = 8, 128
"""So many procedural clips for the quality, unless asked otherwise, of frames up to so many pixels high."""


def run_bench(
    models: Sequence[str | Path] = ("tiny",),
    *,
    teacher: str | Path | None = None,
    backends: Sequence[str] = BACKENDS,
    steps: Sequence[int] | None = None,
    repeats: int = 10,
    warmup: int = 1,
    seed: int = 0,
    peers: bool = False,
    quality_clips: int | None = None,
    out: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure, and write `bench.json` and, where quality was measured, `bench.png` into `out`.

    Exports that a backend needs are made in `out/exports`, or kept where they are still the models'.

    Args:
        models: bundles and export folders, all of one clip size.
        teacher: the guided one to compare with, on those of `plan.TEACHER_BACKENDS` that are asked for.
        backends: each of `runtime.backends.BACKENDS`, with a precision and the light decoder behind it if
            they are not its own, as in "compile:bf16+light".
        steps: of students; None is each up to 4 that they know.
        repeats, warmup: runs of each number of steps on each backend that count, and that do not.
        seed: of the clip, of all noise, and of the order.
        peers: also time diffusers' pipeline over the first bundle's base, eager and compiled.
        quality_clips: 0 measures no quality; None is 8 for small frames, and 0 for large ones.

    Returns:
        The document as plain JSON; see `document.Bench`.

    Raises:
        GenPropError: a broken model, models of different clips, steps unknown, `out` unwritable, or not one
            backend that runs here. A backend that does not is an entry in `skipped`.
    """
    if repeats < 1 or warmup < 0 or seed < 0:
        raise GenPropError(
            f"got {repeats} repeats, {warmup} warm-ups and seed {seed}, expected at least 1, 0 and 0"
        )
    asked = [parse_backend(name) for name in backends]
    sources = read_sources(models, teacher=teacher, steps=steps)
    clip = sources[0].clip
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # an hour of work is not lost to it
    except OSError as error:
        raise GenPropError(f"{out} cannot be written: {error.strerror}", "give another --out") from error
    tell = progress or (lambda done, total, what: None)
    where = describe_run()  # before the bench itself is the load

    plan = make_plan(sources, asked, peers=peers, exports=out / "exports")
    with _cold_compiler():
        lanes, skipped = open_all(plan, clip=clip, seed=seed, tell=tell)
        if not lanes:
            reasons = "; ".join(f"{s.backend}: {s.reason}" for s in skipped)
            raise GenPropError(f"none of the backends runs here: {reasons}", "see `genprop info`")
        example = bench_clip(clip, seed)
        tell(0, 1, "frames against eager")
        against_eager = eager_psnr(lanes, example, seed=seed)
        total, done = sum(len(lane.steps) for lane in lanes) * (warmup + repeats), 0

        def advance(key: tuple[int, int]) -> None:
            nonlocal done
            done += 1
            tell(done, total, f"{lanes[key[0]].label}, {key[1]} steps")

        times = interleaved(
            {
                (i, n): partial(lane.runner.run, example, steps=n, seed=seed)
                for i, lane in enumerate(lanes)
                for n in lane.steps
            },
            repeats=repeats,
            warmup=warmup,
            seed=seed,
            after=advance,
        )
        if quality_clips is None:
            quality_clips = QUALITY_CLIPS if clip.height <= QUALITY_SIDE else 0
        tell(0, 1, "quality")
        quality = quality_of(lanes, clip, count=quality_clips, seed=seed)
    tell(0, 1, "floor")
    machine = measure_machine([lane.ready.job.precision for lane in lanes])
    work: dict[str, ModelWork] = {s.weights: model_work(s.name) for s in sources if s.bundle}
    documents = tuple(
        document_lane(
            lane,
            work=work.get(lane.weights),
            machine=machine,
            times={n: times[i, n] for n in lane.steps},
            psnr={n: against_eager.get((i, n)) for n in lane.steps},
            quality={n: quality.get((i, n)) for n in lane.steps},
            frames=clip.frames,
        )
        for i, lane in enumerate(lanes)
    )
    bench = Bench(
        frames=clip.frames,
        height=clip.height,
        width=clip.width,
        seed=seed,
        repeats=repeats,
        warmup=warmup,
        quality_clips=quality_clips,
        **where,
        machine=machine,
        lanes=documents,
        skipped=tuple(skipped),
        ratios=ratios(documents),
    )
    document = bench.model_dump(mode="json")
    write_json(out / "bench.json", document)
    write_plot(bench, out / "bench.png")
    return document


@contextmanager
def _cold_compiler() -> Iterator[None]:
    """A cache of `torch.compile`'s for this bench alone: a first run compiles, whatever ran here before."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="genprop-bench-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
