"""Which backend opens which folder, and what an export gives when it is opened.

The export here has a convolution for a denoiser: `tests/export/test_bundle.py` has the real one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.export.folder import file_hashes
from genprop.export.modules import stage_modules
from genprop.export.onnx import export_graph
from genprop.export.spec import graph_specs
from genprop.hub import sha256
from genprop.manifest import DENOISER, ENCODER, FILE, Check, EngineSpec, Manifest
from genprop.runtime.backends import Stages, open_stages
from genprop.runtime.backends.graphs import OnceForAClip
from genprop.runtime.backends.torch import TorchNet, on_device
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
    """`small_config` with an autoencoder of one block on 2x2 patches, which is exported in a second.

    Its windows have two frames, so that three are two windows.
    """
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
    return small_config.model_copy(
        update={"base": small_config.base.model_copy(update={"vae": vae, "chunk": 2})}
    )


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
    model, net, base = load_model(bundle)
    specs = graph_specs(model, net, base)
    modules = {**stage_modules(net, base, specs), DENOISER: small.requires_grad_(False).eval()}
    for name, spec in specs.items():
        export_graph(modules[name], spec, folder / spec.file, opset=20)
    manifest = Manifest(
        kind="student",
        config=light_config,
        sigmas=SIGMAS,
        eta=ETA,
        scaling_factor=0.5,
        latent_channels=4,
        encode_frames=specs[ENCODER].inputs[0].sized()[1],
        chunk=2,
        opset=20,
        graphs=specs,
        files=file_hashes(folder),
        weights={},
        versions={},
        checks=(Check(stage=DENOISER, runner="onnxruntime", precision="fp32", error=0.0, passed=True),),
    )
    (folder / FILE).write_text(manifest.model_dump_json())
    return folder


@pytest.fixture
def changed(export: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the export with changes to its manifest."""

    def change(**update: Any) -> Path:
        copy = Path(shutil.copytree(export, tmp_path / "copy"))
        manifest = Manifest.model_validate_json((copy / FILE).read_bytes()).model_copy(update=update)
        (copy / FILE).write_text(manifest.model_dump_json())
        return copy

    return change


def test_auto_takes_the_backend_that_fits(bundle: Path, export: Path) -> None:
    for stages, backend in ((open_stages(bundle), "torch"), (open_stages(export), "onnxruntime")):
        assert (stages.backend, stages.kind, stages.scaling_factor) == (backend, "student", 0.5)
        assert (stages.sigmas, stages.eta) == (SIGMAS, ETA) and stages.config.name == "small"
    assert open_stages(bundle).why == "bundle on the CPU: torch"
    assert open_stages(export).why.startswith("export folder, ONNX Runtime")


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
def test_engines_are_made_from_a_bundle_before_they_are_run(backend: str) -> None:
    with pytest.raises(GenPropError, match="is a bundle") as error:
        open_stages("tiny", backend=backend)
    assert f"--to {backend}" in error.value.hint


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


def test_an_export_that_was_not_verified_is_refused_unless_told(changed: Callable[..., Path]) -> None:
    folder = changed(checks=())
    with pytest.raises(GenPropError, match="without verification") as error:
        open_stages(folder)
    assert "--unverified" in error.value.hint and "--no-verify" in error.value.hint
    assert open_stages(folder, unverified=True).backend == "onnxruntime"


def test_an_export_has_one_precision(export: Path) -> None:
    assert open_stages(export, precision="fp32").backend == "onnxruntime"
    with pytest.raises(GenPropError, match=r"fp16 was asked for, and .* was exported in fp32"):
        open_stages(export, precision="fp16")


ENGINE = EngineSpec(
    graph=DENOISER,
    file="denoiser.engine",
    backend="tensorrt-rtx",
    version="1",
    targets=("8.9",),
    key="",
    fingerprint={},
    seconds=1.0,
    peak=1,
    memory=1,
)


@pytest.fixture
def with_engine(changed: Callable[..., Path], export: Path) -> Path:
    """An export that has an engine, too."""
    files = Manifest.model_validate_json((export / FILE).read_bytes()).files
    folder = changed(engines={DENOISER: ENGINE}, files={**files, ENGINE.file: ""})
    (folder / ENGINE.file).write_bytes(b"an engine")
    manifest = Manifest.model_validate_json((folder / FILE).read_bytes())
    files = {**files, ENGINE.file: sha256(folder / ENGINE.file)}
    (folder / FILE).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    return folder


