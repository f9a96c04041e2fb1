"""Quantised graphs: the arithmetic of a pair in closed form, what is left out, and the whole on a student."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from torch import nn

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.export.calibrate import Departure, FakeQuantised, calibration_batches, departure, worst_of
from genprop.export.modules import Denoiser
from genprop.export.onnx import export_graph
from genprop.export.qdq import LARGEST, Kind, insert_pairs, layers, quantise_weight, save_in_place
from genprop.export.quantise import BAR, KEPT, fewest, quantise_bundle, run_graph, spread, why_kept
from genprop.export.spec import graph_specs
from genprop.manifest import DENOISER, GraphSpec, TensorSpec
from genprop.student.clone import load_model, trained_tensors
from genprop.student.one_token import simplify
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet

KINDS: tuple[Kind, ...] = ("int8", "fp8")
TOY = GraphSpec(
    name="toy",
    inputs=(TensorSpec(name="x", shape=(1, 3, 6, 6)),),
    outputs=tuple(TensorSpec(name=name, shape=(1, 6, 6, 4)) for name in "yz"),
)


def toy(
    file: Path, *, opset: int = 23, dtype: type = np.float32, beside: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Two layers, `net.a` and `net.b`, called as `export_graph` calls them; returns their weights."""
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(8, 3, 3, 3)).astype(dtype)
    conv[2] *= 20  # channels of their own size
    conv[5] = 0
    product = rng.normal(size=(8, 4)).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["a"], name="net.a/node_conv", pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["a"], ["t"], name="net/node_transpose", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["t", "wb"], ["y"], name="net.b/node_matmul"),
        helper.make_node("MatMul", ["t", "wb"], ["z"], name="net.b/node_matmul_1"),
    ]
    outputs = [helper.make_tensor_value_info(name, kind, [1, 6, 6, 4]) for name in "yz"]
    inputs = [helper.make_tensor_value_info("x", kind, [1, 3, 6, 6])]
    weights = [numpy_helper.from_array(conv, "wa"), numpy_helper.from_array(product, "wb")]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, file, save_as_external_data=beside, location=f"{file.name}.data", size_threshold=0)
    return conv, product


def quantised(file: Path, amax: dict[str, float], kind: Kind) -> onnx.ModelProto:
    """The toy with pairs, written over itself and read again."""
    model = ir.load(file)
    insert_pairs(model, amax, kind)
    save_in_place(model, file)
    onnx.checker.check_model(str(file), full_check=True)
    return onnx.load(file)


