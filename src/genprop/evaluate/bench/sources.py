"""What is benched: bundles and exports, read and checked before anything is timed, and what they become."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genprop.bundle import read_bundle
from genprop.errors import GenPropError
from genprop.evaluate.bench.document import Role
from genprop.evaluate.bench.jobs import BUNDLES, Asked, Job, check_present
from genprop.export.bundle import export_bundle
from genprop.export.folder import weight_hashes
from genprop.export.options import ExportOptions, Target
from genprop.hub import locate, weight_files
from genprop.manifest import DENOISER, FILE, Precision, is_export, read_manifest
from genprop.runtime.sample import FEW
from genprop.settings import ClipConfig

TEACHER_FEW = 4
"""A teacher is timed at its own number of steps, and at this."""


@dataclass(frozen=True)
class Source:
    """A model that was asked for.

    Attributes:
        name: as it was asked for.
        weights: SHA-256 over the weights' hashes, the same for a bundle and its exports.
        steps: to be timed, the most first.
        bundle: whether it is one; else it is an export.
    """

    role: Role
    name: str
    clip: ClipConfig
    weights: str
    steps: tuple[int, ...]
    bundle: bool


def read_source(name: str | Path, *, steps: Sequence[int] | None) -> Source:
    """Read a bundle or an export.

    Args:
        steps: of a student; None is all that it knows, up to `FEW`. A teacher's are its own number and
            `TEACHER_FEW`.

    Raises:
        GenPropError: a broken model, or a number of steps that the student does not know.
    """
    folder = locate(name)
    if is_export(folder):
        manifest = read_manifest(folder)
        kind, config, sigmas, hashes = manifest.kind, manifest.config, manifest.sigmas, manifest.weights
    else:
        bundle = read_bundle(name)
        kind, config, sigmas = bundle.card.kind, bundle.card.config, bundle.card.sigmas
        hashes = weight_hashes(bundle)
    if kind == "teacher":
        counts = {config.sampling.steps, TEACHER_FEW}
    else:
        counts = set(steps or (n for n in sigmas if n <= FEW))
        if not counts or not counts <= sigmas.keys():
            raise GenPropError(
                f"{name} knows {sorted(sigmas)} steps, expected {sorted(counts) or 'some up to 4'}",
                "choose of these with --steps",
            )
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    ordered = tuple(sorted(counts, reverse=True))
    return Source(kind, str(name), config.clip, digest, ordered, bundle=not is_export(folder))


def read_sources(
    models: Sequence[str | Path], *, teacher: str | Path | None, steps: Sequence[int] | None
) -> list[Source]:
    """All models, and the teacher.

    Raises:
        GenPropError: none, two of different clips, or a teacher that is none.
    """
    sources = [read_source(name, steps=steps) for name in models]
    if teacher is not None:
        sources.append(read_source(teacher, steps=steps))
        if sources[-1].role != "teacher":
            raise GenPropError(f"{teacher} is a student, expected a teacher", "give it as a model")
    if not sources:
        raise GenPropError("no model to bench", "give one: tiny, a bundle or an export folder")
    for source in sources:
        if source.clip != sources[0].clip:
            raise GenPropError(
                f"{source.name} is made for clips of {source.clip}, {sources[0].name} for {sources[0].clip}",
                "models of two sizes are two benches",
            )
    return sources


@dataclass(frozen=True)
class Ready:
    """A job that can be opened, and what its lane says of it."""

    job: Job
    build: float | None
    size: int | None


def make_ready(source: Source, asked: Asked, *, exports: Path) -> Ready:
    """A source for a backend: a bundle is exported first, into `exports`, where the backend runs graphs.

    With no precision asked for, a bundle is in float32, engines are in float16, and an export is as it is.

    Raises:
        GenPropError: the backend cannot run here, or does not run such a model.
    """
    backend, precision = asked.backend, asked.precision
    check_present(backend)

    def job(model: str, precision: Precision) -> Job:
        return Job(source.role, model, backend, precision, asked.light)

    if not source.bundle:
        found = read_manifest(locate(source.name)).graphs[DENOISER].precision
        if backend in BUNDLES:
            raise GenPropError(f"{backend} runs bundles, and {source.name} is an export")
        if precision not in (None, found):
            raise GenPropError(f"the export is in {found}, not in {precision}")
        return Ready(job(source.name, found), None, folder_size(Path(source.name)))
    if asked.light and read_bundle(source.name).decoder is None:
        raise GenPropError(f"{source.name} has no light decoder")
    if backend in BUNDLES:
        return Ready(job(source.name, precision or "fp32"), None, bundle_size(source.name))
    to: Target = "onnx" if backend.startswith("onnxruntime") else backend  # type: ignore[assignment]
    options = ExportOptions(to=to, precision=precision)
    folder = exports / f"{source.role}-{source.weights[:8]}-{to}-{options.inside}"
    began, before = time.perf_counter(), _written(folder)
    export_bundle(source.name, folder, options)
    build = time.perf_counter() - began if _written(folder) != before else None
    return Ready(job(str(folder), options.inside), build, folder_size(folder))


def _written(folder: Path) -> int | None:
    """When an export was, if there is one."""
    return (folder / FILE).stat().st_mtime_ns if is_export(folder) else None


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def bundle_size(name: str) -> int:
    """Bytes of a bundle's files and of its base's weights."""
    bundle = read_bundle(name)
    own = sum((bundle.folder / file).stat().st_size for file in bundle.card.files)
    variant = bundle.card.config.base.variant
    return own + sum(file.stat().st_size for file in weight_files(Path(bundle.base), variant=variant))
