"""What a lane runs: a model or a peer on a backend, opened alike in the bench and in its probe.

A job is plain data, so that a process of its own can be told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genprop.data.procedural import make_sample
from genprop.errors import GenPropError
from genprop.evaluate.bench.document import Role
from genprop.evaluate.measure import run_clip
from genprop.manifest import Precision
from genprop.runtime.backends import BACKENDS, Stages, open_stages
from genprop.runtime.propagate import Model
from genprop.settings import ClipConfig
from genprop.types import Clip, EditSample

BUNDLES = ("torch", "compile")
"""The backends that run bundles; all others run exports."""
LIBRARIES = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PEERS = ("diffusers", "diffusers-compile")

BENCH_SEED = 40_000
"""Of the clip that is timed: no training's, no demo's."""


@dataclass(frozen=True)
class Job:
    """A lane to be opened.

    Attributes:
        model: what is opened: a bundle or an export; for a peer the bundle whose base it runs.
        backend: one of `BACKENDS` without "auto", or of `PEERS`.
        precision: of the denoiser.
        light: whether the light decoder decodes.
    """

    role: Role
    model: str
    backend: str
    precision: Precision
    light: bool = False


class Asked(NamedTuple):
    """A backend as it was asked for; with precision None it is the backend's own."""

    name: str
    backend: str
    precision: Precision | None
    light: bool


class Timed(NamedTuple):
    """One run: seconds by stage ("total" is end to end), and how often the network ran."""

    seconds: Mapping[str, float]
    evaluations: int


class Runner(Protocol):
    """An opened lane. `note` is what else there is to know of it, for a person."""

    @property
    def note(self) -> str: ...

    def run(self, example: EditSample, *, steps: int, seed: int) -> Timed:
        """Carry the edit through the clip, as a person does."""
        ...

    def frames(self, example: EditSample, *, steps: int, seed: int) -> Tensor | None:
        """What the decoder gives, `[1, T, 3, H, W]` on the CPU; None where it compares with nothing."""
        ...


@dataclass(frozen=True)
class ModelRunner:
    """A model of ours."""

    stages: Stages

    @property
    def note(self) -> str:
        return self.stages.why

    def run(self, example: EditSample, *, steps: int, seed: int) -> Timed:
        clip = Clip(example.source, Fraction(self.stages.config.clip.fps))
        done = Model(self.stages).propagate(clip, example.edited, steps=steps, seed=seed)
        return Timed(done.seconds, done.evaluations)

    def frames(self, example: EditSample, *, steps: int, seed: int) -> Tensor | None:
        return run_clip(self.stages, example, steps=steps, seed=seed).frames.cpu()


def open_runner(job: Job) -> Runner:
    """Open a lane.

    Raises:
        GenPropError: it cannot run here; the message is the reason.
    """
    if job.role == "peer":
        from genprop.evaluate.bench.peers import open_peer

        return open_peer(job.model, compiled=job.backend == "diffusers-compile", precision=job.precision)
    stages = open_stages(job.model, backend=job.backend, precision=job.precision, light=job.light)
    return ModelRunner(stages)


def parse_backend(name: str) -> Asked:
    """ "onnxruntime:fp16+light" taken apart.

    Raises:
        GenPropError: no such backend or precision.
    """
    rest = name.removesuffix("+light")
    backend, _, precision = rest.partition(":")
    if backend not in BACKENDS or backend == "auto":
        known = ", ".join(known for known in BACKENDS if known != "auto")
        raise GenPropError(
            f"no backend named {name!r} to bench",
            f"backends are {known}; each may have a precision and the light decoder, as in torch:bf16+light",
        )
    if precision not in ("", "fp32", "fp16", "bf16"):
        raise GenPropError(f"no precision {precision!r} in {name!r}", "precisions are fp32, fp16 and bf16")
    return Asked(name, backend, precision or None, light=rest != name)  # type: ignore[arg-type]


def check_present(backend: str) -> None:
    """Refuse a backend before anything is exported for it.

    Raises:
        GenPropError: its library is missing, or it needs a GPU and there is none.
    """
    library = LIBRARIES.get(backend)
    if library is not None and find_spec(library) is None:
        raise GenPropError(f"{library} is not installed", f"pip install 'genprop[{backend}]'")
    if backend.startswith("tensorrt") and not torch.cuda.is_available():
        raise GenPropError("an engine runs on an NVIDIA GPU, and there is none here")


def bench_clip(clip: ClipConfig, seed: int) -> EditSample:
    """The clip that is timed, at the model's own size."""
    return make_sample(BENCH_SEED + seed, frames=clip.frames, height=clip.height, width=clip.width)