def rounded(x: np.ndarray, scale: np.ndarray | float, kind: Kind) -> np.ndarray:
    """The module's formula, once more and in torch."""
    scaled = torch.from_numpy(np.asarray(x / scale)).clamp(-128 if kind == "int8" else -448, LARGEST[kind])
    whole = scaled.round() if kind == "int8" else scaled.to(torch.float8_e4m3fn).to(scaled.dtype)
    return (whole * torch.as_tensor(scale)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_within_half_a_step_and_scales_are_amax_over_the_largest(kind: Kind) -> None:
    weight = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    for axis in (0, 1):
        stored, scale = quantise_weight(weight, kind, axis=axis)
        amax = np.abs(weight).max(axis=1 - axis)
        np.testing.assert_allclose(scale, amax / LARGEST[kind], rtol=1e-6)
        back = stored.astype(np.float32) * np.expand_dims(scale, 1 - axis)
        wide = np.expand_dims(scale, 1 - axis)
        # Steps of e4m3: an eighth of the power of two below a number, and 2**-9 for the smallest numbers.
        power = 2.0 ** np.floor(np.log2(np.abs(weight) / wide))
        step = wide if kind == "int8" else wide * np.maximum(power / 8, 2**-9)
        assert (np.abs(back - weight) <= step / 2 * (1 + 1e-5)).all()
        assert np.abs(stored.astype(np.float32)).max() == LARGEST[kind]
        assert stored.itemsize == 1


@pytest.mark.parametrize("kind", KINDS)
def test_channel_without_weights_stays_zero(kind: Kind) -> None:
    stored, scale = quantise_weight(np.zeros((2, 3), np.float32), kind, axis=0)
    assert (scale == 1).all() and not stored.astype(np.float32).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_graph_computes_the_formula(kind: Kind, dtype: type, tmp_path: Path) -> None:
    conv, product = toy(tmp_path / "toy.onnx", dtype=dtype)
    amax = {"net.a": 2.5, "net.b": 60.0}
    quantised(tmp_path / "toy.onnx", amax, kind)
    x = np.random.default_rng(2).normal(size=(1, 3, 6, 6)).astype(dtype)  # some beyond 2.5: clipped
    ((y, z),) = run_graph(tmp_path / "toy.onnx", TOY, [(torch.from_numpy(x),)])

    def per_channel(weight: np.ndarray, axis: int) -> np.ndarray:
        stored, scale = quantise_weight(weight, kind, axis=axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        return stored.astype(np.float64) * scale.astype(np.float64).reshape(shape)

    scales = {name: float(dtype(value / LARGEST[kind])) for name, value in amax.items()}
    given = torch.from_numpy(rounded(x.astype(np.float64), scales["net.a"], kind))
    hidden = nn.functional.conv2d(given, torch.from_numpy(per_channel(conv, 0)), padding=1)
    hidden = hidden.numpy().transpose(0, 2, 3, 1)
    expected = rounded(hidden, scales["net.b"], kind) @ per_channel(product, 1)
    error = np.linalg.norm(y.double().numpy() - expected) / np.linalg.norm(expected)
    assert error < 4e-3 if dtype is np.float32 else error < 2e-2  # a number between two may go either way
    assert torch.equal(y, z)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_not_named_stay_as_they_are(kind: Kind, tmp_path: Path) -> None:
    _, product = toy(tmp_path / "toy.onnx")
    model = quantised(tmp_path / "toy.onnx", {"net.a": 3.0}, kind)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert sorted(node.op_type for node in pairs) == ["DequantizeLinear"] * 2 + ["QuantizeLinear"]
    assert {node.name.partition("/")[0] for node in pairs} == {"net.a"}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(tensors["wb"]), product)
    assert "wa" not in tensors
    stored = TensorProto.INT8 if kind == "int8" else TensorProto.FLOAT8E4M3FN
    assert tensors[f"wa_{kind}"].data_type == tensors[f"{kind}_zero"].data_type == stored


def test_layers_that_read_one_tensor_share_its_pair_and_their_weight(tmp_path: Path) -> None:
    toy(tmp_path / "toy.onnx")
    model = quantised(tmp_path / "toy.onnx", {"net.b": 3.0}, "int8")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("DequantizeLinear") == 2


def test_weights_beside_the_graph_stay_beside_it_and_shrink(tmp_path: Path) -> None:
    toy(tmp_path / "toy.onnx", beside=True)
    before = (tmp_path / "toy.onnx.data").stat().st_size
    quantised(tmp_path / "toy.onnx", {"net.a": 3.0, "net.b": 3.0}, "int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    assert (tmp_path / "toy.onnx.data").stat().st_size < before
    InferenceSession(tmp_path / "toy.onnx").run(None, {"x": np.ones((1, 3, 6, 6), np.float32)})


def test_wrong_kind_old_opset_and_unknown_layer_are_refused(tmp_path: Path) -> None:
    toy(tmp_path / "toy.onnx")
    model = ir.load(tmp_path / "toy.onnx")
    with pytest.raises(GenPropError, match="'int4', expected fp8 or int8"):
        insert_pairs(model, {"net.a": 1.0}, "int4")  # type: ignore[arg-type]
    with pytest.raises(GenPropError, match=r"no layer 'net\.c', expected one of net\.a, net\.b"):
        insert_pairs(model, {"net.c": 1.0}, "int8")
    toy(tmp_path / "old.onnx", opset=20)
    with pytest.raises(GenPropError, match="opset 20, expected at least 21"):
        insert_pairs(ir.load(tmp_path / "old.onnx"), {"net.a": 1.0}, "fp8")


def test_missing_modelopt_gives_an_install_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(GenPropError, match="nvidia-modelopt") as caught:
        FakeQuantised(nn.Linear(2, 2), [], kind="int8", batches=[(torch.ones(1, 2),)])
    assert "pip install" in caught.value.hint


def test_departure_is_of_the_worst_output() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert departure([a, b], [a, b]) == (1.0, 0.0)
    assert departure([a, torch.tensor([2.0, 0.0])], [a, b]) == pytest.approx((0.0, 2**0.5))
    assert worst_of([Departure(0.9, 0.1), Departure(0.8, 0.05)]) == (0.8, 0.1)
    assert Departure(0.9, 0.1).reaches(Departure(0.9, 0.1))
    assert not Departure(0.9, 0.1).reaches(Departure(0.91, 0.1))
    assert not Departure(0.9, 0.1).reaches(Departure(0.9, 0.09))


@pytest.mark.parametrize("least", range(11))
def test_fewest_left_out_is_the_smallest_number_that_passes(least: int) -> None:
    tried: list[int] = []

    def passes(n: int) -> bool:
        tried.append(n)
        return n >= least

    assert fewest(10, passes) == least
    assert tried[0] == 0 and len(tried) <= 5 and len(set(tried)) == len(tried)


def test_small_and_touchy_parts_are_not_tried() -> None:
    assert why_kept("net.backbone.down_blocks.1.resnets.0.spatial_res_block.conv1") is None
    assert why_kept("net.backbone.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q") is None
    for path in ("net.backbone.conv_in", "net.mpd.layers.0", "net.sce.injections.1.conv"):
        assert why_kept(path) in KEPT.values()
    assert why_kept("net.backbone.down_blocks.0.resnets.0.spatial_res_block.time_emb_proj") is not None


def test_probes_are_spread_over_the_noise() -> None:
    spec = GraphSpec(name="d", inputs=(TensorSpec(name="timestep", shape=(1,)),), outputs=())
    batches = [(torch.tensor([float(t)]),) for t in (3, 1, 5, 2, 4)]
    assert spread(batches, spec, 3) == [2, 0, 1]
    assert sorted(spread(batches, spec, 9)) == [0, 1, 2, 3, 4]


SIGMAS = {1: (80.0,), 2: (80.0, 1.0)}


@pytest.fixture(scope="module")
def student(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of random weights whose injections are live."""
    folder = tmp_path_factory.mktemp("student")
    base = new_base(small_config.base, seed=0)
    save_base(base, folder / "base")
    net = GenPropNet(base.backbone, small_config.net, small_config.sce)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.sce.injections.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    tensors = trained_tensors(net, backbone=False)
    for name in ("student", "teacher"):
        write_bundle(
            folder / name,
            kind=name,
            config=small_config,
            base=folder / "base",
            tensors=tensors,
            sigmas=SIGMAS if name == "student" else {},
        )
    return folder / "student"


@pytest.mark.slow
def test_batches_are_the_calls_of_each_schedule_at_its_sigmas(student: Path) -> None:
    model, net, base = load_model(student)
    spec = graph_specs(model, simplify(net), base)[DENOISER]
    clips = calibration_batches(model, net, base, spec, count=2)
    assert [len(clip) for clip in clips] == [3, 3]
    names = [tensor.name for tensor in spec.inputs]
    sigmas = [float((4 * batch[names.index("timestep")]).exp()) for batch in clips[0]]
    assert sigmas == pytest.approx([80.0, 80.0, 1.0], rel=1e-5)
    for batch in (batch for clip in clips for batch in clip):
        assert [tuple(x.shape) for x in batch] == [tensor.sized() for tensor in spec.inputs]
    first = names.index("first")
    assert clips[0][0][first] is clips[0][2][first]  # one preparation a clip
    assert not torch.equal(clips[0][0][first], clips[1][0][first])
    assert not torch.equal(clips[0][0][0], clips[0][1][0])  # noise of its own
    model, net, base = load_model(student.parent / "teacher")
    with pytest.raises(GenPropError, match="a teacher without few-step sigmas"):
        calibration_batches(model, simplify(net), base, spec, count=1)


@pytest.fixture(scope="module")
def graph(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """The student's denoiser, exported."""
    model, net, base = load_model(student)
    spec = graph_specs(model, simplify(net), base)[DENOISER]
    file = tmp_path_factory.mktemp("graph") / spec.file
    export_graph(Denoiser(net, spec).eval(), spec, file, opset=23)
    return file, spec


@pytest.mark.slow
def test_nodes_are_called_after_the_modules_whose_weights_they_have(
    student: Path, graph: tuple[Path, GraphSpec]
) -> None:
    _, net, _ = load_model(student)
    denoiser = Denoiser(simplify(net), graph[1])
    found = layers(ir.load(graph[0]))
    weighted = {n for n, m in denoiser.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))}
    assert found.keys() == weighted
    for name, nodes in found.items():
        module = denoiser.get_submodule(name)
        assert isinstance(module.weight, nn.Parameter)
        assert nodes[0].inputs[1] is not None and nodes[0].inputs[1].const_value is not None
        stored = torch.tensor(nodes[0].inputs[1].const_value.numpy())
        assert any(torch.equal(stored, w) for w in (module.weight, module.weight.mT)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_student_in_8_bits_reaches_the_bar(
    kind: Kind, student: Path, graph: tuple[Path, GraphSpec], tmp_path: Path
) -> None:
    pytest.importorskip("modelopt", reason="needs nvidia-modelopt")
    file = tmp_path / graph[0].name
    shutil.copy(graph[0], file)
    report = quantise_bundle(student, graph[1], file, kind=kind, clips=1)
    assert Departure(report.cosine, report.l2).reaches(BAR) and report.l2 > 0
    found = layers(ir.load(graph[0])).keys()
    assert {*report.quantized, *report.left_out} == found and not {*report.quantized} & {*report.left_out}
    assert report.sensitivity.keys() >= {*report.quantized} and 0.3 < report.share < 1
    assert report.bytes_after < 0.8 * report.bytes_before
    assert report.l2_all > BAR.l2  # of random weights: something had to go
    tried = [path for path in report.left_out if path in report.sensitivity]
    assert 0 < len(tried) < len(report.sensitivity)
    pairs = {n.name.partition("/")[0] for n in onnx.load(file).graph.node if n.op_type == "QuantizeLinear"}
    assert pairs <= {*report.quantized}
