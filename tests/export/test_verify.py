"""Parity of graphs with their modules: on fresh inputs, at every sigma, and with faults put in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession
from torch import Tensor, nn

from genprop.config import Config
from genprop.edm import karras_sigmas
from genprop.errors import GenPropError
from genprop.export.onnx import Decoder, Encoder, export_graph
from genprop.export.spec import DECODER, DENOISER, ENCODER, IMAGE_ENCODER, graph_specs
from genprop.export.verify import (
    EXAMPLE_SEED,
    TOLERANCE,
    check_parity,
    draw_inputs,
    measure_graph,
    sigmas_to_verify,
)
from genprop.manifest import GraphSpec, Parity, TensorSpec
from genprop.settings import ClipConfig, SamplingConfig
from genprop.teacher.base import new_base

Stages = dict[str, tuple[Path, nn.Module, GraphSpec]]


@pytest.fixture(scope="module")
def stages(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Autoencoder and image encoder, exported: file, module and spec of each."""
    folder = tmp_path_factory.mktemp("graphs")
    # Without the convolutions and the attention that only cost capture time.
    lean = {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}
    vae = {**(small_config.base.vae or {}), **lean}
    base = new_base(small_config.base.model_copy(update={"vae": vae}), seed=0)
    specs = graph_specs(small_config.clip, latent_channels=4, embedding_width=32, downsampling=2)
    modules = {
        ENCODER: Encoder(base.autoencoder),
        DECODER: Decoder(base.autoencoder),
        IMAGE_ENCODER: base.image_encoder,
    }
    for name, module in modules.items():
        module.requires_grad_(False).eval()
        export_graph(module, specs[name], folder / specs[name].file, opset=20)
    return {name: (folder / specs[name].file, module, specs[name]) for name, module in modules.items()}


def test_specs_state_shapes_and_names() -> None:
    clip = ClipConfig(frames=25, height=576, width=1024)
    specs = graph_specs(clip, latent_channels=4, embedding_width=1024, downsampling=8)
    denoiser = {t.name: t.shape for t in specs[DENOISER].inputs}
    assert denoiser == {
        "sample": (1, 25, 4, 72, 128),
        "timestep": (1,),
        "first": (1, 25, 4, 72, 128),
        "source": (1, 25, 4, 72, 128),
        "image_embedding": (1, 1, 1024),
        "added_time_ids": (1, 3),
    }
    told = graph_specs(clip, latent_channels=4, embedding_width=1024, downsampling=8, columns=5)[DENOISER]
    assert {t.name: t.shape for t in told.inputs} == {**denoiser, "added_time_ids": (1, 5)}
    assert specs[DENOISER].outputs[1] == TensorSpec(name="mask_logits", shape=(1, 25, 1, 72, 128))
    assert specs[DECODER].inputs[0].sized(7) == (1, 7, 4, 72, 128)
    assert [name for name, spec in specs.items() if spec.dynamic] == [ENCODER, DECODER]


@pytest.mark.parametrize("name", [ENCODER, DECODER, IMAGE_ENCODER])
def test_stage_agrees_with_torch(stages: Stages, name: str) -> None:
    file, module, spec = stages[name]
    parity = tuple(measure_graph(file, module, spec, sigmas=(), chunk=5))  # 5 frames: not as exported
    assert [p.frames for p in parity] == ([1, 5] if spec.dynamic else [None])
    assert 0 <= check_parity(parity) <= TOLERANCE


@pytest.mark.parametrize("name", [ENCODER, DECODER, IMAGE_ENCODER])
def test_session_has_the_names_and_shapes_of_the_spec(stages: Stages, name: str) -> None:
    file, _, spec = stages[name]
    session = InferenceSession(str(file))
    for given, expected in ((session.get_inputs(), spec.inputs), (session.get_outputs(), spec.outputs)):
        assert [x.name for x in given] == [t.name for t in expected]
        assert [tuple(x.shape) for x in given] == [t.shape for t in expected]


def test_graph_names_no_path(stages: Stages) -> None:
    for file, _, _ in stages.values():
        assert str(Path(torch.__file__).parent).encode() not in file.read_bytes()
        assert b"stack_trace" not in file.read_bytes()


