"""The bench's arithmetic in closed form: percentiles, order, work, floors and ratios."""

from __future__ import annotations

import json
import math
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.errors import GenPropError
from genprop.evaluate.bench.document import (
    STAGES,
    Bench,
    Floor,
    Lane,
    Machine,
    Opened,
    Percentiles,
    Role,
    Row,
    Skipped,
    Stage,
)
from genprop.evaluate.bench.floor import floors, rate
from genprop.evaluate.bench.jobs import Timed, check_present, parse_backend
from genprop.evaluate.bench.lanes import decoded_psnr
from genprop.evaluate.bench.machine import describe_run, matmul_rate, measure_machine
from genprop.evaluate.bench.plot import write_plot
from genprop.evaluate.bench.ratios import ratios
from genprop.evaluate.bench.table import lanes_table, ratios_table, rows_table
from genprop.evaluate.bench.timing import interleaved
from genprop.evaluate.bench.work import ModelWork, Work, work_of
from genprop.manifest import CONDITIONER, DECODER, DENOISER, ENCODER, IMAGE_ENCODER, LIGHT_DECODER, Precision
from genprop.video import read_image

MACHINE = Machine(flops={"fp32": 1000.0, "fp16": 4000.0}, bandwidth=100.0)


def make_row(steps: int, total: float, *, hole_psnr: float | None = 20.0) -> Row:
    """Three repetitions, the median of which is `total`."""
    totals = (total, total / 2, 2 * total)
    seconds: dict[Stage, Percentiles] = {stage: Percentiles.of(list(totals)) for stage in STAGES}
    floor = Floor(flops=1.0, bytes=1.0, seconds=total / 4, ratio=4.0)
    return Row(
        steps=steps,
        evaluations=steps,
        seconds=seconds,
        totals=totals,
        fps=8 / total,
        psnr_eager=math.inf,
        hole_psnr=hole_psnr,
        floor={"total": floor},
    )


def make_lane(
    role: Role, backend: str, rows: dict[int, float], *, precision: Precision = "fp32", weights: str = ""
) -> Lane:
    opened = Opened(load=1.0, first_run=2.0, host_memory=3 * 10**6, libraries=10**6)
    return Lane(
        name=f"{role} {backend}",
        role=role,
        model="m",
        backend=backend,
        precision=precision,
        weights=weights or role,
        opened=opened,
        rows=tuple(
            make_row(n, total, hole_psnr=20.0 if role != "peer" else None) for n, total in rows.items()
        ),
    )


LANES = (
    make_lane("student", "torch", {4: 4.0, 1: 1.5}),
    make_lane("student", "compile", {4: 2.0, 1: 1.0}),
    make_lane("student", "onnxruntime", {4: 3.2, 1: 1.0}),
    make_lane("teacher", "torch", {25: 30.0, 4: 8.0}),
    make_lane("peer", "diffusers", {25: 15.0}),
)


@pytest.fixture
def bench() -> Bench:
    return Bench(
        frames=8,
        height=96,
        width=96,
        seed=0,
        repeats=3,
        warmup=1,
        quality_clips=2,
        **describe_run(),
        machine=MACHINE,
        lanes=LANES,
        skipped=(Skipped(role="student", model="m", backend="tensorrt", reason="there is no GPU"),),
        ratios=ratios(LANES),
    )


def test_percentiles_are_those_of_a_ramp() -> None:
    found = Percentiles.of([float(n) for n in reversed(range(101))])
    assert (found.p50, found.p90, found.p99) == (50.0, 90.0, 99.0)
    assert Percentiles.of([1.0, 2.0]).p90 == pytest.approx(1.9)


