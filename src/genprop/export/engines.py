"""The engines of an export: which are built already, why the others are not, and building those.

An engine is the same while its fingerprint is: the graph and its weights, shapes, precision, library and
version, targets and flags. All that a builder is given is in there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genprop.errors import GenPropError
from genprop.export.engine_cache import EngineCache, Record, differences, key_of
from genprop.export.engine_keys import GraphFacts, describe_shapes, profile_of, read_graph
from genprop.export.tensorrt import Build, Profile, build_apart
from genprop.hardware import free_memory
from genprop.manifest import EngineSpec, GraphSpec, Manifest
from genprop.trt import TARGETS, Backend, buildable, library

BUILDER_BYTES, BUILDER_WEIGHTS = 0.7e9, 2.5
"""What a build holds: so much, and so many times the weights (measured with TensorRT for RTX 1.7.1)."""


@dataclass(frozen=True)
class Wanted:
    """An engine that is asked for."""

    spec: GraphSpec
    facts: GraphFacts
    profile: Profile
    targets: tuple[str, ...]
    tf32: bool
    fingerprint: dict[str, str]

    @property
    def key(self) -> str:
        return key_of(self.fingerprint)


def build_engines(
    folder: Path,
    manifest: Manifest,
    *,
    backend: Backend,
    targets: tuple[str, ...] = (),
    level: int | None = None,
    workspace: int | None = None,
    timing_cache: Path | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, EngineSpec]:
    """Put an engine of every graph into the export `folder`, built or from the cache. By graph name.

    Args:
        manifest: of the export; its hashes need not have the engines yet.
        targets: compute capabilities, as "8.9"; none are `TARGETS`, for TensorRT the GPU of this machine.
        level: of the builder's optimisation, 0 to 5. workspace: bytes a kernel may take. None: the library's.
        timing_cache: TensorRT's timings of kernels, a file; None is one beside the engine cache.
        cache: the engine cache; None is the usual one (`GENPROP_CACHE`).
        say: told what is built, with the memory it needs, and what it took.

    Raises:
        GenPropError: the library is missing, a target cannot be built for here, or a graph cannot be built.
    """
    wanted = want(folder, manifest, backend=backend, targets=targets, level=level, workspace=workspace)
    if timing_cache is not None and backend == "tensorrt-rtx":
        raise GenPropError(
            "tensorrt-rtx takes no timing cache: it times nothing when it builds",
            "leave the timing cache out; its runtime cache is kept by itself",
        )
    store = EngineCache(cache)
    if timing_cache is None and backend == "tensorrt":
        timing_cache = store.folder / "timing.cache"
    specs = {}
    for name, engine in wanted.items():
        try:
            record = store.find(engine.key)
        except GenPropError as error:
            say(f"{name}: {error.message}: it is built again")
            record = None
        if record is not None:
            say(f"{name}: cached")
        else:
            say(f"{name}: {_before(engine, store.nearest(engine.fingerprint, name))}")
            with store.new() as file:
                built = build_apart(
                    Build(
                        backend=backend,
                        graph=folder / engine.spec.file,
                        engine=file,
                        targets=engine.targets if backend == "tensorrt-rtx" else (),
                        profile=engine.profile,
                        level=level,
                        workspace=workspace,
                        tf32=engine.tf32,
                        timing_cache=timing_cache,
                    )
                )
                spec = EngineSpec(
                    graph=name,
                    file=f"{name}.{backend}.engine",
                    backend=backend,
                    version=engine.fingerprint["version"],
                    targets=engine.targets,
                    key=engine.key,
                    fingerprint=engine.fingerprint,
                    **built.model_dump(),
                )
                size = file.stat().st_size
                record = store.keep(file, spec)
            say(
                f"{name}: built in {built.seconds:.1f} s with at most {_bytes(built.peak)} of memory: engine "
                f"{_bytes(size)}, activations {_bytes(built.memory)} on the GPU"
            )
        specs[name] = record.spec.model_copy(update={"graph": name, "file": f"{name}.{backend}.engine"})
        store.place(engine.key, folder / specs[name].file)
    return specs


def explain_engines(
    folder: Path,
    manifest: Manifest,
    *,
    backend: Backend,
    targets: tuple[str, ...] = (),
    level: int | None = None,
    workspace: int | None = None,
    cache: Path | None = None,
) -> list[str]:
    """What `build_engines` would do, a line for each graph, and why; raises as that does."""
    wanted = want(folder, manifest, backend=backend, targets=targets, level=level, workspace=workspace)
    store = EngineCache(cache)
    lines = []
    for name, engine in wanted.items():
        try:
            found = store.find(engine.key)
            why = "cached" if found is not None else _why(engine, store.nearest(engine.fingerprint, name))
        except GenPropError as error:
            why = f"would build: {error.message}"
        lines.append(f"{name}: {why}")
    return lines


def want(
    folder: Path,
    manifest: Manifest,
    *,
    backend: Backend,
    targets: tuple[str, ...],
    level: int | None,
    workspace: int | None,
) -> dict[str, Wanted]:
    """Each graph's engine, with its fingerprint; refused before anything is built.

    Raises:
        GenPropError: see `build_engines`.
    """
    if level is not None and not 0 <= level <= 5:
        raise GenPropError(f"the builder's level is {level}, expected 0 to 5", "3 is usual")
    device, targets = resolve_targets(backend, targets)
    version = str(library(backend).__version__)
    tf32 = (
        manifest.precision != "fp32"
    )  # who asks for float32 means it; elsewhere TF32 is as exact as the rest
    found = {}
    for name, spec in manifest.graphs.items():
        facts, profile = read_graph(folder / spec.file), profile_of(spec, manifest)
        fingerprint = {
            "graph": facts.graph,
            "weights": facts.weights,
            "shapes": describe_shapes(spec, profile),
            "precision": f"{spec.precision}+{spec.quantized}" if spec.quantized else spec.precision,
            "backend": backend,
            "version": version,
            "targets": " ".join(targets),
            "level": "default" if level is None else str(level),
            "workspace": "default" if workspace is None else str(workspace),
            "tf32": "yes" if tf32 else "no",
        }
        if device:  # tactics are timed on it, and one of the same capability may have half the cores
            fingerprint["device"] = device
        found[name] = Wanted(spec, facts, profile, targets, tf32, fingerprint)
    return found


def resolve_targets(backend: Backend, targets: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The GPU that is built on ("" for TensorRT for RTX, which needs none), and the targets, sorted.

    Raises:
        GenPropError: a target that cannot be built for here, with the reason and what can.
    """
    if wrong := [target for target in targets if not re.fullmatch(r"\d+\.\d", target)]:
        raise GenPropError(f"no compute capability {wrong[0]!r}: expected one like 8.9", "see --target")
    if backend == "tensorrt-rtx":
        targets = tuple(sorted(set(targets or TARGETS), key=float))
        trt = library(backend)
        known = buildable(trt)
        if refused := [target for target in targets if target not in known]:
            raise GenPropError(
                f"TensorRT for RTX {trt.__version__} cannot build for {', '.join(refused)}: it knows "
                f"{', '.join(known)}",
                "for other GPUs (9.0 is Hopper) use --to tensorrt, on a machine with such a GPU",
            )
        return "", targets
    import torch

    if not torch.cuda.is_available():
        raise GenPropError(
            "tensorrt cannot build here: it times its kernels on the GPU that will run them, and PyTorch "
            "finds no CUDA device",
            f"use --to tensorrt-rtx, which builds for {', '.join(TARGETS)} without one, or a machine with "
            "the GPU",
        )
    major, minor = torch.cuda.get_device_capability()
    here, name = f"{major}.{minor}", torch.cuda.get_device_name()
    if refused := [target for target in targets if target != here]:
        raise GenPropError(
            f"tensorrt builds for the GPU of this machine, {name} ({here}), not for {', '.join(refused)}",
            "build on a machine with such a GPU, or use --to tensorrt-rtx",
        )
    return name, (here,)


def _why(engine: Wanted, nearest: Record | None) -> str:
    if nearest is None:
        return "would build: no engine of it was built before"
    return (
        f"would build: not as before: {'; '.join(differences(engine.fingerprint, nearest.spec.fingerprint))}"
    )


def _before(engine: Wanted, nearest: Record | None) -> str:
    """What a build is about to need."""
    need, free = BUILDER_BYTES + BUILDER_WEIGHTS * engine.facts.weight_bytes, free_memory()
    text = (
        f"building for {', '.join(engine.targets)}: weights {_bytes(engine.facts.weight_bytes)}, largest "
        f"activation {_bytes(engine.facts.activation_bytes or None)}; about {_bytes(need)} of memory needed, "
        f"{_bytes(free)} free{'' if need < free else ': this may not be enough'}"
    )
    if nearest is not None and nearest.spec.fingerprint["graph"] == engine.facts.graph:
        text += f"; the last one took {nearest.spec.seconds:.0f} s"
    return text


def _bytes(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