def test_perturbed_weight_is_found(stages: Stages, tmp_path: Path) -> None:
    file, module, spec = stages[IMAGE_ENCODER]
    graph = onnx.load(file)
    weight = max(graph.graph.initializer, key=lambda t: math.prod(t.dims))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / file.name)
    parity = tuple(measure_graph(tmp_path / file.name, module, spec, sigmas=(), chunk=1))
    with pytest.raises(GenPropError, match=IMAGE_ENCODER):
        check_parity(parity)


class Shift(nn.Module):
    """Adds the input's mean, or a constant in its place: what state kept by a hook becomes in a graph."""

    def __init__(self, constant: float | None = None) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, frame: Tensor) -> Tensor:
        return frame + (frame.mean() if self.constant is None else self.constant)


def test_value_baked_in_from_the_example_inputs_is_found(tmp_path: Path) -> None:
    tensor = TensorSpec(name="frame", shape=(1, 3, 4, 4))
    spec = GraphSpec(name="shift", inputs=(tensor,), outputs=(TensorSpec(name="out", shape=tensor.shape),))
    (example,) = draw_inputs(spec, EXAMPLE_SEED)
    file = tmp_path / spec.file
    export_graph(Shift(float(example.mean())).eval(), spec, file, opset=20)
    (on_example,) = InferenceSession(str(file)).run(None, {"frame": example.numpy()})
    torch.testing.assert_close(torch.from_numpy(np.asarray(on_example)), Shift()(example))
    with pytest.raises(GenPropError, match="shift differs"):
        check_parity(tuple(measure_graph(file, Shift(), spec, sigmas=(), chunk=1)))


def test_fresh_inputs_are_fresh_in_every_tensor() -> None:
    clip = ClipConfig(frames=2, height=16, width=16)
    for spec in graph_specs(clip, latent_channels=4, embedding_width=8, downsampling=8).values():
        pairs = zip(draw_inputs(spec, 0, frames=2), draw_inputs(spec, 1, frames=2), strict=True)
        assert all((a != b).any() for a, b in pairs)
    timestep = draw_inputs(
        graph_specs(clip, latent_channels=4, embedding_width=8, downsampling=8)[DENOISER], 0, sigma=80.0
    )[1]
    assert timestep.item() == pytest.approx(math.log(80) / 4)


def test_sigmas_are_all_of_the_student_and_five_of_the_teacher() -> None:
    sampling = SamplingConfig(sigma_max=80.0)
    student = {1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5)}
    assert sigmas_to_verify(student, sampling) == (80.0, 8.0, 2.0, 1.0, 0.5)
    karras = karras_sigmas(25, sigma_min=0.002, sigma_max=80.0).tolist()
    assert sigmas_to_verify({}, sampling) == tuple(karras[i] for i in (0, 6, 12, 18, 24))


@pytest.mark.parametrize("error", [2e-4, math.nan, math.inf])
def test_missed_parity_names_stage_and_sigma(error: float) -> None:
    parity = (Parity(graph="x", error=1e-6), Parity(graph=DENOISER, error=error, sigma=8.0))
    with pytest.raises(GenPropError, match=r"denoiser differs .* at sigma 8, expected at most 0\.0001"):
        check_parity(parity)


def test_worst_is_the_largest() -> None:
    assert check_parity((Parity(graph="a", error=1e-6), Parity(graph="b", error=3e-5, frames=1))) == 3e-5


def test_what_a_network_is_told_is_drawn_as_it_will_be() -> None:
    """The task is an index; the guidance scale is a number like any other."""
    clip = ClipConfig(frames=2, height=8, width=8)
    for columns in (3, 4, 5):
        spec = graph_specs(clip, latent_channels=4, embedding_width=8, downsampling=8, columns=columns)
        rows = torch.cat([draw_inputs(spec[DENOISER], seed)[5] for seed in range(40)])
        assert rows.shape == (40, columns)
        if columns > 3:
            assert set(rows[:, 3].tolist()) == {0, 1, 2, 3}
        if columns > 4:
            assert rows[:, 4].min() < 1 < 3 < rows[:, 4].max() and (rows[:, 4] % 1 > 0.01).any()
