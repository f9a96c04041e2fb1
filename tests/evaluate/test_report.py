"""The report refuses what its schema does not name, is valid JSON, and its pictures hold what they claim."""

from __future__ import annotations

import json
from io import StringIO
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from genprop.data.procedural import ProceduralClips
from genprop.evaluate.measure import Result
from genprop.evaluate.pictures import SHEET_HEIGHT, comparison_sheet, write_pictures
from genprop.evaluate.report import (
    Baselines,
    Hardware,
    Regions,
    Report,
    Run,
    Seconds,
    reference_table,
    table,
    write_json,
)
from genprop.types import EditSample
from genprop.video import read_clip, read_image

RUNS = [
    (name, backend, steps)
    for backend in ("torch", "onnxruntime")
    for name, counts in (("teacher", (25, 4, 2, 1)), ("student", (4, 2, 1)))
    for steps in counts
]


def make_run(name: str, *, backend: str, steps: int, hole_psnr: float | None = 20.0) -> Run:
    seconds = Seconds(encode=0.1, denoise=0.1 * steps, decode=0.2, total=0.3 + 0.1 * steps)
    evaluations = steps * (2 if name == "teacher" else 1)
    return Run(
        name=name,
        backend=backend,
        steps=steps,
        evaluations=evaluations,
        seconds=seconds,
        hole_psnr=hole_psnr,
        keep_psnr=24.0,
        mask_iou=0.8,
        sharpness=0.95,
        endpoint_db=None if (name, steps) == ("teacher", 25) else 21.5,
    )


@pytest.fixture(scope="module")
def samples() -> list[EditSample]:
    dataset = ProceduralClips(2, 5, frames=4, height=24, width=32)
    return [dataset[i] for i in range(2)]


@pytest.fixture(scope="module")
def results(samples: list[EditSample]) -> list[Result]:
    return [
        Result(
            make_run(name, backend=backend, steps=steps),
            frames=[sample.target for sample in samples],
            masks=[sample.mask for sample in samples],
        )
        for name, backend, steps in RUNS
    ]


@pytest.fixture(scope="module")
def report(results: list[Result]) -> Report:
    exact = Regions(hole_psnr=9.0, keep_psnr=inf)
    return Report(
        model="tiny",
        frames=4,
        height=24,
        width=32,
        clips=2,
        seed=0,
        hardware=Hardware(cpu="a processor", cores=2, threads=1, gpu=None),
        versions={"torch": "2"},
        ceiling=Regions(hole_psnr=28.0, keep_psnr=29.0),
        baselines=Baselines(
            identity=exact, frozen_first_frame=Regions(hole_psnr=19.0, keep_psnr=18.0), telea=exact
        ),
        runs=tuple(result.run for result in results),
    )


def test_it_is_the_contract_of_the_command_line(report: Report) -> None:
    document = json.loads(json.dumps(report.model_dump(mode="json"), allow_nan=False))
    assert list(document["baselines"]) == ["identity", "frozen_first_frame", "telea"]
    assert document["baselines"]["identity"] == {"hole_psnr": 9.0, "keep_psnr": None}
    assert set(document["ceiling"]) == {"hole_psnr", "keep_psnr"}
    assert {"model", "frames", "height", "width", "clips", "runs"} <= set(document)
    assert list(document["runs"][0]) == [
        *("name", "backend", "steps", "evaluations", "seconds"),
        *("hole_psnr", "keep_psnr", "mask_iou", "sharpness", "endpoint_db"),
    ]
    assert list(document["runs"][0]["seconds"]) == ["encode", "denoise", "decode", "total"]
    assert Report.model_validate(document) == report


def test_an_unknown_key_is_an_error(report: Report) -> None:
    with pytest.raises(ValidationError, match="ssim"):
        Report.model_validate({**report.model_dump(), "ssim": 1.0})
    run = report.runs[0].model_dump()
    with pytest.raises(ValidationError, match="lpips"):
        Run.model_validate({**run, "lpips": 1.0})
    del run["endpoint_db"]
    with pytest.raises(ValidationError, match="endpoint_db"):
        Run.model_validate(run)


@pytest.mark.parametrize("value", [inf, -inf, nan, None])
def test_what_is_no_number_is_null(value: float | None) -> None:
    assert make_run("teacher", backend="torch", steps=1, hole_psnr=value).hole_psnr is None


def test_a_run_is_found_by_its_name(report: Report) -> None:
    run = report.run("student", backend="onnxruntime", steps=2)
    assert run is not None and (run.name, run.backend, run.steps) == ("student", "onnxruntime", 2)
    assert report.run("student", backend="onnxruntime", steps=25) is None


def test_the_table_holds_every_run(report: Report) -> None:
    console = Console(width=100, file=StringIO())
    console.print(table(report), reference_table(report))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    rows = [line for line in text.splitlines() if line.strip().startswith(("teacher", "student"))]
    assert len(rows) == len(RUNS)
    fastest = next(line for line in rows if "student" in line and " 1 " in line)
    assert "25.0" in fastest  # 25 steps of 0.1 s against one
    assert "…" not in text  # nothing is cut off
    assert "ceiling" in text and "frozen first frame" in text and "a processor" in text


def test_the_sheet_has_a_row_for_each_method(report: Report, results: list[Result], samples: list) -> None:
    few = comparison_sheet(report, samples=samples, results=results[:1])
    more = comparison_sheet(report, samples=samples, results=results[:3])
    one = comparison_sheet(report, samples=samples[:1], results=results[:1])
    assert SHEET_HEIGHT * 2 <= len(more) - len(few) <= SHEET_HEIGHT * 2 + 16
    # A second clip adds its four frames, and no labels.
    frame = SHEET_HEIGHT * 32 // 24
    assert 4 * frame <= few.shape[1] - one.shape[1] <= 4 * frame + 80


def test_the_pictures_are_written(
    tmp_path: Path, report: Report, results: list[Result], samples: list[EditSample]
) -> None:
    write_pictures(tmp_path, report, samples=samples, results=results)
    names = {path.name for path in tmp_path.iterdir()}
    videos = {"original.mp4", "teacher-25.mp4", "student-4.mp4", "student-2.mp4", "student-1.mp4"}
    assert names == videos | {"comparison.png"}
    assert read_clip(tmp_path / "student-1.mp4").frames.shape == (4, 24, 64, 3)  # side by side
    expected = comparison_sheet(report, samples=samples, results=[results[i] for i in (0, 4, 5, 6)])
    assert np.array_equal(read_image(tmp_path / "comparison.png"), expected)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
