"""Which layer first departs: weights and constants of a file, and what overflows."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from genprop.errors import GenPropError
from genprop.export.bisect import Departure, GraphInside, ModuleInside, first_departure, relative_l2
from genprop.export.inputs import EXAMPLE_SEED, FRESH_SEED, Trial, draw_inputs
from genprop.export.onnx import export_graph, layer_names
from genprop.export.rounding import RoundedStage
from genprop.export.session import OpenedGraph, widen
from genprop.export.verify import departure, gate
from genprop.manifest import DTYPES, GraphSpec, Precision, TensorSpec


class Shift(nn.Module):
    """Adds the input's mean, or a constant in its place: what state kept by a hook becomes in a graph."""

    def __init__(self, constant: float | None = None) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.mean() if self.constant is None else self.constant)


class Layers(nn.Module):
    """Three convolutions, one of them called twice, norms and a shift, in any precision inside."""

    def __init__(self, *, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain = gain
        self.first, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.shift = nn.GroupNorm(2, 8), Shift()
        self.last = nn.Conv2d(8, 3, 1)
        self.eval().requires_grad_(False)

    def forward(self, frame: Tensor) -> Tensor:
        x = self.first(frame.to(self.first.weight.dtype))
        x = self.shift(torch.nn.functional.silu(self.norm(x)))
        x = self.twice(self.twice(x) * self.gain)
        return self.last(x / self.gain).float()


def layers_spec(precision: Precision = "fp32") -> GraphSpec:
    frame = TensorSpec(name="frame", shape=(1, 3, 8, 8))
    output = TensorSpec(name="out", shape=(1, 3, 8, 8))
    return GraphSpec(name="layers", inputs=(frame,), outputs=(output,), precision=precision)


Exported = tuple[Path, GraphSpec]


@pytest.fixture(scope="module", params=[("fp32", 20), ("fp16", 23), ("bf16", 23)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    precision, opset = request.param
    spec = layers_spec(precision)
    file = tmp_path_factory.mktemp("graph") / spec.file
    export_graph(Layers().to(DTYPES[spec.precision]), spec, file, opset=opset)
    return file, spec


def hold(file: Path, spec: GraphSpec, reference: nn.Module) -> None:
    """Run a graph through its gate on fresh inputs."""
    inputs = draw_inputs(spec, FRESH_SEED)
    gate(
        Trial("layers", spec, inputs),
        OpenedGraph(file, spec)(*inputs),
        (reference(*inputs),),
        runner="onnxruntime",
        explain=lambda: departure(
            ModuleInside(reference, inputs), GraphInside(file, spec, inputs), precision=spec.precision
        ),
    )


def test_layers_of_a_graph_are_found_in_its_module_and_agree(exported: Exported) -> None:
    file, spec = exported
    hold(file, spec, Layers())
    inputs = draw_inputs(spec, FRESH_SEED)
    inside, outside = GraphInside(file, spec, inputs), ModuleInside(Layers(), inputs)
    both = [layer for layer in outside.layers if layer in inside.layers]
    for layer in ("first conv2d", "norm group_norm", "shift mean", "shift add", "twice conv2d"):
        path, operation = layer.split()
        assert any(found.startswith(f"{path} aten.{operation}.") for found in both), layer
    assert "twice aten.conv2d.default 2/2" in both
    got, expected = inside.values(both), outside.values(both)
    assert max(relative_l2(got[k], expected[k]) for k in both) < (1e-6 if spec.precision == "fp32" else 1e-2)


@pytest.mark.parametrize("name", ["first.weight", "twice.bias", "last.weight"])
def test_a_wrong_weight_is_found_in_its_layer(exported: Exported, tmp_path: Path, name: str) -> None:
    file, spec = exported
    graph = onnx.load(file)
    weight = next(t for t in graph.graph.initializer if t.name == name)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / file.name)
    with pytest.raises(GenPropError) as error:
        hold(tmp_path / file.name, spec, Layers())
    bar = "0.0001" if spec.precision == "fp32" else "0.01"
    assert f"layers in {spec.precision} departs" in error.value.message
    assert f"expected at most {bar}" in error.value.message
    layer = name.split(".")[0]
    if layer == "last":  # its value is the output itself, or is followed by nothing but a cast
        assert "last (conv2d)" in error.value.message or "no layer departs" in error.value.message
    else:
        assert f"the first layer to depart is {layer} (" in error.value.message


@pytest.mark.parametrize("opset", [20, 23])
def test_a_value_baked_in_from_the_example_is_found_in_its_layer(tmp_path: Path, opset: int) -> None:
    """It agrees on the example, and on no other inputs."""
    spec = layers_spec()
    (example,) = draw_inputs(spec, EXAMPLE_SEED)
    baked = Layers()
    mean = nn.functional.silu(baked.norm(baked.first(example))).mean()
    baked.shift = Shift(float(mean))
    file = tmp_path / spec.file
    export_graph(baked, spec, file, opset=opset)
    torch.testing.assert_close(OpenedGraph(file, spec)(example)[0], Layers()(example))
    with pytest.raises(GenPropError, match=r"the first layer to depart is shift \(add\)"):
        hold(file, spec, Layers())


def test_an_overflow_is_found_in_its_layer() -> None:
    """ONNX Runtime on the CPU would not see it; PyTorch, rounding each operation, does."""
    spec, inputs = layers_spec("fp16"), draw_inputs(layers_spec("fp16"), FRESH_SEED)
    plain, half = Layers(gain=3e5), Layers(gain=3e5).half()
    (got,) = RoundedStage(half)(*inputs)
    assert not got.isfinite().all() and plain(*inputs).isfinite().all()

    def found() -> Departure | None:
        return departure(ModuleInside(plain, inputs), ModuleInside(half, inputs), precision="fp16")

    with pytest.raises(GenPropError, match=r"holds NaN or infinity; the first layer") as error:
        gate(Trial("layers", spec, inputs), (got,), (plain(*inputs),), runner="torch", explain=found)
    assert "the graph itself (mul): NaN or infinity" in error.value.message  # x gain, between two layers
    assert "bf16" in error.value.hint
    calm = Layers()
    (got,) = RoundedStage(Layers().half())(*inputs)
    check = gate(Trial("layers", spec, inputs), (got,), (calm(*inputs),), runner="torch", explain=found)
    assert check.passed and check.l2 is not None and 1e-5 < check.l2 < 1e-2


def test_an_overflow_inside_of_onnx_runtime_is_found_too(tmp_path: Path) -> None:
    spec = layers_spec("fp16")
    export_graph(Layers(gain=3e5).half(), spec, tmp_path / spec.file, opset=20)
    inputs = draw_inputs(spec, FRESH_SEED)
    found = departure(
        ModuleInside(Layers(gain=3e5), inputs),
        GraphInside(tmp_path / spec.file, spec, inputs),
        precision="fp16",
    )
    assert found is not None and found.operation == "mul" and found.error != found.error


def test_rounding_is_that_of_torchs_own_kernels() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half = Layers().to(dtype)
        (inputs,) = draw_inputs(layers_spec(), FRESH_SEED)
        (got,) = RoundedStage(half)(inputs)
        own = half(inputs)
        assert relative_l2(got, own) < 4 * torch.finfo(dtype).eps
        assert relative_l2(got, Layers()(inputs)) > torch.finfo(dtype).eps / 8


@pytest.mark.parametrize("exported", [("bf16", 23)], indirect=True)
def test_bfloat16_runs_as_a_copy_in_float32_with_the_weights_of_the_file(exported: Exported) -> None:
    import onnx_ir

    (file, spec), module = exported, Layers().to(torch.bfloat16)
    before, inputs = file.read_bytes(), draw_inputs(spec, FRESH_SEED)
    (got,) = OpenedGraph(file, spec)(*inputs)
    assert file.read_bytes() == before
    rounded = module.float()  # the weights as they were rounded
    torch.testing.assert_close(got, rounded(*inputs), atol=1e-6, rtol=1e-5)
    assert (got - Layers()(*inputs)).abs().max() > 1e-4
    model = onnx_ir.load(file)
    widen(model)
    kinds = {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    kinds |= {value.dtype for value in model.graph.initializers.values()}
    assert onnx_ir.DataType.BFLOAT16 not in kinds


def test_bfloat16_below_opset_22_is_refused(tmp_path: Path) -> None:
    spec = layers_spec("bf16")
    export_graph(Layers().to(torch.bfloat16), spec, tmp_path / spec.file, opset=20)
    with pytest.raises(GenPropError, match="not valid ONNX") as error:
        OpenedGraph(tmp_path / spec.file, spec)
    assert "opset 22" in error.value.hint


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    for spec in (layers_spec(), layers_spec("bf16")):
        (tmp_path / spec.file).write_bytes(b"\x08\x01garbage")
        with pytest.raises(GenPropError, match=r"layers\.onnx"):
            OpenedGraph(tmp_path / spec.file, spec)


def test_small_batches_find_the_same_layer(tmp_path: Path) -> None:
    inputs = draw_inputs(layers_spec(), FRESH_SEED)
    changed = Layers()
    assert changed.twice.bias is not None
    changed.twice.bias += 1
    pair = ModuleInside(Layers(), inputs), ModuleInside(changed, inputs)
    whole, single = first_departure(*pair, bar=1e-5), first_departure(*pair, bar=1e-5, batch=1)
    assert whole == single and whole is not None and (whole.layer, whole.operation) == ("twice", "conv2d")
    assert first_departure(pair[0], pair[0], bar=1e-5) is None


def test_layers_are_named_by_module_operation_and_call() -> None:
    calls = [("a", "conv"), ("a.b", "conv"), ("a", "conv"), ("", "add")]
    assert layer_names(calls) == ["a conv 1/2", "a.b conv 1/1", "a conv 2/2", " add 1/1"]


def test_a_file_names_layers_and_no_path_of_this_machine(exported: Exported) -> None:
    content = exported[0].read_bytes()
    assert b"twice aten.conv2d.default 2/2" in content
    assert str(Path(torch.__file__).parent).encode() not in content and b"stack_trace" not in content


def test_relative_l2_of_zeros_and_of_what_is_not_finite() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert relative_l2(zero, zero) == 0 and relative_l2(one, zero) == float("inf")
    assert relative_l2(zero, one) == 1 and relative_l2(one * float("inf"), one) != 0
