"""`types.Net` of an export's graphs: the denoiser's, and the conditioner's if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from genprop.manifest import CONDITIONER, DENOISER, GraphSpec
from genprop.types import NetOut


class Graph(Protocol):
    """An opened graph: its inputs in the spec's order, on any device, to its outputs in the spec's order."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]: ...


class GraphNet:
    """The network, put together again from what an export has split it into.

    Args:
        specs, graphs: by name; of these, only the two are read.
    """

    def __init__(self, specs: Mapping[str, GraphSpec], graphs: Mapping[str, Graph]) -> None:
        self._specs, self._graphs = specs, graphs

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        named = {
            "sample": sample,
            "timestep": timestep,
            "first": first,
            "source": source,
            "image_embedding": image_embedding,
            "added_time_ids": added_time_ids,
        }
        if (conditioner := self._specs.get(CONDITIONER)) is not None:
            prepared = self._graphs[CONDITIONER](*(named[tensor.name] for tensor in conditioner.inputs))
            named |= {tensor.name: x for tensor, x in zip(conditioner.outputs, prepared, strict=True)}
        denoiser = self._specs[DENOISER]
        return NetOut(*self._graphs[DENOISER](*(named[tensor.name] for tensor in denoiser.inputs)))
