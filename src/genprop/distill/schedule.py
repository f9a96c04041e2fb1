"""Few-step sampling, chosen by measurement: the sigmas of each number of steps, and the share of fresh noise.

*Sigmas.* A student that knows n - 1 sigmas gets the n-th where it brings the deterministic sample nearest to
the teacher's endpoint from the same noise, on held-out clips; then each sigma but the first is moved as long
as that brings it nearer still. (Nearest to the truth is the mean of what may be there: chosen so, a second
step went to sigma 52 and did nothing.) Every schedule starts at the largest sigma, since sampling starts from
noise.

*Eta.* Fresh noise has no endpoint of a teacher to be near to, so samples are held against the truth, in
decoded frames, by `Figures.score`, in which a blurred mean does badly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genprop.config import Config
from genprop.distill.targets import edges, grid
from genprop.edm import Denoiser, karras_sigmas
from genprop.latents import Autoencoder
from genprop.metrics import RegionPsnr, Sharpness
from genprop.pixels import to_uint8
from genprop.sampling import consistency, euler_step, start
from genprop.teacher.losses import latent_mask, texture_error
from genprop.types import Cond

STEPS = (1, 2, 4, 8)
ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
CANDIDATES = 11
DRAWS = 3
"""Of fresh noise, for each eta above 0."""
TIE = 0.01
"""Scores nearer than this share of one another are a tie, which goes to the smaller eta."""

Sigmas = tuple[float, ...]


class Schedule(NamedTuple):
    """What was chosen, by number of steps, and the figures it was chosen by.

    `rows` has one row for each number of steps and eta: both, then `Figures`, its score, `endpoint` (mean
    squared latent distance of the deterministic sample to the teacher's endpoint), and if it was `chosen`.
    """

    sigmas: dict[int, Sigmas]
    eta: dict[int, float]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Figures:
    """Samples against the truth, in decoded frames, frame 0 left out.

    Attributes:
        hole, keep: PSNR by region in dB, on 8-bit frames.
        sharpness: mean absolute gradient in the hole over the truth's.
        texture: root mean square, over the hole's cells, of how far the two mean absolute gradients along an
            axis are apart, on pixels in [0, 1].
    """

    hole: float
    keep: float
    sharpness: float
    texture: float

    @property
    def score(self) -> float:
        """`(hole_rms + keep_rms) / 2 + texture`, all on pixels in [0, 1]; lower is better.

        Of an even texture of deviation d the mean has an error of d in the hole and lacks 1.1 d of gradient;
        another draw of that texture has 1.4 d and next to nothing. So the mean loses, 1.6 d to 0.7 d.
        """
        # A region that no clip has costs nothing.
        errors = [0.0 if math.isnan(psnr) else 10 ** (-psnr / 20) for psnr in (self.hole, self.keep)]
        return sum(errors) / 2 + self.texture


@torch.no_grad()
def measure(latents: Sequence[Tensor], truth: Tensor, mask: Tensor, *, autoencoder: Autoencoder) -> Figures:
    """Figures of samples, pooled over all of them.

    Args:
        latents: samples, each `[B, T, C, h, w]`, scaled.
        truth: of the same shape; it goes through the autoencoder too.
        mask: `[B, T, H, W]`, bool.
    """
    psnr, sharpness, cell = RegionPsnr(), Sharpness(), autoencoder.downsampling
    hole = latent_mask(mask, (truth.shape[-2], truth.shape[-1]), kind="nearest")[:, 1:, 0].double()
    squared = 0.0
    for i, inside in enumerate(mask.cpu().numpy().astype(bool)):  # a clip at a time bounds the memory
        true = autoencoder.decode(truth[i : i + 1])[0].float()
        for sample in latents:
            ours = autoencoder.decode(sample[i : i + 1])[0].float()
            shown = [to_uint8(frames).cpu().numpy() for frames in (ours, true)]
            psnr.add(shown[0], shown[1], inside)
            sharpness.add(shown[0], shown[1], inside)
            error = texture_error(ours[1:], true[1:], cell=cell) / 4  # two axes, and pixels in [-1, 1]
            squared += float((error.double().square() * hole[i].to(error.device)).sum())
    cells = len(latents) * float(hole.sum())
    texture = math.sqrt(squared / cells) if cells else 0.0
    return Figures(psnr.hole, psnr.keep, sharpness.value, texture)


def distance_to(endpoint: Tensor, denoiser: Denoiser, noise: Tensor, cond: Cond) -> Callable[[Sigmas], float]:
    """The mean squared latent distance of a schedule's deterministic sample to `endpoint`, frame 0 left out.

    Schedules that begin alike share their evaluations.
    """

    @lru_cache(maxsize=64)
    @torch.no_grad()
    def reach(sigmas: Sigmas) -> tuple[Tensor, Tensor]:
        """x at the last of `sigmas`, and the x0 that is predicted there."""
        level = torch.tensor(sigmas[-1], device=noise.device)
        if len(sigmas) == 1:
            x = start(noise, level)
        else:
            x, x0 = reach(sigmas[:-1])
            x = euler_step(x, x0, torch.tensor(sigmas[-2], device=noise.device), level)
        return x, denoiser(x, level.expand(len(x)), cond)[0]

    return lru_cache(maxsize=None)(lambda s: float((reach(s)[1] - endpoint)[:, 1:].square().mean()))


def search(
    distance: Callable[[Sigmas], float],
    candidates: Sequence[float],
    *,
    sigma_max: float,
    steps: Sequence[int] = STEPS,
    refine: bool = True,
) -> dict[int, Sigmas]:
    """The schedule of each number of steps, as far as there are candidates.

    Args:
        distance: of a schedule; less is better.
        candidates: sigmas below `sigma_max` that may be used.
        refine: move the sigmas after each insertion, one at a time, until none can be moved to advantage.
    """
    chosen: Sigmas = (sigma_max,)
    schedules: dict[int, Sigmas] = {1: chosen}
    while len(chosen) < max(steps, default=1):
        longer = list(_with_one_more(chosen, candidates))
        if not longer:
            break
        chosen = min(longer, key=distance)
        moved = refine
        while moved:
            moved = False
            for sigma in chosen[1:]:
                rest = tuple(s for s in chosen if s != sigma)
                best = min(_with_one_more(rest, candidates), key=distance)
                if distance(best) < distance(chosen):
                    chosen, moved = best, True
        schedules[len(chosen)] = chosen
    return {count: schedules[count] for count in sorted(steps) if count in schedules}


def _with_one_more(sigmas: Sigmas, candidates: Sequence[float]) -> list[Sigmas]:
    return [tuple(sorted((*sigmas, s), reverse=True)) for s in candidates if s not in sigmas]


def candidate_sigmas(config: Config) -> list[float]:
    """Levels to choose from: Karras' nodes between the largest sigma and what an eye would still see."""
    s = config.sampling
    return karras_sigmas(CANDIDATES + 1, sigma_min=0.05, sigma_max=s.sigma_max, rho=s.rho)[1:-1].tolist()


def phase_schedule(config: Config) -> dict[int, Sigmas]:
    """The one schedule of a phased student: the levels at which its phases begin; of another, none.

    There a step along the predicted x0 ends where the next phase begins, and nothing else was learned.
    """
    nodes, phases = grid(config).tolist(), config.distill.phases
    if phases == 1:
        return {}
    return {phases: tuple(nodes[node] for node in edges(config.distill.nodes, phases)[:-1])}


def find_schedule(
    denoiser: Denoiser,
    teacher_endpoint: Tensor,
    noise: Tensor,
    cond: Cond,
    truth: Tensor,
    mask: Tensor,
    autoencoder: Autoencoder,
    candidates: Iterable[float] | Tensor,
    *,
    sigma_max: float,
    steps: Sequence[int] = STEPS,
    fixed: Mapping[int, Sigmas] | None = None,
    seed: int = 0,
) -> Schedule:
    """Sigmas and eta for each number of steps, by measurement on B clips.

    Args:
        teacher_endpoint: where the teacher's full sampling takes `noise`, `[B, T, C, h, w]`.
        noise: standard normal, of the same shape.
        truth: the latents that were to be sampled, scaled, of the same shape.
        mask: where the edit is, `[B, T, H, W]`, bool.
        candidates: sigmas below `sigma_max` that may be used.
        fixed: schedules that are kept as they are, with eta 0 (`phase_schedule`).
        seed: of the fresh noise, which is the same for every eta.
    """
    fixed = dict(fixed or {})
    levels = [float(sigma) for sigma in candidates]
    distance = distance_to(teacher_endpoint, denoiser, noise, cond)
    searched = [count for count in steps if count not in fixed]
    found = search(distance, levels, sigma_max=sigma_max, steps=searched) if searched else {}
    sigmas = dict(sorted({**found, **fixed}.items()))
    chosen: dict[int, float] = {}
    rows: list[dict[str, Any]] = []
    for count, schedule in sigmas.items():
        figures: dict[float, Figures] = {}
        for eta in (0.0,) if count == 1 or count in fixed else ETAS:
            samples = draws(denoiser, noise, schedule, cond, eta=eta, seed=seed)
            figures[eta] = measure(samples, truth, mask, autoencoder=autoencoder)
        best = chosen[count] = choose({eta: f.score for eta, f in figures.items()})
        for eta, f in figures.items():
            score = {"score": f.score, "endpoint": distance(schedule), "chosen": eta == best}
            rows.append({"steps": count, "eta": eta, **asdict(f), **score})
    return Schedule(sigmas, chosen, rows)


@torch.no_grad()
def draws(
    denoiser: Denoiser, noise: Tensor, sigmas: Sigmas, cond: Cond, *, eta: float, seed: int
) -> list[Tensor]:
    """Few-step samples from `noise`: `DRAWS` of them, or one where nothing is drawn."""
    nodes = torch.tensor([*sigmas, 0.0])
    generators = [torch.Generator().manual_seed(seed + i) for i in range(DRAWS if eta else 1)]
    return [consistency(denoiser, noise, nodes, cond, generator=g, eta=eta)[0] for g in generators]


def choose(scores: Mapping[float, float]) -> float:
    """The eta of the lowest score; among ties (`TIE`) the smallest."""
    lowest = min(scores.values())
    return min(eta for eta, score in scores.items() if score <= lowest * (1 + TIE))
