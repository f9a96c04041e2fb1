"""What an export folder says of itself: `manifest.json`, written by the export and read by the runtime.

A root module, since export and runtime never import one another. The graphs are described by the very
specs they were exported from, so no name or shape stands in two places. Inputs and outputs are float32 in
every graph: a precision is what happens inside of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hub import sha256
from genprop.settings import Model

FILE = "manifest.json"

DENOISER = "denoiser"
CONDITIONER = "conditioner"
ENCODER = "autoencoder_encoder"
DECODER = "autoencoder_decoder"
LIGHT_DECODER = "light_decoder"
IMAGE_ENCODER = "image_encoder"

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Axis = Annotated[str, Field(pattern=r"^(grid_)?(height|width)(/\d+)?$")]
"""What may vary between calls, where an export was asked for it: pixels, latent cells, or a part of them."""
Shape = tuple[int | Axis, ...]
FileName = Annotated[str, Field(pattern=r"^[\w.-]*[\w-][\w.-]*$")]
"""A file beside the manifest, and nowhere else."""


def of_encoder(precision: Precision) -> Precision:
    """The precision of the autoencoder's encoder in a model of another: it overflows in float16."""
    return "fp32" if precision == "fp16" else precision


class TensorSpec(Model):
    """An input or output of a graph. An axis is a number, or the name of one that varies."""

    name: str
    shape: Shape
    dtype: Literal["float32"] = "float32"

    def sized(self, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """The shape with a number in the place of each varying axis.

        Args:
            sizes: of "height", "width", "grid_height" and "grid_width".
        """

        def size(axis: int | str) -> int:
            if isinstance(axis, int):
                return axis
            name, _, divisor = axis.partition("/")
            return -(-(sizes or {})[name] // int(divisor or 1))

        return tuple(size(axis) for axis in self.shape)


class GraphSpec(Model):
    """A graph: its name, which is also its file's, its inputs and outputs in order, its precision inside.

    `quantized` names what its matrix products and convolutions are in, where that is less than `precision`.
    """

    name: FileName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: Precision = "fp32"
    quantized: Literal["fp8", "int8"] | None = None

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"

    def files(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are this graph's: the graph, and its weights where they are beside it."""
        return [name for name in names if name in (self.file, f"{self.file}.data")]

    @property
    def dynamic(self) -> bool:
        """Whether the graph takes frames of any size."""
        return any(isinstance(n, str) for tensor in self.inputs for n in tensor.shape)


class SizeRange(Model):
    """Between which sizes frames may vary, in pixels, in steps of `multiple` (`cells` of the latent grid)."""

    min_height: int = Field(gt=0)
    max_height: int = Field(gt=0)
    min_width: int = Field(gt=0)
    max_width: int = Field(gt=0)
    multiple: int = Field(gt=0)
    cells: int = Field(gt=0)

    def of(self, height: int, width: int) -> dict[str, int]:
        """What the varying axes are for frames of one size; see `TensorSpec.sized`."""
        grid = [side * self.cells // self.multiple for side in (height, width)]
        return {"height": height, "width": width, "grid_height": grid[0], "grid_width": grid[1]}

    def check(self, height: int, width: int) -> None:
        """Refuse a size outside of the range or off the step.

        Raises:
            GenPropError: names the size and what is expected.
        """
        inside = self.min_height <= height <= self.max_height and self.min_width <= width <= self.max_width
        if not inside or height % self.multiple or width % self.multiple:
            raise GenPropError(
                f"the size is {height}x{width} (height x width), expected "
                f"{self.min_height}x{self.min_width} to "
                f"{self.max_height}x{self.max_width} in steps of {self.multiple}",
                "choose such a size, or export with another --min-size and --max-size",
            )


class EngineSpec(Model):
    """A TensorRT engine of one graph.

    Attributes:
        backend: the library that built it and that alone runs it, and its `version`.
        targets: compute capabilities it was built for, as "8.9"; it runs on no others.
        key: SHA-256 of `fingerprint`: what the engine cache finds it by.
        fingerprint: everything the engine depends on.
        seconds: the build took. peak: bytes of the building machine's memory that it held.
        memory: bytes of device memory that its activations need, as the builder said; None if it did not.
    """

    graph: str
    file: FileName
    backend: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    targets: tuple[str, ...]
    key: str
    fingerprint: dict[str, str]
    seconds: float
    peak: int
    memory: int | None = None


class Check(Model):
    """One measurement of a gate: a graph, or the whole chain, against PyTorch in float32.

    Attributes:
        stage: the graph's name, or "chain": noise to decoded frames.
        runner: what was measured: "onnxruntime", or "torch" in the graph's precision.
        sigma: noise level, for a denoiser. steps: for the chain.
        error: largest absolute difference. cosine, l2: cosine similarity and relative L2 error, of the worst
            output. psnr: of decoded frames in dB, for the chain.
    """

    stage: str
    runner: Literal["onnxruntime", "torch"]
    precision: Precision
    sigma: float | None = None
    steps: int | None = None
    error: float
    cosine: float | None = None
    l2: float | None = None
    psnr: float | None = None
    passed: bool


class Manifest(Model):
    """`manifest.json`.

    Attributes:
        sigmas, eta: few-step noise levels and shares of fresh noise, as in `bundle.json`.
        precision: of the denoiser, the decoders and the image encoder; the encoder's is its own.
        encode_frames: frames the encoder is given at a time, always; a shorter clip is padded.
        chunk, overlap: frames the decoder is given at a time, and how many neighbouring windows share.
        sizes: between which frame sizes the graphs work; None where the size is the configuration's.
        graphs, engines: by graph name.
        files: SHA-256 of every file beside the manifest.
        weights: SHA-256 of every file of the bundle, and of its base (as in `bundle.json`).
        recipe: what the graphs and their checks depend on: equal recipes make equal graphs.
        checks: what the gates measured, on inputs other than those of the export; empty if not asked for.
        quantisation: which layers of the denoiser are in 8 bits, and what that costs (`export.quantise`).
    """

    format: Literal[2] = 2
    kind: Literal["teacher", "student"]
    config: Config
    sigmas: dict[int, tuple[float, ...]]
    eta: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    scaling_factor: float
    latent_channels: int = Field(gt=0)
    precision: Precision = "fp32"
    encode_frames: int = Field(gt=0)
    chunk: int = Field(gt=0)
    overlap: int = Field(default=0, ge=0)
    sizes: SizeRange | None = None
    opset: int
    graphs: dict[str, GraphSpec]
    engines: dict[str, EngineSpec] = Field(default_factory=dict)
    files: dict[FileName, str]
    weights: dict[str, str]
    versions: dict[str, str]
    recipe: dict[str, str] = Field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    quantisation: dict[str, Any] | None = None

    @property
    def verified(self) -> bool:
        """Whether gates were run, and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def is_export(folder: Path) -> bool:
    """Whether `folder` is an export, by its manifest."""
    return (folder / FILE).is_file()


def parse_manifest(folder: Path) -> Manifest:
    """An export's manifest, to choose by; no file is looked at before `read_manifest`.

    Raises:
        GenPropError: no or a wrong `manifest.json`.
    """
    if not is_export(folder):
        raise GenPropError(
            f"{folder} is not an export: it has no {FILE}",
            "make one with: genprop export MODEL --to onnx --out DIR",
        )
    try:
        manifest = Manifest.model_validate_json((folder / FILE).read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise GenPropError(
            f"{folder / FILE} cannot be read: {where}: {fault['msg']}", "export the model again"
        ) from error
    named = [spec.file for spec in (*manifest.graphs.values(), *manifest.engines.values())]
    unlisted = set(named) - manifest.files.keys()
    if unlisted:
        raise GenPropError(f"{folder / FILE} has no hash of {', '.join(unlisted)}", "export the model again")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read an export's manifest and check the hash of each file it lists.

    An engine is executable code: nothing of it is opened before its hash was found right.

    Raises:
        GenPropError: no or a wrong `manifest.json`, a file missing or of another hash.
    """
    manifest = parse_manifest(folder)
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise GenPropError(f"{folder} lacks {name}, which its {FILE} lists", "export the model again")
        if (got := sha256(file)) != expected:
            raise GenPropError(
                f"{file} has SHA-256 {got}, expected {expected}",
                "the file was changed or is damaged: export the model again",
            )
    return manifest
