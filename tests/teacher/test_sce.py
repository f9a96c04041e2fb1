"""The content encoder: its copies, its residuals, and the gradients that the report's injection lacked."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.settings import NetConfig, SceConfig
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.sce import Injection, Seen, SelectiveContentEncoder

VARIANTS = [
    SceConfig(injection=injection, fusion=fusion, norm=norm)
    for injection in ("skips", "blocks")
    for fusion in ("bidirectional", "none")
    for norm in (False, True)
]

# The image embedding is one token: attention to it is 1 whatever the query, so nothing before it can learn.
# That is SVD's own architecture, frozen copy and trainable one alike.
WITHOUT_EFFECT = re.compile(r"sce\.down_blocks\.\d+\.attentions\..*\.(attn2\.to_[qk]|norm2)\.")


def variant_name(config: SceConfig) -> str:
    return f"{config.injection}-{config.fusion}-{'norm' if config.norm else 'plain'}"


@dataclass
class Trial:
    """A net, and a random loss of both of its outputs."""

    net: GenPropNet
    inputs: tuple[Tensor, ...]

    def gradients(self) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(7)
        self.net.zero_grad()
        out = self.net(*self.inputs)
        (sum((x * torch.randn(x.shape, generator=rng)).sum() for x in out)).backward()  # type: ignore[union-attr]
        return {
            name: p.grad for name, p in self.net.named_parameters() if p.requires_grad and p.grad is not None
        }

    def step(self) -> None:
        torch.optim.AdamW([p for p in self.net.parameters() if p.requires_grad], lr=1e-2).step()


@pytest.fixture(params=VARIANTS, ids=variant_name)
def trial(request: pytest.FixtureRequest, small_base: Base, net_inputs: tuple[Tensor, ...]) -> Trial:
    torch.manual_seed(0)
    return Trial(GenPropNet(small_base.backbone, NetConfig(mpd_hidden=(32, 16)), request.param), net_inputs)


def test_every_parameter_that_trains_gets_a_gradient(trial: Trial) -> None:
    first = trial.gradients()
    injected = [n for n in first if n.startswith("sce.injections.") and ".conv." in n]
    assert len(injected) == 2 * len(trial.net.sce.injections)
    for name in injected:  # at the very first step, and in each of its entries
        assert (first[name] != 0).all(), name
    trial.step()  # what is behind a convolution that was zero learns from the second step on
    second = trial.gradients()
    trainable = {name for name, _ in trial.net.named_parameters() if name.startswith(("sce.", "mpd."))}
    assert second.keys() == trainable
    assert all(gradient.isfinite().all() for gradient in second.values())
    still = {name for name, gradient in second.items() if gradient.abs().max() < 1e-5}  # rounding is 1e-8
    assert still == {name for name in trainable if WITHOUT_EFFECT.search(name)}


def test_the_frozen_backbone_gets_no_gradient(trial: Trial) -> None:
    trial.gradients()
    backbone = list(trial.net.backbone.parameters())
    assert backbone and all(p.grad is None and not p.requires_grad for p in backbone)


def test_with_norm_and_convolution_zeroed_only_biases_ever_learn(
    small_base: Base, net_inputs: tuple[Tensor, ...]
) -> None:
    """The report's initialisation: the check above has to fail on it."""
    torch.manual_seed(0)
    sce = SceConfig(norm=True, zero="both")
    trial = Trial(GenPropNet(small_base.backbone, NetConfig(mpd_hidden=(32, 16)), sce), net_inputs)
    for _ in range(3):
        learning = {name for name, g in trial.gradients().items() if g.any() and name.startswith("sce.")}
        assert learning == {f"sce.injections.{i}.conv.bias" for i in range(4)}
        trial.step()


@pytest.mark.parametrize("norm", [False, True])
def test_an_injection_starts_without_effect_and_with_a_gradient(norm: bool) -> None:
    layer = Injection(32, norm=norm)
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    out = layer(x)
    assert not out.any()
    (out * x).sum().backward()
    for parameter in layer.conv.parameters():
        assert parameter.grad is not None and (parameter.grad != 0).all()


@pytest.mark.parametrize(
    ("injection", "blocks", "expected"),
    [("skips", 1, 3), ("skips", 2, 4), ("blocks", 1, 1), ("blocks", 2, 2)],
)
def test_one_residual_for_each_skip_or_block(
    small_base: Base, net_inputs: tuple[Tensor, ...], injection: str, blocks: int, expected: int
) -> None:
    """The stem gives one skip, a block of one layer two; the last block has no downsampler and gives one."""
    config = SceConfig.model_validate({"injection": injection, "blocks": blocks})
    backbone = small_base.backbone
    sample, timestep, first, source, embedding, ids = net_inputs
    stem = backbone.stem(torch.cat([sample, first], dim=2), timestep, embedding, ids)
    out = SelectiveContentEncoder(backbone, config)(Seen(sample, timestep, stem, first, None), source)
    assert len(out.residuals_nchw) == expected
    plain = backbone.body(stem)
    targets = plain.targets_nchw if injection == "skips" else plain.targets_nchw[2:4]
    assert [r.shape for r in out.residuals_nchw] == [t.shape for t in targets[:expected]]


def test_the_copies_start_as_the_backbone_and_share_nothing_with_it(
    small_base: Base, small_config: Config
) -> None:
    backbone = small_base.backbone
    sce = SelectiveContentEncoder(backbone, small_config.sce)
    theirs = backbone.state_dict()
    copied = {n: p for n, p in sce.state_dict().items() if n.startswith(("conv_in.", "down_blocks."))}
    assert copied
    for name, value in copied.items():
        assert torch.equal(value, theirs[name])
        assert value.data_ptr() != theirs[name].data_ptr()


@torch.no_grad()
def test_it_reads_the_source_and_the_first_frame_and_the_noise_only_when_fused(
    small_base: Base, net_inputs: tuple[Tensor, ...]
) -> None:
    backbone = small_base.backbone
    sample, timestep, first, source, embedding, ids = net_inputs
    for fusion in ("bidirectional", "none"):
        sce = SelectiveContentEncoder(backbone, SceConfig.model_validate({"fusion": fusion}))
        if sce.fusion is not None:
            nn.init.normal_(sce.fusion.conv.weight, generator=torch.Generator().manual_seed(0))

        def features(
            sample: Tensor, source: Tensor, first: Tensor, sce: SelectiveContentEncoder = sce
        ) -> Tensor:
            stem = backbone.stem(torch.cat([sample, net_inputs[2]], dim=2), timestep, embedding, ids)
            return sce(Seen(sample, timestep, stem, first, None), source).features_nchw[-1]

        plain = features(sample, source, first)
        assert not torch.allclose(features(sample, source + 1, first), plain, atol=1e-3)
        assert not torch.allclose(features(sample, source, first + 1), plain, atol=1e-3)
        assert torch.equal(features(sample + 1, source, first), plain) == (fusion == "none")


def test_more_blocks_than_the_backbone_has_are_refused(small_base: Base) -> None:
    with pytest.raises(GenPropError, match=r"sce\.blocks is 3, but the backbone has 2"):
        SelectiveContentEncoder(small_base.backbone, SceConfig(blocks=3))
