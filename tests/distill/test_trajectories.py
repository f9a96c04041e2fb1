"""Stored trajectories: what they hold, and that an interrupted call goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from genprop.config import Config, load_config
from genprop.distill.targets import grid
from genprop.distill.trajectories import Trajectories, make_trajectories, trajectory
from genprop.edm import Guided, NetDenoiser, karras_sigmas
from genprop.errors import GenPropError
from genprop.sampling import euler
from genprop.teacher.base import Base
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


class Made(NamedTuple):
    """What trajectories are made of: a small teacher and five samples."""

    objective: TeacherObjective
    samples: list[dict[str, Tensor]]
    config: Config
    folder: Path

    def make(self, *, made_by: str = "a teacher", **distill: Any) -> Trajectories:
        settings = self.config.distill.model_copy(update={"trajectories": 18, "nodes": 2, **distill})
        student = self.config.student.model_copy(update={"seed": 3, "batch_size": 4})
        config = self.config.model_copy(update={"distill": settings, "student": student})
        denoiser = NetDenoiser(self.objective.net)
        return make_trajectories(
            lambda scale: Guided(denoiser, 1.0, scale),
            self.objective,
            self.samples,  # type: ignore[arg-type]
            config,
            self.folder,
            made_by=made_by,
        )


@pytest.fixture
def made(tmp_path: Path, small_base: Base, small_config: Config, rng: torch.Generator) -> Made:
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
    objective = TeacherObjective(net, small_base.image_encoder, small_config).requires_grad_(False)
    samples = [
        {
            "source": torch.randn(3, 4, 8, 8, generator=rng).half(),
            "target": torch.randn(3, 4, 8, 8, generator=rng).half(),
            "first": torch.randn(4, 8, 8, generator=rng).half(),
            "image": torch.randn(3, 16, 16, generator=rng).half(),
            "mask": torch.rand(3, 16, 16, generator=rng) > 0.5,
            "added_time_ids": torch.zeros(4),
        }
        for _ in range(5)
    ]
    return Made(objective, samples, small_config, tmp_path / "trajectories")


def test_stored_trajectories_are_resumed_and_reproducible(made: Made) -> None:
    whole = made.make()
    assert len(whole) == 18 and whole[0]["trajectory"].shape == (3, 3, 4, 8, 8)
    assert torch.equal(whole[7]["source"], made.samples[2]["source"])
    before = [whole[i]["trajectory"] for i in range(18)]
    (made.folder / "000016.safetensors").unlink()
    again = made.make()
    assert all(torch.equal(again[i]["trajectory"], nodes) for i, nodes in enumerate(before))
    # the second pass over the samples has other noise
    assert not torch.equal(before[0][0], before[5][0])
    with pytest.raises(IndexError):
        whole[18]


def test_a_trajectory_does_not_depend_on_how_many_are_made_at_a_time(made: Made) -> None:
    few = made.make(trajectories=3)
    (other := made._replace(folder=made.folder / "more")).folder.mkdir(parents=True)
    more = other.make(trajectories=5)
    torch.testing.assert_close(few[2]["trajectory"], more[2]["trajectory"], atol=2e-3, rtol=2e-3)


def test_a_shard_that_was_cut_short_is_made_whole(made: Made) -> None:
    made.make(trajectories=3)
    more = made.make(trajectories=18)
    whole = made._replace(folder=made.folder.with_name("whole")).make(trajectories=18)
    torch.testing.assert_close(more[7]["trajectory"], whole[7]["trajectory"])


def test_each_has_its_own_scale_where_the_student_is_told(made: Made) -> None:
    told = made.make(guidance="embedded", guidance_range=(1.5, 3.0))
    scales = torch.stack([told[i]["guidance"] for i in range(18)])
    assert scales.unique().numel() == 18 and scales.min() >= 1.5 and scales.max() < 3.0
    plain = made._replace(folder=made.folder.with_name("plain")).make()
    assert plain[4]["guidance"] == made.config.sampling.guidance_max


@pytest.mark.parametrize(
    ("change", "key"),
    [({"nodes": 3}, "nodes"), ({"solver": "heun"}, "solver"), ({"made_by": "another"}, "made_by")],
)
def test_trajectories_made_otherwise_are_refused(made: Made, change: dict[str, Any], key: str) -> None:
    made.make(trajectories=2)
    with pytest.raises(GenPropError, match=f"another {key}"):
        made.make(trajectories=2, **change)


def test_shards_of_unknown_origin_are_refused(made: Made) -> None:
    made.make(trajectories=2)
    (made.folder / "trajectories.json").unlink()
    with pytest.raises(GenPropError, match="without trajectories"):
        made.make(trajectories=2)


def test_the_grid_of_the_preset_ends_in_zero():
    config = load_config("tiny")
    sigmas = grid(config)
    assert len(sigmas) == config.distill.nodes + 1
    assert sigmas[-1] == 0 and float(sigmas[0]) == config.sampling.sigma_max
