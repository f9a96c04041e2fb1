"""Samplers on Gaussian data, where denoiser, trajectory and consistency function are known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from genprop.edm import karras_sigmas
from genprop.sampling import Sampler, consistency, euler, start
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
