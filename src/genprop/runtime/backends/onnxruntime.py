"""The onnxruntime backends: an export folder, run without diffusers, transformers or any model code.

Tensors are bound where they lie, on the CPU or the GPU: nothing is copied that is there in float32. On a
GPU a session works on a stream of its own, which waits for the caller's and is waited for by it; the
program waits for neither.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from genprop.errors import GenPropError
from genprop.manifest import GraphSpec, TensorSpec, read_manifest
from genprop.runtime.backends.graphs import open_graphs
from genprop.runtime.backends.stages import Stages

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Provider = Literal["cpu", "cuda", "tensorrt"]

NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ERRORS_ONLY = 3


def library() -> Any:
    """ONNX Runtime.

    Raises:
        GenPropError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise GenPropError(
            "the backend 'onnxruntime' is not installed", "pip install onnxruntime, or onnxruntime-gpu"
        ) from error
    return onnxruntime


def best_provider() -> Provider:
    """CUDA if both ONNX Runtime and PyTorch, which holds the tensors, have it, else the CPU."""
    on_gpu = torch.cuda.is_available() and NAMES["cuda"] in library().get_available_providers()
    return "cuda" if on_gpu else "cpu"


def provider_options(provider: Provider, cache: Path, stream: int) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session in the order of their choice, each with its options.

    Args:
        cache: folder for the engines that the TensorRT provider builds at the first call.
        stream: address of the CUDA stream to work on.
    """
    # Parity was measured in float32.
    cuda = (NAMES["cuda"], {"device_id": "0", "use_tf32": "0", "user_compute_stream": str(stream)})
    cpu: tuple[str, dict[str, str]] = (NAMES["cpu"], {})
    if provider == "cpu":
        return [cpu]
    if provider == "cuda":
        return [cuda, cpu]
    engines = {
        "device_id": "0",
        "user_compute_stream": str(stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_fp16_enable": "0",  # the precision is in the graph
    }
    return [(NAMES["tensorrt"], engines), cuda, cpu]


def open_session(
    file: Path, provider: Provider = "cpu", *, stream: int = 0, fp8: bool = False
) -> InferenceSession:
    """A session on a provider, and on no other in its place.

    Raises:
        GenPropError: ONNX Runtime or its provider is not installed, or it cannot read the graph.
    """
    ort = library()
    if NAMES[provider] not in ort.get_available_providers():
        raise GenPropError(
            f"this ONNX Runtime has no {NAMES[provider]}, but {', '.join(ort.get_available_providers())}",
            "pip install onnxruntime-gpu in the place of onnxruntime",
        )
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY  # it warns of each constant that it leaves as it is
    # Threads that wait busily stand in the way of the next graph's, and of whatever else runs here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if fp8:  # it would fuse quantisations into operators that it has for int8 alone
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    # ONNX Runtime does not read it itself.
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        options.intra_op_num_threads = int(threads)
    providers = provider_options(provider, file.parent / "engines", stream)
    try:
        session = ort.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its exceptions have no common class but this
        message = f"{file} cannot be opened by ONNX Runtime: {error}"
        raise GenPropError(message, "export the model again") from error
    if (got := session.get_providers()[0]) != NAMES[provider]:
        raise GenPropError(
            f"ONNX Runtime runs {file.name} on {got}, expected {NAMES[provider]}: it could not load that",
            "install the CUDA, cuDNN and TensorRT that this ONNX Runtime was built for",
        )
    return session


class BoundGraph:
    """A session with its tensors bound; see `graphs.Graph`.

    Args:
        device: where inputs are brought and outputs are made.
        stream: what the session works on; None on the CPU.
    """

    def __init__(
        self,
        session: InferenceSession,
        spec: GraphSpec,
        *,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._session, self._spec, self._device, self._stream = session, spec, device, stream
        self._options: Any = None
        if stream is not None:
            self._options = library().RunOptions()
            # The caller's stream waits, and so the program need not.
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self._stream is None:
            return self._run(tensors)
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            outputs = self._run(tensors)
        caller.wait_stream(self._stream)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)  # so that its memory is not given away before it is read
        for tensor in outputs:
            tensor.record_stream(caller)
        return outputs

    def _run(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        binding, place = self._session.io_binding(), (self._device.type, self._device.index or 0)
        given = [x.detach().to(self._device, torch.float32).contiguous() for x in tensors]
        for spec, x in zip(self._spec.inputs, given, strict=True):
            check_shape(x, spec, graph=self._spec.name)
            binding.bind_input(spec.name, *place, np.float32, list(x.shape), x.data_ptr())
        if self._spec.dynamic:  # ONNX Runtime finds the sizes, and lends its memory
            for spec in self._spec.outputs:
                binding.bind_output(spec.name, *place)
            self._session.run_with_iobinding(binding, self._options)
            return tuple(torch.from_dlpack(value) for value in binding.get_outputs())
        made = tuple(torch.empty(spec.sized(), device=self._device) for spec in self._spec.outputs)
        for spec, x in zip(self._spec.outputs, made, strict=True):
            binding.bind_output(spec.name, *place, np.float32, list(x.shape), x.data_ptr())
        self._session.run_with_iobinding(binding, self._options)
        return made


def check_shape(x: Tensor, spec: TensorSpec, *, graph: str) -> None:
    """Refuse what a graph cannot take: bound memory is read as if it were of the right size.

    Raises:
        GenPropError: names the input and the two shapes.
    """
    if len(x.shape) != len(spec.shape) or any(
        isinstance(axis, int) and n != axis for n, axis in zip(x.shape, spec.shape, strict=True)
    ):
        raise GenPropError(
            f"{graph} got {spec.name} of shape {list(x.shape)}, expected {list(spec.shape)}",
            "an export has one number of frames, and one size unless it was asked for more: export again",
        )


def open_onnxruntime(folder: Path, *, provider: Provider | None = None, light: bool = False) -> Stages:
    """Open an export folder, after checking the hash of each of its files.

    Args:
        provider: what runs the graphs; None is the best there is (`best_provider`). "tensorrt" builds engines
            of its own at the first call, in the folder `engines` of the export.
        light: decode with the light decoder.

    Raises:
        GenPropError: not an export, a damaged file, ONNX Runtime or the provider missing.
    """
    manifest = read_manifest(folder)
    chosen: Provider = best_provider() if provider is None else provider
    stream: torch.cuda.Stream | None = None
    if chosen != "cpu":
        if not torch.cuda.is_available():
            raise GenPropError(
                f"ONNX Runtime's {chosen} needs a GPU that PyTorch sees, and it sees none",
                "use --backend onnxruntime",
            )
        stream = torch.cuda.Stream()
    device = torch.device("cpu") if stream is None else torch.device("cuda", torch.cuda.current_device())

    def open_graph(spec: GraphSpec) -> BoundGraph:
        address = 0 if stream is None else stream.cuda_stream
        session = open_session(folder / spec.file, chosen, stream=address, fp8=spec.quantized == "fp8")
        return BoundGraph(session, spec, device=device, stream=stream)

    name = "onnxruntime-tensorrt" if chosen == "tensorrt" else "onnxruntime"
    stages = open_graphs(manifest, open_graph, backend=name, device=device, light=light)
    where = {"cpu": "on the CPU", "cuda": "with CUDA", "tensorrt": "with its TensorRT provider"}[chosen]
    return replace(stages, why=f"export folder, ONNX Runtime {library().__version__} {where}")