def test_repetitions_go_in_turn_and_warm_ups_do_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> Timed:
        order.append(name)
        return Timed({"total": float(len(order))}, 1)

    told: Counter[str] = Counter()
    names = ("a", "b", "c", "d")
    runs = {name: (lambda name=name: run(name)) for name in names}
    found = interleaved(runs, repeats=6, warmup=2, seed=0, after=lambda key: told.update([key]))
    assert order[:8] == ["a", "a", "b", "b", "c", "c", "d", "d"]
    turns = [order[i : i + 4] for i in range(8, len(order), 4)]
    assert len(turns) == 6 and all(sorted(turn) == list(names) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert all(len(times) == 6 and times[0].seconds["total"] > 8 for times in found.values())
    assert told == dict.fromkeys(names, 8)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(64, 64)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return (F.scaled_dot_product_attention(q, k, k),)


def test_work_of_known_modules() -> None:
    linear = work_of(nn.Linear(8, 16), (4, 8))
    assert linear == Work(flops=2 * 4 * 8 * 16, weights=8 * 16 + 16, tensors=4 * 8 + 4 * 16)
    convolution = work_of(nn.Conv2d(3, 5, 3, padding=1, bias=False), (2, 3, 6, 7))
    assert convolution == Work(2 * 2 * 5 * 6 * 7 * 3 * 9, 3 * 5 * 9, 2 * 3 * 6 * 7 + 2 * 5 * 6 * 7)
    attention = work_of(Attention(), (2, 3, 10, 4), (2, 3, 20, 4))
    assert attention == Work(2 * 2 * 2 * 3 * 10 * 20 * 4, 0, 2 * 2 * 3 * 10 * 4 + 2 * 3 * 20 * 4)


def test_floor_is_the_slower_of_arithmetic_and_traffic() -> None:
    graphs = {
        ENCODER: Work(flops=2000, weights=1, tensors=1),  # 2 s of arithmetic in float32
        IMAGE_ENCODER: Work(flops=0, weights=10, tensors=5),  # 60 bytes
        DENOISER: Work(flops=8000, weights=10, tensors=10),  # 2 s in float16
        CONDITIONER: Work(flops=400, weights=100, tensors=25),  # 300 bytes in float16
        DECODER: Work(flops=0, weights=0, tensors=50),
        LIGHT_DECODER: Work(flops=0, weights=0, tensors=10),
    }
    work = ModelWork(graphs, {ENCODER: 3, DECODER: 2, LIGHT_DECODER: 5}, branches=2)
    half = {name: "fp16" for name in (IMAGE_ENCODER, DENOISER, CONDITIONER, DECODER, LIGHT_DECODER)}
    precisions: dict[str, Precision] = {ENCODER: "fp32", **half}  # type: ignore[dict-item]
    seconds: dict[Stage, Percentiles] = {s: Percentiles(p50=60.0, p90=0.0, p99=0.0) for s in STAGES}
    found = floors(work, MACHINE, precisions=precisions, evaluations=8, seconds=seconds)
    assert found["encode"].seconds == pytest.approx(3 * 2 + (10 * 2 + 5 * 4) / 100)
    assert found["denoise"].flops == 8 * 8000 + 2 * 400
    assert found["denoise"].bytes == 8 * (20 + 40) + 2 * (200 + 100)
    assert found["denoise"].seconds == pytest.approx(8 * 2 + 2 * 3.0)
    assert found["decode"].seconds == pytest.approx(2 * 50 * 4 / 100)
    light = floors(work, MACHINE, precisions=precisions, evaluations=8, seconds=seconds, light=True)
    assert light["decode"].seconds == pytest.approx(5 * 10 * 4 / 100)
    assert found["total"].seconds == pytest.approx(6.4 + 22 + 4)
    assert found["total"].ratio == pytest.approx(60 / 32.4)


def test_half_precision_is_no_slower_than_single_in_the_floor() -> None:
    slow = Machine(flops={"fp32": 1000.0, "fp16": 10.0}, bandwidth=1.0)
    assert rate(slow, "fp16") == 1000.0 and rate(MACHINE, "fp16") == 4000.0


def test_machine_is_measured() -> None:
    machine = measure_machine(["fp32"])
    assert machine.flops.keys() == {"fp32"} and 1e8 < machine.bandwidth < 1e14
    assert machine.flops["fp32"] > 1e8
    before = torch.get_float32_matmul_precision()
    assert matmul_rate(64, torch.float32, torch.device("cpu")) > 0
    assert torch.get_float32_matmul_precision() == before


def test_ratios_name_their_bars_and_whether_they_are_met() -> None:
    found = {(r.fast, r.slow, r.name.split(" over ")[0].split(", ")[1]): r for r in ratios(LANES)}
    teacher = found["student torch", "teacher torch", "1 step"]
    assert (teacher.value, teacher.bar, teacher.met) == (20.0, 15.0, True)
    assert teacher.paired == 20.0
    four = found["student onnxruntime", "student torch", "4 steps"]
    assert (four.value, four.bar, four.met) == (1.25, 1.3, False)
    assert found["student onnxruntime", "student torch", "1 step"].met is True
    assert found["student compile", "student torch", "4 steps"].bar is None
    peer = found["student compile", "peer diffusers", "4 steps"]
    assert (peer.value, peer.bar, peer.met) == (7.5, 8.0, False)
    assert found["student torch", "peer diffusers", "1 step"].bar is None
    assert ("student torch", "student torch", "1 step") not in found
    assert not any(fast == "teacher torch" for fast, _, _ in found)


def test_other_weights_are_not_compared_with_eager() -> None:
    other = make_lane("student", "onnxruntime", {1: 1.0}, weights="another")
    assert ratios((LANES[0], other)) == ()


def test_light_decoder_is_no_eager_and_has_no_bar() -> None:
    light = LANES[0].model_copy(update={"light": True, "name": "student torch+light"})
    found = ratios((LANES[0], light))
    assert {(r.fast, r.slow, r.bar) for r in found} == {("student torch+light", "student torch", None)}


def test_paired_ratio_is_the_median_of_each_repetitions_own() -> None:
    slow, fast = LANES[0].rows[1], LANES[2].rows[1]
    slow = slow.model_copy(update={"totals": (2.0, 9.0, 3.0)})
    fast = fast.model_copy(update={"totals": (1.0, 1.0, 1.0)})
    lanes = (LANES[0].model_copy(update={"rows": (slow,)}), LANES[2].model_copy(update={"rows": (fast,)}))
    (ratio,) = ratios(lanes)
    assert ratio.paired == 3.0 and ratio.value == 1.5


def test_document_goes_through_json_and_refuses_unknown_keys(bench: Bench) -> None:
    document = bench.model_dump(mode="json")
    text = json.dumps(document, allow_nan=False)
    assert Bench.model_validate_json(text) == bench
    assert document["lanes"][0]["rows"][0]["psnr_eager"] is None  # it was infinite
    assert bench.lane("teacher", "torch") is LANES[3] and bench.lane("teacher", "compile") is None
    assert LANES[0].row(1) is LANES[0].rows[1] and LANES[0].row(2) is None
    with pytest.raises(ValidationError, match="Extra inputs"):
        Bench.model_validate({**document, "surprise": 1})


def test_tables_show_every_row_and_what_did_not_run(bench: Bench) -> None:
    console = Console(file=StringIO(), width=160)
    for table in (rows_table, lanes_table, ratios_table):
        console.print(table(bench))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(lane.name in said for lane in LANES)
    assert "student tensorrt" in said and "there is no GPU" in said
    assert "20.00" in said and "1.25" in said and "no" in said


def test_picture_is_written_where_there_is_quality_only(bench: Bench, tmp_path: Path) -> None:
    assert write_plot(bench, tmp_path / "bench.png")
    picture = read_image(tmp_path / "bench.png")
    assert picture.shape[1] > 800 and picture.std() > 5
    without = bench.model_copy(update={"lanes": (LANES[4],)})
    assert not write_plot(without, tmp_path / "none.png")
    assert [file.name for file in tmp_path.iterdir()] == ["bench.png"]


def test_decoded_psnr_leaves_out_the_given_frame() -> None:
    expected = torch.zeros(1, 3, 3, 4, 4)
    got = expected + 0.2
    got[:, 0] = 9.0
    assert decoded_psnr(got, expected) == pytest.approx(20.0, abs=1e-5)  # 2 / 0.2 is ten
    assert decoded_psnr(expected, expected) == math.inf


def test_backends_are_named_with_their_precision() -> None:
    assert parse_backend("onnxruntime:fp16")[1:] == ("onnxruntime", "fp16", False)
    assert parse_backend("torch")[1:] == ("torch", None, False)
    assert parse_backend("compile:bf16+light") == ("compile:bf16+light", "compile", "bf16", True)
    for name, fault in (("auto", "no backend"), ("cuda", "no backend"), ("torch:fp8", "no precision 'fp8'")):
        with pytest.raises(GenPropError, match=fault):
            parse_backend(name)


def test_an_engine_needs_its_library_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    check_present("torch")
    monkeypatch.setattr("genprop.evaluate.bench.jobs.find_spec", lambda name: None)
    with pytest.raises(GenPropError, match="tensorrt_rtx is not installed"):
        check_present("tensorrt-rtx")
    monkeypatch.setattr("genprop.evaluate.bench.jobs.find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GenPropError, match="NVIDIA GPU"):
        check_present("tensorrt")
