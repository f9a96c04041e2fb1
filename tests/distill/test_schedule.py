"""The search for few-step sigmas, on a denoiser whose best second sigma is known."""

import torch

from genprop.distill.schedule import error, search
from genprop.types import Cond

TARGET = torch.full((1, 3, 1, 2, 2), 2.0)


NOISE = torch.randn(TARGET.shape, generator=torch.Generator().manual_seed(0))
COND = Cond(TARGET, TARGET, torch.zeros(1, 1, 1), torch.zeros(1, 3))
CASE = (NOISE, TARGET, COND)


def best_at_three(x, sigma, cond):
    """Right at sigma 3 alone, and worse the further away."""
    miss = (sigma.log() - torch.tensor(3.0).log()).abs().view(-1, 1, 1, 1, 1)
    return TARGET.expand(len(x), -1, -1, -1, -1) + miss, torch.zeros_like(x[:, :, :1])


def test_the_second_sigma_is_the_one_with_the_least_error():
    schedules, errors = search(
        best_at_three, *CASE, torch.tensor([20.0, 3.0, 0.5]), sigma_max=80.0, steps=(1, 2)
    )
    assert schedules == {1: (80.0,), 2: (80.0, 3.0)}
    assert errors[2] < 1e-9 < errors[1]


def test_schedules_fall_and_start_at_the_top():
    candidates = torch.tensor([40.0, 20.0, 10.0, 3.0, 1.0, 0.5, 0.2])
    schedules, _ = search(best_at_three, *CASE, candidates, sigma_max=80.0)
    assert set(schedules) == {1, 2, 4, 8}
    for count, sigmas in schedules.items():
        assert len(sigmas) == count and sigmas[0] == 80 and list(sigmas) == sorted(sigmas, reverse=True)


def test_too_few_candidates_give_the_schedules_there_are():
    schedules, _ = search(best_at_three, *CASE, torch.tensor([3.0]), sigma_max=80.0)
    assert set(schedules) == {1, 2}


def test_the_given_frame_does_not_count():
    def wrong_in_frame_0(x, sigma, cond):
        x0 = TARGET.clone()
        x0[:, 0] = 99
        return x0, torch.zeros_like(x[:, :, :1])

    assert error(wrong_in_frame_0, (80.0,), *CASE) < 1e-8
