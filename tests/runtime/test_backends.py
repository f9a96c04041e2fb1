"""Which backend opens which folder, and what an export gives when it is opened.

The export here has a convolution for a denoiser: `tests/export/test_onnx.py` has the real one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.export.manifest import file_hashes
from genprop.export.onnx import export_graph, stage_modules
from genprop.export.spec import DENOISER, graph_specs
from genprop.hub import sha256
from genprop.manifest import Manifest
from genprop.runtime.backends import open_stages
from genprop.runtime.backends.torch import on_device
from genprop.student.clone import load_model, trained_tensors
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet
from genprop.types import NetOut

SIGMAS = {1: (80.0,), 4: (80.0, 8.0, 2.0, 0.5)}
ETA = {4: 0.25}


class Small(nn.Module):
    """Stands in for a denoiser: all six inputs, both outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        frames = torch.cat([sample, first, source], dim=2)
        velocity = self.conv(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        shift = timestep + image_embedding.mean() + added_time_ids.mean()
        return NetOut(velocity + shift, velocity.mean(2, keepdim=True))


@pytest.fixture(scope="module")
def light_config(small_config: Config) -> Config:
    """`small_config` with an autoencoder of one block on 2x2 patches, which is exported in a second."""
    vae = {
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [8],
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.5,
    }
    return small_config.model_copy(update={"base": small_config.base.model_copy(update={"vae": vae})})


@pytest.fixture(scope="module")
def bundle(light_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    base = new_base(light_config.base, seed=0)
    save_base(base, folder / "base")
    tensors = trained_tensors(GenPropNet(base.backbone, light_config.net, light_config.sce), backbone=False)
    write_bundle(
        folder / "student",
        kind="student",
        config=light_config,
        base=folder / "base",
        tensors=tensors,
        sigmas=SIGMAS,
        eta=ETA,
    )
    return folder / "student"


@pytest.fixture(scope="module")
def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


@pytest.fixture(scope="module")
def export(
    bundle: Path, small: Small, light_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("export")
    _, net, base = load_model(bundle)
    modules = {**stage_modules(net, base), DENOISER: small.requires_grad_(False).eval()}
    specs = graph_specs(light_config.clip, latent_channels=4, embedding_width=32, downsampling=2)
    for name, spec in specs.items():
        export_graph(modules[name], spec, folder / spec.file, opset=20)
    manifest = Manifest(
        kind="student",
        config=light_config,
        sigmas=SIGMAS,
        eta=ETA,
        scaling_factor=0.5,
        latent_channels=4,
        chunk=2,  # so that three frames are two chunks
        opset=20,
        graphs=specs,
        files=file_hashes(folder),
        weights={},
        versions={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def test_auto_takes_the_backend_that_fits(bundle: Path, export: Path) -> None:
    for stages, backend in ((open_stages(bundle), "torch"), (open_stages(export), "onnxruntime")):
        assert (stages.backend, stages.kind, stages.scaling_factor) == (backend, "student", 0.5)
        assert (stages.sigmas, stages.eta) == (SIGMAS, ETA) and stages.config.name == "small"


def test_autoencoder_and_image_encoder_agree(bundle: Path, export: Path, rng: torch.Generator) -> None:
    frames = 2 * torch.rand(1, 3, 3, 16, 16, generator=rng) - 1
    ours, theirs = open_stages(bundle), open_stages(export)
    latents = ours.encode(frames)
    assert latents.shape == (1, 3, 4, 8, 8) and ours.embed(frames[:, 0]).shape == (1, 1, 32)
    for got, expected in (
        (theirs.encode(frames), latents),
        (theirs.encode(frames[:, :1]), latents[:, :1]),
        (theirs.decode(latents), ours.decode(latents)),
        (theirs.embed(frames[:, 0]), ours.embed(frames[:, 0])),
    ):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0.0)


def test_net_takes_its_inputs_in_order(export: Path, small: Small, rng: torch.Generator) -> None:
    inputs = tuple(torch.randn(1, 3, 4, 8, 8, generator=rng) for _ in range(3))
    sample, first, source = inputs
    rest = torch.randn(1, 1, 32, generator=rng), torch.randn(1, 3, generator=rng)
    timestep = torch.tensor([0.7])
    got = open_stages(export).net(sample, timestep, first.expand(1, 3, 4, 8, 8), source, *rest)
    torch.testing.assert_close(got, small(sample, timestep, first, source, *rest), atol=1e-5, rtol=0.0)


def test_torch_net_has_no_gradient(bundle: Path, rng: torch.Generator) -> None:
    stages = open_stages(bundle, backend="torch")
    sample, first, source = torch.randn(3, 1, 3, 4, 8, 8, generator=rng)
    out = stages.net(sample, torch.tensor([0.1]), first, source, torch.zeros(1, 1, 32), torch.zeros(1, 3))
    assert out.velocity.shape == (1, 3, 4, 8, 8) and out.mask_logits.shape == (1, 3, 1, 8, 8)
    assert out.velocity.is_inference() and stages.device == out.velocity.device


def test_on_device_moves_every_tensor() -> None:
    run = on_device(lambda a, b: (a.device.type, b.device.type), torch.device("meta"))
    assert run(torch.zeros(1), torch.zeros(1)) == ("meta", "meta")


def test_compile_is_a_bundle_run_by_torch(bundle: Path) -> None:
    assert open_stages(bundle, backend="compile").backend == "compile"


@pytest.mark.parametrize("backend", ["torch", "compile"])
def test_torch_backends_refuse_an_export(export: Path, backend: str) -> None:
    with pytest.raises(GenPropError, match=f"backend '{backend}' runs bundles") as error:
        open_stages(export, backend=backend)
    assert "onnxruntime" in error.value.hint


def test_onnxruntime_refuses_a_bundle_and_says_how_to_export(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="is a bundle") as error:
        open_stages(bundle, backend="onnxruntime")
    assert f"genprop export {bundle} --to onnx --out DIR" in error.value.hint
    with pytest.raises(GenPropError, match="is not an export"):
        open_stages(tmp_path, backend="onnxruntime")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_is_named_and_refused(backend: str) -> None:
    with pytest.raises(GenPropError, match=f"'{backend}' needs TensorRT engines") as error:
        open_stages("tiny", backend=backend)
    assert "onnxruntime" in error.value.hint


def test_unknown_backend_names_the_known() -> None:
    with pytest.raises(GenPropError, match="no backend named 'cuda'") as error:
        open_stages("tiny", backend="cuda")
    assert "torch" in error.value.hint


def test_damaged_file_names_both_hashes_and_missing_file_its_name(export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export, tmp_path / "copy"))
    file = copy / "image_encoder.onnx"
    expected = sha256(file)
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(GenPropError) as error:
        open_stages(copy)
    assert expected in error.value.message and sha256(file) in error.value.message
    file.unlink()
    with pytest.raises(GenPropError, match=r"lacks image_encoder\.onnx"):
        open_stages(copy)


def test_unreadable_graph_is_a_user_error(export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export, tmp_path / "copy"))
    (copy / "denoiser.onnx").write_bytes(b"not a graph")
    manifest = Manifest.model_validate_json((copy / "manifest.json").read_bytes())
    files = {**manifest.files, "denoiser.onnx": sha256(copy / "denoiser.onnx")}
    (copy / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    with pytest.raises(GenPropError, match="cannot be opened by ONNX Runtime"):
        open_stages(copy)


def test_onnxruntime_needs_no_model_code(export: Path) -> None:
    program = """
import sys
from genprop.runtime.backends import open_stages
open_stages(sys.argv[1])
print({"diffusers", "transformers", "peft", "accelerate", "genprop.student"} & set(sys.modules))
"""
    command = [sys.executable, "-c", program, str(export)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"
