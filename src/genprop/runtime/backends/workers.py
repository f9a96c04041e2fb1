"""How a thread runs TensorRT engines.

Each thread has a worker: a stream, one arena in which all its engines keep their activations (they never run
at the same time), and for each engine and shape a pair of contexts whose addresses are bound once. A pair
takes turns, so what was returned last stays while the next is made. A context's second run is captured as a
CUDA graph and from then on replayed; a context has one graph and a graph one context. The
program waits for the GPU only where it reads a result.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from genprop import trt
from genprop.errors import GenPropError
from genprop.runtime.backends.engine import Engine
from genprop.runtime.backends.lanes import Device, Lane

SHAPES = 4
"""How many sizes of frames a thread keeps an engine bound for; the oldest is given up for a fifth."""


class Bound:
    """A context of an engine with an address for each of its tensors, and soon a CUDA graph."""

    def __init__(self, engine: Engine, inputs: dict[str, Tensor], arena: Tensor) -> None:
        self._engine, self._context = engine, engine.context()
        self._warm, self._replay = False, None
        if self._context is None:
            raise GenPropError(f"{engine.spec.name} cannot be run: {trt.complaints(engine.logger)}")
        for name, buffer in inputs.items():
            if not self._context.set_input_shape(name, tuple(buffer.shape)):
                raise GenPropError(
                    f"{engine.spec.name} was given {name} of shape {list(buffer.shape)}, and its engine was "
                    "not built for that",
                    "build one whose sizes include it, or resize the frames",
                )
            self._context.set_tensor_address(name, buffer.data_ptr())
        self.outputs = tuple(
            torch.empty(
                tuple(self._context.get_tensor_shape(tensor.name)), dtype=torch.float32, device=engine.device
            )
            for tensor in engine.spec.outputs
        )
        for tensor, buffer in zip(engine.spec.outputs, self.outputs, strict=True):
            self._context.set_tensor_address(tensor.name, buffer.data_ptr())
        self.move(arena)

    def move(self, arena: Tensor) -> None:
        """Take another arena; a CUDA graph has the old one's address in it."""
        self._context.set_device_memory(arena.data_ptr(), arena.numel())
        self._replay = None

    def run(self, lane: Lane) -> None:
        if self._replay is None and self._warm and self._capturable(lane):
            self._replay = lane.capture(lambda: self._queue(lane))
        if self._replay is not None:
            self._replay()
        else:
            self._queue(lane)
            self._warm = True

    def _capturable(self, lane: Lane) -> bool:
        """TensorRT for RTX can be asked; TensorRT's engines of one shape are."""
        ask = hasattr(self._context, "is_stream_capturable")
        return bool(self._context.is_stream_capturable(lane.handle)) if ask else True

    def _queue(self, lane: Lane) -> None:
        if not self._context.execute_async_v3(lane.handle):
            raise GenPropError(f"{self._engine.spec.name} failed: {trt.complaints(self._engine.logger)}")


class Pair:
    """Two contexts over the same inputs, which take turns."""

    def __init__(self, engine: Engine, shapes: tuple[tuple[int, ...], ...], arena: Tensor) -> None:
        self._inputs = [
            torch.empty(shape, dtype=torch.float32, device=engine.device) if name is not None else None
            for name, shape in zip(engine.inputs, shapes, strict=True)
        ]
        named = {n: x for n, x in zip(engine.inputs, self._inputs, strict=True) if n and x is not None}
        self.bounds = [Bound(engine, named, arena) for _ in range(2)]

    def run(self, tensors: tuple[Tensor, ...], lane: Lane) -> tuple[Tensor, ...]:
        for buffer, tensor in zip(self._inputs, tensors, strict=True):
            if buffer is not None:
                buffer.copy_(tensor, non_blocking=True)
        self.bounds.reverse()
        self.bounds[0].run(lane)
        return self.bounds[0].outputs


class Worker:
    """What one thread runs engines with."""

    def __init__(self, device: Device) -> None:
        self._lane = device.lane()
        self._arena = torch.empty(0, dtype=torch.uint8, device=device.torch)
        self._pairs: dict[tuple[str, tuple[tuple[int, ...], ...]], Pair] = {}

    @torch.no_grad()
    def run(self, engine: Engine, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The engine's outputs, which its next run but one overwrites."""
        key = (engine.spec.name, tuple(tuple(tensor.shape) for tensor in tensors))
        with self._lane.turn():
            pair = self._pairs.get(key)
            if pair is None:
                with engine.lock:
                    pair = self._pairs[key] = self._bind(engine, key[1])
                    outputs = pair.run(tensors, self._lane)
                    engine.keep_cache()
                return outputs
            return pair.run(tensors, self._lane)

    def _bind(self, engine: Engine, shapes: tuple[tuple[int, ...], ...]) -> Pair:
        if engine.memory > self._arena.numel():
            self._arena = torch.empty(engine.memory, dtype=torch.uint8, device=engine.device)
            for pair in self._pairs.values():
                for bound in pair.bounds:
                    bound.move(self._arena)
        bound_for = [key for key in self._pairs if key[0] == engine.spec.name]
        if len(bound_for) >= SHAPES:
            del self._pairs[bound_for[0]]
        return Pair(engine, shapes, self._arena)


class Workers(threading.local):
    """A worker for each thread: `threading.local` makes it anew where it is first used."""

    def __init__(self, device: Device) -> None:
        self.worker = Worker(device)
