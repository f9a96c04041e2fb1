"""The Triton repository: its configurations follow the specs, its model answers each request for itself.

`model.py` runs here against a stand-in for the server's own module. Where GENPROP_TRITONSERVER names the
unpacked wheel nvidia-pytriton, a slow test starts the real server.
"""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import genprop
from genprop.config import Config, load_config
from genprop.errors import GenPropError
from genprop.export.triton import genprop_config, part_models, write_repository
from genprop.hub import sha256
from genprop.manifest import Check, EngineSpec, GraphSpec, Manifest, TensorSpec
from genprop.runtime.backends import Stages
from genprop.runtime.propagate import Model
from genprop.types import NetOut

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FRAMES, SIZE = 4, 16


def config(*, tasks: bool = False, guidance: bool = False) -> Config:
    told = [f"net.tasks={str(tasks).lower()}", f"net.guidance={str(guidance).lower()}"]
    told += [f"distill.guidance={'embedded' if guidance else 'baked'}"]
    sized = [f"clip.frames={FRAMES}", f"clip.height={SIZE}", f"clip.width={SIZE}"]
    return load_config("tiny", (*told, *sized))


def tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, shape=shape)


def make_manifest(folder: Path | None = None, **fields: Any) -> Manifest:
    """Of two graphs, the second with weights in a file of their own, and a classic engine of the first."""
    graphs = {
        "denoiser": GraphSpec(
            name="denoiser",
            inputs=(tensor("sample", 1, 8, 4, "grid_height", "grid_width/2"), tensor("timestep", 1)),
            outputs=(tensor("velocity", 1, 8, 4, 12, 16),),
        ),
        "image_encoder": GraphSpec(
            name="image_encoder",
            inputs=(tensor("frame", 1, 3, 64, 96),),
            outputs=(tensor("image_embedding", 1, 1, 64),),
        ),
    }
    engines = {
        name: EngineSpec(
            graph="denoiser",
            file=f"denoiser.{name}.engine",
            backend=name,
            version="10",
            targets=("8.9",),
            key="0" * 64,
            fingerprint={},
            seconds=1.0,
            peak=1,
            memory=1,
        )
        for name in ("tensorrt", "tensorrt-rtx")
    }
    files = [spec.file for spec in (*graphs.values(), *engines.values())] + ["image_encoder.onnx.data"]
    for name in files if folder is not None else ():
        assert folder is not None
        (folder / name).write_bytes(f"the bytes of {name}".encode())
    passed = Check(stage="denoiser", runner="onnxruntime", precision="fp32", error=0.0, passed=True)
    whole = {
        "kind": "student",
        "config": config(),
        "sigmas": {1: (80.0,)},
        "scaling_factor": 1.0,
        "latent_channels": 4,
        "encode_frames": 5,
        "chunk": 8,
        "opset": 20,
        "graphs": graphs,
        "engines": engines,
        "files": {name: sha256(folder / name) if folder else "" for name in files},
        "weights": {},
        "versions": {},
        "checks": (passed,),
    }
    manifest = Manifest(**(whole | fields))
    if folder is not None:
        (folder / "manifest.json").write_text(manifest.model_dump_json())
    return manifest


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    make_manifest(folder)
    return folder


def test_configuration_of_a_graph_is_its_spec() -> None:
    text, files = part_models(make_manifest())["denoiser"]
    assert files == ["denoiser.onnx"]
    assert text.splitlines()[1:] == [
        'name: "denoiser"',
        'backend: "onnxruntime"',
        'default_model_filename: "denoiser.onnx"',
        "max_batch_size: 0",
        'input { name: "sample" data_type: TYPE_FP32 dims: [ 1, 8, 4, -1, -1 ] }',
        'input { name: "timestep" data_type: TYPE_FP32 dims: [ 1 ] }',
        'output { name: "velocity" data_type: TYPE_FP32 dims: [ 1, 8, 4, 12, 16 ] }',
    ]


def test_classic_engine_is_a_plan_and_one_for_rtx_has_no_model_of_its_own() -> None:
    models = part_models(make_manifest())
    assert set(models) == {"denoiser", "image_encoder", "denoiser_tensorrt"}
    text, files = models["denoiser_tensorrt"]
    assert files == ["denoiser.tensorrt.engine"]
    assert 'name: "denoiser_tensorrt"\nbackend: "tensorrt"\nplatform: "tensorrt_plan"\n' in text
    assert 'default_model_filename: "denoiser.tensorrt.engine"' in text


