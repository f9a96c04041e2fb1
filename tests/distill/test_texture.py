"""The texture reward: 0 for the truth, less for what is blank, and of the hole alone."""

from __future__ import annotations

import pytest
import torch

from genprop.distill.texture import TextureReward
from genprop.teacher.base import Base
from genprop.teacher.objective import Inputs
from genprop.types import Cond


@pytest.fixture
def inputs(small_base: Base, rng) -> Inputs:
    frames = torch.rand(2, 3, 3, 16, 16, generator=rng) * 2 - 1
    target = small_base.autoencoder.encode_scaled(frames).detach()
    mask = torch.zeros(2, 3, 1, 8, 8)
    mask[..., :4] = 1
    return Inputs(target, Cond(target, target, torch.zeros(2, 1, 4), torch.zeros(2, 3)), mask)


def test_the_truth_is_best_and_blank_is_worse(small_base, inputs):
    reward = TextureReward(small_base.autoencoder)
    truth, blank = reward(inputs.target, inputs), reward(torch.zeros_like(inputs.target), inputs)
    assert torch.equal(truth, torch.zeros(2)) and (blank < -1e-3).all()


def test_the_given_frame_and_an_empty_hole_do_not_count(small_base, inputs):
    reward = TextureReward(small_base.autoencoder)
    x0 = inputs.target.clone()
    x0[:, 0] = 0
    assert torch.equal(reward(x0, inputs), torch.zeros(2))
    empty = inputs._replace(mask=torch.zeros_like(inputs.mask))
    assert torch.equal(reward(torch.zeros_like(x0), empty), torch.zeros(2))


def test_it_is_differentiable_and_its_gradient_goes_up(small_base, inputs):
    reward = TextureReward(small_base.autoencoder.requires_grad_(False))
    x0 = (0.5 * inputs.target).requires_grad_()
    reward(x0, inputs).sum().backward()
    assert x0.grad is not None and not x0.grad[:, 0].any() and x0.grad[:, 1:].any()
    with torch.no_grad():
        step = 1e-3 * x0.grad / x0.grad.norm()
        assert reward(x0 + step, inputs).sum() > reward(x0, inputs).sum()
