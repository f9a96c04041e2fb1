"""A bundle given another schedule: measured on clips, written into the card, the weights as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genprop.bundle import read_bundle, write_bundle
from genprop.config import Config
from genprop.distill import reschedule as module
from genprop.distill import schedule
from genprop.distill.reschedule import ClipByClip, check_pair, schedule_bundle
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.settings import DataConfig
from genprop.student.clone import load_model, trained_tensors
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet
from genprop.types import Cond


@pytest.fixture(scope="module")
def config(small_config: Config) -> Config:
    vae = {
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [8],
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.5,
    }
    base = small_config.base.model_copy(update={"vae": vae})
    distill = small_config.distill.model_copy(update={"nodes": 2})
    return small_config.model_copy(update={"base": base, "distill": distill, "data": DataConfig(count=8)})


@pytest.fixture
def pair(config: Config, tmp_path: Path) -> tuple[Path, Path]:
    """A student and its teacher, of random weights."""
    base = new_base(config.base, seed=0)
    save_base(base, tmp_path / "base")
    torch.manual_seed(0)
    tensors = trained_tensors(GenPropNet(base.backbone, config.net, config.sce), backbone=False)
    for kind in ("student", "teacher"):
        write_bundle(
            tmp_path / kind,
            kind=kind,  # type: ignore[arg-type]
            config=config,
            base=tmp_path / "base",
            tensors=tensors,
            sigmas={1: (9.0,), 8: (9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0)},
            eta={8: 0.5},
        )
    return tmp_path / "student", tmp_path / "teacher"


@pytest.mark.slow
def test_a_bundle_gets_what_was_measured_and_keeps_the_rest(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "ETAS", (0.0, 1.0))
    monkeypatch.setattr(schedule, "DRAWS", 1)
    monkeypatch.setattr(schedule, "CANDIDATES", 2)
    student, teacher = pair
    before = read_bundle(student).card
    made = schedule_bundle(
        student, teacher, data=["procedural"], out=tmp_path / "deep" / "copy", clips=1, steps=(1, 2)
    )
    assert read_bundle(student).card == before
    after = read_bundle(tmp_path / "deep" / "copy")
    top = before.config.sampling.sigma_max
    assert made["sigmas"] == after.card.sigmas and made["eta"] == after.card.eta
    assert after.card.sigmas[1] == (top,) and after.card.sigmas[2][0] == top
    assert after.card.sigmas[8] == before.sigmas[8] and after.card.eta[8] == 0.5
    assert set(after.card.eta) == {1, 2, 8} and len(made["rows"]) == 3
    assert after.card.files == before.files and made["clips"] == 1
    load_model(after.folder)  # finds its base from where it is now


def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair

    def unreachable(*args: object, **more: object) -> None:
        raise AssertionError("nothing may be loaded")

    monkeypatch.setattr(module, "load_model", unreachable)
    with pytest.raises(GenPropError, match="tiny is part of the package"):
        schedule_bundle("tiny", "tiny-teacher", data=["procedural"])
    with pytest.raises(GenPropError, match="is a student, expected a teacher"):
        schedule_bundle(student, student, data=["procedural"])
    with pytest.raises(GenPropError, match="is a teacher, expected a student"):
        schedule_bundle(teacher, teacher, data=["procedural"])
    with pytest.raises(GenPropError, match="differ in their base"):
        schedule_bundle(student, "tiny-teacher", data=["procedural"])
    with pytest.raises(GenPropError, match="clips is 0"):
        schedule_bundle(student, teacher, data=["procedural"], clips=0)
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(GenPropError, match="not a bundle"):
        schedule_bundle(student, teacher, data=["procedural"], out=tmp_path)
    assert check_pair(student, teacher).folder == student


def test_a_clip_at_a_time_is_the_batch(pair: tuple[Path, Path], rng: torch.Generator) -> None:
    _, net, _ = load_model(pair[0])
    x, first, source = torch.randn(3, 2, 3, 4, 8, 8, generator=rng)
    cond = Cond(first, source, torch.randn(2, 1, 32, generator=rng), torch.rand(2, 3, generator=rng))
    sigma = torch.tensor([0.4, 3.0])
    with torch.no_grad():
        whole, parts = NetDenoiser(net)(x, sigma, cond), ClipByClip(NetDenoiser(net))(x, sigma, cond)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
