"""The search for few-step schedules, on denoisers whose best sigmas and best eta are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from genprop.config import load_config
from genprop.distill.schedule import (
    ETAS,
    Figures,
    Sigmas,
    candidate_sigmas,
    choose,
    distance_to,
    find_schedule,
    measure,
    phase_schedule,
    search,
)
from genprop.edm import karras_sigmas
from genprop.sampling import consistency
from genprop.types import Cond

TARGET = torch.full((1, 3, 1, 2, 2), 2.0)
NOISE = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0))
COND = Cond(TARGET, TARGET, torch.zeros(1, 1, 1), torch.zeros(1, 3))


def best_at_three(x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
    """Right at sigma 3 alone, and worse the further away."""
    miss = (sigma.log() - torch.tensor(3.0).log()).abs().view(-1, 1, 1, 1, 1)
    return TARGET.expand(len(x), -1, -1, -1, -1) + miss, torch.zeros_like(x[:, :, :1])


@dataclass
class Shrinking:
    """Depends on x and sigma, and counts."""

    calls: int = 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return x / (1 + sigma.view(-1, 1, 1, 1, 1)).sqrt(), x[:, :, :1]


def test_the_second_sigma_is_the_one_with_the_least_error() -> None:
    distance = distance_to(TARGET, best_at_three, NOISE, COND)
    schedules = search(distance, [20.0, 3.0, 0.5], sigma_max=80.0, steps=(1, 2))
    assert schedules == {1: (80.0,), 2: (80.0, 3.0)}
    assert distance(schedules[2]) < 1e-9 < distance(schedules[1])


def test_schedules_fall_and_start_at_the_top() -> None:
    distance = distance_to(TARGET, best_at_three, NOISE, COND)
    schedules = search(distance, [40.0, 20.0, 10.0, 3.0, 1.0, 0.5, 0.2], sigma_max=80.0)
    assert set(schedules) == {1, 2, 4, 8}
    for count, sigmas in schedules.items():
        assert len(sigmas) == count and sigmas[0] == 80 and list(sigmas) == sorted(sigmas, reverse=True)


def test_too_few_candidates_give_the_schedules_there_are() -> None:
    assert set(search(lambda sigmas: 0.0, [3.0], sigma_max=80.0)) == {1, 2}


def test_a_sigma_that_was_good_alone_is_moved_where_it_is_better_in_company() -> None:
    def distance(sigmas: Sigmas) -> float:
        known = {(80.0, 5.0): 1.0, (80.0, 20.0, 1.0): 0.1, (80.0, 20.0, 5.0): 0.9, (80.0, 5.0, 1.0): 0.8}
        return known.get(sigmas, 2.0)

    found = {
        refine: search(distance, [20.0, 5.0, 1.0], sigma_max=80.0, steps=(2, 3), refine=refine)
        for refine in (False, True)
    }
    assert found[False] == {2: (80.0, 5.0), 3: (80.0, 5.0, 1.0)}
    assert found[True] == {2: (80.0, 5.0), 3: (80.0, 20.0, 1.0)}


def test_the_distance_is_that_of_the_deterministic_sample() -> None:
    endpoint = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(1))
    distance = distance_to(endpoint, Shrinking(), NOISE, COND)
    for sigmas in ((80.0,), (80.0, 3.0), (80.0, 20.0, 3.0, 0.1)):
        x0, _ = consistency(Shrinking(), NOISE, torch.tensor([*sigmas, 0.0]), COND)
        expected = float((x0 - endpoint)[:, 1:].square().mean())
        assert distance(sigmas) == pytest.approx(expected, rel=1e-4)


def test_schedules_that_begin_alike_share_their_evaluations() -> None:
    denoiser = Shrinking()
    distance = distance_to(TARGET, denoiser, NOISE, COND)
    for sigmas in ((80.0,), (80.0, 3.0), (80.0, 3.0, 1.0), (80.0, 3.0, 0.5), (80.0, 3.0)):
        distance(sigmas)
    assert denoiser.calls == 4


def test_the_given_frame_does_not_count() -> None:
    def wrong_in_frame_0(x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        x0 = TARGET.clone()
        x0[:, 0] = 99
        return x0, torch.zeros_like(x[:, :, :1])

    assert distance_to(TARGET, wrong_in_frame_0, NOISE, COND)((80.0,)) < 1e-8


# --- what samples are held against: textures of 16x16 pixels, one latent cell of 4x4 numbers a 4x4 pixels ---

DEVIATION = 0.2
SHAPE = (2, 4, 48, 4, 4)


class Unshuffled:
    """An autoencoder of patches that loses nothing: 48 channels are 4x4 pixels of 3 colours."""

    downsampling = 4

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(latents, 4)


def texture(seed: int) -> Tensor:
    return DEVIATION * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


TRUTH = texture(0)
MASK = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
MASK[:, :, :8] = True
HOLE = torch.zeros(SHAPE)
HOLE[..., :2, :] = 1


def figures(latents: Tensor) -> Figures:
    return measure([latents], TRUTH, MASK, autoencoder=Unshuffled())  # type: ignore[arg-type]


def test_the_truth_scores_zero() -> None:
    got = figures(TRUTH)
    assert (got.hole, got.keep, got.sharpness, got.texture) == (math.inf, math.inf, 1, 0)
    assert got.score == 0


def test_the_figures_are_by_region_and_without_the_first_frame() -> None:
    offset = torch.zeros(SHAPE)
    offset[:, 0] = 5
    assert figures(TRUTH + offset).score == 0
    got = figures(TRUTH + 0.2 * HOLE)  # 0.1 of the range of pixels
    assert got.keep == math.inf and got.hole == pytest.approx(20, abs=0.1)
    assert figures(TRUTH + 0.2 * (1 - HOLE)).keep == pytest.approx(20, abs=0.1)


def test_another_draw_of_the_texture_scores_better_than_the_mean() -> None:
    mean, other = figures(TRUTH * (1 - HOLE)), figures(TRUTH * (1 - HOLE) + texture(1) * HOLE)
    assert mean.hole > other.hole + 2  # what PSNR alone would choose
    assert (mean.sharpness, other.sharpness) == pytest.approx((0, 1), abs=0.06)
    deviation = DEVIATION / 2  # of pixels in [0, 1]
    assert mean.score == pytest.approx(1.63 * deviation, rel=0.06)
    assert other.score == pytest.approx(deviation, rel=0.1)  # 0.71, and what is chance in 16 pixels


def test_a_clip_without_a_hole_has_a_score() -> None:
    empty = torch.zeros_like(MASK)
    got = measure([TRUTH + 0.2], TRUTH, empty, autoencoder=Unshuffled())  # type: ignore[arg-type]
    assert got.score == pytest.approx(0.05, rel=0.02)


@dataclass
class Second:
    """At the top, the truth with an empty hole; after it, right with all fresh noise or with none."""

    noise: Tensor
    wants_fresh: bool
    ignores_noise: bool = False
    seen: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        s = float(sigma[0])
        self.seen.append(s)
        top = TRUTH * (1 - HOLE)
        added = (x - top) / s
        old = (added * self.noise).sum() / self.noise.square().sum()
        fresh = (added - old * self.noise).std()  # eta
        if s == 80 or self.ignores_noise:
            x0 = top
        elif self.wants_fresh:
            x0 = TRUTH * (1 - HOLE + fresh * HOLE)
        else:
            x0 = TRUTH * (1 + fresh)
        return x0, x[:, :, :1]


def found(denoiser: Second, *, fixed: dict[int, Sigmas] | None = None, steps: tuple[int, ...] = (1, 2)):
    noise = denoiser.noise
    blank = Cond(noise, noise, torch.zeros(2, 1, 1), torch.zeros(2, 3))
    return find_schedule(
        denoiser,
        TRUTH,
        noise,
        blank,
        TRUTH,
        MASK,
        Unshuffled(),  # type: ignore[arg-type]
        torch.tensor([1e-3]),
        sigma_max=80.0,
        steps=steps,
        fixed=fixed,
    )


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))


def test_eta_is_what_the_denoiser_needs(noise: Tensor) -> None:
    assert found(Second(noise, wants_fresh=True)).eta == {1: 0.0, 2: 1.0}
    assert found(Second(noise, wants_fresh=False)).eta == {1: 0.0, 2: 0.0}


def test_a_tie_goes_to_the_deterministic_sampler(noise: Tensor) -> None:
    assert found(Second(noise, wants_fresh=True, ignores_noise=True)).eta == {1: 0.0, 2: 0.0}
    assert choose({0.0: 1.005, 0.5: 1.0, 1.0: 1.2}) == 0.0
    assert choose({0.0: 1.05, 0.5: 1.004, 1.0: 1.0}) == 0.5


def test_every_figure_is_returned_and_one_row_of_each_number_of_steps_is_chosen(noise: Tensor) -> None:
    rows = found(Second(noise, wants_fresh=True)).rows
    assert [(row["steps"], row["eta"]) for row in rows] == [(1, 0.0), *((2, eta) for eta in ETAS)]
    columns = {"steps", "eta", "hole", "keep", "sharpness", "texture", "score", "endpoint", "chosen"}
    assert all(row.keys() == columns for row in rows)
    assert [(row["steps"], row["eta"]) for row in rows if row["chosen"]] == [(1, 0.0), (2, 1.0)]
    sharpness = [row["sharpness"] for row in rows[1:]]
    assert sharpness == sorted(sharpness) and sharpness[-1] == pytest.approx(1, abs=0.02)


def test_a_fixed_schedule_is_kept_and_deterministic(noise: Tensor) -> None:
    denoiser = Second(noise, wants_fresh=True)
    got = found(denoiser, fixed={2: (80.0, 7.0)})
    assert got.sigmas == {1: (80.0,), 2: (80.0, 7.0)} and got.eta == {1: 0.0, 2: 0.0}
    assert len(got.rows) == 2 and set(denoiser.seen) == {80.0, 7.0}
    alone = found(denoiser, fixed={3: (80.0, 7.0, 1.0)}, steps=(3,))
    assert alone.sigmas == {3: (80.0, 7.0, 1.0)}


def test_a_phased_students_schedule_is_where_its_phases_begin() -> None:
    overrides = ["distill.nodes=10", "distill.phases=4"]
    config = load_config("tiny", overrides)
    s = config.sampling
    nodes = karras_sigmas(10, sigma_min=s.sigma_min, sigma_max=s.sigma_max, rho=s.rho).tolist()
    assert phase_schedule(config) == {4: (nodes[0], nodes[2], nodes[5], nodes[8])}
    assert phase_schedule(load_config("tiny")) == {}


def test_candidates_lie_between_the_top_and_what_can_be_seen() -> None:
    levels = candidate_sigmas(load_config("tiny"))
    assert len(levels) == 11 and levels == sorted(levels, reverse=True)
    assert levels[0] < 80 and levels[-1] == pytest.approx(0.05)
