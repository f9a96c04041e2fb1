"""A whole bundle, exported once: figures in the manifest, faults, and the same sample on both backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession
from torch import Tensor, nn

from genprop.bundle import read_bundle, write_bundle
from genprop.config import Config
from genprop.distill_settings import AdapterConfig
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.export.onnx import export_graph, export_onnx, stage_modules
from genprop.export.spec import DENOISER, graph_specs
from genprop.export.verify import TOLERANCE, check_parity, draw_inputs, measure_graph
from genprop.hub import sha256
from genprop.manifest import Manifest, Parity, read_manifest
from genprop.runtime.backends import Stages, open_stages
from genprop.sampling import consistency
from genprop.student.clone import load_model, trained_tensors
from genprop.student.guidance import guided_config
from genprop.student.lora import add_lora, save_lora
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet
from genprop.types import Cond

pytestmark = pytest.mark.slow  # capturing the denoiser takes ten seconds and more

SIGMAS = {1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5)}


@pytest.fixture(scope="module")
def bundle(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a LoRA, every part of it live."""
    folder = tmp_path_factory.mktemp("bundle")
    base = new_base(small_config.base, seed=0)
    save_base(base, folder / "base")
    net = GenPropNet(base.backbone, small_config.net, small_config.sce)
    add_lora(net, adapter=AdapterConfig(rank=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    write_bundle(
        folder / "student",
        kind="student",
        config=small_config,
        base=folder / "base",
        tensors=trained_tensors(net, backbone=False),
        sigmas=SIGMAS,
        eta={4: 0.5},
        save_lora=lambda target: save_lora(net, target, rank=2),
    )
    return folder / "student"


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("out") / "export"
    return out, export_onnx(bundle, out)


def test_manifest_is_what_was_written_and_what_the_bundle_says(
    bundle: Path, exported: tuple[Path, Manifest]
) -> None:
    out, manifest = exported
    assert read_manifest(out) == manifest
    card = read_bundle(bundle).card
    assert (manifest.kind, manifest.config) == (card.kind, card.config)
    assert (manifest.sigmas, manifest.eta) == (card.sigmas, card.eta) == (SIGMAS, {4: 0.5})
    assert manifest.scaling_factor == 0.5
    assert manifest.weights == {**card.files, "base": card.base_sha256}
    files = {p.name: sha256(p) for p in out.iterdir() if p.name != "manifest.json"}
    assert manifest.files == files and set(files) == {spec.file for spec in manifest.graphs.values()}


def test_every_stage_agrees_at_every_sigma(exported: tuple[Path, Manifest]) -> None:
    _, manifest = exported
    assert [p.sigma for p in manifest.parity if p.graph == DENOISER] == [80.0, 8.0, 2.0, 1.0, 0.5]
    assert {p.graph for p in manifest.parity} == set(manifest.graphs)
    assert manifest.worst == max(p.error for p in manifest.parity) <= TOLERANCE


def test_denoiser_takes_the_six_inputs_and_ignores_none(exported: tuple[Path, Manifest]) -> None:
    out, manifest = exported
    spec = manifest.graphs[DENOISER]
    session = InferenceSession(str(out / spec.file))
    names_and_shapes = [(t.name, t.shape) for t in spec.inputs]
    assert [(x.name, tuple(x.shape)) for x in session.get_inputs()] == names_and_shapes
    generator = torch.Generator().manual_seed(2)
    inputs = {t.name: torch.randn(t.sized(1), generator=generator).numpy() for t in spec.inputs}
    before = np.asarray(session.run(["velocity"], inputs)[0])
    for name, value in inputs.items():
        after = np.asarray(session.run(["velocity"], {**inputs, name: value + 0.5})[0])
        assert abs(after - before).max() > 1e-3, name


def test_perturbed_weight_makes_verification_fail(
    bundle: Path, exported: tuple[Path, Manifest], tmp_path: Path
) -> None:
    out, manifest = exported
    spec = manifest.graphs[DENOISER]
    graph = onnx.load(out / spec.file)
    weight = next(t for t in graph.graph.initializer if t.name.endswith("sce.conv_in.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.05, weight.name))
    onnx.save(graph, tmp_path / spec.file)
    _, net, base = load_model(bundle)
    module = stage_modules(net, base)[DENOISER]
    parity = tuple(measure_graph(tmp_path / spec.file, module, spec, sigmas=(8.0,), chunk=1))
    with pytest.raises(GenPropError, match=r"denoiser differs .* at sigma 8"):
        check_parity(parity)


def test_damaged_graph_and_unlisted_hash_are_refused(exported: tuple[Path, Manifest], tmp_path: Path) -> None:
    out, manifest = exported
    for file in out.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    graph = tmp_path / "denoiser.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with pytest.raises(GenPropError) as error:
        open_stages(tmp_path)
    assert manifest.files["denoiser.onnx"] in error.value.message and sha256(graph) in error.value.message
    table = json.loads((tmp_path / "manifest.json").read_text())
    del table["files"]["denoiser.onnx"]
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(GenPropError, match=r"no hash of denoiser\.onnx"):
        open_stages(tmp_path)


def sample(stages: Stages) -> Tensor:
    """A clip in [0, 1] from 4 re-noised steps of a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    clip = stages.config.clip
    frames = 2 * torch.rand(1, clip.frames, 3, clip.height, clip.width, generator=generator) - 1
    first = stages.encode(frames[:, :1])
    cond = Cond(
        first=first.expand(-1, clip.frames, -1, -1, -1),
        source=stages.encode(frames) * stages.scaling_factor,
        image_embedding=stages.embed(frames[:, 0]),
        added_time_ids=torch.tensor([[6.0, 127.0, 0.02]]),
    )
    noise = torch.randn(cond.source.shape, generator=generator)
    sigmas = torch.tensor([*stages.sigmas[4], 0.0])
    latents, _ = consistency(NetDenoiser(stages.net), noise, sigmas, cond, generator=generator)
    return (stages.decode(latents) + 1) / 2


def test_backends_agree_on_a_four_step_sample(bundle: Path, exported: tuple[Path, Manifest]) -> None:
    torch_clip, onnx_clip = sample(open_stages(bundle)), sample(open_stages(exported[0]))
    assert torch_clip.std() > 0.01
    psnr = -10 * torch.log10((torch_clip - onnx_clip).square().mean())
    assert psnr >= 50


def test_missed_parity_writes_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parity = (Parity(graph=DENOISER, sigma=8.0, error=1.0),)
    monkeypatch.setattr("genprop.export.onnx.export_graph", lambda *_, **__: None)
    monkeypatch.setattr("genprop.export.onnx.measure_parity", lambda *_, **__: parity)
    with pytest.raises(GenPropError, match="denoiser differs from PyTorch by 1 at sigma 8"):
        export_onnx(bundle, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_guided_students_graph_follows_the_scale(
    small_config: Config, enliven: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """On a scale other than that of the export, and without a task."""
    base, config = new_base(small_config.base, seed=0), guided_config(small_config)
    net = GenPropNet(base.backbone, config.net, config.sce).requires_grad_(True)
    enliven(net).requires_grad_(False).eval()
    spec = graph_specs(
        config.clip, latent_channels=4, embedding_width=32, downsampling=2, columns=config.net.columns
    )[DENOISER]
    export_graph(net, spec, tmp_path / spec.file, opset=20)
    parity = tuple(measure_graph(tmp_path / spec.file, net, spec, sigmas=(80.0, 0.5), chunk=1))
    assert check_parity(parity) <= TOLERANCE
    session = InferenceSession(str(tmp_path / spec.file))
    feed = {t.name: x.numpy() for t, x in zip(spec.inputs, draw_inputs(spec, 3), strict=True)}
    before = np.asarray(session.run(["velocity"], feed)[0])
    feed["added_time_ids"] = feed["added_time_ids"] + np.array([0, 0, 0, 0, 0.3], np.float32)
    assert abs(np.asarray(session.run(["velocity"], feed)[0]) - before).max() > 1e-4
