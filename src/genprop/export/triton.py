"""An export as a model repository of NVIDIA Triton: what `genprop export --triton` writes.

    genprop/                    the model that clients call: frames in, frames and their mask out
        config.pbtxt
        1/model.py              runs the few steps over genprop's runtime (`triton_model.py`)
        1/export/               the whole export
    denoiser/, image_encoder/   ... every graph alone, for a server with the backend "onnxruntime"
    denoiser_tensorrt/          ... every classic engine alone, for one with the backend "tensorrt"

The graphs alone are for those who write a loop of their own; `genprop` needs none of them. A configuration
is rendered from the specs of the manifest, so no shape is written twice. TensorRT for RTX has no backend in
Triton: its engines run inside `genprop`.

Source: the docs of Triton, "Model Repository" and "Model Configuration".
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from genprop.errors import GenPropError
from genprop.export.folder import link
from genprop.folders import whole_folder
from genprop.manifest import FILE, GraphSpec, Manifest, TensorSpec, read_manifest

MODEL = "genprop"
CONFIG = "config.pbtxt"
HEADER = "# Written by genprop: export again rather than edit names and shapes.\n"
"""Begins every configuration, by which an older repository is known."""

Kind = Literal["auto", "cpu", "gpu"]
TYPES = {"float32": "TYPE_FP32"}


class Port(NamedTuple):
    """An input or output in Triton's terms; an axis of -1 varies."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


def write_repository(
    export: Path,
    out: Path,
    *,
    instances: int = 1,
    kind: Kind = "auto",
    python_models_only: bool = False,
) -> Path:
    """Write a model repository that needs nothing beside it, whole or not at all.

    Files are hard links to the export's where both are on one disk: they take no room, and survive it.

    Args:
        export: a folder whose gates have passed.
        out: the repository; an older one there is replaced.
        instances: processes that run clips side by side (on each GPU), each with the whole model in memory.
        kind: where they run: "gpu", "cpu", or "auto", a GPU where the server has one.
        python_models_only: write `genprop` alone.

    Returns:
        `out`.

    Raises:
        GenPropError: not an export, a damaged or unverified one, fewer than 1 instance, an output that is in
            use or unwritable.
    """
    manifest = read_manifest(export)
    if not manifest.verified:
        raise GenPropError(
            f"{export} was exported without its gates, expected a verified export to serve",
            "export the model again, without switching verification off",
        )
    if instances < 1:
        raise GenPropError(f"instances is {instances}, expected at least 1")
    check_repository(out)
    with whole_folder(out) as folder:
        model = folder / MODEL
        (model / "1" / "export").mkdir(parents=True)
        (model / CONFIG).write_text(
            genprop_config(manifest, instances=instances, kind=kind), encoding="utf-8"
        )
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
        for name in (FILE, *manifest.files):
            link(export / name, model / "1" / "export" / name)
        if not python_models_only:
            for name, (text, files) in part_models(manifest).items():
                (folder / name / "1").mkdir(parents=True)
                (folder / name / CONFIG).write_text(text, encoding="utf-8")
                for file in files:
                    link(export / file, folder / name / "1" / file)
    return out


def check_repository(out: Path) -> None:
    """Refuse an output that holds anything that `write_repository` has not written.

    Raises:
        GenPropError: a file, or a folder with other things in it.
    """
    if out.exists() and not out.is_dir():
        raise GenPropError(f"{out} is a file, expected a folder for the repository", "give another --triton")
    for entry in out.iterdir() if out.is_dir() else ():
        config = entry / CONFIG
        if not config.is_file() or not config.read_text(encoding="utf-8", errors="replace").startswith(
            HEADER
        ):
            raise GenPropError(
                f"{out} holds {entry.name}, which genprop has not written: expected an empty folder or none",
                "give another --triton; a server takes several --model-repository",
            )


def part_models(manifest: Manifest) -> dict[str, tuple[str, list[str]]]:
    """The models that are one graph or engine: configuration and files, by name."""
    models = {}
    for spec in manifest.graphs.values():
        # Its weights may lie in a file beside it, which the graph knows by name.
        files = [file for file in manifest.files if file in (spec.file, f"{spec.file}.data")]
        config = graph_config(spec, name=spec.name, file=spec.file, backend="onnxruntime")
        models[spec.name] = config, files
    for engine in manifest.engines.values():
        if engine.backend == "tensorrt":
            spec = manifest.graphs[engine.graph]
            name = f"{spec.name}_tensorrt"
            config = graph_config(spec, name=name, file=engine.file, backend="tensorrt")
            models[name] = config, [engine.file]
    return models


def genprop_ports(manifest: Manifest) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of `genprop`, as `triton_model.py` reads and writes them.

    Task and guidance are asked for only where the model is told them.
    """
    told = manifest.config.net
    inputs = [
        Port("frames", "TYPE_UINT8", (-1, -1, -1, 3)),
        Port("edited", "TYPE_UINT8", (-1, -1, 3)),
        Port("steps", "TYPE_INT32", (1,), optional=True),
        Port("seed", "TYPE_INT64", (1,), optional=True),
        Port("composite", "TYPE_BOOL", (1,), optional=True),
    ]
    if told.tasks:
        inputs.append(Port("task", "TYPE_UINT8", (-1,), optional=True))
    if told.guidance or manifest.kind == "teacher":
        inputs.append(Port("guidance", "TYPE_FP32", (1,), optional=True))
    outputs = [
        Port("frames", "TYPE_UINT8", (-1, -1, -1, 3)),
        Port("mask", "TYPE_FP32", (-1, -1, -1)),
        Port("seconds", "TYPE_FP32", (4,)),
    ]
    return inputs, outputs


def genprop_config(manifest: Manifest, *, instances: int = 1, kind: Kind = "auto") -> str:
    """`config.pbtxt` of `genprop`. A request is one clip, so there is no batching."""
    inputs, outputs = genprop_ports(manifest)
    return render(
        f'name: "{MODEL}"',
        'backend: "python"',
        "max_batch_size: 0",
        *ports("input", inputs),
        *ports("output", outputs),
        f"instance_group [ {{ count: {instances} kind: KIND_{kind.upper()} }} ]",
        "# What opens the export: auto, or a name that `genprop run --backend` takes.",
        'parameters { key: "backend" value { string_value: "auto" } }',
    )


def graph_config(
    spec: GraphSpec, *, name: str, file: str, backend: Literal["onnxruntime", "tensorrt"]
) -> str:
    """`config.pbtxt` of one graph; its batch, where it has one, is an axis like any other."""
    return render(
        f'name: "{name}"',
        f'backend: "{backend}"',
        *(['platform: "tensorrt_plan"'] if backend == "tensorrt" else []),
        f'default_model_filename: "{file}"',
        "max_batch_size: 0",
        *ports("input", map(graph_port, spec.inputs)),
        *ports("output", map(graph_port, spec.outputs)),
    )


def graph_port(tensor: TensorSpec) -> Port:
    dims = tuple(axis if isinstance(axis, int) else -1 for axis in tensor.shape)
    return Port(tensor.name, TYPES[tensor.dtype], dims)


def ports(side: Literal["input", "output"], tensors: Iterable[Port]) -> list[str]:
    """One entry of the configuration for each tensor."""
    entries = []
    for port in tensors:
        dims = ", ".join(map(str, port.dims))
        optional = " optional: true" if port.optional else ""
        entries.append(
            f'{side} {{ name: "{port.name}" data_type: {port.data_type} dims: [ {dims} ]{optional} }}'
        )
    return entries


def render(*lines: str) -> str:
    return HEADER + "\n".join(lines) + "\n"
