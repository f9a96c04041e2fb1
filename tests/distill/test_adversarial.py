"""The adversarial option: gradients that do not cross, closed forms, and a duel that ends well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.adaptive import Adaptive, OwnOptimizer
from genprop.checkpoint import list_checkpoints
from genprop.distill.adversarial import AdversarialTerm, Discriminator, r1, region_mean
from genprop.distill_settings import AdversarialConfig
from genprop.draws import Draws
from genprop.loop import fit
from genprop.settings import TrainConfig
from genprop.teacher.base import Base
from genprop.teacher.objective import Inputs
from genprop.teacher.unet import Backbone
from genprop.types import Cond

CONFIG = AdversarialConfig(weight=1.0, width=8)


@pytest.fixture
def backbone(small_base: Base) -> Backbone:
    return small_base.backbone.requires_grad_(False)


def some_inputs(rng: torch.Generator, count: int = 2) -> Inputs:
    """Of the small model: 3 frames of 4x8x8 latents."""
    target, first, source = torch.randn(3, count, 3, 4, 8, 8, generator=rng)
    embedding = torch.randn(count, 1, 32, generator=rng)
    ids = torch.tensor([6.0, 127.0, 0.02, 1.0]).expand(count, 4)
    mask = (torch.rand(count, 3, 1, 8, 8, generator=rng) > 0.7).float()
    return Inputs(target, Cond(first, source, embedding, ids), mask)


def term(backbone: Backbone, config: AdversarialConfig = CONFIG) -> AdversarialTerm:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AdversarialTerm(backbone, config)


def moved(module: nn.Module) -> set[str]:
    return {n for n, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_only_the_heads_are_parameters_and_state(backbone: Backbone) -> None:
    adversarial = term(backbone)
    names = set(adversarial.state_dict())
    assert names == {name for name, _ in adversarial.named_parameters()}
    assert all(name.startswith("discriminator.heads.") for name in names)
    backbone.requires_grad_(True)
    with pytest.raises(AssertionError, match="backbone trains"):
        term(backbone)


def test_gradients_do_not_cross(backbone: Backbone, rng: torch.Generator) -> None:
    adversarial, inputs = term(backbone), some_inputs(rng)
    x0 = (0.5 * inputs.target).requires_grad_()
    terms = adversarial(x0, inputs, Draws.of(0, 2), on=True)
    terms["adversarial"].backward(retain_graph=True)
    assert not moved(adversarial) and x0.grad is not None
    assert not x0.grad[:, 0].any()  # the first frame is given
    assert x0.grad[:, 1:].flatten(2).abs().sum(2).min() > 0
    x0.grad = None
    (terms["discriminator"] + terms["r1"]).backward()
    assert x0.grad is None
    # a last bias moves true and made logits alike: within the margin its two gradients cancel
    names = {name for name, _ in adversarial.named_parameters() if not name.endswith("3.bias")}
    assert names <= moved(adversarial)
    assert all(p.grad is None for p in backbone.parameters())


def test_the_loss_is_the_sum_and_before_the_start_the_students_part_is_only_measured(
    backbone: Backbone, rng: torch.Generator
) -> None:
    config = AdversarialConfig(weight=0.5, width=8, r1=3.0)
    adversarial, inputs = term(backbone, config), some_inputs(rng)
    x0 = (0.5 * inputs.target).requires_grad_()
    on, off = (adversarial(x0, inputs, Draws.of(0, 2), on=on) for on in (True, False))
    assert on.keys() == off.keys()
    for name in on.keys() - {"loss"}:
        torch.testing.assert_close(on[name], off[name])
    expected = on["discriminator"] + 3 * on["r1"]
    torch.testing.assert_close(off["loss"], expected)
    torch.testing.assert_close(on["loss"], expected + 0.5 * on["adversarial"])
    off["loss"].backward()
    assert x0.grad is None and moved(adversarial)


def test_every_head_gets_a_gradient_in_every_step(backbone: Backbone, rng: torch.Generator) -> None:
    adversarial, inputs = term(backbone, AdversarialConfig(width=8, r1=0.0)), some_inputs(rng)
    with torch.no_grad():  # all is judged right by more than the hinge's margin, or wrong
        for head in adversarial.discriminator.heads:
            head.layers[-1].bias.fill_(50.0)  # type: ignore[index, union-attr]
    terms = adversarial(0 * inputs.target, inputs, Draws.of(0, 2), on=False)
    assert terms["r1"] == 0 and terms["accuracy_true"] == 1 and terms["accuracy_made"] == 0
    terms["loss"].backward()
    assert all(p.grad is not None for p in adversarial.parameters())


def test_what_is_read_is_the_frozen_encoder_before_its_downsamplers(
    backbone: Backbone, rng: torch.Generator
) -> None:
    discriminator, inputs = Discriminator(backbone, width=8), some_inputs(rng)
    sigma = torch.tensor([0.3, 2.0])
    found = discriminator.features(inputs.target, sigma, inputs.cond)
    assert [tuple(f.shape) for f in found] == [(2, 3, 64, *(s,) * 2) for s in (8, 8, 4, 4, 4, 4)]
    stem = backbone.stem(
        torch.cat([inputs.target / (sigma**2 + 1).sqrt().view(2, 1, 1, 1, 1), inputs.cond.first], dim=2),
        sigma.log() / 4,
        inputs.cond.image_embedding,
        inputs.cond.added_time_ids[:, :3],
    )
    skips = backbone.body(stem).targets_nchw  # stem, resnet, downsampler, resnet with attention
    torch.testing.assert_close(found[0].flatten(0, 1), skips[1])
    torch.testing.assert_close(found[3].flatten(0, 1), skips[3])
    assert [tuple(logits.shape) for logits in discriminator(found)] == [
        (2, 3, 1, s, s) for s in (8, 8, 4, 4, 4, 4)
    ]


def test_spatial_heads_see_one_frame_and_temporal_heads_one_place(backbone: Backbone) -> None:
    spatial, temporal = Discriminator(backbone, width=8).heads[:2]
    features = torch.randn(1, 3, 64, 8, 8)
    for head, seen in (
        (spatial, lambda g: not g[:, [0, 2]].any() and g[:, 1].any()),
        (temporal, lambda g: g[..., 2, 5].any() and g.any(dim=1).any(dim=1).sum() == 1),
    ):
        leaf = features.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(head(leaf)[0, 1, 0, 2, 5], leaf)
        assert seen(gradient)


def test_a_cell_of_the_hole_counts_so_many_times_and_the_first_frame_not_at_all() -> None:
    values, mask = torch.zeros(2, 2, 1, 2, 2), torch.zeros(2, 2, 1, 4, 4)
    values[:, 0] = 99.0
    mask[:, 0] = 1.0
    mask[0, 1, 0, :2, :2], mask[0, 1, 0, :2, 2] = 1.0, 1.0  # one cell, and half of its neighbour
    values[0, 1, 0, 0] = torch.tensor([1.0, 10.0])
    values[1, 1] = 6.0
    weights = (4.0, 2.5, 1.0, 1.0)
    expected = (4.0 * 1 + 2.5 * 10) / sum(weights)
    got = region_mean(values, mask, hole=4.0)
    torch.testing.assert_close(got, torch.tensor((expected + 6.0) / 2))
    torch.testing.assert_close(region_mean(values[:1], mask[:1], hole=1.0), torch.tensor(11.0 / 4))


def test_r1_of_a_linear_head_is_half_its_squared_weight(rng: torch.Generator) -> None:
    heads = [nn.Conv2d(5, 1, 1), nn.Conv2d(7, 1, 1)]
    features = [torch.randn(2, 3, c, s, s, generator=rng).requires_grad_() for c, s in ((5, 4), (7, 2))]
    logits = [h(f.flatten(0, 1)).unflatten(0, (2, 3)) for h, f in zip(heads, features, strict=True)]
    got = r1(logits, features)
    torch.testing.assert_close(got, sum(h.weight.square().sum() / 2 for h in heads) / 2)
    got.backward()
    for head in heads:
        torch.testing.assert_close(head.weight.grad, head.weight.detach() / 2)
    assert all(f.grad is None for f in features)


class Softened(nn.Module):
    """A student in one number: the truth with so much of its texture; and its discriminator."""

    def __init__(self, backbone: Backbone, config: AdversarialConfig, *, start: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.3]))
        self.discriminator = term(backbone, config)
        self.start, self.progress = start, 0.0

    def before_step(self, progress: float) -> None:
        self.progress = progress

    def after_step(self) -> None:
        pass

    def memory(self) -> dict[str, Tensor]:
        return {}

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        return {"discriminator.": self.discriminator.own_optimizer(clip=1.0)}

    def forward(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        target, count = batch["target"], len(draws)
        soft = F.avg_pool2d(F.pad(target.flatten(0, 1), (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        soft = soft.unflatten(0, target.shape[:2])
        x0 = soft + self.gain * (target - soft)
        zero = torch.zeros_like(target)
        cond = Cond(target[:, :1].expand_as(target), zero, batch["embedding"], torch.zeros(count, 3))
        inputs = Inputs(target, cond, zero[:, :, :1])
        terms = self.discriminator(x0, inputs, draws, on=self.progress >= self.start)
        return {**terms, "gain": self.gain.detach().mean()}


class Rough(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Latents of the small model, full of texture."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(index)
        return {
            "target": torch.randn(3, 4, 8, 8, generator=rng),
            "embedding": torch.randn(1, 32, generator=rng),
        }


SETTINGS: dict[str, Any] = {
    "batch_size": 2,
    "learning_rate": 3e-2,
    "warmup": 0,
    "weight_decay": 0.0,
    "betas": (0.5, 0.9),
    "min_learning_rate_ratio": 1.0,
    "ema": 0.0,
    "log_every": 1,
    "checkpoint_every": 50,
}
DUEL = AdversarialConfig(weight=1.0, width=8, learning_rate=1e-2, mean=-3.0, std=0.5)


def logged(out: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_soft_student_is_found_out_and_sharpens(backbone: Backbone, tmp_path: Path) -> None:
    student = Softened(backbone, DUEL, start=0.4)
    fit(student, Rough(), TrainConfig(**{**SETTINGS, "steps": 50}), tmp_path)
    gain, hinge = logged(tmp_path, "gain"), logged(tmp_path, "discriminator")
    assert gain[:21] == [gain[0]] * 21  # the heads learn first
    assert sum(hinge[15:20]) / 5 < 1.85 < 2  # whoever says the same of both has 2 or more
    assert sorted(gain[20:]) == gain[20:] and 0.6 < gain[-1] < 1.4


def test_it_resumes_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    config = TrainConfig(**{**SETTINGS, "steps": 4, "accumulate": 2, "checkpoint_every": 2, "ema": 0.9})
    whole, broken = (Softened(backbone, DUEL, start=0.3) for _ in range(2))
    assert isinstance(whole, Adaptive)
    fit(whole, Rough(), config, tmp_path / "whole")
    checkpoint = Path("checkpoints", "step-00000002")
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "broken" / checkpoint)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(7.0)
    assert fit(broken, Rough(), config, tmp_path / "broken", resume=True)["resumed_from"] == 2
    for file in ("weights", "ema", "optimizer"):
        a, b = (
            load_file(list_checkpoints(tmp_path / out)[-1] / f"{file}.safetensors")
            for out in ("whole", "broken")
        )
        assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
    assert any(name.startswith("exp_avg_sq/discriminator.") for name in a)
    for name in ("loss", "gain", "discriminator.grad_norm"):
        assert logged(tmp_path / "broken", name) == logged(tmp_path / "whole", name)[2:]
