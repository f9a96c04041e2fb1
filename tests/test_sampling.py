"""Samplers on Gaussian data, where denoiser, trajectory and consistency function are known in closed form."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from genprop.edm import karras_sigmas
from genprop.sampling import SOLVERS, Sampler, consistency, euler, euler_step, heun_step, start
from genprop.types import Cond

MEAN, STD = 0.6, 0.5
COND = Cond(torch.zeros(()), torch.zeros(()), torch.zeros(()), torch.zeros(()))


def endpoint(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Where the probability-flow ODE of N(MEAN, STD^2) takes x."""
    return MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + float(sigma) ** 2)


@dataclass
class Gaussian:
    """The optimal denoiser of N(MEAN, STD^2); the mask logit it returns is sigma."""

    seen: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        assert sigma.shape == x.shape[:1]
        self.seen.append(sigma[0].item())
        s = sigma.view(-1, 1, 1, 1, 1)
        return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2), s


@dataclass
class Exact:
    """The consistency function itself."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return endpoint(x, sigma[0]), sigma.view(-1, 1, 1, 1, 1)


@pytest.fixture
def noise(rng: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 4, 16, 16, generator=rng)


def ladder(steps: int) -> Tensor:
    return karras_sigmas(steps, sigma_min=0.002, sigma_max=80.0)


def test_the_start_has_the_variance_of_data_and_noise(noise: Tensor) -> None:
    assert torch.allclose(start(noise, 3.0), noise * math.sqrt(10))
    assert torch.allclose(start(noise, torch.tensor(3.0)), noise * math.sqrt(10))


def test_euler_converges_to_the_solution_at_first_order(noise: Tensor) -> None:
    solution = endpoint(start(noise, 80.0), 80.0)
    errors = [
        (euler(Gaussian(), noise, ladder(n), COND)[0] - solution).abs().max().item() for n in (50, 100, 200)
    ]
    assert errors[-1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


def test_euler_of_one_step_is_the_denoisers_own_answer(noise: Tensor) -> None:
    x0, mask = euler(Gaussian(), noise, torch.tensor([80.0, 0.0]), COND)
    assert torch.allclose(x0, Gaussian()(start(noise, 80.0), torch.full((2,), 80.0), COND)[0], atol=1e-4)
    assert (mask == 80).all()


@pytest.mark.parametrize("sampler", [euler, consistency])
def test_each_sigma_is_evaluated_once_and_the_last_mask_is_returned(
    sampler: Sampler, noise: Tensor, rng: torch.Generator
) -> None:
    denoiser, sigmas = Gaussian(), torch.tensor([80.0, 8.0, 0.5, 0.0])
    _, mask = sampler(denoiser, noise, sigmas, COND, generator=rng)
    assert denoiser.seen == [80.0, 8.0, 0.5]
    assert (mask == 0.5).all()


def test_the_exact_consistency_function_needs_one_step(noise: Tensor, rng: torch.Generator) -> None:
    x0, _ = consistency(Exact(), noise, torch.tensor([80.0, 0.0]), COND, generator=rng)
    assert torch.allclose(x0, endpoint(start(noise, 80.0), 80.0), atol=1e-6)


@pytest.mark.parametrize("sigmas", [(80.0, 1.0), (80.0, 8.0, 2.0, 0.5)])
def test_renoising_keeps_the_distribution(
    noise: Tensor, rng: torch.Generator, sigmas: tuple[float, ...]
) -> None:
    x0, _ = consistency(Exact(), noise, torch.tensor([*sigmas, 0.0]), COND, generator=rng)
    deviation = STD / math.sqrt(x0.numel())
    assert x0.mean().item() == pytest.approx(MEAN, abs=4 * deviation)
    assert x0.std().item() == pytest.approx(STD, rel=0.05)


def test_consistency_repeats_with_its_generator_and_differs_with_another(noise: Tensor) -> None:
    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return consistency(Exact(), noise, torch.tensor([80.0, 2.0, 0.0]), COND, generator=generator)[0]

    assert torch.equal(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1), atol=0.1)


def test_the_deterministic_form_takes_eulers_steps(noise: Tensor, rng: torch.Generator) -> None:
    sigmas = torch.tensor([80.0, 2.0, 0.0])
    deterministic, _ = consistency(Gaussian(), noise, sigmas, COND)
    assert torch.equal(deterministic, euler(Gaussian(), noise, sigmas, COND)[0])
    assert not torch.allclose(deterministic, consistency(Gaussian(), noise, sigmas, COND, generator=rng)[0])


def walk(solver: str, noise: Tensor, sigmas: Tensor) -> Tensor:
    x = start(noise, sigmas[0])
    for sigma, to in itertools.pairwise(sigmas):
        x = SOLVERS[solver](Gaussian(), x, sigma.expand(len(x)), to.expand(len(x)), COND)
    return x


def one_level(noise: Tensor) -> dict[str, list[float]]:
    """Errors of each solver from sigma 4 to 1 in 8, 16 and 32 even steps."""
    true = MEAN + (start(noise, 4.0) - MEAN) * math.sqrt((STD**2 + 1) / (STD**2 + 16))
    ladders = [torch.linspace(4, 1, n + 1, dtype=torch.float64) for n in (8, 16, 32)]
    return {
        name: [(walk(name, noise, s) - true).abs().max().item() for s in ladders]
        for name in ("euler", "heun")
    }


def test_euler_is_of_first_order_and_heun_of_second(noise: Tensor) -> None:
    errors = one_level(noise.double())
    assert all(h < e / 3 for e, h in zip(errors["euler"], errors["heun"], strict=True))
    for name, factor in (("euler", 2), ("heun", 4)):
        coarse, middle, fine = errors[name]
        assert coarse / middle == pytest.approx(factor, rel=0.1)
        assert middle / fine == pytest.approx(factor, rel=0.1)


def test_heun_is_nearer_to_the_endpoint_at_the_nodes_of_a_teacher(noise: Tensor) -> None:
    solution = endpoint(start(noise, 80.0), 80.0)
    euler_error, heun_error = ((walk(n, noise, ladder(25)) - solution).abs().max() for n in ("euler", "heun"))
    assert heun_error < euler_error / 3


def test_the_first_solver_is_the_euler_sampler_bit_for_bit(noise: Tensor) -> None:
    assert torch.equal(walk("euler", noise, ladder(6)), euler(Gaussian(), noise, ladder(6), COND)[0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_sample_steps_between_its_own_levels_and_zero_is_one_of_them(noise: Tensor, solver: str) -> None:
    sigma, to = torch.tensor([5.0, 0.3]), torch.tensor([2.0, 0.0])
    both = SOLVERS[solver](Gaussian(), noise, sigma, to, COND)
    for i in range(2):
        own = SOLVERS[solver](Gaussian(), noise[i : i + 1], sigma[i : i + 1], to[i : i + 1], COND)
        assert torch.equal(both[i : i + 1], own)
    assert both.isfinite().all()
    x0, _ = Gaussian()(noise, sigma, COND)
    assert torch.allclose(both[1], x0[1], atol=1e-6)


def test_heun_at_zero_is_eulers_step_with_one_evaluation(noise: Tensor) -> None:
    denoiser, sigma, zero = Gaussian(), torch.tensor([0.3, 2.0]), torch.zeros(2)
    x0, _ = denoiser(noise, sigma, COND)
    wide = sigma.view(-1, 1, 1, 1, 1)
    expected = euler_step(noise, x0, wide, torch.zeros_like(wide))
    denoiser.seen.clear()
    assert torch.equal(heun_step(denoiser, noise, sigma, zero, COND), expected)
    assert len(denoiser.seen) == 1


def test_eta_zero_is_euler_and_draws_nothing(noise: Tensor, rng: torch.Generator) -> None:
    sigmas = torch.tensor([80.0, 8.0, 0.5, 0.0])
    before = rng.get_state()
    x0, mask = consistency(Gaussian(), noise, sigmas, COND, generator=rng, eta=0.0)
    expected, expected_mask = euler(Gaussian(), noise, sigmas, COND)
    assert torch.equal(x0, expected) and torch.equal(mask, expected_mask)
    assert torch.equal(rng.get_state(), before)


def test_eta_one_is_songs_renoising_bit_for_bit(noise: Tensor) -> None:
    sigmas = torch.tensor([80.0, 8.0, 0.5, 0.0])
    generator = torch.Generator().manual_seed(3)
    x = start(noise, sigmas[0])
    for sigma, to in itertools.pairwise(sigmas):
        x0, _ = Gaussian()(x, sigma.expand(len(x)), COND)
        x = x0 + to * torch.randn(x.shape, generator=generator)
    for options in ({}, {"eta": 1.0}):
        again = torch.Generator().manual_seed(3)
        assert torch.equal(consistency(Gaussian(), noise, sigmas, COND, generator=again, **options)[0], x0)


@dataclass
class Point:
    """The optimal denoiser of the one point MEAN, for which (x - x0) / s is the noise itself."""

    deviations: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        self.deviations.append(float((x - MEAN).std() / sigma[0]))
        return torch.full_like(x, MEAN), x[:, :, :1]


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_noise_keeps_the_variance_of_its_level_whatever_eta_is(rng: torch.Generator, eta: float) -> None:
    denoiser, sigmas = Point(), torch.tensor([80.0, 8.0, 2.0, 0.5, 0.0])
    noise = torch.randn(1, 10, 4, 64, 64, generator=rng)
    consistency(denoiser, noise, sigmas, COND, generator=rng, eta=eta)
    assert denoiser.deviations == pytest.approx([1.0] * 4, abs=0.02)


def test_fresh_noise_keeps_gaussian_data_gaussian_and_the_old_noise_spreads_it(rng: torch.Generator) -> None:
    """Where the student is exact, x0 and the noise it leaves are one number: their spreads add up."""
    noise = torch.randn(1, 10, 4, 64, 64, generator=rng)
    s, to = 80.0, 1.0
    kept = (math.sqrt(STD**2 + s**2) - STD) / s  # of the old noise, in x - x0
    for eta in (0.0, 0.5, 1.0):
        x0, _ = consistency(Exact(), noise, torch.tensor([s, to, 0.0]), COND, generator=rng, eta=eta)
        level = math.hypot(STD + to * math.sqrt(1 - eta**2) * kept, to * eta) / math.hypot(STD, to)
        assert x0.std().item() == pytest.approx(STD * level, rel=0.02)
