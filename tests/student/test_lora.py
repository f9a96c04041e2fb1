"""The LoRA on a backbone: on the layers that are named, a standard adapter of peft, and the same merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from genprop.config import Config, load_config
from genprop.distill_settings import AdapterConfig
from genprop.errors import GenPropError
from genprop.student.clone import clone
from genprop.student.lora import (
    has_lora,
    load_lora,
    lora_layers,
    lora_targets,
    merge_lora,
    save_lora,
    set_lora,
)
from genprop.teacher.base import Base, new_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.unet import Backbone

RANK = 4
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out")
TARGETS = {
    "all": (),
    "attention": ATTENTION,
    "Conv2d": ("resnets.0.spatial_res_block.conv1", "conv_shortcut", "conv_in"),
    "Conv3d": ("temporal_res_block.conv1",),
}
Enliven = Callable[[nn.Module], nn.Module]
Inputs = tuple[Tensor, ...]


@pytest.fixture
def teacher(small_base: Base, small_config: Config, enliven: Enliven) -> GenPropNet:
    torch.manual_seed(0)
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce).eval()
    enliven(net)
    return net


def student_of(teacher: GenPropNet, enliven: Enliven, targets: tuple[str, ...] = ()) -> GenPropNet:
    """A student after some training."""
    torch.manual_seed(1)
    student = clone(teacher, adapter=AdapterConfig(rank=RANK, targets=targets)).eval()
    enliven(student.backbone)
    return student


def distance(a: nn.Module, b: nn.Module, inputs: Inputs) -> float:
    with torch.no_grad():
        return max(float((x - y).abs().max()) for x, y in zip(a(*inputs), b(*inputs), strict=True))


def test_every_linear_layer_and_convolution_gets_a_lora_of_the_rank(teacher: GenPropNet) -> None:
    targets = lora_targets(teacher.backbone)
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} < set(targets)
    assert any("attn1.to_q" in t for t in targets) and any("temporal_res_block.conv1" in t for t in targets)
    student = clone(teacher, adapter=AdapterConfig(rank=RANK))
    down = {n: p for n, p in student.backbone.named_parameters() if ".lora_A." in n}
    assert {n.split(".lora_A.")[0] for n in down} == set(targets) == set(lora_layers(student.backbone))
    assert all(p.shape[0] == RANK for p in down.values())


@pytest.mark.parametrize(("kind", "layer"), [("Conv2d", nn.Conv2d), ("Conv3d", nn.Conv3d)])
def test_targets_are_the_ends_of_names(teacher: GenPropNet, kind: str, layer: type[nn.Module]) -> None:
    ends, named = TARGETS[kind], dict(teacher.backbone.named_modules())
    student = clone(teacher, adapter=AdapterConfig(rank=RANK, targets=ends))
    layers = lora_layers(student.backbone)
    assert layers and all(name == e or name.endswith(f".{e}") for name in layers for e in ends if e in name)
    assert all(isinstance(named[name], layer) for name in layers)
    assert {n for n, m in named.items() if n.endswith(ends) and isinstance(m, layer)} == set(layers)


def test_a_target_is_a_whole_part_of_a_name_and_what_cannot_learn_gets_none(teacher: GenPropNet) -> None:
    queries = lora_targets(teacher.backbone, ["to_q"])
    assert queries and all(name.endswith("attn1.to_q") for name in queries)
    with pytest.raises(GenPropError):
        lora_targets(teacher.backbone, ["o_q"])
    with pytest.raises(GenPropError):
        lora_targets(teacher.backbone, ["attn2.to_q"])


def test_a_target_that_matches_nothing_is_named_with_some_that_exist(teacher: GenPropNet) -> None:
    with pytest.raises(GenPropError, match=r"names 'to_query'") as caught:
        clone(teacher, adapter=AdapterConfig(rank=RANK, targets=("to_q", "to_query")))
    assert caught.value.hint is not None
    assert {"to_q", "to_out.0", "proj_in"} < set(caught.value.hint.removeprefix("layers end in ").split(", "))


@pytest.mark.parametrize("kind", TARGETS)
def test_saved_loaded_and_merged_it_is_the_same_student(
    teacher: GenPropNet, net_inputs: Inputs, enliven: Enliven, tmp_path: Path, kind: str
) -> None:
    student = student_of(teacher, enliven, TARGETS[kind])
    assert distance(student, teacher, net_inputs) > 1e-3  # the LoRA does something
    save_lora(student, tmp_path / "lora", rank=RANK)
    loaded = clone(teacher, adapter=AdapterConfig(rank=0)).eval()
    load_lora(loaded, tmp_path / "lora")
    assert lora_layers(loaded.backbone) == lora_layers(student.backbone)
    assert distance(loaded, student, net_inputs) < 1e-5
    merge_lora(loaded)
    assert not has_lora(loaded) and list(loaded.state_dict()) == list(teacher.state_dict())
    assert distance(loaded, student, net_inputs) < 1e-5


@pytest.mark.parametrize("kind", ["all", "Conv3d"])
def test_the_folder_is_a_standard_adapter_of_peft(
    teacher: GenPropNet, net_inputs: Inputs, enliven: Enliven, tmp_path: Path, kind: str
) -> None:
    student = student_of(teacher, enliven, TARGETS[kind])
    save_lora(student, tmp_path / "lora", rank=RANK)
    backbone = clone(teacher, adapter=AdapterConfig(rank=0)).backbone.eval()
    sample, timestep, first, _, embedding, ids = net_inputs
    arguments = (torch.cat([sample, first], dim=2), timestep, embedding, ids)
    with torch.no_grad():
        before = backbone(*arguments).sample
        adapted = PeftModel.from_pretrained(backbone, str(tmp_path / "lora")).eval()  # type: ignore[arg-type]
        got, expected = adapted(*arguments).sample, student.backbone(*arguments).sample
    assert isinstance(student.backbone, Backbone)
    assert (got - expected).abs().max() < 1e-5
    assert (before - expected).abs().max() > 1e-3


@pytest.mark.parametrize("other", [AdapterConfig(rank=2), AdapterConfig(rank=RANK, targets=("to_q",))])
def test_weights_of_another_rank_or_of_other_layers_are_refused(
    teacher: GenPropNet, enliven: Enliven, tmp_path: Path, other: AdapterConfig
) -> None:
    save_lora(student_of(teacher, enliven), tmp_path / "lora", rank=RANK)
    student = clone(teacher, adapter=other)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(GenPropError, match=r"has .*lora_.* of shape"):
        set_lora(student, tmp_path / "lora")
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


@pytest.mark.slow
def test_the_full_size_adapter_is_a_file_that_people_can_share() -> None:
    """Of SVD-XT at rank 64: 119 M numbers on all layers, 23 M on attention and projections."""
    config = load_config("svd-xt")
    size = {}
    with torch.device("meta"):
        net = GenPropNet(new_base(config.base, seed=0).backbone, config.net, config.sce)
        for kind in ("all", "attention"):
            student = clone(net, adapter=AdapterConfig(rank=64, targets=TARGETS[kind]))
            size[kind] = sum(p.numel() for n, p in student.backbone.named_parameters() if ".lora_" in n)
    assert 0.3e9 < 4 * size["all"] < 1.5e9  # bytes in float32; half of it in float16
    assert size["attention"] < size["all"] / 2
