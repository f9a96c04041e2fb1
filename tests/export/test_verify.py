"""The gates' parts: what is drawn, what is compared with what, and which figures miss which bar."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genprop.bundle import Bundle, Card
from genprop.config import Config
from genprop.edm import karras_sigmas
from genprop.errors import GenPropError
from genprop.export.bisect import Departure
from genprop.export.chain import Chain, chain_of, psnr, sample_frames, schedules
from genprop.export.inputs import (
    NET_INPUTS,
    Trial,
    draw_inputs,
    sigmas_to_verify,
    sizes_to_verify,
    trials,
    whole_net,
)
from genprop.export.modules import stage_modules
from genprop.export.spec import graph_specs
from genprop.export.verify import bar_missed, chain_gate, gate, inner_inputs, reduced_modules, references
from genprop.graphnet import Graph, GraphNet
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    ENCODER,
    Check,
    GraphSpec,
    Manifest,
    Precision,
    SizeRange,
    TensorSpec,
)
from genprop.settings import SamplingConfig
from genprop.student.guidance import guided_config
from genprop.teacher.base import Base, new_base
from genprop.teacher.net import GenPropNet

SIGMAS = {1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5), 8: (80.0,) * 8}
Enliven = Callable[[nn.Module], nn.Module]


def split_config(config: Config) -> Config:
    """A network with all that is prepared once for a clip: a carry and a static content encoder."""
    net = config.net.model_copy(update={"carry": 16, "gate": True})
    sce = config.sce.model_copy(update={"once": True, "fusion": "none"})
    return config.model_copy(update={"net": net, "sce": sce})


def model_of(config: Config, enliven: Enliven) -> tuple[GenPropNet, Base]:
    torch.manual_seed(0)
    base = new_base(config.base, seed=0)
    net = GenPropNet(base.backbone, config.net, config.sce)
    enliven(net)
    for module in (net, *base):
        module.requires_grad_(False).eval()
    return net, base


def specs_of(
    config: Config, net: GenPropNet, base: Base, *, precision: Precision = "fp32"
) -> dict[str, GraphSpec]:
    card = Card(kind="student", config=config, base="", base_sha256="", files={})
    return graph_specs(Bundle(Path(), card), net, base, precision=precision)


def manifest_of(config: Config, specs: dict[str, GraphSpec], *, kind: str = "student") -> Manifest:
    return Manifest.model_validate(
        {
            "kind": kind,
            "config": config,
            "sigmas": SIGMAS if kind == "student" else {},
            "eta": {4: 0.5},
            "scaling_factor": 0.5,
            "latent_channels": 4,
            "precision": specs[DENOISER].precision,
            "encode_frames": specs[ENCODER].inputs[0].shape[1],
            "chunk": specs[DECODER].inputs[0].shape[1],
            "opset": 20,
            "graphs": specs,
            "files": {},
            "weights": {},
            "versions": {},
        }
    )


def test_inputs_are_fresh_in_every_tensor_and_told_as_they_will_be(
    small_config: Config, enliven: Enliven
) -> None:
    config = guided_config(split_config(small_config))
    specs = specs_of(config, *model_of(config, enliven))
    for spec in specs.values():
        pairs = zip(draw_inputs(spec, 0), draw_inputs(spec, 1), strict=True)
        assert all((a != b).any() for a, b in pairs)
    timestep = draw_inputs(specs[DENOISER], 0, sigma=80.0)[1]
    assert timestep.item() == pytest.approx(math.log(80) / 4)
    place = [tensor.name for tensor in specs[DENOISER].inputs].index("added_time_ids")
    rows = torch.cat([draw_inputs(specs[DENOISER], seed)[place] for seed in range(40)])
    assert rows.shape == (40, 5) and set(rows[:, 3].tolist()) == {0, 1, 2, 3}
    assert rows[:, 4].min() < 1 < 3 < rows[:, 4].max() and (rows[:, 4] % 1 > 0.01).any()


def test_sigmas_are_all_of_the_student_and_five_of_the_teacher() -> None:
    sampling = SamplingConfig(sigma_max=80.0)
    assert sigmas_to_verify(SIGMAS, sampling) == (80.0, 8.0, 2.0, 1.0, 0.5)
    karras = karras_sigmas(25, sigma_min=0.002, sigma_max=80.0).tolist()
    assert sigmas_to_verify({}, sampling) == tuple(karras[i] for i in (0, 6, 12, 18, 24))


def test_trials_are_of_every_stage_and_sigma_and_never_of_the_same_inputs(
    small_config: Config, enliven: Enliven
) -> None:
    config = split_config(small_config)
    specs = specs_of(config, *model_of(config, enliven))
    assert [t.name for t in specs[CONDITIONER].outputs[:3]] == ["carried", "trust", "handover"]
    found = [*trials(manifest_of(config, specs))]
    assert [t.stage for t in found][:2] == [CONDITIONER, DENOISER]
    assert {t.stage for t in found} == set(specs)
    assert [t.sigma for t in found if t.stage == DENOISER] == [80.0, 8.0, 2.0, 1.0, 0.5]
    samples = [t.inputs[0] for t in found if t.stage == DENOISER]
    assert all((a != b).any() for a, b in itertools.pairwise(samples))
    assert str(found[1]) == "denoiser in fp32 at sigma 80"
    whole = whole_net(specs)
    assert (
        tuple(tensor.name for tensor in whole.inputs) == NET_INPUTS
        and whole.outputs == specs[DENOISER].outputs
    )


def test_graphs_of_any_size_are_tried_at_the_smallest_as_well(small_config: Config, enliven: Enliven) -> None:
    manifest = manifest_of(small_config, specs_of(small_config, *model_of(small_config, enliven)))
    one = {"height": 16, "width": 16, "grid_height": 8, "grid_width": 8}
    assert sizes_to_verify(manifest) == (None,)
    sizes = SizeRange(min_height=8, max_height=32, min_width=12, max_width=32, multiple=4, cells=2)
    both = sizes_to_verify(manifest.model_copy(update={"sizes": sizes}))
    assert both == (one, {"height": 8, "width": 12, "grid_height": 4, "grid_width": 6})


Stages = dict[str, Graph]


def as_stages(modules: dict[str, nn.Module]) -> Stages:
    def stage(module: nn.Module) -> Graph:
        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            out = module(*tensors)
            return (out,) if isinstance(out, Tensor) else tuple(out)

        return run

    return {name: stage(module) for name, module in modules.items()}


@torch.no_grad()
def test_split_and_rewritten_stages_do_what_the_plain_model_does(
    small_config: Config, enliven: Enliven
) -> None:
    """Conditioner and denoiser together, at every sigma, and the whole chain: what an export is made of."""
    config = split_config(small_config)
    plain, plain_base = model_of(config, enliven)
    net, base = model_of(config, enliven)
    specs = specs_of(config, net, base)
    manifest = manifest_of(config, specs)
    stages = as_stages(stage_modules(net, base, specs))
    expected_of = references(plain, plain_base)
    for trial in trials(manifest):
        whole = {**stages, DENOISER: GraphNet(specs, stages)}
        got, expected = whole[trial.stage](*trial.inputs), expected_of[trial.stage](*trial.inputs)
        check = gate(trial, got, expected, runner="onnxruntime", explain=lambda: None)
        assert check.passed and check.error < 1e-5
        alone = stages[trial.stage](*inner_inputs(plain, manifest, trial))
        for a, b in zip(alone, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    ours = Chain(
        plain, plain_base.autoencoder.encode, plain_base.image_encoder, plain_base.autoencoder.decode
    )
    for sigmas in schedules(manifest):
        frames = sample_frames(ours, manifest, sigmas)
        assert frames.shape == (1, 3, 3, 16, 16) and frames.std() > 1e-3
        assert psnr(sample_frames(chain_of(manifest, stages), manifest, sigmas), frames) > 100


def test_schedules_are_of_one_and_the_most_few_steps_and_two_of_a_teacher(
    small_config: Config, enliven: Enliven
) -> None:
    specs = specs_of(small_config, *model_of(small_config, enliven))
    student = manifest_of(small_config, specs)
    assert [s.tolist() for s in schedules(student)] == [[80.0, 0.0], [80.0, 8.0, 2.0, 0.5, 0.0]]
    many = student.model_copy(update={"sigmas": {8: (80.0,) * 8}})
    assert [len(s) - 1 for s in schedules(many)] == [8]
    teacher = manifest_of(small_config, specs, kind="teacher")
    assert [len(s) - 1 for s in schedules(teacher)] == [2]
    frames = []
    for scale in (1.0, 3.0):  # the guided teacher: its scale counts
        sampling = small_config.sampling.model_copy(update={"guidance_max": scale})
        guided = teacher.model_copy(update={"config": small_config.model_copy(update={"sampling": sampling})})
        net, base = model_of(small_config, enliven)
        chain = Chain(net, base.autoencoder.encode, base.image_encoder, base.autoencoder.decode)
        frames.append(sample_frames(chain, guided, next(schedules(guided))))
    assert psnr(frames[0], frames[1]) < 60


def test_reduced_modules_are_copies_in_the_precision_of_their_graphs(
    small_config: Config, enliven: Enliven
) -> None:
    net, base = model_of(small_config, enliven)
    specs = specs_of(small_config, net, base)
    assert reduced_modules(net, base, manifest_of(small_config, specs)) == {}
    half = specs_of(small_config, net, base, precision="fp16")
    modules = reduced_modules(net, base, manifest_of(small_config, half))
    assert set(modules) == set(specs) - {ENCODER}  # which would overflow
    assert {p.dtype for p in modules[DENOISER].parameters()} == {torch.float16}
    assert net.dtype == torch.float32


def trial_of(precision: Precision, sigma: float | None = None) -> Trial:
    tensor = TensorSpec(name="x", shape=(4,))
    return Trial(
        DENOISER,
        GraphSpec(name=DENOISER, inputs=(tensor,), outputs=(tensor,), precision=precision),
        (),
        sigma,
    )


X = torch.tensor([1.0, -1.0, 1.0, -1.0])
SIDE = torch.tensor([1.0, 1.0, -1.0, -1.0])  # orthogonal to X


@pytest.mark.parametrize(
    ("precision", "got", "message"),
    [
        ("fp32", X + 2e-4, r"largest error 0\.0002, expected at most 0\.0001"),
        ("fp16", X * 1.011, r"relative L2 error 0\.011, expected at most 0\.01"),
        ("bf16", X + 0.05 * SIDE, r"relative L2 error 0\.05, expected at most 0\.01"),
        ("fp16", X * math.nan, "NaN or infinity"),
        ("fp16", X * math.inf, "NaN or infinity"),
        ("fp32", X * math.inf, "NaN or infinity"),
    ],
)
def test_a_missed_bar_names_graph_sigma_figure_bar_and_layer(
    precision: Precision, got: Tensor, message: str
) -> None:
    found = Departure("net.sce.conv_in", "conv2d", 0.25)
    with pytest.raises(GenPropError, match=message) as error:
        gate(trial_of(precision, 8.0), (X, got), (X, X), runner="onnxruntime", explain=lambda: found)
    assert f"denoiser in {precision} at sigma 8" in error.value.message
    assert "net.sce.conv_in (conv2d): relative L2 0.25" in error.value.message and error.value.hint


def test_the_cosine_has_a_bar_of_its_own() -> None:
    assert "cosine similarity 0.9980" in bar_missed("fp16", error=0, cosine=0.998, l2=0.005)
    assert bar_missed("fp16", error=1, cosine=0.9991, l2=0.0099) == ""
    assert bar_missed("fp32", error=9e-5, cosine=0, l2=1) == ""


def test_what_passes_carries_its_figures_of_the_worst_output() -> None:
    check = gate(trial_of("fp16"), (X, X * 1.005), (X, X), runner="torch", explain=lambda: None)
    assert check.passed and check.runner == "torch" and check.sigma is None
    assert (check.error, check.cosine, check.l2) == pytest.approx((5e-3, 1, 5e-3), rel=1e-4)
    zero = torch.zeros(4)
    assert gate(trial_of("fp16"), (zero,), (zero,), runner="torch", explain=lambda: None).passed
    with pytest.raises(GenPropError, match="no layer departs alone"):
        gate(trial_of("fp16"), (zero,), (X,), runner="torch", explain=lambda: None)


def test_frames_below_forty_decibels_miss_and_the_worst_graph_is_named() -> None:
    frames = torch.zeros(1, 2, 3, 4, 4)
    assert psnr(frames + 0.02, frames) == pytest.approx(40, abs=1e-4)
    assert psnr(frames, frames) == pytest.approx(200)
    worst = Check(stage=DENOISER, runner="torch", precision="fp16", sigma=8.0, error=1, l2=9e-3, passed=True)
    mild = Check(stage=DECODER, runner="torch", precision="fp16", error=1, l2=1e-3, passed=True)
    check = chain_gate(frames + 0.019, frames, 4, precision="fp16", so_far=[mild])
    assert (check.stage, check.steps, check.passed) == ("chain", 4, True)
    assert check.psnr == pytest.approx(40.45, abs=0.01) and check.error == pytest.approx(0.019)
    for wrong in (0.021, math.nan):
        with pytest.raises(GenPropError, match=r"frames of 4 steps in fp16 .* expected at least 40") as error:
            chain_gate(frames + wrong, frames, 4, precision="fp16", so_far=[mild, worst])
        assert "denoiser at sigma 8: relative L2 0.009" in error.value.message
