"""The student: equal to its teacher at the start, its own afterwards, and the same again from its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from genprop.bundle import Bundle, write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.student.clone import (
    clone,
    has_lora,
    load_model,
    lora_targets,
    merge_lora,
    save_lora,
    trained_tensors,
)
from genprop.teacher.base import Base, new_base, save_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.unet import Backbone

RANK = 4
Enliven = Callable[[nn.Module], nn.Module]
Inputs = tuple[Tensor, ...]


@pytest.fixture
def teacher(small_base: Base, small_config: Config, enliven: Enliven) -> GenPropNet:
    """A teacher whose injection is live, as a trained one's is."""
    torch.manual_seed(0)
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce).eval()
    enliven(net)
    return net


def trained(teacher: GenPropNet, enliven: Enliven, *, rank: int) -> GenPropNet:
    """A student after some training: everything of it that trains has moved."""
    torch.manual_seed(1)
    student = clone(teacher, rank=rank).eval()
    enliven(student)
    return student


def distance(a: nn.Module, b: nn.Module, inputs: Inputs) -> float:
    with torch.no_grad():
        return max(float((x - y).abs().max()) for x, y in zip(a(*inputs), b(*inputs), strict=True))


def write(folder: Path, student: GenPropNet, base: Base, config: Config, *, rank: int) -> Bundle:
    save_base(base, folder / "base")
    return write_bundle(
        folder / "student",
        kind="student",
        config=config,
        base=folder / "base",
        tensors=trained_tensors(student, backbone=rank == 0),
        sigmas={1: (80.0,)},
        save_lora=(lambda lora: save_lora(student, lora, rank=rank)) if rank else None,
    )


@pytest.mark.parametrize("rank", [0, RANK])
def test_a_student_starts_as_its_teacher(teacher: GenPropNet, net_inputs: Inputs, rank: int) -> None:
    student = clone(teacher, rank=rank).eval()
    assert distance(student, teacher, net_inputs) == 0
    assert has_lora(student) == (rank > 0) and not has_lora(teacher)


def test_rank_zero_trains_everything(teacher: GenPropNet) -> None:
    assert all(p.requires_grad for p in clone(teacher, rank=0).parameters())


def test_with_a_lora_the_backbone_itself_stays_frozen(teacher: GenPropNet) -> None:
    student = clone(teacher, rank=RANK)
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone.") or ".lora_" in name), name


def test_every_linear_layer_and_convolution_gets_a_lora_of_the_rank(teacher: GenPropNet) -> None:
    targets = lora_targets(teacher.backbone)
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} < set(targets)
    assert any("attn1.to_q" in t for t in targets) and any("temporal_res_block.conv1" in t for t in targets)
    down = {n: p for n, p in clone(teacher, rank=RANK).backbone.named_parameters() if ".lora_A." in n}
    assert {n.split(".lora_A.")[0] for n in down} == set(targets)
    assert all(p.shape[0] == RANK for p in down.values())


@pytest.mark.parametrize("rank", [0, RANK])
def test_training_a_student_leaves_its_teacher_as_it_was(
    teacher: GenPropNet, net_inputs: Inputs, enliven: Enliven, rank: int
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    flags = {name: p.requires_grad for name, p in teacher.named_parameters()}
    student = trained(teacher, enliven, rank=rank)
    assert distance(student, teacher, net_inputs) > 1e-2
    assert before.keys() == teacher.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in teacher.named_parameters()}
    theirs = {p.untyped_storage().data_ptr() for p in teacher.parameters()}
    assert theirs.isdisjoint(p.untyped_storage().data_ptr() for p in student.parameters())


def test_merged_equals_unmerged(teacher: GenPropNet, net_inputs: Inputs, enliven: Enliven) -> None:
    student, merged = (trained(teacher, enliven, rank=RANK) for _ in range(2))
    merge_lora(merged)
    assert not has_lora(merged)
    assert list(merged.state_dict()) == list(teacher.state_dict())
    assert distance(merged, student, net_inputs) < 1e-5
    bare = clone(teacher, rank=0).eval()
    bare.load_state_dict(
        {n: v for n, v in student.state_dict().items() if not n.startswith("backbone.")}, strict=False
    )
    assert distance(bare, student, net_inputs) > 1e-2  # the LoRA is what was merged


@pytest.mark.parametrize(("rank", "merge"), [(0, True), (RANK, True), (RANK, False)])
def test_round_trip_through_a_bundle(
    teacher: GenPropNet,
    small_config: Config,
    net_inputs: Inputs,
    enliven: Enliven,
    tmp_path: Path,
    rank: int,
    merge: bool,
) -> None:
    student = trained(teacher, enliven, rank=rank)
    write(tmp_path, student, new_base(small_config.base, seed=0), small_config, rank=rank)
    bundle, net, _ = load_model(tmp_path / "student", merge=merge)
    assert bundle.card.sigmas == {1: (80.0,)}
    assert has_lora(net) == (rank > 0 and not merge)
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert distance(net, student, net_inputs) < 1e-5


def test_the_lora_folder_is_a_standard_adapter_of_peft(
    teacher: GenPropNet, small_config: Config, net_inputs: Inputs, enliven: Enliven, tmp_path: Path
) -> None:
    student = trained(teacher, enliven, rank=RANK)
    save_lora(student, tmp_path / "lora", rank=RANK)
    backbone = new_base(small_config.base, seed=0).backbone.eval()
    sample, timestep, first, _, embedding, ids = net_inputs
    arguments = (torch.cat([sample, first], dim=2), timestep, embedding, ids)
    with torch.no_grad():
        before = backbone(*arguments).sample
        adapted = PeftModel.from_pretrained(backbone, str(tmp_path / "lora")).eval()  # type: ignore[arg-type]
        got, expected = adapted(*arguments).sample, student.backbone(*arguments).sample
    assert isinstance(student.backbone, Backbone)
    assert (got - expected).abs().max() < 1e-5
    assert (before - expected).abs().max() > 1e-2


def test_a_model_whose_base_was_changed_is_refused(
    teacher: GenPropNet, small_config: Config, enliven: Enliven, tmp_path: Path
) -> None:
    student = trained(teacher, enliven, rank=RANK)
    write(tmp_path, student, new_base(small_config.base, seed=0), small_config, rank=RANK)
    save_base(new_base(small_config.base, seed=1), tmp_path / "base")
    with pytest.raises(GenPropError, match="was trained on"):
        load_model(tmp_path / "student")
