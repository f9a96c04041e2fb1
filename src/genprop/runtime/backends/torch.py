"""The torch and compile backends: a bundle, run by PyTorch on a GPU if there is one.

The only file of the runtime that reaches model code, and only inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from genprop.manifest import DTYPES, Precision, SizeRange, of_encoder
from genprop.runtime.backends.graphs import OnceForAClip
from genprop.runtime.backends.stages import Stages
from genprop.types import NetOut

if TYPE_CHECKING:
    from genprop.teacher.net import GenPropNet, Prepared

Out = TypeVar("Out")


def open_torch(
    model: str | Path, *, compiled: bool = False, precision: Precision = "fp32", light: bool = False
) -> Stages:
    """Open a bundle.

    With `compiled` all that takes time goes through `torch.compile`, each part at its first call and for its
    one shape; on a GPU it is then a CUDA graph.

    Args:
        precision: of the weights. The autoencoder's encoder, which overflows in float16, is in float32 then,
            as an export has it. What goes in and out is float32.
        light: decode with the bundle's light decoder.

    Raises:
        GenPropError: a broken bundle; one without a light decoder, if that was asked for.
    """
    from genprop.student.clone import load_model
    from genprop.student.light_decoder import load_light_decoder
    from genprop.student.one_token import simplify
    from genprop.student.precision import convert

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bundle, net, base = load_model(model)
    vae = base.autoencoder
    decoder = load_light_decoder(bundle, vae).to(DTYPES[precision]).to(device) if light else vae
    convert(net, base, precision)
    for module in (net, vae, base.image_encoder):
        module.to(device)
    if device.type == "cuda":  # on the CPU it is the slower layout
        vae.channels_last()
    if compiled:
        simplify(net)

    def encode(frames: Tensor) -> Tensor:
        return vae.encode(frames.to(DTYPES[of_encoder(precision)])).float()

    def decode_window(latents: Tensor) -> Tensor:
        return decoder.decode_window((latents / vae.scaling_factor).to(DTYPES[precision])).float()

    def embed(frame: Tensor) -> Tensor:
        return base.image_encoder(frame).float()

    def ready(function: Callable[..., Out]) -> Callable[..., Out]:
        return on_device(compile_function(function, device) if compiled else function, device)

    where = "the CPU" if device.type == "cpu" else torch.cuda.get_device_name()
    return Stages(
        backend="compile" if compiled else "torch",
        kind=bundle.card.kind,
        config=bundle.card.config,
        sigmas=bundle.card.sigmas,
        scaling_factor=vae.scaling_factor,
        net=TorchNet(net, ready),
        encode=ready(encode),
        decode_window=ready(decode_window),
        chunk=vae.chunk,
        overlap=0 if light else vae.overlap,
        embed=on_device(embed, device),
        device=device,
        sizes=any_size(vae.downsampling, len(net.backbone.config["block_out_channels"])),
        eta=bundle.card.eta,
        concurrent=not (
            compiled and device.type == "cuda"
        ),  # a CUDA graph belongs to the thread it came from
        why=f"bundle on {where}: {'torch.compile' if compiled else 'torch'}",
    )


def any_size(downsampling: int, levels: int) -> SizeRange:
    """All sizes that the levels of a backbone halve evenly."""
    cells = 2 ** (levels - 1)
    step, most = downsampling * cells, 1 << 14
    return SizeRange(
        min_height=step, max_height=most, min_width=step, max_width=most, multiple=step, cells=cells
    )


class TorchNet:
    """`types.Net` of a `GenPropNet`, whose `prepare` runs once for a clip.

    Args:
        ready: makes a function of tensors one that can be called from anywhere.
    """

    def __init__(self, net: GenPropNet, ready: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        def evaluate(*tensors: Tensor, prepared: Prepared) -> NetOut:
            out = net.parts(*tensors, prepared=prepared).out
            return NetOut(out.velocity.float(), out.mask_logits.float())

        self._prepare = OnceForAClip(ready(net.prepare))
        self._evaluate = ready(evaluate)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        prepared = self._prepare(first, source, image_embedding, added_time_ids)
        given = (sample, timestep, first, source, image_embedding, added_time_ids)
        return self._evaluate(*given, prepared=prepared)


def compile_function(function: Callable[..., Out], device: torch.device) -> Callable[..., Out]:
    """`torch.compile` for static shapes; on a GPU as a CUDA graph, whose outputs are copied out of it."""
    if device.type == "cpu":
        return torch.compile(function, dynamic=False)
    captured = torch.compile(function, dynamic=False, mode="reduce-overhead")

    def run(*tensors: Tensor, **rest: Any) -> Out:
        torch.compiler.cudagraph_mark_step_begin()
        return tree_map_only(Tensor, Tensor.clone, captured(*tensors, **rest))

    return run


def on_device(function: Callable[..., Out], device: torch.device) -> Callable[..., Out]:
    """`function` of tensors that may come from elsewhere, without autograd."""

    def run(*tensors: Tensor, **rest: Any) -> Out:
        with torch.inference_mode():
            return function(*(tensor.to(device) for tensor in tensors), **rest)

    return run
