"""Validation in training: what it measures, shows and leaves alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from genprop.config import Config
from genprop.data.latents import Batch, PixelSamples, encode_sample
from genprop.data.procedural import ProceduralClips
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.validate import sampled_validation, side_by_side, term_validation
from genprop.types import Cond


@pytest.fixture
def held_out(small_base: Base, small_config: Config) -> Batch:
    clips = PixelSamples(ProceduralClips(2, 0, frames=3, height=16, width=16))
    base, clip = small_base, small_config.clip
    batch = default_collate(
        [encode_sample(clips[i], base.autoencoder, base.image_encoder, clip) for i in range(2)]
    )
    batch["mask"] = torch.zeros_like(batch["mask"])
    batch["mask"][..., :8] = True  # the left half
    return batch


@pytest.fixture
def objective(small_base: Base, small_config: Config) -> TeacherObjective:
    torch.manual_seed(0)
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
    return TeacherObjective(net, small_base.image_encoder, small_config)


@torch.no_grad()
def test_a_perfect_sample_is_perfect_by_every_measure(
    objective: TeacherObjective, held_out: Batch, small_base: Base
) -> None:
    inputs = objective.inputs(held_out, None)

    def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        assert noise.shape == inputs.target.shape and torch.equal(cond.source, inputs.cond.source)
        return inputs.target, 10 * (2 * inputs.mask - 1)

    scalars, picture, clip, fps = sampled_validation(objective, held_out, small_base.autoencoder, sample)(1)
    assert scalars["hole"] == scalars["keep"] == 0 and scalars["iou"] == 1
    assert scalars["hole_psnr"] == scalars["keep_psnr"] == np.inf
    assert scalars["hole_ssim"] == scalars["keep_ssim"] == pytest.approx(1)
    assert scalars["injection_ratio"] == 0  # nothing is injected at the start
    assert {"loss/mpd", "loss/nonmask", "loss/mask", "loss/loss"} <= scalars.keys()
    assert picture is not None and picture.dtype == np.uint8
    assert clip is not None and clip.shape == (3, 16, 4 * 16 + 3 * 4, 3) and fps == 7


@torch.no_grad()
def test_an_error_counts_in_its_own_region(
    objective: TeacherObjective, held_out: Batch, small_base: Base
) -> None:
    inputs = objective.inputs(held_out, None)

    def measured(region: Tensor) -> dict[str, float]:
        def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
            return inputs.target + region, inputs.mask

        return sampled_validation(objective, held_out, small_base.autoencoder, sample)(1).scalars

    hole, keep = measured((inputs.mask > 0.999).float()), measured((inputs.mask < 0.001).float())
    assert hole["hole"] > 0.1 and keep["keep"] > 0.1
    assert hole["keep"] < 1e-5 and keep["hole"] < 1e-5


@torch.no_grad()
def test_a_loud_injection_is_a_warning(
    objective: TeacherObjective, held_out: Batch, small_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    for injection in objective.net.sce.injections:
        injection.conv.weight.fill_(100.0)
    validate = sampled_validation(
        objective, held_out, small_base.autoencoder, lambda noise, cond: (noise, noise[:, :, :1])
    )
    with caplog.at_level(logging.WARNING):
        assert validate(1).scalars["injection_ratio"] > 3
    assert "times as much as the backbone's" in caplog.text


@torch.no_grad()
def test_terms_are_the_mean_over_the_draws(objective: TeacherObjective, held_out: Batch) -> None:
    one, several = (term_validation(objective, held_out, draws=n)(0).scalars["loss"] for n in (1, 3))
    assert one != several == term_validation(objective, held_out, draws=3)(5).scalars["loss"]


def test_side_by_side_keeps_the_order() -> None:
    clip = np.full((2, 4, 6, 3), 9, np.uint8)
    mask = np.zeros((2, 4, 6), bool)
    mask[:, :2, :2] = True
    both = side_by_side([clip, mask], gap=1)
    assert both.shape == (2, 4, 13, 3)
    assert (both[:, :, :6] == 9).all() and (both[:, :, 6] == 255).all()
    assert (both[:, :2, 7:9] == 255).all() and both[:, 2:, 7:].max() == both[:, :, 9:].max() == 0
