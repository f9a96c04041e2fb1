"""Consistency distillation against the closed form of Gaussian data.

For data N(mu, s0^2) the optimal denoiser is x0 = (s0^2 x + s^2 mu) / (s0^2 + s^2), and its ODE takes x at
sigma s to mu + (x - mu) s0 / sqrt(s0^2 + s^2): what a one-step student has to say.
"""

import pytest
import torch
from torch import nn

from genprop.config import Config, load_config
from genprop.distill.objective import ConsistencyObjective, grid, pseudo_huber, teacher_target
from genprop.distill.trajectories import trajectory
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.loop import fit
from genprop.teacher.net import Parts
from genprop.teacher.sce import SceOut
from genprop.types import Cond, NetOut

MEAN, DEVIATION = 0.7, 0.5
SHAPE = (2, 1, 2, 2)  # T C h w


def gaussian_teacher(x, sigma, cond):
    s = sigma.view(-1, 1, 1, 1, 1)
    return (DEVIATION**2 * x + s**2 * MEAN) / (DEVIATION**2 + s**2), torch.zeros_like(x[:, :, :1])


def solution(x, sigma):
    return MEAN + (x - MEAN) * DEVIATION / (DEVIATION**2 + sigma**2).sqrt()


class SmallStudent(nn.Module):
    """Affine in x, with slope and offset from a small network of the noise level."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def parts(self, sample, timestep, first, source, image_embedding, added_time_ids):
        slope, offset = self.layers(timestep[:, None] * 2).T.reshape(2, -1, 1, 1, 1, 1)
        zero = torch.zeros_like(sample[:, :, :1])
        out = NetOut(slope * sample + offset, zero)
        return Parts(out, None, SceOut((), ()), torch.zeros(()), None)  # type: ignore[arg-type]

    def forward(self, *inputs):
        return self.parts(*inputs).out


class NoImage(nn.Module):
    def embed(self, pixels):
        return torch.zeros(len(pixels), 1, 4)


def configuration(*overrides: str) -> Config:
    return load_config(
        "tiny",
        [
            "distill.region=0",
            "distill.weight_exponent=0",
            "distill.top_share=0",
            "sampling.sigma_max=20",
            "sampling.sigma_min=0.01",
            *overrides,
        ],
    )


def samples(count: int, trajectories: torch.Tensor | None = None) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    data = MEAN + DEVIATION * torch.randn(count, *SHAPE, generator=generator)
    base = {
        "source": torch.zeros(SHAPE),
        "first": torch.zeros(SHAPE[1:]),
        "image": torch.zeros(3, 4, 4),
        "mask": torch.zeros(2, 16, 16, dtype=torch.bool),
        "added_time_ids": torch.zeros(3),
    }
    extra = [{}] * count if trajectories is None else [{"trajectory": t} for t in trajectories]
    return [{**base, "target": x, **more} for x, more in zip(data, extra, strict=True)]


def conditions(count: int) -> Cond:
    zero = torch.zeros(count, *SHAPE)
    return Cond(zero, zero, torch.zeros(count, 1, 4), torch.zeros(count, 3))


def one_step_error(student: nn.Module, sigma: float) -> float:
    """Error of the one-step answer, relative to the deviation of the solution."""
    x = sigma * torch.randn(512, *SHAPE, generator=torch.Generator().manual_seed(9)) + MEAN
    level = torch.full((512,), sigma)
    with torch.no_grad():
        answer, _ = NetDenoiser(student)(x, level, conditions(512))
    truth = solution(x, torch.tensor(sigma))
    return float((answer - truth).square().mean().sqrt() / DEVIATION)


def train(tmp_path, config: Config, dataset, steps: int) -> nn.Module:
    torch.manual_seed(0)
    student = SmallStudent()
    objective = ConsistencyObjective(student, NoImage(), config, teacher=gaussian_teacher)  # type: ignore[arg-type]
    settings = config.student.model_copy(
        update={
            "steps": steps,
            "batch_size": 64,
            "learning_rate": 1e-2,
            "warmup": 0,
            "min_learning_rate_ratio": 1e-3,
            "precision": "no",
            "ema": 0.99,
            "log_every": 500,
            "checkpoint_every": 10_000,
        }
    )
    fit(objective, dataset, settings, tmp_path)
    return student


def test_node_to_node_consistency_reaches_the_solution_of_the_ode(tmp_path):
    config = configuration("distill.teacher_steps=5", "distill.nodes=100", "distill.huber=0.1")
    student = train(tmp_path, config, samples(2048), 1500)
    assert one_step_error(student, 20.0) < 0.05


def test_trajectory_targets_reach_the_solution_of_the_ode(tmp_path):
    config = configuration("distill.nodes=100")
    sigmas = grid(configuration("distill.nodes=100"))
    noise = torch.randn(512, *SHAPE, generator=torch.Generator().manual_seed(1))
    nodes = trajectory(gaussian_teacher, noise, sigmas, conditions(512))
    student = train(tmp_path, config, samples(512, nodes), 600)
    assert one_step_error(student, 20.0) < 0.05


def test_an_untrained_student_is_far_from_the_solution():
    torch.manual_seed(0)
    assert one_step_error(SmallStudent(), 20.0) > 0.5


def test_the_target_of_the_last_node_is_the_teachers_x0():
    sigmas = torch.tensor([10.0, 1.0, 0.1, 0.0])
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    node = torch.full((4,), 2)
    target = teacher_target(gaussian_teacher, unreachable, x, node, sigmas, conditions(4), steps=1)
    expected, _ = gaussian_teacher(x, torch.full((4,), 0.1), conditions(4))
    torch.testing.assert_close(target, expected)


def test_the_whole_rest_of_the_trajectory_is_the_euler_endpoint():
    sigmas = torch.tensor([10.0, 1.0, 0.1, 0.0])
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole = trajectory(gaussian_teacher, x, sigmas, conditions(3))
    start = whole[:, 0]
    target = teacher_target(
        gaussian_teacher, unreachable, start, torch.zeros(3, dtype=torch.long), sigmas, conditions(3), steps=0
    )
    torch.testing.assert_close(target, whole[:, -1])


def test_each_sample_goes_on_from_its_own_node():
    sigmas = torch.tensor([10.0, 1.0, 0.1, 0.0])
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    both = teacher_target(gaussian_teacher, identity, x, torch.tensor([0, 2]), sigmas, conditions(2), steps=1)
    for i, node in enumerate((0, 2)):
        alone = teacher_target(
            gaussian_teacher, identity, x[i : i + 1], torch.tensor([node]), sigmas, conditions(1), steps=1
        )
        torch.testing.assert_close(both[i : i + 1], alone)


def test_pseudo_huber_is_square_near_zero_and_absolute_far_away():
    error = torch.tensor([0.0, 1e-5, -3.0])
    value = pseudo_huber(error, 1e-3)
    torch.testing.assert_close(value[1], torch.tensor(1e-10 / 2e-3), rtol=1e-2, atol=1e-9)
    torch.testing.assert_close(value[[0, 2]], torch.tensor([0.0, 3.0 - 1e-3]), rtol=1e-4, atol=1e-9)


def test_a_reward_is_subtracted():
    config = configuration("distill.nodes=4")
    noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    nodes = trajectory(gaussian_teacher, noise, grid(configuration("distill.nodes=4")), conditions(4))
    batch = torch.utils.data.default_collate(samples(4, nodes))
    torch.manual_seed(0)
    student = SmallStudent()
    losses = [
        ConsistencyObjective(student, NoImage(), config, rewards=rewards)(  # type: ignore[arg-type]
            batch, Draws.of(0, 4)
        )["loss"].item()
        for rewards in ({}, {"quarter": (2.0, lambda x0, inputs: torch.full((4,), 0.25))})
    ]
    assert losses[0] - losses[1] == pytest.approx(0.5)


def unreachable(x, sigma, cond):
    raise AssertionError("the student must not be asked")


def identity(x, sigma, cond):
    return x, torch.zeros_like(x[:, :, :1])
