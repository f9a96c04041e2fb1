"""One module to one ONNX graph.

Graphs are captured by `torch.export`. Nine tenths of the time is capture and decomposition; of the
exporter's optimiser only the constant folding is kept: its pattern rewriter takes as long as both, and
ONNX Runtime fuses the same patterns itself, so the graphs run at the same speed without.
"""

from __future__ import annotations

import ast
import inspect
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genprop.export.inputs import EXAMPLE_SEED, draw_inputs
from genprop.manifest import GraphSpec, SizeRange

if TYPE_CHECKING:
    import onnx_ir

DATA = ".onnx.data"
"""Ends the name of the file beside a graph that holds its weights."""

LAYER = "layer"
"""Metadata of a node whose output is the value of an operation of PyTorch: which one (`layer_names`)."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter says about itself, which no user can act on, off the terminal."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def export_graph(
    module: nn.Module,
    spec: GraphSpec,
    file: Path,
    *,
    opset: int,
    sizes: SizeRange | None = None,
    example: tuple[int, int] = (0, 0),
    external: bool = False,
) -> None:
    """Write one graph; its nodes are called after the modules that they come from, as "net.conv_in/Conv_3".

    Args:
        sizes: between which frame sizes a graph with varying axes works; captured at `example`, height and
            width.
        external: put the weights into a file beside it, as protobuf demands above 2 GB; done there anyway.
    """
    from onnxscript import optimizer

    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            draw_inputs(spec, EXAMPLE_SEED, sizes=sizes.of(*example) if sizes is not None else None),
            dynamo=True,
            opset_version=opset,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=dynamic_shapes(module, spec, sizes) if sizes is not None else None,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    keep_layers(program.model)
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.save(str(file), external_data=external)


def dynamic_shapes(module: nn.Module, spec: GraphSpec, sizes: SizeRange) -> Any:
    """`torch.export`'s description of the varying axes of a module's inputs."""
    sides = {
        "height": torch.export.Dim(
            "height", min=sizes.min_height // sizes.multiple, max=sizes.max_height // sizes.multiple
        ),
        "width": torch.export.Dim(
            "width", min=sizes.min_width // sizes.multiple, max=sizes.max_width // sizes.multiple
        ),
    }

    def axis(name: str) -> Any:
        kind, _, divisor = name.partition("/")
        step = sizes.cells if kind.startswith("grid_") else sizes.multiple
        return step // int(divisor or 1) * sides[kind.removeprefix("grid_")]

    axes = tuple({i: axis(n) for i, n in enumerate(t.shape) if isinstance(n, str)} for t in spec.inputs)
    (first, *_) = inspect.signature(module.forward).parameters.values()
    return (axes,) if first.kind is first.VAR_POSITIONAL else axes


def layer_names(calls: Iterable[tuple[str, str]]) -> list[str]:
    """`path operation i/n` of each call of an operation in the module at `path`, in order.

    It is the i-th of n such calls. What two captures of a module name alike is the same value in both: if one
    has a call more, no name of that kind agrees.
    """
    calls = list(calls)
    total, seen = Counter(calls), Counter[tuple[str, str]]()
    names = []
    for path, operation in calls:
        seen[path, operation] += 1
        names.append(f"{path} {operation} {seen[path, operation]}/{total[path, operation]}")
    return names


def keep_layers(model: onnx_ir.Model) -> None:
    """Call nodes after the modules they come from, and leave nothing of their metadata but their layers.

    The rest is stack traces, half of a small file and the paths of this machine, and the name of every
    weight, of those too that the graph does not have.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    calls: dict[str, tuple[str, str]] = {}  # by the name of the value, in order
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        classes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.class_hierarchy", "[]"))
        node.metadata_props.clear()
        node.name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.name}"
        if len(scopes) > 1 and len(scopes) == len(classes):
            calls[scopes[-1]] = (scopes[-2], classes[-1])
    layers = dict(zip(calls, layer_names(calls.values()), strict=True))
    for node in model.graph.all_nodes():
        # One operation may take several nodes, of which the last gives its value.
        if node.outputs and (layer := layers.get(node.outputs[0].name or "")):
            node.metadata_props[LAYER] = layer
