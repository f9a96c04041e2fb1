"""A whole bundle, exported once: figures in the manifest, faults, and the same sample on both backends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime import InferenceSession
from torch import Tensor

from genprop.bundle import read_bundle, write_bundle
from genprop.config import Config
from genprop.distill_settings import AdapterConfig
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.export.bundle import export_bundle
from genprop.export.options import ExportOptions
from genprop.export.verify import ERROR, PSNR, run_gates
from genprop.hub import sha256
from genprop.manifest import CONDITIONER, DENOISER, ENCODER, Manifest, read_manifest
from genprop.runtime.backends import Stages, open_stages
from genprop.sampling import consistency
from genprop.student.clone import trained_tensors
from genprop.student.guidance import guided_config
from genprop.student.lora import add_lora, save_lora
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet
from genprop.types import Cond

pytestmark = pytest.mark.slow  # capturing the denoiser takes ten seconds and more

SIGMAS = {1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5)}
Exported = tuple[Path, Manifest]


def new_bundle(folder: Path, config: Config) -> Path:
    """A student with a LoRA, every part of it live."""
    base = new_base(config.base, seed=0)
    save_base(base, folder / "base")
    net = GenPropNet(base.backbone, config.net, config.sce)
    add_lora(net, adapter=AdapterConfig(rank=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    write_bundle(
        folder / "student",
        kind="student",
        config=config,
        base=folder / "base",
        tensors=trained_tensors(net, backbone=False),
        sigmas=SIGMAS,
        eta={4: 0.5},
        save_lora=lambda target: save_lora(net, target, rank=2),
    )
    return folder / "student"


@pytest.fixture(scope="module")
def bundle(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_bundle(tmp_path_factory.mktemp("bundle"), small_config)


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("out") / "export"
    return out, export_bundle(bundle, out)


def spoilt(exported: Exported, folder: Path, graph: str, weight: str) -> None:
    """A copy of an export in which one number of one weight of one graph is another."""
    out, manifest = exported
    shutil.copytree(out, folder)
    file = folder / manifest.graphs[graph].file
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, file)


def test_manifest_is_what_was_written_and_what_the_bundle_says(bundle: Path, exported: Exported) -> None:
    out, manifest = exported
    assert read_manifest(out) == manifest
    card = read_bundle(bundle).card
    assert (manifest.kind, manifest.config) == (card.kind, card.config)
    assert (manifest.sigmas, manifest.eta) == (card.sigmas, card.eta) == (SIGMAS, {4: 0.5})
    assert manifest.scaling_factor == 0.5
    assert manifest.weights == {**card.files, "base": card.base_sha256}
    files = {p.name: sha256(p) for p in out.iterdir() if p.name != "manifest.json"}
    assert manifest.files == files and set(files) == {spec.file for spec in manifest.graphs.values()}


def test_every_stage_is_checked_at_every_sigma_and_the_chain_at_one_and_four_steps(
    exported: Exported,
) -> None:
    _, manifest = exported
    assert manifest.verified
    assert [c.sigma for c in manifest.checks if c.stage == DENOISER] == [80.0, 8.0, 2.0, 1.0, 0.5]
    assert {c.stage for c in manifest.checks} == {*manifest.graphs, "chain"}
    assert max(c.error for c in manifest.checks if c.stage != "chain") <= ERROR
    chain = [c for c in manifest.checks if c.stage == "chain"]
    assert [c.steps for c in chain] == [1, 4]
    assert all(c.psnr is not None and c.psnr > PSNR + 40 for c in chain)


def test_denoiser_takes_the_six_inputs_and_ignores_none(exported: Exported) -> None:
    out, manifest = exported
    spec = manifest.graphs[DENOISER]
    session = InferenceSession(str(out / spec.file))
    names_and_shapes = [(t.name, t.shape) for t in spec.inputs]
    assert [(x.name, tuple(x.shape)) for x in session.get_inputs()] == names_and_shapes
    generator = torch.Generator().manual_seed(2)
    inputs = {t.name: torch.randn(t.sized(), generator=generator).numpy() for t in spec.inputs}
    before = np.asarray(session.run(["velocity"], inputs)[0])
    for name, value in inputs.items():
        after = np.asarray(session.run(["velocity"], {**inputs, name: value + 0.5})[0])
        assert abs(after - before).max() > 1e-3, name


def test_a_wrong_weight_of_the_denoiser_is_found_in_its_layer(
    bundle: Path, exported: Exported, tmp_path: Path
) -> None:
    layer = "net.sce.down_blocks.0.resnets.0.spatial_res_block.conv1"
    spoilt(exported, tmp_path / "export", DENOISER, f"{layer}.weight")
    with pytest.raises(GenPropError, match=r"denoiser in fp32 at sigma 80 departs") as error:
        run_gates(bundle, tmp_path / "export", exported[1])
    assert f"the first layer to depart is {layer} (conv2d)" in error.value.message


def test_damaged_graph_and_unlisted_hash_are_refused(exported: Exported, tmp_path: Path) -> None:
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


def test_backends_agree_on_a_four_step_sample(bundle: Path, exported: Exported) -> None:
    torch_clip, onnx_clip = sample(open_stages(bundle)), sample(open_stages(exported[0]))
    assert torch_clip.std() > 0.01
    psnr = -10 * torch.log10((torch_clip - onnx_clip).square().mean())
    assert psnr >= 50


def test_a_missed_gate_writes_nothing(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missed(*_: object) -> None:
        raise GenPropError("denoiser in fp32 at sigma 8 departs")

    monkeypatch.setattr("genprop.export.bundle.export_graph", lambda *_, **__: None)
    monkeypatch.setattr("genprop.export.bundle.run_gates", missed)
    with pytest.raises(GenPropError, match="denoiser in fp32 at sigma 8 departs"):
        export_bundle(bundle, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def halved(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A student with all that an export takes apart, guidance embedded, in float16 at the other opset."""
    net = small_config.net.model_copy(update={"carry": 16, "gate": True})
    sce = small_config.sce.model_copy(update={"once": True, "fusion": "none"})
    config = guided_config(small_config.model_copy(update={"net": net, "sce": sce}))
    folder = tmp_path_factory.mktemp("halved")
    bundle = new_bundle(folder, config)
    options = ExportOptions(to="onnx", precision="fp16", opset=23)
    return bundle, (folder / "export", export_bundle(bundle, folder / "export", options))


