"""The whole network: the bare backbone at the start, and its injection measured and weighted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genprop.edm import NetDenoiser
from genprop.settings import NetConfig, SceConfig
from genprop.teacher.base import Base
from genprop.teacher.mpd import MaskPredictionDecoder
from genprop.teacher.net import GenPropNet
from genprop.types import Cond

VARIANTS = [
    SceConfig(injection="skips", fusion="bidirectional", norm=False),
    SceConfig(injection="skips", fusion="none", norm=True),
    SceConfig(injection="blocks", fusion="bidirectional", norm=True),
    SceConfig(injection="blocks", fusion="none", norm=False),
]
NET = NetConfig(mpd_hidden=(32, 16))
Enliven = Callable[[nn.Module], nn.Module]


@pytest.fixture(params=VARIANTS, ids=lambda c: f"{c.injection}-{c.fusion}-{c.norm}")
def net(request: pytest.FixtureRequest, small_base: Base) -> GenPropNet:
    torch.manual_seed(0)
    return GenPropNet(small_base.backbone, NET, request.param).eval()


def bare(net: GenPropNet, inputs: tuple[Tensor, ...]) -> Tensor:
    """Upstream's own forward: the backbone without content encoder."""
    sample, timestep, first, _, embedding, ids = inputs
    return net.backbone(torch.cat([sample, first], dim=2), timestep, embedding, ids).sample


@torch.no_grad()
def test_at_the_start_it_is_the_bare_backbone_exactly(
    net: GenPropNet, net_inputs: tuple[Tensor, ...]
) -> None:
    parts = net.parts(*net_inputs)
    assert torch.equal(parts.out.velocity, bare(net, net_inputs))
    assert parts.injection_ratio == 0


@torch.no_grad()
def test_once_live_it_follows_the_source_and_weight_zero_turns_it_off(
    net: GenPropNet, net_inputs: tuple[Tensor, ...], enliven: Enliven
) -> None:
    enliven(net)
    parts = net.parts(*net_inputs)
    assert parts.injection_ratio.isfinite() and parts.injection_ratio > 0
    assert not torch.allclose(parts.out.velocity, bare(net, net_inputs), atol=1e-3)
    net.injection_weight = 0.0
    assert torch.equal(net(*net_inputs).velocity, bare(net, net_inputs))


@torch.no_grad()
def test_the_injection_weight_scales_the_residuals(
    net: GenPropNet, net_inputs: tuple[Tensor, ...], enliven: Enliven
) -> None:
    enliven(net)
    whole = net.parts(*net_inputs)
    net.injection_weight = 0.5
    half = net.parts(*net_inputs)
    distance = (whole.out.velocity - bare(net, net_inputs)).norm()
    assert 0 < (half.out.velocity - bare(net, net_inputs)).norm() < distance
    assert half.injection_ratio < whole.injection_ratio


@torch.no_grad()
def test_outputs_are_on_the_latent_grid_and_the_first_is_forwards(
    net: GenPropNet, net_inputs: tuple[Tensor, ...], enliven: Enliven
) -> None:
    enliven(net)
    out = net(*net_inputs)
    assert out.velocity.shape == (2, 3, 4, 8, 8)
    assert out.mask_logits.shape == (2, 3, 1, 8, 8)
    parts = net.parts(*net_inputs)
    assert torch.equal(parts.out.velocity, out.velocity) and torch.equal(
        parts.out.mask_logits, out.mask_logits
    )


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(
    net: GenPropNet, net_inputs: tuple[Tensor, ...], enliven: Enliven
) -> None:
    enliven(net)
    together = net(*net_inputs)
    for i in range(2):
        alone = net(*(x[i : i + 1] for x in net_inputs))
        assert torch.allclose(alone.velocity, together.velocity[i : i + 1], atol=1e-5)
        assert torch.allclose(alone.mask_logits, together.mask_logits[i : i + 1], atol=1e-5)


@pytest.mark.parametrize("injection", ["skips", "blocks"])
@torch.no_grad()
def test_the_ratio_is_of_what_is_injected_to_what_it_is_added_to(
    small_base: Base, net_inputs: tuple[Tensor, ...], enliven: Enliven, injection: str
) -> None:
    sce = SceConfig.model_validate({"injection": injection, "blocks": 1})
    net = GenPropNet(small_base.backbone, NET, sce)
    enliven(net)
    parts = net.parts(*net_inputs)
    skips = net.backbone.body(parts.seen.stem).targets_nchw
    targets = skips[:3] if injection == "skips" else skips[2:3]  # the first block's output is its last skip
    expected = max(float(r.std() / t.std()) for r, t in zip(parts.sce.residuals_nchw, targets, strict=True))
    assert parts.injection_ratio.item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_it_is_a_net_for_the_denoiser(net: GenPropNet, net_inputs: tuple[Tensor, ...]) -> None:
    sample, _, first, source, embedding, ids = net_inputs
    sigma = torch.tensor([2.0, 0.5])
    x0, logits = NetDenoiser(net)(sample, sigma, Cond(first, source, embedding, ids))
    assert x0.shape == sample.shape and logits.shape == (2, 3, 1, 8, 8)


@torch.no_grad()
def test_the_mask_decoder_interpolates_to_the_grid_asked_for(rng: torch.Generator) -> None:
    mpd = MaskPredictionDecoder(64, hidden=(32, 16))
    features = torch.randn(6, 64, 4, 5, generator=rng)
    assert torch.equal(mpd(features, size=(4, 5)), mpd.layers(features))
    assert mpd(features, size=(8, 10)).shape == (6, 1, 8, 10)
    mpd.layers = nn.Sequential()  # what is left is the interpolation, of cells whose centres lie half-way
    ramp = torch.arange(3.0).expand(1, 1, 4, 3)
    assert mpd(ramp, size=(8, 6))[0, 0, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2]
