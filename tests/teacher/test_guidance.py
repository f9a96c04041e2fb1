"""Embedded guidance: without effect at the start, learning from the first update, and its column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.distill_settings import AdapterConfig
from genprop.errors import GenPropError
from genprop.settings import ClipConfig, NetConfig, SceConfig
from genprop.student.clone import clone, load_model, trained_tensors
from genprop.student.guidance import guided_config, with_guidance
from genprop.teacher.base import Base, save_base
from genprop.teacher.guidance import GuidanceEmbedding
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.train import train
from genprop.types import Cond, time_ids

Enliven = Callable[[nn.Module], nn.Module]
Inputs = tuple[Tensor, ...]
KINDS = ["copy", "ctrl-adapter", "conv-adapter", "unet3d"]


def config_of(*, tasks: bool, guidance: bool) -> NetConfig:
    return NetConfig(mpd_hidden=(32, 16), tasks=tasks, guidance=guidance)


@pytest.fixture
def inputs(net_inputs: Inputs) -> Inputs:
    """`net_inputs` with a task and a guidance scale for each sample."""
    *others, ids = net_inputs
    return (*others, torch.cat([ids, torch.tensor([[0.0, 1.5], [1.0, 3.0]])], dim=1))


def told(inputs: Inputs, *scales: float) -> Inputs:
    *others, ids = inputs
    return (*others, torch.cat([ids[:, :4], torch.tensor(scales)[:, None]], dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_without_effect_and_then_every_scale_is_another(
    small_base: Base, inputs: Inputs, enliven: Enliven, kind: str
) -> None:
    torch.manual_seed(0)
    net = GenPropNet(
        small_base.backbone,
        config_of(tasks=True, guidance=False),
        SceConfig.model_validate({"kind": kind}),
    ).eval()
    enliven(net)
    with torch.no_grad():
        expected = net(*inputs)
        with_guidance(net)
        assert net.guidance is not None
        for got, want in zip(net(*inputs), expected, strict=True):
            assert torch.equal(got, want)
        enliven(net.guidance)
        one, other = net(*told(inputs, 2.0, 3.0)), net(*told(inputs, 2.1, 3.0))
    for a, b in zip(one, other, strict=True):
        assert (a - b)[0].abs().max() > 1e-7 and torch.allclose(a[1], b[1], atol=1e-6)


def test_the_backbone_sees_it_too_and_the_task_still_not(
    small_base: Base, inputs: Inputs, enliven: Enliven
) -> None:
    net = GenPropNet(small_base.backbone, config_of(tasks=True, guidance=True), SceConfig()).eval()
    enliven(net)
    net.injection_weight = 0.0
    *others, ids = inputs
    with torch.no_grad():
        plain = net(*inputs).velocity
        assert not torch.allclose(net(*told(inputs, 2.5, 2.5)).velocity, plain, atol=1e-6)
        task = ids + torch.tensor([0, 0, 0, 1.0, 0])
        assert torch.equal(net(*others, task).velocity, plain)


def test_the_first_backward_reaches_it_and_after_one_update_all_of_it_learns(
    small_base: Base, inputs: Inputs
) -> None:
    net = GenPropNet(small_base.backbone, config_of(tasks=False, guidance=False), SceConfig())
    student = with_guidance(clone(net, adapter=AdapterConfig(rank=2)))
    assert student.guidance is not None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    moving: list[set[str]] = []
    for _ in range(2):
        optimizer.zero_grad()
        student(*inputs).velocity.square().mean().backward()
        parameters = student.guidance.named_parameters()
        moving.append({n for n, p in parameters if p.grad is not None and p.grad.abs().max() > 0})
        optimizer.step()
    assert moving == [
        {"out.weight", "out.bias"},
        {"hidden.weight", "hidden.bias", "out.weight", "out.bias"},
    ]


def test_scales_a_tenth_apart_differ_and_neighbours_are_alike(rng: torch.Generator) -> None:
    """The features of a scale: no two of 0 to 12 are the same, and likeness falls with distance at first."""
    module = GuidanceEmbedding(8)
    caught: list[Tensor] = []

    class Catch(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            caught.append(features)
            return features[:, :1].expand(-1, module.out.in_features)

    weight = module.hidden.weight
    catch = Catch()
    catch.weight = weight  # the embedding asks it for its precision
    module.hidden = catch  # type: ignore[assignment]
    module(torch.arange(0, 12, 0.1))
    (features,) = caught
    assert features.shape == (120, 32)
    distance = torch.cdist(features, features)
    assert distance[~torch.eye(120, dtype=torch.bool)].min() > 0.5
    assert distance[20, 21] < 0.5 * distance[20, 25] and distance[20, 21] < 2


def test_its_weights_are_the_seeds_and_nothing_else_is_drawn(small_base: Base) -> None:
    nets = [
        GenPropNet(small_base.backbone, config_of(tasks=False, guidance=False), SceConfig()) for _ in range(3)
    ]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (with_guidance(net, seed=seed) for net, seed in zip(nets, (1, 1, 2), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.guidance is not None and two.guidance is not None and other.guidance is not None
    assert torch.equal(one.guidance.hidden.weight, two.guidance.hidden.weight)
    assert not torch.equal(one.guidance.hidden.weight, other.guidance.hidden.weight)
    kept = one.guidance
    assert with_guidance(one).guidance is kept


@pytest.mark.parametrize("tasks", [False, True])
def test_it_needs_five_columns_whether_it_knows_tasks_or_not(
    small_base: Base, inputs: Inputs, tasks: bool
) -> None:
    *others, ids = inputs
    net = GenPropNet(small_base.backbone, config_of(tasks=tasks, guidance=True), SceConfig()).eval()
    for columns in (3, 4):
        with pytest.raises(GenPropError, match=f"{columns} columns, expected"):
            net(*others, ids[:, :columns])
    with pytest.raises(GenPropError, match="4 columns, expected 5: the fifth is the guidance scale"):
        net(*others, ids[:, :4])
    teacher = GenPropNet(small_base.backbone, config_of(tasks=tasks, guidance=False), SceConfig()).eval()
    with torch.no_grad():  # one condition serves both
        assert torch.equal(teacher(*others, ids).velocity, teacher(*others, ids[:, :4]).velocity)


def test_a_condition_takes_a_scale_for_each_sample_and_gives_an_older_one_up(rng: torch.Generator) -> None:
    latents, scales = torch.randn(2, 3, 4, 2, 2, generator=rng), torch.tensor([1.25, 4.0])
    for ids in (torch.ones(2, 3), torch.full((2, 4), 2.0), torch.full((2, 5), 2.0)):
        cond = Cond(latents, latents, latents, ids).with_guidance(scales)
        assert cond.first is latents and cond.added_time_ids.shape == (2, 5)
        assert torch.equal(cond.added_time_ids[:, 4], scales)
        assert torch.equal(cond.added_time_ids[:, :3], ids[:, :3])
        assert cond.added_time_ids[:, 3].tolist() == ([0, 0] if ids.shape[1] == 3 else [2, 2])
        assert torch.equal(cond.unconditional().added_time_ids, cond.added_time_ids)


def test_the_row_of_one_clip() -> None:
    clip = ClipConfig(frames=2, height=8, width=8)
    assert time_ids(clip, guidance=2.5).tolist() == pytest.approx([6, 127, 0.02, 0, 2.5])
    assert time_ids(clip, "track", 2.5).tolist() == pytest.approx([6, 127, 0.02, 2, 2.5])
    assert len(time_ids(clip)) == 3 and len(time_ids(clip, "track")) == 4


@pytest.mark.parametrize("guidance", [False, True])
def test_an_encoded_batch_gets_the_usual_scale(
    small_base: Base, small_config: Config, rng: torch.Generator, guidance: bool
) -> None:
    config = guided_config(small_config) if guidance else small_config
    net = GenPropNet(small_base.backbone, config.net, config.sce)
    batch = {
        **dict(zip(("source", "target"), torch.randn(2, 2, 3, 4, 8, 8, generator=rng), strict=True)),
        "first": torch.zeros(2, 4, 8, 8),
        "embedding": torch.zeros(2, 1, 32),
        "mask": torch.ones(2, 3, 16, 16, dtype=torch.bool),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02, 1.0]]).expand(2, 4),
    }
    ids = TeacherObjective(net, small_base.image_encoder, config).inputs(batch, None).cond.added_time_ids
    assert ids[1].tolist() == pytest.approx([6, 127, 0.02, 1, *([3.0] if guidance else [])])


@pytest.mark.parametrize("rank", [0, 2])
def test_a_bundle_keeps_it(
    small_base: Base,
    small_config: Config,
    inputs: Inputs,
    enliven: Enliven,
    tmp_path: Path,
    rank: int,
) -> None:
    from genprop.student.lora import save_lora

    save_base(small_base, tmp_path / "base")
    teacher = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
    student = with_guidance(clone(teacher, adapter=AdapterConfig(rank=rank))).eval()
    enliven(student)
    write_bundle(
        tmp_path / "student",
        kind="student",
        config=guided_config(small_config),
        base=tmp_path / "base",
        tensors=trained_tensors(student, backbone=not rank),
        save_lora=(lambda folder: save_lora(student, folder, rank=rank)) if rank else None,
    )
    bundle, again, _ = load_model(tmp_path / "student")
    assert bundle.card.config.net.guidance and not small_config.net.guidance
    with torch.no_grad():
        for got, want in zip(again(*inputs), student(*inputs), strict=True):
            assert torch.allclose(got, want, atol=1e-5)
        moved = again(*told(inputs, 1.0, 1.0)).velocity
        assert not torch.allclose(moved, student(*inputs).velocity, atol=1e-6)


def test_a_teacher_is_not_trained_with_it(small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match=r"net\.guidance is on, expected off") as caught:
        train("teacher", guided_config(small_config), data=["procedural"], base=None, out=tmp_path)
    assert "distill.guidance" in caught.value.hint and not list(tmp_path.iterdir())


def test_the_usual_scale_lies_in_the_range_that_was_drawn(small_config: Config) -> None:
    for scales, usual in (((1.0, 4.0), 3.0), ((1.0, 2.0), 2.0), ((3.5, 4.0), 3.5)):
        distill = small_config.distill.model_copy(update={"guidance_range": scales})
        config = small_config.model_copy(update={"distill": distill})
        assert config.guidance == 3 and guided_config(config).guidance == usual