def test_configuration_of_the_model_says_how_many_and_where() -> None:
    text = genprop_config(make_manifest(), instances=3, kind="gpu")
    assert "instance_group [ { count: 3 kind: KIND_GPU } ]" in text
    assert 'input { name: "frames" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] }' in text
    assert 'input { name: "seed" data_type: TYPE_INT64 dims: [ 1 ] optional: true }' in text


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, set()),
        ({"kind": "teacher"}, {"guidance"}),
        ({"config": config(guidance=True)}, {"guidance"}),
        ({"config": config(tasks=True)}, {"task"}),
    ],
)
def test_task_and_guidance_are_asked_for_where_the_model_is_told(
    fields: dict[str, Any], asked: set[str]
) -> None:
    text = genprop_config(make_manifest(**fields))
    assert {name for name in ("task", "guidance") if f'name: "{name}"' in text} == asked


def test_repository_needs_nothing_beside_it(export: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in export.iterdir()}
    out = write_repository(export, tmp_path / "models")
    shutil.rmtree(export)
    inside = out / "genprop" / "1" / "export"
    assert {file.name: file.read_bytes() for file in inside.iterdir()} == before
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    folders = {"genprop", "denoiser", "denoiser_tensorrt", "image_encoder"}
    assert {entry.name for entry in out.iterdir()} == folders
    assert all((out / name / "config.pbtxt").is_file() for name in folders)
    beside = {file.name for file in (out / "image_encoder" / "1").iterdir()}
    assert beside == {"image_encoder.onnx", "image_encoder.onnx.data"}


