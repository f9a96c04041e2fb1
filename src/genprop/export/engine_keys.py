"""What an engine depends on in a graph: its structure, its weights, and between which shapes it runs.

Weights are hashed as bytes in the graph's order, so neither where they lie nor what a file is called
matters, and one changed weight does.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genprop.export.tensorrt import Profile
from genprop.manifest import GraphSpec, Manifest

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class GraphFacts:
    """An ONNX file, as far as an engine depends on it.

    Attributes:
        graph: SHA-256 of its structure, without names of files and notes of who made it.
        weights: SHA-256 of its initialisers' bytes. weight_bytes: how many.
        activation_bytes: of the largest tensor that is computed, among those of known shape.
    """

    graph: str
    weights: str
    weight_bytes: int
    activation_bytes: int


def read_graph(file: Path) -> GraphFacts:
    """What an engine depends on in an ONNX file, inside of it and in its data beside it."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(str(file), load_external_data=False)
    weights, total = hashlib.sha256(), 0
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            total += _hash_part(weights, file.parent / info.location, info.offset or 0, info.length)
        else:
            inside = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
            weights.update(inside)
            total += len(inside)
        # Its place in the graph, type and shape say what the bytes mean, wherever they are.
        bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(bare)
    shapes = {value.name: value.type.tensor_type for value in model.graph.value_info}
    outputs = [shapes[name] for node in model.graph.node for name in node.output if name in shapes]
    largest = max((_tensor_bytes(tensor) for tensor in outputs), default=0)
    model.graph.ClearField("value_info")  # shapes that follow from the rest
    bare_model = onnx.ModelProto(ir_version=model.ir_version, graph=model.graph)
    bare_model.opset_import.extend(model.opset_import)
    bare_model.functions.extend(model.functions)
    structure = hashlib.sha256(bare_model.SerializeToString(deterministic=True)).hexdigest()
    return GraphFacts(structure, weights.hexdigest(), total, largest)


def profile_of(spec: GraphSpec, manifest: Manifest) -> Profile:
    """The smallest, the configuration's and the largest shape of each input whose size varies."""
    sizes, clip = manifest.sizes, manifest.config.clip
    if not spec.dynamic or sizes is None:
        return {}
    best = (
        min(max(clip.height, sizes.min_height), sizes.max_height),
        min(max(clip.width, sizes.min_width), sizes.max_width),
    )
    low, usual, high = (
        sizes.of(*size)
        for size in ((sizes.min_height, sizes.min_width), best, (sizes.max_height, sizes.max_width))
    )
    varying = [tensor for tensor in spec.inputs if any(isinstance(axis, str) for axis in tensor.shape)]
    return {tensor.name: (tensor.sized(low), tensor.sized(usual), tensor.sized(high)) for tensor in varying}


def describe_shapes(spec: GraphSpec, profile: Profile) -> str:
    """Every input's shape, or the range of it."""

    def words(shape: tuple[int, ...]) -> str:
        return "x".join(map(str, shape))

    return ", ".join(
        f"{tensor.name} {' '.join(map(words, profile[tensor.name]))}"
        if tensor.name in profile
        else f"{tensor.name} {words(tensor.sized())}"
        for tensor in spec.inputs
    )


def _hash_part(digest: hashlib._Hash, file: Path, offset: int, length: int | None) -> int:
    """Feed a part of a file, or all from `offset` on; returns how many bytes it was."""
    left = file.stat().st_size - offset if length is None else length
    done = 0
    with file.open("rb") as stream:
        stream.seek(offset)
        while done < left and (piece := stream.read(min(1 << 24, left - done))):
            digest.update(piece)
            done += len(piece)
    return done


def _tensor_bytes(tensor: onnx.TypeProto.Tensor) -> int:
    import onnx

    known = all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return size * math.prod(dim.dim_value for dim in tensor.shape.dim) if known else 0
