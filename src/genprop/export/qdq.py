"""Explicit quantisation of an ONNX graph: QuantizeLinear and DequantizeLinear before chosen layers.

TensorRT takes such a pair as an order, not as a hint: a convolution or matrix product whose two inputs come
from DequantizeLinear runs in 8 bits, all else in the precision that the graph has. So which layers are
quantised, and how, is in the file for anyone to read, and every runtime that has the two operators computes
the same numbers. Symmetric, zero point 0; activations have one scale, weights one for each output channel,
and weights are stored in 8 bits.

    q = round(x / s), clipped to what 8 bits hold    x' = s q    s = amax / 127 (int8), amax / 448 (fp8, e4m3)

The nodes have to be called after their modules, as `export_graph` calls them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from genprop.errors import GenPropError

if TYPE_CHECKING:
    import onnx_ir as ir

Kind = Literal["fp8", "int8"]

LARGEST: dict[Kind, float] = {"int8": 127.0, "fp8": 448.0}
"""What the largest magnitude of a tensor becomes. int8 has a -128 too, for what is clipped alone."""
OPSET = 21
"""The first in which a DequantizeLinear without zero point survives ONNX Runtime's optimiser."""


def check_kind(kind: str) -> None:
    """Refuse what no engine has.

    Raises:
        GenPropError: neither "fp8" nor "int8".
    """
    if kind not in LARGEST:
        raise GenPropError(
            f"cannot quantise to {kind!r}, expected {' or '.join(get_args(Kind))}",
            "fp8 runs on compute capability 8.9 and newer, int8 on all",
        )


def layers(model: ir.Model) -> dict[str, list[ir.Node]]:
    """Convolutions and matrix products with a constant weight, by the path of their module."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and _input(node, 1).const_value is not None:
            found.setdefault((node.name or "").partition("/")[0], []).append(node)
    return found


def channel_axis(node: ir.Node) -> int:
    """Which axis of a layer's weight counts its output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0)
    return 0 if transposed else 1


def scale_of(amax: np.ndarray | float, kind: Kind, dtype: np.dtype) -> np.ndarray:
    """`amax / largest` in `dtype`; 1 where that is 0, as for a channel of zeros."""
    scale = np.asarray(np.asarray(amax, np.float32) / LARGEST[kind]).astype(dtype)
    return np.where(scale == 0, np.ones_like(scale), scale)


def quantise_weight(weight: np.ndarray, kind: Kind, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight in 8 bits, and its scales along `axis` in the weight's own type."""
    full = weight.astype(np.float32)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = scale_of(np.abs(full).max(axis=others, keepdims=True), kind, weight.dtype)
    scaled = np.clip(full / scale.astype(np.float32), -LARGEST[kind], LARGEST[kind])
    stored = (np.rint(scaled) if kind == "int8" else scaled).astype(_stored(kind))  # fp8 rounds as it is cast
    return stored, scale.reshape(-1)


def _stored(kind: Kind) -> np.dtype:
    """numpy's type of a kind."""
    import ml_dtypes

    return np.dtype(np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)


def insert_pairs(model: ir.Model, amax: Mapping[str, float], kind: Kind) -> None:
    """Quantise layers of a graph, in place.

    Args:
        amax: by the layer's module, the largest magnitude of its input that calibration saw. Layers that are
            not named stay as they are.

    Raises:
        GenPropError: an unknown kind, an operator set that is too old, a name that no layer has.
    """
    check_kind(kind)
    found, version = layers(model), model.opset_imports[""]
    if version < OPSET:
        raise GenPropError(
            f"the graph has opset {version}, expected at least {OPSET} for {kind}",
            "export it with a newer one: 23 for TensorRT",
        )
    if strangers := sorted(amax.keys() - found.keys()):
        raise GenPropError(f"the graph has no layer {strangers[0]!r}, expected one of {', '.join(found)}")
    writer = _Pairs(model.graph, kind)
    for module, largest in amax.items():
        for node in found[module]:
            activation, weight = writer.activation(node, largest), writer.weight(node)
            node.replace_input_with(0, activation)
            node.replace_input_with(1, weight)
    writer.drop_unused()


class _Pairs:
    """Writes the pairs of one graph; layers that read the same tensor, or weight, share them."""

    def __init__(self, graph: ir.Graph, kind: Kind) -> None:
        self.graph = graph
        self.kind: Kind = kind
        self.activations: dict[tuple[str, float], ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self.replaced: list[str] = []
        # It says which 8 bits a QuantizeLinear writes. A DequantizeLinear has to go without one: where ONNX
        # Runtime moves it past a Reshape, it would name the type twice and refuse its own graph.
        self.zero = self._initializer(f"{kind}_zero", np.zeros((), _stored(kind)))

    def activation(self, node: ir.Node, amax: float) -> ir.Value:
        """A layer's input, quantised and back."""
        given, numbers = _input(node, 0), _constant(_input(node, 1))
        key = (str(given.name), amax)
        if key not in self.activations:
            name = f"{node.name}/activation"
            scale = self._initializer(f"{name}_scale", scale_of(amax, self.kind, numbers.dtype))
            stored = self._operator(node, "QuantizeLinear", name, [given, scale, self.zero])
            self.activations[key] = self._operator(node, "DequantizeLinear", name, [stored, scale])
        return self.activations[key]

    def weight(self, node: ir.Node) -> ir.Value:
        """A layer's weight, from 8 bits."""
        full, axis = _input(node, 1), channel_axis(node)
        name = str(full.name)
        if name not in self.weights:
            stored, scale = quantise_weight(_constant(full), self.kind, axis=axis)
            inputs = [
                self._initializer(f"{name}_{self.kind}", stored),
                self._initializer(f"{name}_scale", scale),
            ]
            made = self._operator(node, "DequantizeLinear", f"{node.name}/weight", inputs, axis=axis)
            self.weights[name] = made
            self.replaced.append(name)
        return self.weights[name]

    def drop_unused(self) -> None:
        """Full weights that nothing reads any more."""
        for name in self.replaced:
            if not self.graph.initializers[name].uses():
                del self.graph.initializers[name]

    def _initializer(self, name: str, value: np.ndarray) -> ir.Value:
        import onnx_ir as ir

        tensor = ir.tensor(value, name=name)
        made = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(value.shape), const_value=tensor
        )
        self.graph.register_initializer(made)
        return made

    def _operator(
        self, before: ir.Node, kind: str, name: str, inputs: list[ir.Value], **attributes: int
    ) -> ir.Value:
        import onnx_ir as ir

        # As the reference has it: quantised values have the type of the zero point, others that of the scale.
        dtype = inputs[2 if kind == "QuantizeLinear" else 1].dtype
        assert dtype is not None
        out = ir.Value(name=f"{name}_{kind}", type=ir.TensorType(dtype), shape=inputs[0].shape)
        made = ir.node(kind, inputs, attributes, outputs=[out], name=f"{name}_{kind}")
        self.graph.insert_before(before, made)
        return out


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _constant(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def save_in_place(model: ir.Model, file: Path) -> None:
    """Write a changed graph over the file that it was read from; weights that were beside it stay there."""
    import onnx_ir as ir

    beside = file.with_name(f"{file.name}.data")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        # The old data are read while the new are written.
        ir.save(model, made, external_data=beside.name if beside.exists() else None)
        for part in Path(folder).iterdir():
            os.replace(part, file.parent / part.name)


def size_of(file: Path) -> int:
    """Bytes of a graph and of the data beside it."""
    return sum(part.stat().st_size for part in (file, file.with_name(f"{file.name}.data")) if part.exists())
