"""EDM's arithmetic: closed forms, and the scheduler of SVD."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genprop.draws import Draws
from genprop.edm import (
    Guided,
    NetDenoiser,
    add_noise,
    karras_sigmas,
    precondition,
    sample_sigma,
    velocity_target,
)
from genprop.types import Cond, NetOut

SHAPE = (2, 3, 4, 5, 6)


def cond(rng: torch.Generator) -> Cond:
    first, source = torch.randn(2, *SHAPE, generator=rng)
    return Cond(first, source, torch.randn(2, 1, 8, generator=rng), torch.ones(2, 3))


@dataclass
class Recorder:
    """A net that returns a fixed velocity and keeps what it was called with."""

    velocity: Tensor
    calls: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        self.calls.append((sample, timestep, first, source, image_embedding, added_time_ids))
        return NetOut(self.velocity, self.velocity[:, :, :1])


@given(st.floats(min_value=1e-3, max_value=1e3))
def test_the_factors_are_edms_with_unit_data(sigma: float) -> None:
    p = precondition(torch.tensor([sigma], dtype=torch.float64))
    root = math.sqrt(sigma**2 + 1)
    expected = (1 / root**2, -sigma / root, 1 / root, math.log(sigma) / 4)
    for got, want in zip(p, expected, strict=True):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(want, rel=1e-5, abs=1e-7)


@given(st.floats(min_value=0.002, max_value=700))
def test_the_velocity_target_gives_the_data_back(sigma: float) -> None:
    rng = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, *SHAPE, generator=rng)
    sigmas = torch.full((2,), sigma)
    x = add_noise(x0, noise, sigmas)
    denoised, _ = NetDenoiser(Recorder(velocity_target(x0, x, sigmas)))(x, sigmas, cond(rng))
    assert torch.allclose(denoised, x0, atol=2e-4)  # float32 of x at sigma 700 holds no more


def test_the_velocity_is_the_v_of_v_prediction(rng: torch.Generator) -> None:
    """v = (n - s x0) / sqrt(s^2 + 1): a n - b x0 with a^2 + b^2 = 1 (Salimans and Ho 2022)."""
    x0, noise = torch.randn(2, *SHAPE, generator=rng)
    sigma = torch.tensor([0.3, 4.0])
    s = sigma.view(-1, 1, 1, 1, 1)
    target = velocity_target(x0, add_noise(x0, noise, sigma), sigma)
    assert torch.allclose(target, (noise - s * x0) / (s**2 + 1).sqrt(), atol=1e-5)


def test_at_sigma_zero_the_denoiser_is_the_identity(rng: torch.Generator) -> None:
    x, velocity = torch.randn(2, *SHAPE, generator=rng)
    denoiser = NetDenoiser(Recorder(velocity))
    x0, _ = denoiser(x, torch.full((2,), 1e-7), cond(rng))
    assert torch.allclose(x0, x, atol=1e-6)
    away, _ = denoiser(x, torch.full((2,), 1.0), cond(rng))
    assert not torch.allclose(away, x, atol=0.1)


def test_the_net_sees_scaled_noise_its_level_and_the_condition(rng: torch.Generator) -> None:
    given_cond, net = cond(rng), Recorder(torch.zeros(SHAPE))
    x, sigma = torch.randn(SHAPE, generator=rng), torch.tensor([0.5, 3.0])
    NetDenoiser(net)(x, sigma, given_cond)
    sample, timestep, first, source, embedding, ids = net.calls[0]
    assert torch.allclose(sample[1], x[1] / math.sqrt(10))
    assert torch.allclose(timestep, sigma.log() / 4)
    assert first is given_cond.first and source is given_cond.source
    assert embedding is given_cond.image_embedding and ids is given_cond.added_time_ids


def test_training_noise_is_log_normal_and_repeats() -> None:
    def draw() -> Tensor:
        return sample_sigma(Draws.of(3, 20_000), mean=0.7, std=1.6)

    logs = draw().log()
    assert logs.mean().item() == pytest.approx(0.7, abs=4 * 1.6 / math.sqrt(20_000))
    assert logs.std().item() == pytest.approx(1.6, rel=0.03)
    assert torch.equal(draw(), draw())


@given(st.integers(1, 60), st.floats(0.002, 0.1), st.floats(1, 700), st.floats(1, 9))
def test_karras_sigmas_fall_from_end_to_end(steps: int, low: float, high: float, rho: float) -> None:
    sigmas = karras_sigmas(steps, sigma_min=low, sigma_max=high, rho=rho)
    assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(high, rel=1e-6)
    assert steps == 1 or sigmas[-2].item() == pytest.approx(low, rel=1e-5)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_karras_sigmas_are_those_of_svds_scheduler() -> None:
    scheduler = EulerDiscreteScheduler(
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        prediction_type="v_prediction",
        timestep_type="continuous",
    )
    scheduler.set_timesteps(25)
    sigmas = karras_sigmas(25, sigma_min=0.002, sigma_max=700.0)
    assert torch.allclose(sigmas, scheduler.sigmas, rtol=1e-5, atol=0)
    assert torch.allclose(
        precondition(sigmas[:-1]).c_noise, scheduler.timesteps.float(), rtol=1e-4, atol=1e-6
    )


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        karras_sigmas(0, sigma_min=0.002, sigma_max=700.0)


@dataclass
class TwoFaced:
    """A denoiser that tells the branches apart: what it returns depends on the first frame alone."""

    calls: int = 0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        self.calls += 1
        assert (cond.image_embedding.abs().sum() > 0) == (cond.first.abs().sum() > 0)
        assert cond.source.abs().sum() > 0  # the original video guides both branches
        return x + cond.first, cond.first[:, :, :1]


def test_guidance_of_scale_one_is_the_conditional_branch(rng: torch.Generator) -> None:
    given_cond, x = cond(rng), torch.randn(SHAPE, generator=rng)
    x0, _ = Guided(TwoFaced(), 1.0, 1.0)(x, torch.ones(2), given_cond)
    assert torch.allclose(x0, x + given_cond.first, atol=1e-6)


def test_guidance_rises_linearly_over_the_frames(rng: torch.Generator) -> None:
    given_cond, x, inner = cond(rng), torch.randn(SHAPE, generator=rng), TwoFaced()
    x0, mask_logits = Guided(inner, 1.0, 3.0)(x, torch.ones(2), given_cond)
    scales = (1.0, 2.0, 3.0)
    expected = torch.stack([x[:, t] + s * given_cond.first[:, t] for t, s in enumerate(scales)], dim=1)
    assert torch.allclose(x0, expected, atol=1e-5)
    assert torch.equal(mask_logits, given_cond.first[:, :, :1])
    assert inner.calls == 2


def test_each_sample_may_have_its_own_scale(rng: torch.Generator) -> None:
    given_cond, x, scales = cond(rng), torch.randn(SHAPE, generator=rng), torch.tensor([1.0, 4.5])
    together, _ = Guided(TwoFaced(), 1.0, scales)(x, torch.ones(2), given_cond)
    for i, scale in enumerate(scales.tolist()):
        alone, _ = Guided(TwoFaced(), 1.0, scale)(x, torch.ones(2), given_cond)
        assert torch.allclose(together[i], alone[i], atol=1e-6)
    assert torch.allclose(together[0], (x + given_cond.first)[0], atol=1e-6)
