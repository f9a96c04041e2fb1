"""Which layer first departs: inner values of a graph beside those of the module it was made from.

A node of a graph remembers the operation of PyTorch whose value it gives (`onnx.layer_names`). The same
operation is found in a capture of the float32 module by `torch.export`, made on the very inputs on which the
graph failed: a value that the graph has baked in, this capture has as it should be. Both run, and the first
operation in topological order whose relative L2 error passes a bar is named with its module's path.

One pass over all of them rather than a search by halves: an error need not grow on its way, since norms and
residual sums dampen it. Values are compared in batches, so that the memory they take is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from genprop.export.onnx import LAYER, layer_names, quiet
from genprop.export.session import OpenedGraph
from genprop.manifest import GraphSpec

BATCH = 2**30
"""Bytes of inner values that are compared at once."""


@dataclass(frozen=True)
class Departure:
    """The first layer that departs.

    Attributes:
        layer: its path in the module; "" is the module itself.
        operation: of PyTorch, as "conv2d".
        error: relative L2 of its output; NaN where that is not finite.
    """

    layer: str
    operation: str
    error: float

    def __str__(self) -> str:
        size = f"relative L2 {self.error:.3g}" if self.error == self.error else "NaN or infinity"
        return f"{self.layer or 'the graph itself'} ({self.operation}): {size}"


class Inside(Protocol):
    """Something that runs and can tell its inner values.

    `layers` has the bytes of each value, by layer, in topological order.
    """

    @property
    def layers(self) -> Mapping[str, int]: ...

    def values(self, layers: list[str]) -> dict[str, Tensor]: ...


class ModuleInside:
    """A module on some inputs, captured; `values` is one forward."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with quiet(), torch.no_grad():
            program: Any = torch.export.export(module, inputs).module()
        program.graph.eliminate_dead_code()
        program.recompile()
        nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        names = layer_names((_path(node), str(node.target)) for node in nodes)
        self._program, self._inputs = program, inputs
        self._names: dict[fx.Node, str] = {}
        self.layers: dict[str, int] = {}
        for node, name in zip(nodes, names, strict=True):
            if isinstance(value := node.meta.get("val"), Tensor) and value.is_floating_point():
                self._names[node] = name
                self.layers[name] = value.numel() * 4

    def values(self, layers: list[str]) -> dict[str, Tensor]:
        wanted = {node: name for node, name in self._names.items() if name in set(layers)}
        keeper = _Keeper(self._program, wanted)
        with torch.no_grad():
            keeper.run(*self._inputs)
        return keeper.kept


class GraphInside:
    """A graph in a file on some inputs; `values` is one run."""

    def __init__(self, file: Path, spec: GraphSpec, inputs: tuple[Tensor, ...]) -> None:
        import onnx_ir

        self._file, self._spec, self._inputs = file, spec, inputs
        self._names: dict[str, str] = {}
        outputs = {tensor.name for tensor in spec.outputs}
        for node in onnx_ir.load(file).graph:
            layer, name = node.metadata_props.get(LAYER), node.outputs[0].name
            if layer is not None and name is not None and name not in outputs:
                self._names[layer] = name
        self.layers = dict.fromkeys(self._names, 0)

    def values(self, layers: list[str]) -> dict[str, Tensor]:
        graph = OpenedGraph(self._file, self._spec, also=[self._names[layer] for layer in layers])
        outputs = graph(*self._inputs)[len(self._spec.outputs) :]
        return dict(zip(layers, outputs, strict=True))


def first_departure(
    reference: ModuleInside, other: Inside, *, bar: float, batch: int = BATCH
) -> Departure | None:
    """The first layer of `other` whose value is farther from that of `reference` than `bar`, relative L2.

    None if there is none: then it is what several layers add up to, or what stands between them.
    """
    for layers in _batches({k: n for k, n in reference.layers.items() if k in other.layers}, batch):
        expected, got = reference.values(layers), other.values(layers)
        for layer in layers:
            if got[layer].shape == expected[layer].shape and expected[layer].isfinite().all():
                error = relative_l2(got[layer], expected[layer])
                if not error <= bar:  # NaN is not
                    path, operation, _ = layer.split(" ")
                    return Departure(path, operation.split(".")[1], error)
    return None


def relative_l2(got: Tensor, expected: Tensor) -> float:
    """`|got - expected| / |expected|`; 0 where both are 0, NaN where `got` is not finite."""
    if not got.isfinite().all():
        return float("nan")
    difference = (got.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0


def _batches(layers: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for layer, size in layers.items():
        if batch and held + size > limit:
            yield batch
            batch, held = [], 0
        batch.append(layer)
        held += size
    if batch:
        yield batch


def _path(node: fx.Node) -> str:
    """Of the module in which a node was captured."""
    stack = [*node.meta.get("nn_module_stack", {}).values()]
    return stack[-1][0] if stack else ""


class _Keeper(fx.Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, program: fx.GraphModule, wanted: Mapping[fx.Node, str]) -> None:
        super().__init__(program)
        self._wanted, self.kept = wanted, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self.kept[self._wanted[n]] = value.to(torch.float32, copy=True)  # may be written to in place
        return value
