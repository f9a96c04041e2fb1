"""How much memory a piece of training takes, found by running it on tensors without contents.

The code itself runs (the objective, its backward pass, the sampler, the decoder) on fake tensors, which
have shapes and types and no numbers, and `Tracker` notes when each storage comes and goes. So the peak is
that of what will run, autocast and recomputation included, and needs neither the memory nor the device.

What a device adds by itself, out of PyTorch's sight, is modelled where it counts: see `Tracker.workspace`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from genprop.settings import TrainConfig

ACTIVATIONS, TEMPORARY, GRADIENTS = "activations", "temporary", "gradients"

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tracker(TorchDispatchMode):
    """Notes every storage that operations make within it, and when it is freed.

    A storage belongs to the `phase` in which it was made.

    Args:
        cuda: count as CUDA's allocator does (blocks of 512 bytes), and the workspace of its kernels.
    """

    def __init__(self, *, cuda: bool) -> None:
        super().__init__()
        self.cuda, self.phase = cuda, ACTIVATIONS
        self._events: list[tuple[int, int]] = []  # (which storage, bytes more or less), in order
        self._phases: list[str] = []  # of each storage
        self._live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, now or when they are freed: whoever calls knows of them."""
        for tensor in tensors:
            self._note(tensor, count=False)

    def assign(self, tensors: Iterable[Tensor], phase: str) -> None:
        """Say what some of the storages turned out to be."""
        for tensor in tensors:
            entry = self._live.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                self._phases[entry[1]] = phase

    def peak(self) -> dict[str, int]:
        """Bytes by phase at the moment when most was in use."""
        size = highest = end = 0
        for i, (_, change) in enumerate(self._events):
            size += change
            if size > highest:
                highest, end = size, i + 1
        held: Counter[str] = Counter()
        for storage, change in self._events[:end]:
            held[self._phases[storage]] += change
        return {phase: held[phase] for phase in (ACTIVATIONS, TEMPORARY, GRADIENTS)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, count=True)
        if self.cuda and (extra := self.workspace(func, args, result)):
            storage = self._new(TEMPORARY)
            self._events += [(storage, extra), (storage, -extra)]
        return result

    @staticmethod
    def workspace(func: Any, args: tuple[Any, ...], result: Any) -> int:
        """Bytes that a CUDA kernel takes for itself while it runs.

        A convolution in 16 bits runs on the tensor cores, which want channels last: cuDNN transposes what it
        reads and writes. The backward pass of flash attention sums the queries' gradient in float32, the
        sequence rounded up to 128: five times as long for the 25 frames of temporal attention.
        """
        name = func.overloadpacket._qualified_op_name
        if name == "aten::convolution" and args[0].element_size() == 2:
            return nbytes(args[0]) + nbytes(result)
        if name == "aten::convolution_backward" and args[0].element_size() == 2:
            return nbytes(args[0]) + nbytes(args[1])
        if name.startswith("aten::_scaled_dot_product_flash_attention") and name.endswith("_backward"):
            batch, heads, length, width = args[1].shape
            return batch * heads * (-length // 128 * -128) * (-width // 32 * -32 + 1) * 4
        return 0

    def _note(self, tensor: Tensor, *, count: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes() if count else 0
        if self.cuda:
            size = -size // 512 * -512
        index = self._new(self.phase)
        self._events.append((index, size))

        def freed(_: Any) -> None:
            del self._live[key]
            self._events.append((index, -size))

        self._live[key] = weakref.ref(storage, freed), index

    def _new(self, phase: str) -> int:
        self._phases.append(phase)
        return len(self._phases) - 1


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within it, the CPU's autocast, under which fake tensors run, has CUDA's rule for norms: float32."""

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Any) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return norm(*tree_map_only(Tensor, Tensor.float, arguments))

        return run

    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in ("layer_norm", "group_norm"):
            library.impl(name, in_float32(getattr(torch, name)), "AutocastCPU")
        yield


@contextmanager
def fake_tensors(*, cuda: bool = False) -> Iterator[None]:
    """Within it, tensors have no contents, and take no memory; with `cuda`, autocast casts as on CUDA."""
    with FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast() if cuda else nullcontext():
        yield


def autocast(precision: str) -> torch.autocast:
    """As accelerate's, for fake tensors."""
    return torch.autocast("cpu", dtype=DTYPES[precision], enabled=precision != "no")


def trace_step(
    loss: Callable[[], Tensor],
    trained: Sequence[Tensor],
    *,
    held: Iterable[Tensor],
    settings: TrainConfig,
    cuda: bool,
) -> dict[str, int]:
    """The peak of one micro-batch as `loop.fit` runs it, beside what is held all the time.

    Args:
        loss: the forward pass.
        trained: the parameters that train. Where gradients accumulate, theirs are there before the pass.
        held: what is not counted: parameters, buffers.

    Returns:
        Bytes by kind at the peak: what the forward pass made, what the backward pass made, gradients.
    """
    tracker = Tracker(cuda=cuda)
    tracker.ignore(held)
    with tracker:
        if settings.accumulate > 1:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        with autocast(settings.precision):
            value = loss()
        tracker.phase = TEMPORARY
        value.backward()
        gradients = [p.grad for p in trained if p.grad is not None]
        tracker.assign(gradients, GRADIENTS)
    for parameter in trained:
        parameter.grad = None
    return tracker.peak()


def trace_call(call: Callable[[], Any], *, held: Iterable[Tensor], precision: str, cuda: bool) -> int:
    """The peak of a call without gradients, in bytes; `held` is not counted."""
    tracker = Tracker(cuda=cuda)
    tracker.ignore(held)
    with tracker, torch.no_grad(), autocast(precision):
        call()
    return sum(tracker.peak().values())


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
