"""Where a backend's work goes on a GPU: a device, and a lane of it for each thread.

All that is CUDA about running engines is here, behind two small protocols, so that everything else about it
can be tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import torch

from genprop.errors import GenPropError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lane(Protocol):
    """A queue of work on a device. `handle` is what a library calls it by (a `cudaStream_t`)."""

    @property
    def handle(self) -> int: ...

    def turn(self) -> AbstractContextManager[None]:
        """What is queued inside runs after what the caller queued before, and before what it queues next.

        The program itself waits for nothing.
        """
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, without running it; the function returned runs it, as one piece."""
        ...


class Device(Protocol):
    """A device that engines run on. `capability` is its compute capability, as "8.9"."""

    @property
    def torch(self) -> torch.device: ...

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> str: ...

    def lane(self) -> Lane: ...


class CudaLane:
    """A stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        return self._stream.cuda_stream

    @contextmanager
    def turn(self) -> Iterator[None]:
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads go on allocating meanwhile. Entering waits for the device, once for each capture.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class CudaDevice:
    """PyTorch's current CUDA device."""

    def __init__(self) -> None:
        """Raises GenPropError where there is none."""
        if not torch.cuda.is_available():
            raise GenPropError(
                "TensorRT engines need an NVIDIA GPU, and PyTorch finds no CUDA device here",
                "use --backend onnxruntime, which runs the same export on a CPU",
            )
        self.torch = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.torch)
        self.capability = "{}.{}".format(*torch.cuda.get_device_capability(self.torch))

    def lane(self) -> CudaLane:
        return CudaLane(self.torch)
