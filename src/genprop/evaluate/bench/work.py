"""A model's work by graph: FLOP, weights read, tensors in and out.

What is counted are the very modules that the graphs are exported from, on no device: nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from genprop.chunks import cut
from genprop.evaluate.bench.document import Stage
from genprop.export.modules import stage_modules
from genprop.export.spec import graph_specs
from genprop.manifest import CONDITIONER, DECODER, DENOISER, ENCODER, IMAGE_ENCODER, LIGHT_DECODER
from genprop.student.clone import load_model
from genprop.student.light_decoder import load_light_decoder


@dataclass(frozen=True)
class Work:
    """One call of a graph.

    Attributes:
        flops: multiply-adds count twice.
        weights: parameters that it reads. tensors: elements of inputs and outputs, which are float32.
    """

    flops: int
    weights: int
    tensors: int


class _Seen(TorchDispatchMode):
    """Which parameters were read: a module may hold more than its forward uses."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._sizes = {id(p): p.numel() for p in module.parameters()}
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,))]
        self._seen |= {id(x) for x in flat if isinstance(x, Tensor)} & self._sizes.keys()
        return func(*args, **(kwargs or {}))

    @property
    def elements(self) -> int:
        return sum(self._sizes[key] for key in self._seen)


def work_of(module: nn.Module, *shapes: tuple[int, ...]) -> Work:
    """The work of one forward; the module is left on the meta device.

    Attention counts as its two products; torch's fused kernel for the CPU would count as nothing.

    Args:
        shapes: of its inputs, float32.
    """
    module.to("meta")
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Seen(module) as seen:
        out = module(*inputs)
    outputs = (out,) if isinstance(out, Tensor) else tuple(out)
    tensors = sum(tensor.numel() for tensor in (*inputs, *outputs))
    return Work(counter.get_total_flops(), seen.elements, tensors)


@dataclass(frozen=True)
class ModelWork:
    """A model's graphs, and how often a window of its clip runs each.

    The network is the cheapest that gives the same answer: what a clip needs once is prepared once (for each
    branch of guidance), and attention to one token is no attention.
    """

    graphs: Mapping[str, Work]
    windows: Mapping[str, int]
    branches: int

    def calls(self, stage: Stage, evaluations: int, *, light: bool = False) -> dict[str, int]:
        """By graph; with `light`, of the light decoder."""
        if stage == "encode":
            return {ENCODER: self.windows[ENCODER], IMAGE_ENCODER: 1}
        if stage == "decode":
            decoder = LIGHT_DECODER if light else DECODER
            return {decoder: self.windows[decoder]}
        prepared = {CONDITIONER: self.branches} if CONDITIONER in self.graphs else {}
        return {DENOISER: evaluations, **prepared}


def model_work(bundle: str | Path) -> ModelWork:
    """Count every graph of a bundle.

    Raises:
        GenPropError: a broken bundle.
    """
    model, net, base = load_model(bundle)
    specs = graph_specs(model, net, base)
    light = load_light_decoder(model, base.autoencoder) if model.decoder is not None else None
    modules = stage_modules(net, base, specs, light=light)
    graphs = {n: work_of(m, *(tensor.sized() for tensor in specs[n].inputs)) for n, m in modules.items()}
    frames, overlap = model.card.config.clip.frames, model.card.config.base.overlap
    encoded, decoded = (specs[name].inputs[0].sized()[1] for name in (ENCODER, DECODER))
    windows = {
        ENCODER: len(cut(frames + 1, encoded)),
        DECODER: len(cut(frames, decoded, overlap=overlap)),
        LIGHT_DECODER: len(cut(frames, decoded)),
    }
    return ModelWork(graphs, windows, branches=2 if model.card.kind == "teacher" else 1)
