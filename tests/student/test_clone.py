"""The student: equal to its teacher at the start, its own afterwards, and the same again from its bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genprop.bundle import Bundle, write_bundle
from genprop.config import Config
from genprop.distill_settings import AdapterConfig
from genprop.errors import GenPropError
from genprop.student.clone import clone, load_model, merge_bundle, trained_tensors
from genprop.student.lora import has_lora, save_lora
from genprop.teacher.base import Base, new_base, save_base
from genprop.teacher.net import GenPropNet

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
    student = clone(teacher, adapter=AdapterConfig(rank=rank)).eval()
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
        eta={1: 0.5},
        save_lora=(lambda lora: save_lora(student, lora, rank=rank)) if rank else None,
    )


@pytest.mark.parametrize("rank", [0, RANK])
def test_a_student_starts_as_its_teacher(teacher: GenPropNet, net_inputs: Inputs, rank: int) -> None:
    student = clone(teacher, adapter=AdapterConfig(rank=rank)).eval()
    assert distance(student, teacher, net_inputs) == 0
    assert has_lora(student) == (rank > 0) and not has_lora(teacher)


def test_rank_zero_trains_everything(teacher: GenPropNet) -> None:
    assert all(p.requires_grad for p in clone(teacher, adapter=AdapterConfig(rank=0)).parameters())


def test_with_a_lora_the_backbone_itself_stays_frozen(teacher: GenPropNet) -> None:
    student = clone(teacher, adapter=AdapterConfig(rank=RANK))
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone.") or ".lora_" in name), name


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


def test_a_model_whose_base_was_changed_is_refused(
    teacher: GenPropNet, small_config: Config, enliven: Enliven, tmp_path: Path
) -> None:
    student = trained(teacher, enliven, rank=RANK)
    write(tmp_path, student, new_base(small_config.base, seed=0), small_config, rank=RANK)
    save_base(new_base(small_config.base, seed=1), tmp_path / "base")
    with pytest.raises(GenPropError, match="was trained on"):
        load_model(tmp_path / "student")


def test_a_merged_bundle_is_the_same_student_without_a_lora(
    teacher: GenPropNet, small_config: Config, net_inputs: Inputs, enliven: Enliven, tmp_path: Path
) -> None:
    student = trained(teacher, enliven, rank=RANK)
    before = write(tmp_path, student, new_base(small_config.base, seed=0), small_config, rank=RANK)
    made = merge_bundle(tmp_path / "student", tmp_path / "elsewhere" / "merged")
    assert made.lora is None and made.card.files.keys() == {"net.safetensors"}
    assert (made.card.config, made.card.kind, made.card.base_sha256) == (
        before.card.config,
        "student",
        before.card.base_sha256,
    )
    assert (made.card.sigmas, made.card.eta) == ({1: (80.0,)}, {1: 0.5})
    _, net, _ = load_model(tmp_path / "elsewhere" / "merged")
    assert not has_lora(net) and distance(net, student, net_inputs) < 1e-5
    assert distance(net, teacher, net_inputs) > 1e-2


def test_a_student_without_a_lora_has_nothing_to_merge(
    teacher: GenPropNet, small_config: Config, tmp_path: Path
) -> None:
    student = clone(teacher, adapter=AdapterConfig(rank=0))
    write(tmp_path, student, new_base(small_config.base, seed=0), small_config, rank=0)
    with pytest.raises(GenPropError, match="has no LoRA"):
        merge_bundle(tmp_path / "student", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
