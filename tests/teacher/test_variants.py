"""Every kind of content encoder, alike: it learns, it starts where it should, and a bundle holds it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from genprop.config import Config, parse_config
from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.settings import NetConfig, NoiseConfig, SceConfig
from genprop.student.clone import load_model
from genprop.teacher.adapters import CtrlAdapter, freeze, inverse_timestep
from genprop.teacher.base import Base, save_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.sce import SelectiveContentEncoder
from genprop.teacher.train import write_teacher
from genprop.teacher.unet3d import UNet3d, count
from genprop.types import Cond

NET = NetConfig(mpd_hidden=(32, 16), tasks=True)
KINDS = ["copy", "ctrl-adapter", "controlnet", "conv-adapter", "unet3d"]
"""By `sce.kind`; "controlnet" is "ctrl-adapter" over one."""
Enliven = Callable[[nn.Module], nn.Module]
Inputs = tuple[Tensor, ...]


@pytest.fixture(scope="session")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ControlNet of random weights in diffusers' layout, on latents of `small_config`'s 4 channels.

    Its outputs are live: they are zero in a fresh one. Its pictures are 4 times as large as its latents.
    """
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = ControlNetModel(
            in_channels=4,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
            conditioning_embedding_out_channels=(8, 16, 32),
        )
        for parameter in (
            *net.controlnet_down_blocks.parameters(),
            *net.controlnet_cond_embedding.parameters(),
        ):
            nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("controlnet")
    net.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=KINDS)
def sce(request: pytest.FixtureRequest, controlnet: str) -> SceConfig:
    if request.param == "controlnet":
        return SceConfig(kind="ctrl-adapter", controlnet=controlnet)
    return SceConfig(kind=request.param)


@pytest.fixture
def net(small_base: Base, sce: SceConfig) -> GenPropNet:
    torch.manual_seed(0)
    return GenPropNet(small_base.backbone, NET, sce).eval()


@pytest.fixture
def inputs(net_inputs: Inputs) -> Inputs:
    """`net_inputs` with the task in the fourth column: one sample removes, one inserts."""
    *others, ids = net_inputs
    return (*others, torch.cat([ids, torch.tensor([[0.0], [1.0]])], dim=1))


@pytest.fixture
def batch(rng: torch.Generator) -> Batch:
    """Two samples of `small_config` as the latent cache has them; the second's mask is much the smaller."""
    target, source = torch.randn(2, 2, 3, 4, 8, 8, generator=rng)
    mask = torch.zeros(2, 3, 16, 16, dtype=torch.bool)
    mask[0, :, 2:14, 3:12] = True
    mask[1, :, 4:7, 6:8] = True
    return {
        "source": source,
        "target": target,
        "first": torch.randn(2, 4, 8, 8, generator=rng),
        "image": torch.randn(2, 3, 16, 16, generator=rng),
        "mask": mask,
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02, 0.0], [6.0, 127.0, 0.02, 2.0]]),
    }


def configured(small_config: Config, sce: SceConfig, **tables: dict[str, object]) -> Config:
    table = {**small_config.model_dump(), "sce": sce.model_dump(), "net": NET.model_dump()}
    return parse_config({**table, **{name: {**table[name], **keys} for name, keys in tables.items()}})


# The image embedding is one token: attention to it is 1 whatever the query (see test_sce.py).
WITHOUT_EFFECT = (".attn2.to_q.", ".attn2.to_k.", ".norm2.")


def test_every_parameter_gets_a_gradient_within_two_updates(
    small_base: Base, small_config: Config, net: GenPropNet, sce: SceConfig, batch: Batch
) -> None:
    loss = {"gradient": 0.5, "gradient_features": "all", "temporal": 0.5, "normalise": "region"}
    objective = TeacherObjective(
        net, small_base.image_encoder, configured(small_config, sce, loss=loss, noise={"drop": 0})
    )
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for seed in range(2):
        optimizer.zero_grad()
        terms = objective(batch, Draws.of(seed, 2))
        terms["loss"].backward()
        assert all(value.isfinite() for value in terms.values())
        if seed == 0:
            optimizer.step()
    still = {name for name, p in trained.items() if p.grad is None or p.grad.abs().max() < 1e-7}
    assert {
        name for name in still if sce.kind != "copy" or not any(w in name for w in WITHOUT_EFFECT)
    } == set()
    assert all(not name.startswith("backbone.") for name in trained)


