"""An export folder as `Stages`, whatever runs its graphs: ONNX Runtime or TensorRT.

A library has to supply one function, which opens a graph; all that the graphs have to do with one another
is here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.chunks import by_windows
from genprop.errors import GenPropError
from genprop.graphnet import Graph, GraphNet
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    ENCODER,
    IMAGE_ENCODER,
    LIGHT_DECODER,
    GraphSpec,
    Manifest,
)
from genprop.runtime.backends.stages import Stages

Out = TypeVar("Out")


class OnceForAClip(Generic[Out]):
    """The last answer of a function is kept while its inputs are the very same tensors.

    In a sampling they are: nothing but sample and timestep changes from step to step.
    """

    def __init__(self, function: Callable[..., Out]) -> None:
        self._function = function
        # Inputs, how often each had been written to, and the answer; replaced at once, for other threads.
        self._last: tuple[tuple[Tensor, ...], tuple[int, ...], Out] | None = None

    def __call__(self, *tensors: Tensor) -> Out:
        # A tensor that was written to in place is another one. One of inference mode does not count.
        versions = tuple(0 if t.is_inference() else t._version for t in tensors)
        last = self._last
        if last is not None and versions == last[1] and all(map(operator.is_, tensors, last[0])):
            return last[2]
        answer = self._function(*tensors)
        self._last = tensors, versions, answer
        return answer


def kept(graph: Graph) -> Graph:
    """A graph whose outputs stay as they are when it runs again."""
    return lambda *tensors: tuple(tensor.clone() for tensor in graph(*tensors))


def open_graphs(
    manifest: Manifest,
    open_graph: Callable[[GraphSpec], Graph],
    *,
    backend: str,
    device: torch.device,
    light: bool = False,
) -> Stages:
    """The stages of an export.

    Args:
        open_graph: opens one graph, or its engine.
        device: where its outputs are.
        light: decode with the light decoder.

    Raises:
        GenPropError: the export has no light decoder, and one was asked for.
    """
    if light and LIGHT_DECODER not in manifest.graphs:
        raise GenPropError(
            "the export has no light decoder, and one was asked for",
            "train one with genprop distill --stage decoder, and export that student",
        )
    used = (ENCODER, LIGHT_DECODER if light else DECODER, IMAGE_ENCODER)
    encoder, decoder, embedder = (open_graph(manifest.graphs[name]) for name in used)
    height, width = (int(side) for side in manifest.graphs[IMAGE_ENCODER].inputs[0].shape[-2:])

    def embed(frame: Tensor) -> Tensor:
        if frame.shape[-2:] != (height, width):  # its graph has one size, whatever the others have
            frame = F.interpolate(frame, size=(height, width), mode="bicubic", antialias=True)
        return embedder(frame)[0]

    net = {DENOISER: open_graph(manifest.graphs[DENOISER])}
    if CONDITIONER in manifest.graphs:
        net[CONDITIONER] = OnceForAClip(kept(open_graph(manifest.graphs[CONDITIONER])))

    return Stages(
        backend=backend,
        kind=manifest.kind,
        config=manifest.config,
        sigmas=manifest.sigmas,
        scaling_factor=manifest.scaling_factor,
        net=GraphNet(manifest.graphs, net),
        encode=lambda frames: by_windows(lambda x: encoder(x)[0], frames, manifest.encode_frames, pad=True),
        decode_window=lambda latents: decoder(latents)[0],
        chunk=manifest.chunk,
        overlap=0 if light else manifest.overlap,
        embed=embed,
        sizes=manifest.sizes,
        device=device,
        eta=manifest.eta,
    )
