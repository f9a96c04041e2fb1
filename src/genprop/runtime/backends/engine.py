"""An opened TensorRT engine: its weights on the GPU once, for all threads; and for TensorRT for RTX, which
finishes its kernels on the GPU that runs them, the cache of these.
"""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from genprop import trt
from genprop.errors import GenPropError
from genprop.manifest import EngineSpec, GraphSpec
from genprop.runtime.backends.lanes import Device


class Engine:
    """A graph's engine with its weights on the GPU, for all threads.

    Attributes:
        inputs: names of its inputs, in the spec's order; None for one that the engine has no use for.
        memory: bytes that its activations need.
    """

    def __init__(
        self,
        library: Any,
        runtime: Any,
        logger: Any,
        folder: Path,
        *,
        spec: GraphSpec,
        built: EngineSpec,
        on: Device,
    ) -> None:
        self.spec, self.logger, self.device = spec, logger, on.torch
        self.lock = threading.Lock()
        self._library, self._runtime = library, runtime  # which has to live as long
        torch.empty(1, device=on.torch)  # makes PyTorch's CUDA context the one that the library takes
        file = folder / built.file
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise GenPropError(
                f"{file} cannot be opened: {trt.complaints(logger)}", "build it again on this machine"
            )
        self.inputs = self._fit(file)
        self.memory = int(self._engine.device_memory_size_v2)
        self._cache_file = trt.cache_folder() / "runtime" / f"{built.key}-{on.capability}.bin"
        self._cache: Any = None
        self._kept = True
        if hasattr(library, "IRuntimeCache"):  # TensorRT for RTX finishes its kernels here, once
            self._cache = self._engine.create_runtime_config().create_runtime_cache()
            self._kept = self._cache_file.is_file() and bool(
                self._cache.deserialize(self._cache_file.read_bytes())
            )

    def _fit(self, file: Path) -> tuple[str | None, ...]:
        """Check names and types of inputs and outputs against the spec's."""
        engine, library = self._engine, self._library
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        given = {name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT}
        known = {tensor.name for tensor in self.spec.inputs}
        outputs = {tensor.name for tensor in self.spec.outputs}
        floats = all(engine.get_tensor_dtype(name) == library.float32 for name in names)
        if not given <= known or set(names) - given != outputs or not floats:
            raise GenPropError(
                f"{file} has {', '.join(names)}, expected inputs {', '.join(sorted(known))} and outputs "
                f"{', '.join(sorted(outputs))} in float32",
                "export the model again",
            )
        return tuple(tensor.name if tensor.name in given else None for tensor in self.spec.inputs)

    def context(self) -> Any:
        """A context that is given its memory."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def keep_cache(self) -> None:
        """Write the finished kernels to the cache folder, if they are not from there; it may be read-only."""
        if self._kept:
            return
        self._kept = True
        with suppress(OSError):
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._cache_file.with_suffix(f".{os.getpid()}")
            beside.write_bytes(memoryview(self._cache.serialize()))
            beside.replace(self._cache_file)