def test_files_are_copied_where_they_cannot_be_linked(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    out = write_repository(export, tmp_path / "models", python_models_only=True)
    assert [entry.name for entry in out.iterdir()] == ["genprop"]
    copied = out / "genprop" / "1" / "export" / "denoiser.onnx"
    assert copied.read_bytes() == (export / "denoiser.onnx").read_bytes()
    assert copied.stat().st_nlink == 1


def test_older_repository_is_replaced_even_from_its_own_export(export: Path, tmp_path: Path) -> None:
    out = write_repository(export, tmp_path / "models")
    write_repository(out / "genprop" / "1" / "export", out, python_models_only=True)
    assert [entry.name for entry in out.iterdir()] == ["genprop"]
    assert (out / "genprop" / "1" / "export" / "denoiser.onnx").is_file()


def test_repository_with_a_model_of_somebody_else_is_refused(export: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "models" / "resnet"
    theirs.mkdir(parents=True)
    (theirs / "config.pbtxt").write_text('name: "resnet"')
    with pytest.raises(GenPropError, match="holds resnet"):
        write_repository(export, tmp_path / "models")
    with pytest.raises(GenPropError, match="is a file"):
        write_repository(export, theirs / "config.pbtxt")
    assert theirs.is_dir()


def test_damaged_or_unverified_export_is_not_served(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    with pytest.raises(GenPropError, match="at least 1"):
        write_repository(export, out, instances=0)
    flipped = bytearray((export / "denoiser.onnx").read_bytes())
    flipped[3] ^= 1
    (export / "denoiser.onnx").write_bytes(flipped)
    with pytest.raises(GenPropError, match="SHA-256"):
        write_repository(export, out)
    make_manifest(export, checks=())
    with pytest.raises(GenPropError, match="without its gates"):
        write_repository(export, out)
    assert not out.exists()


# model.py, with a stand-in for the module that the server puts beside it.


@dataclass
class Request:
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ("frames", "mask", "seconds")
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def requested_output_names(self) -> set[str]:
        return set(self.outputs)


class TritonError:
    INTERNAL, INVALID_ARG, CANCELLED = 1, 3, 7

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@dataclass
class Output:
    name: str
    value: np.ndarray

    @classmethod
    def from_dlpack(cls, name: str, value: Tensor) -> Output:
        assert value.is_contiguous()
        return cls(name, value.numpy())


@dataclass
class Response:
    output_tensors: list[Output] = field(default_factory=list)
    error: TritonError | None = None

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error.message
        return {output.name: output.value for output in self.output_tensors}


class Logger:
    lines: ClassVar[list[str]] = []
    log_info = log_error = lines.append


def get_input(request: Request, name: str) -> Tensor | None:
    value = request.inputs.get(name)
    return None if value is None else torch.from_numpy(value)


def stages(told: Config, kind: str = "student") -> Stages:
    """Follows the video: closed form everywhere."""

    def net(
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        sigma = (4 * timestep).exp()
        skip, out = 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1).sqrt()
        x = sample * (sigma**2 + 1).sqrt()
        return NetOut((source - skip * x) / out, 9.0 - source[:, :, :1])

    return Stages(
        backend="onnxruntime",
        kind=kind,
        config=told,
        sigmas={1: (80.0,), 2: (80.0, 1.0)},
        scaling_factor=1.0,
        net=net,
        encode=lambda frames: F.avg_pool3d(frames[0], (1, 4, 4))[None],
        decode_window=lambda latents: latents.repeat_interleave(4, -1).repeat_interleave(4, -2),
        chunk=FRAMES,
        embed=lambda frame: frame.mean((-1, -2))[:, None],
        device=torch.device("cpu"),
    )


Serve = Callable[..., tuple[Any, Model]]


@pytest.fixture
def serve(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`model.py` as written into a repository, initialised with a model of the given configuration."""
    server = ModuleType("triton_python_backend_utils")
    names = {
        "get_input_tensor_by_name": get_input,
        "Tensor": Output,
        "InferenceResponse": Response,
        "TritonError": TritonError,
        "Logger": Logger,
    }
    for name, value in names.items():
        setattr(server, name, value)
    monkeypatch.setitem(sys.modules, server.__name__, server)
    repository = write_repository(export, tmp_path / "models") / "genprop"

    def start(told: Config | None = None, kind: str = "student") -> tuple[Any, Model]:
        model = Model(stages(told or config(), kind))

        def load(folder: Path, *, backend: str) -> Model:
            assert folder == repository / "1" / "export" and backend == "auto"
            return model

        monkeypatch.setattr(genprop, "load", load, raising=False)
        spec = importlib.util.spec_from_file_location("model", repository / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        served = module.TritonPythonModel()
        served.initialize(
            {
                "model_repository": str(repository),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_config": json.dumps({"parameters": {"backend": {"string_value": "auto"}}}),
            }
        )
        return served, model

    return start


def clip(frames: int = 6) -> dict[str, np.ndarray]:
    random = np.random.default_rng(frames)
    video = random.integers(0, 256, (frames, 20, 24, 3), np.uint8)
    return {"frames": video, "edited": 255 - video[0]}


@pytest.mark.parametrize("frames", [1, 6])
def test_an_answer_is_what_the_library_gives(serve: Serve, frames: int) -> None:
    served, model = serve()
    given = clip(frames)
    plain, told = served.execute(
        [
            Request(given),
            Request(
                given
                | {
                    "steps": np.array([1], np.int32),
                    "seed": np.array([-7]),
                    "composite": np.array([False]),
                }
            ),
        ]
    )
    expected = model.propagate(given["frames"], given["edited"])
    assert np.array_equal(plain.outputs["frames"], expected.frames)
    assert np.array_equal(plain.outputs["mask"], expected.mask)
    assert plain.outputs["seconds"].shape == (4,) and plain.outputs["seconds"].dtype == np.float32
    expected = model.propagate(given["frames"], given["edited"], steps=1, seed=-7, composite=False)
    assert np.array_equal(told.outputs["frames"], expected.frames)


def test_only_the_outputs_asked_for_are_sent(serve: Serve) -> None:
    served, _ = serve()
    (response,) = served.execute([Request(clip(), outputs=("mask",))])
    assert set(response.outputs) == {"mask"}


def test_a_fault_is_its_own_requests_answer_and_no_other(serve: Serve) -> None:
    served, _ = serve()
    wrong_steps = Request(clip() | {"steps": np.array([3], np.int32)})
    wrong_size = Request(clip() | {"edited": np.zeros((8, 8, 3), np.uint8)})
    empty = Request(clip() | {"frames": np.zeros((0, 20, 24, 3), np.uint8)})
    first, *faults, gone, last = served.execute(
        [
            Request(clip()),
            wrong_steps,
            wrong_size,
            empty,
            Request(clip() | {"guidance": np.array([2.0], np.float32)}),
            Request(clip(), cancelled=True),
            Request(clip()),
        ]
    )
    assert np.array_equal(first.outputs["frames"], last.outputs["frames"])
    assert [fault.error.code for fault in faults] == [TritonError.INVALID_ARG] * 4
    assert "does not know 3 steps, expected one of 1, 2; Choose one of these" in faults[0].error.message
    assert "no frames" in faults[2].error.message and "baked in" in faults[3].error.message
    assert gone.error.code == TritonError.CANCELLED


def test_a_bug_is_logged_and_survived(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served, _ = serve()

    def run_out(*args: Any, **settings: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(Model, "propagate", run_out)
        (response,) = served.execute([Request(clip())])
    assert response.error.code == TritonError.INTERNAL
    assert response.error.message == "RuntimeError: out of memory"
    assert "Traceback" in Logger.lines[-1]
    (response,) = served.execute([Request(clip())])
    assert response.outputs


def test_task_and_guidance_reach_the_model(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served, _ = serve(config(tasks=True, guidance=True))
    heard: list[dict[str, Any]] = []
    propagate = Model.propagate

    def listen(self: Model, *args: Any, **settings: Any) -> Any:
        heard.append(settings)
        return propagate(self, *args, **settings)

    monkeypatch.setattr(Model, "propagate", listen)
    task = np.frombuffer(b"insert", np.uint8).copy()
    ok, unknown = served.execute(
        [
            Request(clip() | {"task": task, "guidance": np.array([1.5], np.float32)}),
            Request(clip() | {"task": task[:2].copy()}),
        ]
    )
    assert ok.outputs and heard[0] == {"task": "insert", "guidance": 1.5}
    assert "no task 'in'" in unknown.error.message


def test_an_instance_on_a_gpu_takes_its_own_and_a_broken_export_stops_the_start(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = serve()
    taken: list[int] = []

    def refuse(folder: Path, *, backend: str) -> Model:
        raise GenPropError("it has another hash")

    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(genprop, "load", refuse, raising=False)
    with pytest.raises(GenPropError, match="another hash"):
        served.initialize(
            {
                "model_repository": "genprop",
                "model_version": "1",
                "model_instance_kind": "GPU",
                "model_instance_device_id": "2",
                "model_config": json.dumps({"parameters": {"backend": {"string_value": "auto"}}}),
            }
        )
    assert taken == [2]


# The server itself.


@pytest.mark.slow
def test_a_real_server_gives_the_librarys_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tritonserver = os.environ.get("GENPROP_TRITONSERVER")
    if tritonserver is None:
        pytest.skip("GENPROP_TRITONSERVER names no unpacked nvidia-pytriton wheel")
    from genprop.export.bundle import export_bundle

    export_bundle("tiny", tmp_path / "export")
    repository = write_repository(tmp_path / "export", tmp_path / "models")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    triton_client, triton_load = map(importlib.import_module, ("triton_client", "triton_load"))

    model = genprop.load(tmp_path / "export")
    cases = [[triton_load.make_case(model, np.random.default_rng(seed))] for seed in range(2)]
    with triton_load.running(repository, Path(tritonserver), log=tmp_path / "log") as (pid, port):
        connection = http.client.HTTPConnection(triton_load.LOOPBACK, port, timeout=60)
        good = cases[0][0]
        with pytest.raises(triton_client.Refused, match=r"400.*does not know 3 steps"):
            triton_client.infer(connection, "genprop", good.inputs | {"steps": np.array([3], np.int32)})
        one = {"frames": good.inputs["frames"][:1], "edited": good.inputs["edited"]}
        got = triton_client.infer(connection, "genprop", one)
        assert np.array_equal(got["frames"], one["edited"][None])
        other = good.inputs | {"seed": good.inputs["seed"] + 1, "composite": np.array([False])}
        assert (triton_client.infer(connection, "genprop", other)["frames"] != good.frames).any()
        result = triton_load.measure(port, pid, cases, seconds=4)
    assert result["requests"] >= 2 and result["errors"] == 0 and result["wrong_frames"] == 0
    with pytest.raises(OSError):
        connection.request("GET", "/v2/health/live")
        connection.getresponse()
