"""The rewrites of an export in PyTorch: attention to one token, and what is prepared once for a clip."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from genprop.config import Config
from genprop.export.modules import flatten, unflatten
from genprop.settings import NetConfig, SceConfig
from genprop.student.one_token import OneToken, simplify
from genprop.teacher.base import Base, new_base
from genprop.teacher.net import GenPropNet

Enliven = Callable[[nn.Module], nn.Module]
Inputs = tuple[Tensor, ...]

VARIANTS = {
    "bidirectional": (NetConfig(mpd_hidden=(32, 16)), SceConfig()),
    "carry": (NetConfig(mpd_hidden=(32, 16), carry=16, gate=True, tasks=True), SceConfig()),
    "once": (NetConfig(mpd_hidden=(32, 16)), SceConfig(once=True, fusion="none")),
    "once, blocks": (
        NetConfig(mpd_hidden=(32, 16), carry=16, gate=True),
        SceConfig(once=True, fusion="none", injection="blocks"),
    ),
}


def net_of(base: Base, name: str, enliven: Enliven) -> GenPropNet:
    torch.manual_seed(0)
    net = GenPropNet(base.backbone, *VARIANTS[name]).requires_grad_(True)
    enliven(net)
    return net.requires_grad_(False).eval()


@pytest.fixture
def inputs(net_inputs: Inputs) -> Inputs:
    """One clip; with a task, which only some read."""
    *rest, ids = (x[:1] for x in net_inputs)
    return (*rest, torch.cat([ids, torch.ones(1, 1)], dim=1))


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_attention_to_one_token_is_its_value(
    small_config: Config, small_base: Base, inputs: Inputs, enliven: Enliven, name: str
) -> None:
    plain = net_of(small_base, name, enliven)
    rewritten = simplify(net_of(new_base(small_config.base, seed=0), name, enliven))
    crossed = [m for m in plain.modules() if isinstance(m, Attention) and m.is_cross_attention]
    assert len(crossed) == sum(isinstance(m, OneToken) for m in rewritten.modules()) > 0
    assert not any(isinstance(m, Attention) and m.is_cross_attention for m in rewritten.modules())
    for a, b in zip(rewritten(*inputs), plain(*inputs), strict=True):
        assert a.std() > 1e-2 and (a - b).abs().max() <= 1e-6 * max(1.0, float(b.abs().max()))


@torch.no_grad()
def test_the_token_is_still_read(small_base: Base, inputs: Inputs, enliven: Enliven) -> None:
    net = simplify(net_of(small_base, "bidirectional", enliven))
    *rest, embedding, ids = inputs
    assert (net(*rest, embedding + 1, ids).velocity - net(*inputs).velocity).abs().max() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_what_is_prepared_once_gives_the_same_in_every_step(
    small_base: Base, inputs: Inputs, enliven: Enliven, name: str
) -> None:
    net = net_of(small_base, name, enliven)
    sample, timestep, *clip = inputs
    prepared = net.prepare(*clip)
    tensors = flatten(prepared)
    assert (len(tensors) > 0) == (name != "bidirectional")
    again = unflatten(net, tensors) if tensors else prepared
    for step in range(2):  # of a sampling: another sample and another noise level
        x, t = sample + step, timestep - step
        fused = net(x, t, *clip)
        split = net.parts(x, t, *clip, prepared=again).out
        assert torch.equal(split.velocity, fused.velocity)
        assert torch.equal(split.mask_logits, fused.mask_logits)


@torch.no_grad()
def test_a_static_content_encoder_sees_neither_sample_nor_timestep(
    small_base: Base, inputs: Inputs, enliven: Enliven
) -> None:
    net = net_of(small_base, "once", enliven)
    sample, timestep, *clip = inputs
    residuals = net.parts(*inputs).sce.residuals_nchw
    others = net.parts(sample + 1, timestep + 1, *clip).sce.residuals_nchw
    assert len(residuals) > 1 and all(r.std() > 1e-4 for r in residuals)
    assert all(torch.equal(a, b) for a, b in zip(residuals, others, strict=True))
    first, source, *rest = clip
    moved = net.prepare(first, source + 1, *rest).sce
    assert moved is not None
    assert all((a != b).any() for a, b in zip(residuals, moved.residuals_nchw, strict=True))