def tensorrt(monkeypatch: pytest.MonkeyPatch, open_tensorrt: Callable[..., Stages]) -> None:
    """Stands in for the module of that name."""
    module = ModuleType("genprop.runtime.backends.tensorrt")
    module.open_tensorrt = open_tensorrt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_engines_that_run_here_are_taken(
    with_engine: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = replace(open_stages(bundle), backend="tensorrt-rtx", why="engines for 8.9, and this GPU is 8.9")
    asked = []
    tensorrt(monkeypatch, lambda folder, *, backend, light: asked.append((folder, backend)) or engines)
    assert open_stages(with_engine, strict=True) == engines
    assert asked == [(with_engine, "tensorrt-rtx")]


def test_engines_that_do_not_run_here_are_passed_over_aloud_or_refused(
    with_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *, backend: str, light: bool) -> Stages:
        raise GenPropError("engines of 8.9, and this GPU is 9.0")

    tensorrt(monkeypatch, refuse)
    stages = open_stages(with_engine)
    assert stages.backend == "onnxruntime" and stages.why.startswith("export folder, ONNX Runtime")
    assert stages.why.endswith(
        "; its engines of tensorrt-rtx were passed over: engines of 8.9, and this GPU is 9.0"
    )
    for strict in ({"strict": True}, {"backend": "tensorrt-rtx"}):
        with pytest.raises(GenPropError, match=r"this GPU is 9\.0"):
            open_stages(with_engine, **strict)  # type: ignore[arg-type]
    assert open_stages(with_engine, backend="onnxruntime", strict=True).backend == "onnxruntime"


def test_a_clip_is_prepared_once_until_a_tensor_is_replaced_or_written_to() -> None:
    calls = []
    once = OnceForAClip(lambda a, b: calls.append(0) or a + b)
    a, b = torch.zeros(2), torch.ones(2)
    assert once(a, b) is once(a, b) and len(calls) == 1
    assert once(a.clone(), b) is not None and len(calls) == 2  # equal is not the same
    once(a, b)
    assert len(calls) == 3
    a += 1
    assert once(a, b).tolist() == [2.0, 2.0] and len(calls) == 4
    with torch.inference_mode():
        inference = torch.zeros(2)  # has no count of how often it was written to
    assert once(inference, b) is once(inference, b) and len(calls) == 5


def test_the_network_prepares_a_clip_once_for_all_steps() -> None:
    class Net:
        prepared = 0

        def prepare(self, first: Tensor, source: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
            self.prepared += 1
            return first + source

        def parts(self, sample: Tensor, *rest: Tensor, prepared: Tensor) -> Any:
            return type("Parts", (), {"out": NetOut(sample + prepared, rest[0])})

    network = Net()
    net: Any = TorchNet(network, lambda function: function)  # type: ignore[arg-type]
    clip = tuple(torch.full((1,), float(n)) for n in (1, 2, 3, 4))
    for step in range(3):
        assert net(torch.tensor([step]), torch.zeros(1), *clip).velocity.item() == step + 3
    assert network.prepared == 1
    assert net(torch.zeros(1), torch.zeros(1), clip[0] + 1, *clip[1:]).velocity.item() == 4
    assert network.prepared == 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_may_be_of_less_precision_and_what_goes_in_and_out_is_float32(
    bundle: Path, precision: Any, rng: torch.Generator
) -> None:
    frames = 2 * torch.rand(1, 3, 3, 16, 16, generator=rng) - 1
    full, half = open_stages(bundle), open_stages(bundle, precision=precision)
    latents = full.encode(frames)
    noise, clip = torch.randn(2, 1, 3, 4, 8, 8, generator=rng)
    rest = torch.zeros(1, 1, 32), torch.zeros(1, 3)
    for name, run in {
        "encode": lambda of: of.encode(frames),
        "decode": lambda of: of.decode(latents),
        "embed": lambda of: of.embed(frames[:, 0]),
        "net": lambda of: of.net(noise, torch.tensor([0.1]), clip, clip, *rest).velocity,
    }.items():
        got, expected = run(half), run(full)
        assert got.dtype == expected.dtype == torch.float32
        assert (got - expected).norm() < 0.05 * expected.norm()
        # An autoencoder's encoder overflows in float16.
        assert torch.equal(got, expected) == (name == "encode" and precision == "fp16")


@pytest.mark.slow
def test_compiled_is_torch_up_to_rounding(bundle: Path, rng: torch.Generator) -> None:
    frames = 2 * torch.rand(1, 3, 3, 16, 16, generator=rng) - 1
    noise, clip = torch.randn(2, 1, 3, 4, 8, 8, generator=rng)
    rest = torch.zeros(1, 1, 32), torch.zeros(1, 3)
    ours, theirs = open_stages(bundle), open_stages(bundle, backend="compile")
    for run in (
        lambda of: of.encode(frames),
        lambda of: of.decode_window(clip),
        lambda of: of.net(noise, torch.tensor([0.1]), clip, clip, *rest).velocity,
    ):
        torch.testing.assert_close(run(theirs), run(ours), atol=1e-4, rtol=0.0)


def test_the_runtime_is_imported_without_model_code() -> None:
    program = """
import sys
from genprop.runtime.propagate import load
models = {"genprop.student", "genprop.teacher", "diffusers", "transformers", "accelerate", "peft"}
print((models | {"onnxruntime"}) & set(sys.modules))
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_onnxruntime_needs_no_model_code(export: Path) -> None:
    program = """
import sys
from genprop.runtime.backends import open_stages
open_stages(sys.argv[1])
print({"diffusers", "transformers", "peft", "accelerate", "genprop.student"} & set(sys.modules))
"""
    command = [sys.executable, "-c", program, str(export)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"
