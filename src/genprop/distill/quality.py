"""What a distillation has brought, measured: student and teacher at the same number of evaluations.

A student is worth what it does at 1, 2, 4 and 8 evaluations of the network, beside what its teacher does with
as many (guidance costs it two a step), what the teacher does with all of its own, and what there is without a
network: the original, and the first frame frozen. Clips go one at a time, so that memory is one clip's and
times are those of batch 1; each way starts from the same noise.

The truth is the decoded latents of the true clip: what is asked of the network, without the autoencoder's own
loss. Its ceiling is exact, and has no row: an infinite PSNR, sharpness and motion 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.data.latents import Batch
from genprop.distill.report.records import QualityRow
from genprop.draws import Draws
from genprop.edm import Denoiser, karras_sigmas
from genprop.latents import Autoencoder
from genprop.metrics import EndpointPsnr, MaskIoU, Motion, RegionPsnr, Sharpness
from genprop.pixels import to_uint8
from genprop.sampling import consistency, euler
from genprop.settings import SamplingConfig
from genprop.teacher.objective import Inputs, TeacherObjective

GUIDANCE = 2
"""Evaluations of a guided step."""
TEACHER_STEPS = (1, 2, 4)
"""Of the teacher, beside its own number: 2, 4 and 8 evaluations, as a student has them."""


T = TypeVar("T")


class Case(NamedTuple):
    """One held-out clip, on the device.

    Attributes:
        index: in the batch.
        inputs: target, condition and mask, batch 1.
        noise: standard normal, what every way starts from, `[1, T, C, h, w]`.
        endpoint: where the teacher's full sampling takes it.
    """

    index: int
    inputs: Inputs
    noise: Tensor
    endpoint: Tensor


Score = Callable[[Tensor, Case], Mapping[str, Tensor | float]]
"""The rewards of an x0 `[1, T, C, h, w]`, by name."""


def measure_quality(
    student: Denoiser,
    teacher: Denoiser,
    held_out: Batch,
    *,
    objective: TeacherObjective,
    autoencoder: Autoencoder,
    sigmas: Mapping[int, Sequence[float]],
    eta: Mapping[int, float] | None = None,
    score: Score | None = None,
    seed: int = 0,
) -> list[QualityRow]:
    """Every way to make the held-out clips: the student's, the teacher's, and the baselines.

    Args:
        student: in eval mode; one evaluation a step.
        teacher: guided, in eval mode: two evaluations a step.
        held_out: encoded samples, as for validation; moved to the device clip by clip.
        objective: for the conditions (`inputs`) and the settings of the teacher's sampler; on the device.
        autoencoder: on the device of `objective`.
        sigmas: of the student by number of steps, without the final 0.
        eta: share of fresh noise by number of steps; 1, Song's sampler, where none is given.
        score: rewards of a sample.
        seed: of the noise.
    """
    ways = [
        *(_student(student, sigmas[n], 1.0 if eta is None else eta.get(n, 1.0)) for n in sorted(sigmas)),
        *_teachers(teacher, objective.config.sampling),
        _Way("identity", 0, 0, 0.0, lambda case, _: (case.inputs.cond.source, None)),
        _Way("frozen first frame", 0, 0, 0.0, lambda case, _: (_frozen(case.inputs.target), None)),
    ]
    full = objective.config.sampling.steps
    reference = next(way for way in ways if way.name == "teacher" and way.steps == full)
    tallies = [_Tally() for _ in ways]
    device = next(objective.parameters()).device
    count = len(held_out["target"])
    noises = Draws.of(seed, count).randn(*held_out["target"].shape[1:])
    with torch.no_grad():
        for i in range(count):
            inputs = objective.inputs({name: v[i : i + 1].to(device) for name, v in held_out.items()}, None)
            case = Case(i, inputs, noises[i : i + 1].to(device), torch.empty(0, device=device))
            (endpoint, logits), seconds = _timed(partial(reference.make, case, None), device)
            case = case._replace(endpoint=endpoint)
            truth = _frames(autoencoder, inputs.target)
            mask = held_out["mask"][i].cpu().numpy()
            for way, tally in zip(ways, tallies, strict=True):
                if way is reference:
                    x0, guess, took = endpoint, logits, seconds
                else:
                    make = partial(way.make, case, torch.Generator().manual_seed(seed * 1_000_003 + i))
                    (x0, guess), took = _timed(make, device)
                tally.frames(_frames(autoencoder, x0), truth, mask)
                if guess is not None:
                    tally.iou.add(_mask(guess, mask.shape), mask)
                    tally.seconds.append(took)
                exact = x0 if way.is_deterministic else way.make(case, None)[0]
                tally.endpoint.add(exact, endpoint)
                if score is not None:
                    tally.scores.append({name: float(value) for name, value in score(x0, case).items()})
    return [tally.row(way) for way, tally in zip(ways, tallies, strict=True)]


@dataclass(frozen=True)
class _Way:
    """A way to make a clip: with no generator the sample follows the ODE."""

    name: str
    evaluations: int
    steps: int
    eta: float
    make: Callable[[Case, torch.Generator | None], tuple[Tensor, Tensor | None]]

    @property
    def is_deterministic(self) -> bool:
        """Whether a generator makes no difference: a single step adds no noise to what it answers."""
        return self.eta == 0 or self.steps <= 1


def _student(denoiser: Denoiser, sigmas: Sequence[float], eta: float) -> _Way:
    levels = torch.tensor([*sigmas, 0.0])

    def make(case: Case, fresh: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return consistency(denoiser, case.noise, levels, case.inputs.cond, generator=fresh, eta=eta)

    return _Way("student", len(sigmas), len(sigmas), eta, make)


def _teachers(denoiser: Denoiser, sampling: SamplingConfig) -> list[_Way]:
    def way(steps: int) -> _Way:
        levels = karras_sigmas(
            steps, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
        )

        def make(case: Case, _: torch.Generator | None) -> tuple[Tensor, Tensor]:
            return euler(denoiser, case.noise, levels, case.inputs.cond)

        return _Way("teacher", GUIDANCE * steps, steps, 0.0, make)

    return [way(steps) for steps in sorted({*TEACHER_STEPS, sampling.steps})]


@dataclass
class _Tally:
    """What is summed over the clips of one way."""

    psnr: RegionPsnr = field(default_factory=RegionPsnr)
    sharpness: Sharpness = field(default_factory=Sharpness)
    motion: Motion = field(default_factory=Motion)
    endpoint: EndpointPsnr = field(default_factory=EndpointPsnr)
    iou: MaskIoU = field(default_factory=MaskIoU)
    scores: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def frames(self, frames: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        for metric in (self.psnr, self.sharpness, self.motion):
            metric.add(frames, truth, mask)

    def row(self, way: _Way) -> QualityRow:
        names = dict.fromkeys(name for scores in self.scores for name in scores)
        return QualityRow(
            name=way.name,
            evaluations=way.evaluations,
            steps=way.steps,
            eta=way.eta,
            hole_psnr=self.psnr.hole,
            keep_psnr=self.psnr.keep,
            sharpness=self.sharpness.value,
            motion=self.motion.value,
            endpoint_db=self.endpoint.value,
            mask_iou=self.iou.value,
            rewards={n: float(np.mean([s[n] for s in self.scores if n in s])) for n in names},
            seconds=float(np.median(self.seconds)) if self.seconds else float("nan"),
        )


def _timed(make: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What `make` makes, and the seconds it took; a GPU runs behind the program and is waited for."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    return make(), now() - began


def _frozen(target: Tensor) -> Tensor:
    return target[:, :1].expand_as(target).contiguous()


def _frames(autoencoder: Autoencoder, latents: Tensor) -> np.ndarray:
    """Decoded, uint8 `[T, H, W, 3]`."""
    return to_uint8(autoencoder.decode(latents)[0]).cpu().numpy()


def _mask(logits: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """The predicted mask in pixels, bool `[T, H, W]`; as in `teacher.validate`."""
    likely = F.interpolate(logits[0].float().sigmoid(), size=shape[1:], mode="bilinear")[:, 0]
    return (likely > 0.5).cpu().numpy()
