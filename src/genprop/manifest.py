"""What an export folder says of itself: `manifest.json`, written by the export and read by the runtime.

A root module, since export and runtime never import one another. The graphs are described by the very
specs they were exported from, so no name or shape stands in two places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hub import sha256
from genprop.settings import Model

FILE = "manifest.json"
FRAMES = "frames"
"""The one axis that may vary: how many frames the autoencoder is given at a time."""


class TensorSpec(Model):
    """An input or output of a graph."""

    name: str
    shape: tuple[int | Literal["frames"], ...]
    dtype: Literal["float32"] = "float32"

    def sized(self, frames: int) -> tuple[int, ...]:
        """The shape with `frames` in the place of the varying axis."""
        return tuple(frames if n == FRAMES else int(n) for n in self.shape)


class GraphSpec(Model):
    """A graph: its name, which is also its file's, and its inputs and outputs in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"

    @property
    def dynamic(self) -> bool:
        """Whether the graph takes any number of frames."""
        return any(FRAMES in tensor.shape for tensor in self.inputs)


class Parity(Model):
    """The largest absolute difference between ONNX Runtime and PyTorch, over one graph's outputs.

    `sigma` is the noise level (denoiser only), `frames` how many were given (autoencoder only).
    """

    graph: str
    error: float
    sigma: float | None = None
    frames: int | None = None


class Manifest(Model):
    """`manifest.json`.

    Attributes:
        sigmas, eta: few-step noise levels and shares of fresh noise, as in `bundle.json`.
        chunk: frames the autoencoder is given at a time; a temporal decoder mixes frames inside one chunk.
        files: SHA-256 of every file beside the manifest.
        weights: SHA-256 of every file of the bundle, and of its base (as in `bundle.json`).
        parity: as measured on inputs other than those of the export; empty if it was not asked for.
        worst: the largest error in `parity`.
    """

    format: Literal[1] = 1
    kind: Literal["teacher", "student"]
    config: Config
    sigmas: dict[int, tuple[float, ...]]
    eta: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    scaling_factor: float
    latent_channels: int = Field(gt=0)
    chunk: int = Field(gt=0)
    opset: int
    graphs: dict[str, GraphSpec]
    files: dict[str, str]
    weights: dict[str, str]
    versions: dict[str, str]
    parity: tuple[Parity, ...] = ()
    worst: float | None = None


def is_export(folder: Path) -> bool:
    """Whether `folder` is an export, by its manifest."""
    return (folder / FILE).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read an export's manifest and check the hash of each file it lists.

    Raises:
        GenPropError: no or a wrong `manifest.json`, a file missing or of another hash.
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
    unlisted = {spec.file for spec in manifest.graphs.values()} - manifest.files.keys()
    if unlisted:
        raise GenPropError(f"{folder / FILE} has no hash of {', '.join(unlisted)}", "export the model again")
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
