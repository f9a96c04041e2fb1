"""ONNX Runtime on the CPU, as the gates run a graph: opened from its file, with inner values if asked for.

Its CPU provider has no kernels for bfloat16. A graph in it is run as a copy in float32 whose weights are
those of the file, rounded to bfloat16 as they are: structure, weights and constants are measured, the
rounding of activations is not (`verify` measures that in PyTorch). float16 it computes in float32 as well,
node by node or several at once, so there, too, rounding is PyTorch's to measure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genprop.errors import GenPropError
from genprop.manifest import GraphSpec

if TYPE_CHECKING:
    import onnx_ir
    from onnxruntime import InferenceSession

ERRORS_ONLY = 3
"""ONNX Runtime's log level: it warns of every constant of a type that it cannot fold, harmlessly."""

AS_WRITTEN = ("session.disable_quant_qdq", "1")
"""ONNX Runtime fuses quantisations with what is around them, into operators that it does not have for fp8."""


class OpenedGraph:
    """An opened graph: inputs in the spec's order to outputs in the spec's order, all of them float32.

    Args:
        also: names of inner values that come after the outputs, as float32.

    Raises:
        GenPropError: the file is not a graph that ONNX Runtime can run.
    """

    def __init__(self, file: Path, spec: GraphSpec, *, also: Sequence[str] = ()) -> None:
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [*(tensor.name for tensor in spec.outputs), *also]
        try:
            if spec.precision != "bf16" and not also:
                self._session = open_session(file, as_written=spec.quantized is not None)
                return
            self._session = _open_copy(file, also=also, widened=spec.precision == "bf16")
        except GenPropError:
            raise
        except Exception as error:  # ONNX Runtime's and onnx's have no common class but this
            raise GenPropError(
                f"{file.name} cannot be opened by ONNX Runtime: {error}", "export the model again"
            ) from error

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        feed = {name: x.float().contiguous().numpy() for name, x in zip(self._inputs, tensors, strict=True)}
        return tuple(torch.from_numpy(x).float() for x in self._session.run(self._outputs, feed))


def open_session(file: Path, *, as_written: bool = False) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    if as_written:
        options.add_session_config_entry(*AS_WRITTEN)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _open_copy(file: Path, *, also: Sequence[str], widened: bool) -> InferenceSession:
    """A copy with more outputs, in float32 if `widened`; a file, since protobuf ends at 2 GB."""
    import onnx
    import onnx_ir

    if widened:  # what ONNX Runtime does not see has to be sound, too
        try:
            onnx.checker.check_model(str(file), full_check=True)
        except Exception as error:
            raise GenPropError(
                f"{file.name} in bfloat16 is not valid ONNX: {error}", "convolutions take it from opset 22 on"
            ) from error
    model = onnx_ir.load(file)
    if widened:
        widen(model)
    if also:
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs.extend(values[name] for name in also)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        onnx_ir.save(model, copy, external_data=f"{file.name}.data")
        return open_session(copy)


def widen(model: onnx_ir.Model) -> None:
    """Turn every bfloat16 of a graph into float32, in place: weights, constants, casts and declared types."""
    import numpy as np
    import onnx_ir

    narrow, wide = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == narrow:
            value.const_value = onnx_ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = wide
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype == narrow:
                value.dtype = wide
        for name, attribute in [*node.attributes.items()]:
            if attribute.type == onnx_ir.AttributeType.TENSOR and attribute.as_tensor().dtype == narrow:
                constant = onnx_ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
                node.attributes[name] = onnx_ir.AttrTensor(name, constant)
            elif name in ("to", "dtype") and attribute.value == narrow:
                node.attributes[name] = onnx_ir.AttrInt64(name, wide)
