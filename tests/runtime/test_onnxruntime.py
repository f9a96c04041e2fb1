"""Graphs with their tensors bound, and that a provider is the one that was asked for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from genprop.errors import GenPropError
from genprop.manifest import GraphSpec, Shape, TensorSpec
from genprop.runtime.backends import onnxruntime as backend
from genprop.runtime.backends.onnxruntime import BoundGraph, open_session, provider_options

CPU = torch.device("cpu")


def spec_of(shape: Shape) -> GraphSpec:
    tensor = {name: TensorSpec(name=name, shape=shape) for name in ("a", "b", "c", "d")}
    return GraphSpec(name="graph", inputs=(tensor["a"], tensor["b"]), outputs=(tensor["c"], tensor["d"]))


def graph(folder: Path, shape: Shape) -> Path:
    """c = a - b, d = a * b."""
    a, b, c, d = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abcd")
    nodes = [helper.make_node("Sub", ["a", "b"], ["c"]), helper.make_node("Mul", ["a", "b"], ["d"])]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [a, b], [c, d]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.mark.parametrize(("shape", "given"), [((2, 3), (2, 3)), (("height", "width"), (4, 5))])
def test_outputs_are_those_of_the_graph_and_outlive_the_next_call(
    tmp_path: Path, rng: torch.Generator, shape: Shape, given: tuple[int, ...]
) -> None:
    run = BoundGraph(open_session(graph(tmp_path, shape)), spec_of(shape), device=CPU)
    a, b = torch.randn(2, *given, generator=rng)
    first = run(a, b)
    run(b, b)
    assert torch.equal(first[0], a - b) and torch.equal(first[1], a * b)


def test_any_strides_type_and_mode_of_a_tensor_will_do(tmp_path: Path, rng: torch.Generator) -> None:
    run = BoundGraph(open_session(graph(tmp_path, (2, 3))), spec_of((2, 3)), device=CPU)
    a, b = torch.randn(2, 3, 2, generator=rng)
    wanted = torch.nn.Parameter(a)
    with torch.inference_mode():
        difference, product = run(wanted.T, b.double().T)
    assert torch.equal(difference, a.T - b.T) and torch.equal(product, a.T * b.T)


@pytest.mark.parametrize("wrong", [(2, 4), (3, 3), (2, 3, 1), (6,)])
def test_a_tensor_of_another_size_is_refused_before_it_is_read(
    tmp_path: Path, wrong: tuple[int, ...]
) -> None:
    run = BoundGraph(open_session(graph(tmp_path, (2, 3))), spec_of((2, 3)), device=CPU)
    with pytest.raises(GenPropError, match=r"graph got b of shape .*, expected \[2, 3\]"):
        run(torch.zeros(2, 3), torch.zeros(wrong))


def test_a_provider_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="has no CUDAExecutionProvider") as error:
        open_session(graph(tmp_path, (1,)), "cuda")
    assert "onnxruntime-gpu" in error.value.hint


class FakeLibrary:
    """An ONNX Runtime that has CUDA, but whose sessions may end up elsewhere."""

    def __init__(self, runs_on: str) -> None:
        self.runs_on, self.asked, self.options = runs_on, [], {}

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def SessionOptions(self) -> Any:
        return SimpleNamespace(add_session_config_entry=self.options.__setitem__)

    RunOptions = type("RunOptions", (), {"add_run_config_entry": lambda self, key, value: None})

    def InferenceSession(self, file: str, options: Any, providers: Any) -> Any:
        self.asked = providers
        return SimpleNamespace(get_providers=lambda: [self.runs_on])


def test_a_provider_that_could_not_be_loaded_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLibrary("CPUExecutionProvider")
    monkeypatch.setattr(backend, "library", lambda: fake)
    with pytest.raises(GenPropError, match="on CPUExecutionProvider, expected CUDAExecutionProvider"):
        open_session(Path("graph.onnx"), "cuda", stream=7)
    fake.runs_on = "CUDAExecutionProvider"
    open_session(Path("graph.onnx"), "cuda", stream=7)
    assert fake.asked == provider_options("cuda", Path("engines"), 7)


def test_the_cpu_comes_last_and_all_on_a_gpu_work_on_one_stream_in_full_precision() -> None:
    names = [[name for name, _ in provider_options(p, Path("e"), 7)] for p in ("cpu", "cuda", "tensorrt")]
    assert [[name.removesuffix("ExecutionProvider") for name in row] for row in names] == [
        ["CPU"],
        ["CUDA", "CPU"],
        ["Tensorrt", "CUDA", "CPU"],
    ]
    for _, options in provider_options("tensorrt", Path("e"), 7)[:2]:
        assert options["user_compute_stream"] == "7"
    assert provider_options("cuda", Path("e"), 7)[0][1]["use_tf32"] == "0"


def test_on_a_gpu_the_streams_wait_for_each_other_and_the_program_for_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def stream(name: str) -> Any:
        return SimpleNamespace(
            wait_stream=lambda other: order.append(f"{name} waits for {other.name}"), name=name
        )

    caller, ours = stream("caller"), stream("ours")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    session = open_session(graph(tmp_path, (1,)))
    run = BoundGraph(session, spec_of((1,)), device=CPU, stream=ours)
    monkeypatch.setattr(run, "_run", lambda tensors: order.append("run") or ())
    run(torch.zeros(1), torch.zeros(1))
    assert order == ["ours waits for caller", "run", "caller waits for ours"]