def test_what_a_clip_needs_once_is_a_graph_of_its_own_in_float16(halved: tuple[Path, Exported]) -> None:
    _, (out, manifest) = halved
    prepared = [tensor.name for tensor in manifest.graphs[CONDITIONER].outputs]
    assert prepared[:4] == ["carried", "trust", "handover", "residual_0"]
    assert prepared[3:] == [f"residual_{i}" for i in range(len(prepared) - 3)]
    assert {t.name for t in manifest.graphs[DENOISER].inputs} >= set(prepared)
    assert manifest.verified and manifest.opset == 23
    for runner in ("onnxruntime", "torch"):
        checks = [c for c in manifest.checks if c.runner == runner]
        assert [c.sigma for c in checks if c.stage == DENOISER] == [80.0, 8.0, 2.0, 1.0, 0.5]
        stages = {*manifest.graphs} - ({ENCODER} if runner == "torch" else set())
        assert {c.stage for c in checks} - {"chain"} == stages
    assert all(c.precision == ("fp32" if c.stage == ENCODER else "fp16") for c in manifest.checks)
    # The content encoder's weights, and its work, are in the one graph and not in the other.
    for name in (CONDITIONER, DENOISER):
        graph = onnx.load(out / manifest.graphs[name].file).graph
        weights = any(tensor.name.startswith("net.sce.down_blocks") for tensor in graph.initializer)
        layers = any(p.value.startswith("net.sce.") for node in graph.node for p in node.metadata_props)
        assert weights == layers == (name == CONDITIONER)


@pytest.mark.parametrize(
    ("graph", "layer"),
    [
        (CONDITIONER, "net.sce.down_blocks.0.downsamplers.0.conv"),
        (CONDITIONER, "net.carry.down"),
        (DENOISER, "net.backbone.conv_out"),
    ],
)
def test_a_wrong_weight_of_a_split_graph_is_found_in_its_layer(
    halved: tuple[Path, Exported], tmp_path: Path, graph: str, layer: str
) -> None:
    bundle, export = halved
    spoilt(export, tmp_path / "export", graph, f"{layer}.bias")
    with pytest.raises(GenPropError, match=f"{graph} in fp16") as error:
        run_gates(bundle, tmp_path / "export", export[1])
    assert f"the first layer to depart is {layer} (conv2d)" in error.value.message


def test_a_guided_students_graph_follows_the_scale(halved: tuple[Path, Exported]) -> None:
    _, (out, manifest) = halved
    for name in (CONDITIONER, DENOISER):
        spec = manifest.graphs[name]
        session = InferenceSession(str(out / spec.file))
        generator = torch.Generator().manual_seed(3)
        feed = {t.name: torch.rand(t.sized(), generator=generator).numpy() for t in spec.inputs}
        before = session.run(None, feed)
        feed["added_time_ids"] = feed["added_time_ids"] + np.array([0, 0, 0, 0, 0.3], np.float32)
        after = session.run(None, feed)
        assert (
            max(abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(after, before, strict=True)) > 1e-4
        )
