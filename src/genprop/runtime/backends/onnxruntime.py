"""The onnxruntime backend: an export folder, run without diffusers, transformers or any model code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genprop.errors import GenPropError
from genprop.manifest import GraphSpec, read_manifest
from genprop.runtime.backends.stages import Stages
from genprop.types import NetOut

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_session(file: Path) -> InferenceSession:
    """A session on CUDA if this ONNX Runtime has it, else on the CPU.

    Raises:
        GenPropError: ONNX Runtime is not installed, or cannot read the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise GenPropError("the backend 'onnxruntime' is not installed", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    # ONNX Runtime does not read it itself.
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        options.intra_op_num_threads = int(threads)
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # Parity was measured in float32.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its exceptions have no common class but this
        message = f"{file} cannot be opened by ONNX Runtime: {error}"
        raise GenPropError(message, "export the model again") from error


def run_graph(session: InferenceSession, spec: GraphSpec, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Outputs of a graph in the spec's order, on the CPU."""
    feed = {
        tensor.name: value.detach().to("cpu", torch.float32).contiguous().numpy()
        for tensor, value in zip(spec.inputs, tensors, strict=True)
    }
    outputs = session.run([tensor.name for tensor in spec.outputs], feed)
    return tuple(torch.from_numpy(output) for output in outputs)


def open_onnxruntime(folder: Path) -> Stages:
    """Open an export folder, after checking the hash of each of its files.

    Raises:
        GenPropError: not an export, a damaged file, ONNX Runtime missing.
    """
    manifest = read_manifest(folder)

    def graph(name: str) -> Callable[..., tuple[Tensor, ...]]:
        spec = manifest.graphs[name]
        session = open_session(folder / spec.file)
        return lambda *tensors: run_graph(session, spec, *tensors)

    def by_chunks(name: str) -> Callable[[Tensor], Tensor]:
        run = graph(name)
        return lambda x: torch.cat([run(part)[0] for part in x.split(manifest.chunk, dim=1)], dim=1)

    denoiser, image_encoder = graph("denoiser"), graph("image_encoder")

    def net(
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        return NetOut(*denoiser(sample, timestep, first, source, image_embedding, added_time_ids))

    return Stages(
        backend="onnxruntime",
        kind=manifest.kind,
        config=manifest.config,
        sigmas=manifest.sigmas,
        scaling_factor=manifest.scaling_factor,
        net=net,
        encode=by_chunks("autoencoder_encoder"),
        decode=by_chunks("autoencoder_decoder"),
        embed=lambda frame: image_encoder(frame)[0],
        device=torch.device("cpu"),
        eta=manifest.eta,
    )
