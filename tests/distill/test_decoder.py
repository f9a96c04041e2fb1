"""A light decoder in training: its truth is the full decoder's answer, and resuming is exact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.bundle import read_bundle, write_bundle
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.decoder import DecoderObjective, distill_decoder, start_linear
from genprop.distill_settings import LightDecoderConfig
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.student.clone import trained_tensors
from genprop.student.light_decoder import load_light_decoder, new_light_decoder
from genprop.teacher.base import Base, save_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective

SIGMA = 80.0


@pytest.fixture
def config(small_config: Config) -> Config:
    training = {"steps": 4, "batch_size": 2, "warmup": 0, "log_every": 1, "checkpoint_every": 2}
    return small_config.model_copy(
        update={
            "light": LightDecoderConfig(channels=(8,), blocks=(1,), crop=4),
            "decoder": small_config.decoder.model_copy(update=training),
            "data": small_config.data.model_copy(update={"count": 4, "validation": 2}),
        }
    )


@pytest.fixture
def net(small_base: Base, small_config: Config) -> GenPropNet:
    torch.manual_seed(0)
    return GenPropNet(small_base.backbone, small_config.net, small_config.sce).requires_grad_(False).eval()


def objective_of(base: Base, net: GenPropNet, config: Config, *, sampled: float) -> DecoderObjective:
    light = new_light_decoder(base.autoencoder, config.light, seed=0).requires_grad_(True)
    settings = config.light.model_copy(update={"sampled": sampled})
    for frozen in (base.autoencoder, base.image_encoder):
        frozen.requires_grad_(False)
    student = TeacherObjective(net, base.image_encoder, config)
    return DecoderObjective(light, base.autoencoder, settings, student=student, sigma=SIGMA)


@pytest.fixture
def batch(rng: torch.Generator) -> Batch:
    latents = torch.randn(3, 2, 3, 4, 8, 8, generator=rng)
    return {
        "target": latents[0].half(),
        "source": latents[1].half(),
        "first": latents[2, :, 0].half(),
        "embedding": torch.randn(2, 1, 32, generator=rng),
        "mask": torch.rand(2, 3, 16, 16, generator=rng) < 0.3,
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02, 0.0]] * 2),
    }


def test_only_the_light_decoder_learns(
    small_base: Base, net: GenPropNet, config: Config, batch: Batch
) -> None:
    objective = objective_of(small_base, net, config, sampled=0.5)
    trains = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trains == {f"light.{name}" for name, _ in objective.light.named_parameters()}
    objective(batch, Draws.of(0, 2))["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in objective.light.parameters())


def test_a_light_decoder_that_answers_as_the_full_one_has_no_loss(
    small_base: Base, net: GenPropNet, config: Config, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(small_base, net, config, sampled=0.5)
    # the parts that are compared lie at the same place, but the full decoder sees beyond their borders
    whole = {"crop": lambda latents, frames, draws: (latents, frames), "light": small_base.autoencoder}
    for name, value in whole.items():
        monkeypatch.setattr(objective, name, value)
    assert objective(batch, Draws.of(0, 2))["loss"] < 1e-6


def test_a_crop_is_the_same_place_of_latents_and_frames(
    small_base: Base, net: GenPropNet, config: Config
) -> None:
    objective = objective_of(small_base, net, config, sampled=0)
    latents = torch.arange(64.0).view(1, 1, 1, 8, 8).expand(2, 3, 4, 8, 8)
    frames = latents.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :, :3]
    places = set()
    for seed in range(4):
        small, pictures = objective.crop(latents, frames, Draws.of(seed, 2))
        assert small.shape == (2, 3, 4, 4, 4)
        assert torch.equal(pictures, small.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, :, :3])
        places |= set(small[:, 0, 0, 0, 0].tolist())
    assert len(places) > 4


def test_sampled_latents_are_the_students_of_one_step(
    small_base: Base, net: GenPropNet, config: Config, batch: Batch
) -> None:
    assert torch.equal(
        objective_of(small_base, net, config, sampled=0).latents(batch, Draws.of(0, 2)),
        batch["target"].float(),
    )
    objective = objective_of(small_base, net, config, sampled=1)
    with torch.no_grad():
        got = objective.latents(batch, Draws.of(0, 2))
        cond = objective.student.inputs(batch, None).cond
        noise = SIGMA * Draws.of(0, 2).randn(3, 4, 8, 8)
        expected, _ = NetDenoiser(net)(noise, torch.full((2,), SIGMA), cond)
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.fixture
def student(small_base: Base, net: GenPropNet, config: Config, tmp_path: Path) -> Path:
    save_base(small_base, tmp_path / "base")
    for kind, name in (("student", "student"), ("teacher", "teacher")):
        write_bundle(
            tmp_path / name,
            kind=kind,  # type: ignore[arg-type]
            config=config,
            base=tmp_path / "base",
            tensors=trained_tensors(net, backbone=True),
            sigmas={1: (SIGMA,)} if kind == "student" else {},
        )
    return tmp_path / "student"


def test_a_run_that_was_stopped_makes_the_same_decoder(
    student: Path, small_base: Base, config: Config, tmp_path: Path
) -> None:
    data = ["procedural"]
    summary = distill_decoder(student, config, data=data, out=tmp_path / "whole")
    assert summary["student"] == str(tmp_path / "whole" / "student")
    assert summary["parameters"]["light"] < summary["parameters"]["full"]
    made = read_bundle(tmp_path / "whole" / "student")
    assert made.card.config.light == config.light
    assert made.card.sigmas == {1: (SIGMA,)}

    # a run that was killed between the two checkpoints
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    shutil.rmtree(tmp_path / "parts" / "student")
    again = distill_decoder(student, config, data=data, out=tmp_path / "parts", resume=True)
    assert again["resumed_from"] == 2
    one, other = (
        load_light_decoder(read_bundle(tmp_path / run / "student"), small_base.autoencoder).state_dict()
        for run in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("blocks", [0, 1])
def test_training_starts_at_the_best_linear_decoder(
    small_base: Base, rng: torch.Generator, blocks: int
) -> None:
    class Linear(nn.Module):
        """A full decoder that a linear one can equal."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = 0.1 * torch.randn(12, 4, 3, 3, generator=rng)

        def decode(self, latents: Tensor) -> Tensor:
            # counted from -3, which is what a border then has beyond it
            out = F.conv2d(3 * torch.tanh(latents[0] / 3) + 3, self.weight, padding=1)
            return F.pixel_shuffle(out - 0.4, 2)[None]

    full: Any = Linear()
    settings = LightDecoderConfig(channels=(7,), blocks=(blocks,))
    light = new_light_decoder(small_base.autoencoder, settings, seed=0).requires_grad_(True)
    start_linear(light, full, torch.randn(6, 3, 4, 6, 6, generator=rng))
    unseen = torch.randn(1, 2, 4, 6, 6, generator=rng)
    with torch.no_grad():
        assert torch.allclose(light.decode(unseen), full.decode(unseen), atol=1e-3)


def test_a_teacher_is_refused(student: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="no schedule of one step"):
        distill_decoder(tmp_path / "teacher", config, data=["procedural"], out=tmp_path / "run")
