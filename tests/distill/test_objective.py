"""Consistency distillation against the closed form of Gaussian data.

For data N(mu, s0^2) the optimal denoiser is x0 = (s0^2 x + s^2 mu) / (s0^2 + s^2), and its ODE takes x at
sigma s to mu + (x - mu) s0 / sqrt(s0^2 + s^2): what a one-step student has to say.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import default_collate

from genprop.config import Config, load_config
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.targets import (
    edges,
    grid,
)
from genprop.distill.trajectories import trajectory
from genprop.draws import Draws
from genprop.edm import Denoiser, NetDenoiser
from genprop.teacher.net import Parts
from genprop.teacher.sce import SceOut
from genprop.types import Cond, NetOut

MEAN, DEVIATION = 0.7, 0.5
SHAPE = (2, 1, 2, 2)  # T C h w


def gaussian_teacher(x: Tensor, sigma: Tensor, cond: object = None) -> tuple[Tensor, Tensor]:
    s = sigma.view(-1, 1, 1, 1, 1)
    return (DEVIATION**2 * x + s**2 * MEAN) / (DEVIATION**2 + s**2), torch.zeros_like(x[:, :, :1])


def moved(x: Tensor, sigma: Tensor | float, to: Tensor | float) -> Tensor:
    """Where the ODE takes x from `sigma` to `to`."""
    sigma, to = torch.as_tensor(sigma), torch.as_tensor(to)
    return MEAN + (x - MEAN) * ((DEVIATION**2 + to**2) / (DEVIATION**2 + sigma**2)).sqrt()


class SmallStudent(nn.Module):
    """Affine in x, with slope and offset from a small network of the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def parts(self, sample: Tensor, timestep: Tensor, *inputs: Tensor) -> Parts:
        slope, offset = self.layers(timestep[:, None] * 2).T.reshape(2, -1, 1, 1, 1, 1)
        out = NetOut(slope * sample + offset, torch.zeros_like(sample[:, :, :1]))
        return Parts(out, None, SceOut((), ()), torch.zeros(()), None)  # type: ignore[arg-type]

    def forward(self, *inputs: Tensor) -> NetOut:
        return self.parts(*inputs).out


class NoImage(nn.Module):
    def embed(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 1, 4)


def configuration(*overrides: str) -> Config:
    return load_config(
        "tiny",
        [
            "distill.region=0",
            "distill.weighting=snr",
            "distill.top_share=0",
            "distill.rewards.texture.weight=0",
            "distill.solver=heun",
            "distill.nodes=20",
            "distill.huber=1",
            "sampling.sigma_max=20",
            "sampling.sigma_min=0.01",
            *overrides,
        ],
    )


def samples(count: int, trajectories: Tensor | None = None) -> list[dict[str, Tensor]]:
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


def noised(sigma: float, count: int = 512) -> Tensor:
    """x at `sigma`, as good as any for a large one."""
    return sigma * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(9)) + MEAN


def answer_error(student: nn.Module, sigma: float, to: float = 0.0) -> float:
    """Error of the landing at `to` from one step at `sigma`, relative to the solution's deviation."""
    x = noised(sigma)
    with torch.no_grad():
        x0, _ = NetDenoiser(student)(x, torch.full((len(x),), sigma), conditions(len(x)))
    landed = x0 + (x - x0) * to / sigma
    truth = moved(x, sigma, to)
    return float((landed - truth).square().mean().sqrt() / (truth - truth.mean()).square().mean().sqrt())


def train(
    config: Config, data: list[dict[str, Tensor]], steps: int, *, teacher: Denoiser | None = gaussian_teacher
) -> nn.Module:
    """A small student trained by the objective, with the hooks that the training loop calls."""
    torch.manual_seed(0)
    student = SmallStudent()
    objective = ConsistencyObjective(student, NoImage(), config, teacher=teacher)  # type: ignore[arg-type]
    everything, generator = default_collate(data), torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    for step in range(steps):
        objective.before_step(step / steps)
        chosen = torch.randint(len(data), (16,), generator=generator)
        batch = {name: value[chosen] for name, value in everything.items()}
        optimizer.zero_grad()
        objective(batch, Draws.of(step, len(chosen)))["loss"].backward()
        optimizer.step()
        schedule.step()
        objective.after_step()
        averaged.update_parameters(student)
    return averaged.module


def stored(count: int, config: Config) -> list[dict[str, Tensor]]:
    noise = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    nodes = trajectory(gaussian_teacher, noise, grid(config), conditions(count), solver=config.distill.solver)
    return samples(count, nodes)


@pytest.mark.parametrize("steps", [1, 5, 0])
def test_k_steps_of_the_teacher_reach_the_solution_of_the_ode(steps: int) -> None:
    config = configuration(f"distill.teacher_steps={steps}", "distill.trajectory=0")
    student = train(config, samples(2048), 700)
    assert answer_error(student, 20.0) < 0.03


@pytest.mark.parametrize("steps", [1, 5, 0])
def test_stored_trajectories_reach_it_without_a_teacher(steps: int) -> None:
    config = configuration(f"distill.teacher_steps={steps}", "distill.trajectory=0")
    student = train(config, stored(512, config), 1500, teacher=None)
    assert answer_error(student, 20.0) < 0.03


def test_a_schedule_from_trajectories_to_consistency_reaches_it() -> None:
    config = configuration("distill.trajectory=0.3", "distill.blend=0.3")
    student = train(config, stored(512, config), 1500, teacher=None)
    assert answer_error(student, 20.0) < 0.03


def test_an_averaged_target_network_reaches_it() -> None:
    config = configuration("distill.trajectory=0", "distill.teacher_steps=5", "distill.target_ema=0.9")
    student = train(config, samples(2048), 700)
    assert answer_error(student, 20.0) < 0.03


def test_a_phased_student_lands_on_the_edges_of_its_phases() -> None:
    config = configuration("distill.phases=2", "distill.trajectory=0", "distill.teacher_steps=5")
    student = train(config, samples(2048), 1000)
    sigmas = grid(config)
    middle, later = float(sigmas[edges(20, 2)[1]]), float(sigmas[edges(20, 2)[1] + 3])
    assert answer_error(student, 20.0, middle) < 0.03
    # What is right jumps at the edge, and a network of ln sigma is smooth there: look beyond it.
    assert answer_error(student, later) < 0.03
    assert answer_error(student, 20.0) > 0.1  # nobody asked for the way down in one step


def test_an_untrained_student_is_far_from_the_solution() -> None:
    torch.manual_seed(0)
    assert answer_error(SmallStudent(), 20.0) > 0.5
