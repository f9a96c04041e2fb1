"""The torch and compile backends: a bundle, run by PyTorch on a GPU if there is one.

The only file of the runtime that reaches model code, and only inside the function.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from genprop.runtime.backends.stages import Stages

Out = TypeVar("Out")


def on_device(function: Callable[..., Out], device: torch.device) -> Callable[..., Out]:
    """`function` of tensors that may come from elsewhere, without autograd."""

    def run(*tensors: Tensor) -> Out:
        with torch.inference_mode():
            return function(*(tensor.to(device) for tensor in tensors))

    return run


def open_torch(model: str | Path, *, compiled: bool = False) -> Stages:
    """Open a bundle; with `compiled` its denoiser goes through `torch.compile`, at the first call.

    Raises:
        GenPropError: a broken bundle.
    """
    from genprop.student.clone import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle, net, base = load_model(model)
    for module in (net, base.autoencoder, base.image_encoder):
        module.to(device)
    return Stages(
        backend="compile" if compiled else "torch",
        kind=bundle.card.kind,
        config=bundle.card.config,
        sigmas=bundle.card.sigmas,
        scaling_factor=base.autoencoder.scaling_factor,
        net=on_device(torch.compile(net, dynamic=False) if compiled else net, device),
        encode=on_device(base.autoencoder.encode, device),
        decode=on_device(base.autoencoder.decode, device),
        embed=on_device(base.image_encoder, device),
        device=device,
        eta=bundle.card.eta,
    )