@torch.no_grad()
def test_it_starts_as_the_bare_backbone_and_weight_zero_turns_it_off(
    net: GenPropNet, inputs: Inputs, enliven: Enliven
) -> None:
    if isinstance(net.sce, UNet3d):
        pytest.skip("it has no backbone to start as")
    sample, timestep, first, _, embedding, ids = inputs
    bare = net.backbone(torch.cat([sample, first], dim=2), timestep, embedding, ids[:, :3]).sample
    assert torch.equal(net(*inputs).velocity, bare)
    enliven(net)
    live = net.parts(*inputs)
    assert not torch.allclose(live.out.velocity, bare, atol=1e-4) and live.injection_ratio > 0
    net.injection_weight = 0.0
    assert torch.equal(net(*inputs).velocity, bare)


@torch.no_grad()
def test_alpha_does_in_training_what_the_weight_does_at_inference(
    small_base: Base, net: GenPropNet, sce: SceConfig, inputs: Inputs, enliven: Enliven
) -> None:
    half = GenPropNet(small_base.backbone, NET, sce.model_copy(update={"scale": 0.5})).eval()
    half.load_state_dict(enliven(net).state_dict())
    net.injection_weight = 0.5
    assert torch.equal(half(*inputs).velocity, net(*inputs).velocity)


@torch.no_grad()
def test_every_kind_follows_source_first_frame_and_task(
    net: GenPropNet, inputs: Inputs, enliven: Enliven
) -> None:
    enliven(net)
    out = net(*inputs)
    for place in (0, 2, 3, 5):
        changed = list(inputs)
        changed[place] = inputs[place] + (torch.tensor([0, 0, 0, 1.0]) if place == 5 else 0.5)
        moved = net(*changed)
        assert all((a - b).abs().max() > 1e-6 for a, b in zip(out, moved, strict=True)), place


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(net: GenPropNet, inputs: Inputs, enliven: Enliven) -> None:
    enliven(net)
    together = net(*inputs)
    for i in range(2):
        alone = net(*(x[i : i + 1] for x in inputs))
        for one, both in zip(alone, together, strict=True):
            assert torch.allclose(one, both[i : i + 1], atol=1e-5)


