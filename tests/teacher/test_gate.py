"""The mask-aware gate, in closed form."""

import pytest
import torch

from genprop.edm import NetDenoiser, add_noise
from genprop.teacher.carry import Carried
from genprop.teacher.gate import HANDOVER, MaskGate
from genprop.types import Cond, NetOut

SHAPE = (2, 3, 4, 5, 5)


def gated(velocity, logits, x, sigma, source, carried=None):
    """x0 of a gated network whose own velocity and logits are given."""
    gate = MaskGate()

    def net(sample, timestep, first, source, image_embedding, added_time_ids):
        out = gate(velocity, logits, sample=sample, timestep=timestep, source=source, carried=carried)
        return NetOut(out, logits)

    cond = Cond(torch.zeros_like(source), source, torch.zeros(2, 1, 1), torch.zeros(2, 3))
    return NetDenoiser(net)(x, sigma, cond)[0]


@pytest.fixture
def case(rng):
    source, velocity, noise = torch.randn(3, *SHAPE, generator=rng)
    return source, velocity, noise


@pytest.mark.parametrize("level", [80.0, 5.0, 1.0, 0.25, 0.01])
def test_closed_it_mixes_in_the_original_with_the_stated_weight(case, level):
    source, velocity, noise = case
    sigma = torch.full((2,), level)
    x = add_noise(source + 0.3, noise, sigma)
    free = gated(velocity, torch.full((2, 3, 1, 5, 5), 60.0), x, sigma, source)
    closed = gated(velocity, torch.full((2, 3, 1, 5, 5), -60.0), x, sigma, source)
    weight = level**2 / (level**2 + HANDOVER**2)
    torch.testing.assert_close(closed, free + weight * (source - free), rtol=1e-4, atol=1e-4 * max(1, level))


@pytest.mark.parametrize("level", [80.0, 1.0, 0.05])
def test_open_it_mixes_in_what_was_carried_by_its_trust(case, level, rng):
    source, velocity, noise = case
    sigma = torch.full((2,), level)
    x = add_noise(source, noise, sigma)
    latents = torch.randn(SHAPE, generator=rng)
    trust, handover = 0.1 + torch.rand(2, 2, 3, 1, 5, 5, generator=rng)
    opened = torch.full((2, 3, 1, 5, 5), 60.0)
    free = gated(velocity, opened, x, sigma, source)
    carried = gated(velocity, opened, x, sigma, source, Carried(latents, trust, handover))
    weight = trust * level**2 / (level**2 + handover**2)
    torch.testing.assert_close(
        carried, free + weight * (latents - free), rtol=1e-4, atol=1e-4 * max(1, level)
    )


def test_closed_it_takes_nothing_of_what_was_carried(case, rng):
    source, velocity, noise = case
    sigma, closed = torch.full((2,), 3.0), torch.full((2, 3, 1, 5, 5), -60.0)
    x = add_noise(source, noise, sigma)
    ones = torch.ones(2, 3, 1, 5, 5)
    carried = Carried(torch.randn(SHAPE, generator=rng), ones, ones)
    torch.testing.assert_close(
        gated(velocity, closed, x, sigma, source, carried), gated(velocity, closed, x, sigma, source)
    )


def test_open_it_changes_nothing(case):
    source, velocity, noise = case
    logits = torch.full((2, 3, 1, 5, 5), 60.0)
    out = MaskGate()(velocity, logits, sample=noise, timestep=torch.tensor([0.3, -0.4]), source=source)
    assert torch.equal(out, velocity)


def test_each_cell_has_its_own_gate(case):
    source, velocity, noise = case
    logits = torch.full((2, 3, 1, 5, 5), 60.0)
    logits[..., 2, 3] = -60
    out = MaskGate()(velocity, logits, sample=noise, timestep=torch.tensor([0.3, -0.4]), source=source)
    changed = (out != velocity).any(dim=2)
    assert changed[..., 2, 3].all() and changed.sum() == 6


def test_it_learns(case):
    source, velocity, noise = case
    gate = MaskGate()
    logits = torch.zeros(2, 3, 1, 5, 5, requires_grad=True)
    gate(velocity, logits, sample=noise, timestep=torch.zeros(2), source=source).square().sum().backward()
    assert logits.grad is not None and logits.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad != 0 for p in [gate.shift])
