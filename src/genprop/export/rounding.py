"""PyTorch on the CPU in float16 or bfloat16, as accurate as a GPU and nearly as fast as float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default)


class Rounded(TorchDispatchMode):
    """Within it convolutions and matrix products are summed in float32 and then rounded.

    Tensor cores do the same. PyTorch's own kernels for float16 take ten times as long on a CPU.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run: Callable[..., Any] = func
        if func not in PRODUCTS:
            return run(*args, **(kwargs or {}))
        wide = (x.float() if isinstance(x, Tensor) else x for x in args)
        return run(*wide, **(kwargs or {})).to(args[0].dtype)


class RoundedStage:
    """A module in a reduced precision, each of its operations rounded."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with Rounded():
            outputs = self._module(*tensors)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
