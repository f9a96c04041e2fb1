"""Stored trajectories: what they hold, and that an interrupted call goes on."""

import torch

from genprop.config import load_config
from genprop.distill.trajectories import Trajectories, make_trajectories, trajectory
from genprop.edm import NetDenoiser, karras_sigmas
from genprop.sampling import euler
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.types import Cond


def halving(x, sigma, cond):
    """A denoiser with a trajectory that is known: every answer is half of x."""
    return x / 2, torch.zeros_like(x[:, :, :1])


def nothing(count: int) -> Cond:
    zero = torch.zeros(count, 2, 1, 2, 2)
    return Cond(zero, zero, torch.zeros(count, 1, 1), torch.zeros(count, 3))


def test_a_trajectory_ends_where_the_sampler_ends(rng):
    sigmas = karras_sigmas(5, sigma_min=0.01, sigma_max=10)
    noise = torch.randn(3, 2, 1, 2, 2, generator=rng)
    nodes = trajectory(halving, noise, sigmas, nothing(3))
    x0, _ = euler(halving, noise, sigmas, nothing(3))
    assert nodes.shape == (3, 6, 2, 1, 2, 2)
    torch.testing.assert_close(nodes[:, -1], x0)
    torch.testing.assert_close(nodes[:, 0], noise * (101**0.5))


def test_the_first_step_is_eulers(rng):
    sigmas = torch.tensor([8.0, 2.0, 0.0])
    nodes = trajectory(halving, torch.randn(1, 2, 1, 2, 2, generator=rng), sigmas, nothing(1))
    x = nodes[:, 0]
    torch.testing.assert_close(nodes[:, 1], x + (2 - 8) * (x - x / 2) / 8)


def test_stored_trajectories_are_resumed_and_reproducible(tmp_path, small_base, small_config, rng):
    objective = TeacherObjective(
        GenPropNet(small_base.backbone, small_config.net, small_config.sce),
        small_base.image_encoder,
        small_config,
    ).requires_grad_(False)
    samples = [
        {
            "source": torch.randn(3, 4, 8, 8, generator=rng).half(),
            "target": torch.randn(3, 4, 8, 8, generator=rng).half(),
            "first": torch.randn(4, 8, 8, generator=rng).half(),
            "image": torch.randn(3, 16, 16, generator=rng).half(),
            "mask": torch.rand(3, 16, 16, generator=rng) > 0.5,
            "added_time_ids": torch.zeros(3),
        }
        for _ in range(5)
    ]
    sigmas = karras_sigmas(2, sigma_min=0.1, sigma_max=10)
    teacher = NetDenoiser(objective.net)

    def make() -> Trajectories:
        return make_trajectories(
            teacher,
            objective,
            samples,  # type: ignore[arg-type]
            sigmas,
            tmp_path,
            count=18,
            seed=3,
        )

    whole = make()
    assert len(whole) == 18 and whole[0]["trajectory"].shape == (3, 3, 4, 8, 8)
    assert torch.equal(whole[7]["source"], samples[2]["source"])
    (tmp_path / "000016.safetensors").unlink()
    again = make()
    assert torch.equal(again.nodes, whole.nodes)
    # the second pass over the samples has other noise
    assert not torch.equal(whole.nodes[0, 0], whole.nodes[5, 0])


def test_the_grid_of_the_preset_ends_in_zero():
    from genprop.distill.objective import grid

    config = load_config("tiny")
    sigmas = grid(config)
    assert len(sigmas) == config.distill.nodes + 1
    assert sigmas[-1] == 0 and float(sigmas[0]) == config.sampling.sigma_max
