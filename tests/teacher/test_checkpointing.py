"""Gradient checkpointing: the same numbers, and less kept for the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genprop.distill_settings import AdapterConfig
from genprop.settings import NetConfig, SceConfig
from genprop.student.clone import clone
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.unet import RecomputedTransformer, checkpoint_blocks

Enliven = Callable[..., nn.Module]


@dataclass
class Step:
    """A loss of both outputs, the gradients it leaves, and the bytes that were kept for them."""

    loss: Tensor
    gradients: dict[str, Tensor]
    kept: int


def step(net: nn.Module, inputs: tuple[Tensor, ...]) -> Step:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    net.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum((x**2).mean() for x in net(*inputs))
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return Step(loss.detach(), gradients, sum(kept.values()))


def same(a: Step, b: Step) -> None:
    assert torch.allclose(a.loss, b.loss, rtol=1e-6, atol=0)
    assert a.gradients.keys() == b.gradients.keys() and a.gradients
    for name, gradient in a.gradients.items():
        assert torch.allclose(b.gradients[name], gradient, rtol=0, atol=1e-6 * float(gradient.abs().max())), (
            name
        )


@pytest.fixture(params=["train", "eval"])
def net(request: pytest.FixtureRequest, small_base: Base, enliven: Enliven) -> GenPropNet:
    torch.manual_seed(0)
    net = GenPropNet(small_base.backbone, NetConfig(mpd_hidden=(32, 16)), SceConfig())
    enliven(net)
    return net.train(request.param == "train")


def test_checkpointing_changes_no_number_and_keeps_less(
    net: GenPropNet, net_inputs: tuple[Tensor, ...]
) -> None:
    """Down, middle and up blocks, with and without attention; the backbone is frozen, its inputs are data."""
    plain = step(net, net_inputs)
    checkpoint_blocks(net)
    checkpointed = step(net, net_inputs)
    same(plain, checkpointed)
    assert checkpointed.kept < 0.5 * plain.kept


def test_the_temporal_half_of_a_transformer_is_recomputed_too(
    net: GenPropNet, net_inputs: tuple[Tensor, ...]
) -> None:
    """Upstream's own switch leaves it in memory."""
    upstream = copy.deepcopy(net)
    upstream.backbone.enable_gradient_checkpointing()
    blocks: Any = upstream.sce.down_blocks
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = upstream.backbone.down_blocks[0]._gradient_checkpointing_func
    checkpoint_blocks(net)
    theirs, ours = step(upstream, net_inputs), step(net, net_inputs)
    same(theirs, ours)
    assert ours.kept < 0.75 * theirs.kept


def test_a_copy_keeps_the_setting_and_no_key_changes(net: GenPropNet, net_inputs: tuple[Tensor, ...]) -> None:
    keys = list(net.state_dict())
    plain = step(net, net_inputs)
    checkpoint_blocks(net)
    checkpoint_blocks(net)  # twice is once
    assert list(net.state_dict()) == keys
    copied = step(copy.deepcopy(net), net_inputs)
    same(plain, copied)
    assert copied.kept < 0.5 * plain.kept


def test_a_student_with_a_lora_trains_the_same(small_base: Base, net_inputs: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    teacher = GenPropNet(small_base.backbone, NetConfig(mpd_hidden=(32, 16)), SceConfig())
    student = clone(teacher, adapter=AdapterConfig(rank=4))
    plain = step(student, net_inputs)
    checkpoint_blocks(student)
    checkpointed = step(student, net_inputs)
    same(plain, checkpointed)
    assert any("lora" in name for name in checkpointed.gradients)
    assert checkpointed.kept < plain.kept


def test_autocast_is_in_force_when_activations_are_recomputed(
    net: GenPropNet, net_inputs: tuple[Tensor, ...]
) -> None:
    def half(module: nn.Module) -> Step:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return step(module, net_inputs)

    plain = half(net)
    checkpoint_blocks(net)
    same(plain, half(net))


def test_nothing_is_recomputed_where_no_gradient_is_recorded(
    net: GenPropNet, net_inputs: tuple[Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        plain = net(*net_inputs)
    checkpoint_blocks(net)
    monkeypatch.setattr("genprop.teacher.unet.checkpoint", lambda *_, **__: pytest.fail("recomputed"))
    with torch.no_grad():
        again = net(*net_inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert any(isinstance(m, RecomputedTransformer) for m in net.modules())