@torch.no_grad()
def test_it_runs_in_bfloat16_and_as_a_denoiser(net: GenPropNet, inputs: Inputs, enliven: Enliven) -> None:
    enliven(net)
    sample, _, first, source, embedding, ids = inputs
    sigma, cond = torch.tensor([2.0, 0.5]), Cond(first, source, embedding, ids)
    x0, logits = NetDenoiser(net)(sample, sigma, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough, rough_logits = NetDenoiser(net)(sample, sigma, cond)
    assert rough.dtype == rough_logits.dtype == torch.float32
    for got, expected in ((rough, x0), (rough_logits, logits)):
        assert (got - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
def test_a_bundle_holds_what_was_trained_and_nothing_frozen(
    small_base: Base,
    small_config: Config,
    net: GenPropNet,
    sce: SceConfig,
    inputs: Inputs,
    enliven: Enliven,
    tmp_path: Path,
) -> None:
    enliven(net)
    save_base(small_base, tmp_path / "base")
    bundle = write_teacher(net, configured(small_config, sce), tmp_path / "base", tmp_path / "teacher")
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert set(bundle.tensors()) == trained
    _, again, _ = load_model(tmp_path / "teacher")
    for got, expected in zip(again(*inputs), net(*inputs), strict=True):
        assert torch.allclose(got, expected, atol=1e-6)


def test_a_frozen_module_computes_the_same_and_is_in_no_state_dict(rng: torch.Generator) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Conv1d(8, 2, 1)).eval()
    x = torch.randn(8, 4, generator=rng)
    expected = module[1](module[0](x)).T
    expected = module[2](expected)
    freeze(module)
    assert torch.equal(module[2](module[1](module[0](x)).T), expected)
    assert not module.state_dict() and not list(module.parameters())
    assert {b.dtype for b in module.double().buffers()} == {torch.float64}


def test_the_ctrl_adapters_own_encoder_starts_as_the_backbone_and_stays(
    small_base: Base, inputs: Inputs
) -> None:
    """It is a copy: a student that trains the backbone does not change what its adapters were trained on."""
    net = GenPropNet(small_base.backbone, NetConfig(), SceConfig(kind="ctrl-adapter")).eval()
    _, timestep, first, source, embedding, ids = inputs
    seen = net.parts(*inputs).seen
    assert isinstance(net.sce, CtrlAdapter)
    before = net.sce.frozen(seen, source)
    stem = net.backbone.stem(torch.cat([source, first], 2), timestep, embedding, ids[:, :3])
    skips = net.backbone.body(stem).targets_nchw
    for ours, theirs in zip(before, skips, strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for parameter in net.backbone.parameters():
            parameter.add_(1)
    for ours, theirs in zip(net.sce.frozen(seen, source), before, strict=True):
        assert torch.equal(ours, theirs)


def test_a_controlnet_is_asked_at_the_same_quantile_of_noise() -> None:
    """Levels of SVD's own training come out as uniform timesteps; the median is the middle."""
    noise = NoiseConfig()
    levels = torch.tensor([noise.mean, noise.mean + 1.959964 * noise.std, -80.0, 80.0])
    assert inverse_timestep(levels / 4).tolist() == [500, 975, 0, 999]
    drawn = noise.mean + noise.std * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    shares = torch.histc(inverse_timestep(drawn / 4).float(), 10, 0, 1000) / 20_000
    assert (shares - 0.1).abs().max() < 0.01


def test_the_controlnet_hears_of_the_noise(small_base: Base, inputs: Inputs, controlnet: str) -> None:
    sce = SceConfig(kind="ctrl-adapter", controlnet=controlnet)
    net = GenPropNet(small_base.backbone, NetConfig(), sce).eval()
    assert isinstance(net.sce, CtrlAdapter)
    with torch.no_grad():
        seen = net.parts(*inputs).seen
        features = net.sce.frozen(seen, inputs[3])
        later = net.sce.frozen(seen._replace(timestep_b=seen.timestep_b - 0.5), inputs[3])
    assert [feature.shape[1] for feature in features] == net.sce.frozen.widths
    told = zip(features[1:], later[1:], strict=True)  # the stem's is before any time embedding
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in told)


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_that_is_no_controlnet_is_named(
    small_base: Base, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    sce = SceConfig(kind="ctrl-adapter", controlnet=str(tmp_path))
    with pytest.raises(GenPropError, match=r"sce\.controlnet: .*cannot be loaded"):
        GenPropNet(small_base.backbone, NetConfig(), sce)


@torch.no_grad()
def test_the_3d_unet_has_no_backbone_in_its_answer_and_the_size_of_the_copy(
    small_base: Base, inputs: Inputs
) -> None:
    net = GenPropNet(small_base.backbone, NET, SceConfig(kind="unet3d")).eval()
    parts = net.parts(*inputs)
    assert parts.injection_ratio == 0
    for parameter in net.backbone.parameters():
        parameter.add_(1)
    for before, after in zip(parts.out, net(*inputs), strict=True):
        assert torch.equal(before, after)
    copied = SelectiveContentEncoder(small_base.backbone, SceConfig())
    assert count(net.sce) == pytest.approx(count(copied), rel=0.2)


@torch.no_grad()
def test_the_3d_unet_takes_grids_that_do_not_halve(small_base: Base, inputs: Inputs) -> None:
    net = GenPropNet(small_base.backbone, NET, SceConfig(kind="unet3d")).eval()
    sample, timestep, first, source, *rest = inputs
    odd = [x[..., :7, :5] for x in (sample, first, source)]
    out = net(odd[0], timestep, odd[1], odd[2], *rest)
    assert out.velocity.shape == (2, 3, 4, 7, 5) and out.mask_logits.shape == (2, 3, 1, 7, 5)


def test_the_backbone_is_not_told_the_task_and_a_net_without_tasks_reads_three_columns(
    small_base: Base, inputs: Inputs, enliven: Enliven
) -> None:
    *others, ids = inputs
    plain = GenPropNet(small_base.backbone, NetConfig(), SceConfig()).eval()
    with torch.no_grad():
        assert torch.equal(plain(*others, ids).velocity, plain(*others, ids[:, :3]).velocity)
    told = GenPropNet(small_base.backbone, NET, SceConfig()).eval()
    enliven(told)
    told.injection_weight = 0.0
    other = torch.cat([ids[:, :3], ids[:, 3:] + 1], dim=1)
    with torch.no_grad():
        assert torch.equal(told(*others, ids).velocity, told(*others, other).velocity)
    told.injection_weight = 1.0
    told(*others, ids).velocity.square().sum().backward()
    assert told.tasks is not None and told.tasks.weight.grad is not None
    assert told.tasks.weight.grad.abs().amax(1).gt(0).tolist() == [True, True, False, False]
    with pytest.raises(GenPropError, match="3 columns, expected 4"):
        told(*others, ids[:, :3])


@pytest.mark.parametrize(
    "loss",
    [
        {"normalise": "region"},
        {"mpd_kind": "mse", "mpd_balance": 3.0, "downsample": "nearest"},
        {"mpd_balance": 3.0, "temporal": 1.0, "gradient_features": "all"},
    ],
)
def test_a_batch_may_be_split(
    small_base: Base, small_config: Config, batch: Batch, enliven: Enliven, loss: dict[str, object]
) -> None:
    """Two processes with one sample each: the mean of their losses is that of the two together."""
    net = GenPropNet(small_base.backbone, NET, SceConfig()).eval()
    enliven(net)
    config = configured(small_config, SceConfig(), loss=loss, noise={"drop": 0})
    objective = TeacherObjective(net, small_base.image_encoder, config)
    with torch.no_grad():
        together = objective(batch, Draws([5, 6]))["loss"]
        alone = [
            objective({k: v[i : i + 1] for k, v in batch.items()}, Draws([5 + i]))["loss"] for i in (0, 1)
        ]
    assert alone[0] != pytest.approx(float(alone[1]), rel=1e-3)
    torch.testing.assert_close(torch.stack(alone).mean(), together, rtol=1e-4, atol=1e-5)


def test_a_blurred_source_is_the_original_outside_the_mask(
    small_base: Base, small_config: Config, batch: Batch
) -> None:
    net = GenPropNet(small_base.backbone, NET, SceConfig())

    def source(kind: str) -> Tensor:
        sce = SceConfig.model_validate({"source": kind})
        config = configured(small_config, sce, loss={"downsample": "nearest"})
        return TeacherObjective(net, small_base.image_encoder, config).inputs(batch, None).cond.source

    original, blurred = source("original"), source("blurred")
    assert torch.equal(original, batch["source"])
    inside = batch["mask"][..., ::2, ::2].unsqueeze(2).expand_as(original)
    assert torch.equal(blurred[~inside], original[~inside])
    assert blurred[inside].std() < 0.5 * original[inside].std()


@pytest.mark.slow
@torch.no_grad()
def test_it_can_be_captured_for_export_task_and_all(
    net: GenPropNet, inputs: Inputs, enliven: Enliven
) -> None:
    """Compared on other inputs than those it was captured with: another noise level and another task."""
    enliven(net)
    captured = torch.export.export(net, inputs).module()
    sample, timestep, first, source, embedding, ids = inputs
    others = (sample + 1, timestep - 0.7, first, source - 0.5, embedding, ids + torch.tensor([0, 0, 0, 1.0]))
    for got, expected in zip(captured(*others), net(*others), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)
