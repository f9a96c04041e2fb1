"""The demo on models whose every figure is known: one returns the source, the other the source and a bit."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.data.procedural import ProceduralClips
from genprop.edm import precondition
from genprop.errors import GenPropError
from genprop.evaluate import protocol
from genprop.evaluate.baselines import identity
from genprop.evaluate.measure import measure, measure_ceiling, measure_frames, median_seconds, noise_seed
from genprop.evaluate.report import Report
from genprop.runtime.backends import Stages
from genprop.settings import ClipConfig
from genprop.types import EditSample, NetOut

CONFIG = Config(name="fake", clip=ClipConfig(frames=3, height=16, width=16, noise_aug=0.0))
SCHEDULES = {1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5)}
SHIFT = 0.25


def fake_stages(
    kind: str, *, backend: str = "torch", shift: float = 0.0, calls: list | None = None
) -> Stages:
    """Pixels are latents, and x0 is the source plus `shift`, wherever it starts from."""

    def net(
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        if calls is not None:
            calls.append(sample)
        c = precondition((4 * timestep).exp())
        velocity = (source + shift - c.c_skip * (sample / c.c_in)) / c.c_out
        mask_logits = torch.full((1, 3, 1, 2, 2), -1.0)
        mask_logits[..., 0] = 1.0  # the left half
        return NetOut(velocity, mask_logits)

    return Stages(
        backend=backend,
        kind=kind,
        config=CONFIG,
        sigmas=SCHEDULES if kind == "student" else {},
        scaling_factor=2.0,
        net=net,
        encode=lambda frames: frames,
        decode_window=lambda latents: latents / 2.0,
        chunk=3,
        embed=lambda frame: torch.zeros(1, 1, 4),
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="module")
def samples() -> list[EditSample]:
    dataset = ProceduralClips(2, protocol.DEMO_SEED, frames=3, height=16, width=16)
    return [dataset[i] for i in range(2)]


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """Two bundles that hold nothing to speak of."""
    folders = {"teacher": tmp_path / "bundles" / "teacher", "student": tmp_path / "bundles" / "student"}
    tensors = {"sce.weight": torch.zeros(1)}
    write_bundle(folders["teacher"], kind="teacher", config=CONFIG, base="tiny-base", tensors=tensors)
    write_bundle(
        folders["student"], kind="student", config=CONFIG, base="tiny-base", tensors=tensors, sigmas=SCHEDULES
    )
    return folders


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Makes the demo open fakes, and notes which model it opened on which backend."""
    seen: list[tuple[str, str]] = []

    def open_fake(model: Path, *, backend: str) -> Stages:
        seen.append((model.name, backend))
        student = "student" in model.name
        kind = "student" if student else "teacher"
        return fake_stages(kind, backend=backend, shift=SHIFT if student else 0.0)

    monkeypatch.setattr(protocol, "open_stages", open_fake)
    monkeypatch.setattr(protocol, "export_bundle", lambda model, folder: None)
    return seen


def test_the_demo_reports_what_is_known(
    tmp_path: Path, pair: dict[str, Any], opened: list, samples: list[EditSample]
) -> None:
    told: list[tuple[int, int, str]] = []
    out = tmp_path / "new" / "out"
    document = protocol.run_demo(out=out, clips=2, **pair, progress=lambda *step: told.append(step))

    assert opened == [
        *(("teacher", "torch"), ("student", "torch")),
        *(("onnx-teacher", "onnxruntime"), ("onnx-student", "onnxruntime")),
    ]
    report = Report.model_validate(document)
    assert json.loads((out / "report.json").read_text()) == document
    assert {"comparison.png", "original.mp4", "teacher-25.mp4", "student-1.mp4"} < {
        path.name for path in out.iterdir()
    }
    assert (report.clips, report.frames, report.height, report.width, report.seed) == (2, 3, 16, 16, 0)
    assert report.hardware.cpu and report.hardware.cores >= 1 and report.hardware.threads == 1
    assert {"python", "torch", "onnxruntime", "genprop"} <= set(report.versions)

    names = [(run.name, run.backend, run.steps, run.evaluations) for run in report.runs]
    teacher = [("teacher", 25, 50), ("teacher", 4, 8), ("teacher", 2, 4), ("teacher", 1, 2)]
    student = [("student", 4, 4), ("student", 2, 2), ("student", 1, 1)]
    assert names == [
        (name, backend, steps, evaluations)
        for backend in ("torch", "onnxruntime")
        for name, steps, evaluations in teacher + student
    ]
    # The latents are the pixels: the truth comes back as it was, the teacher returns the source.
    assert report.ceiling.hole_psnr is report.ceiling.keep_psnr is None
    nothing = report.baselines.identity
    for run in report.runs:
        if run.name == "teacher":
            assert run.hole_psnr == pytest.approx(nothing.hole_psnr, abs=0.05)
            assert run.keep_psnr is None
            assert run.endpoint_db is None or run.endpoint_db > 80
    full = report.run("teacher", backend="torch", steps=25)
    assert full is not None and full.endpoint_db is None
    # The student's latents are off by SHIFT, at every number of steps; the source's span nearly [-2, 2].
    sources = np.stack([sample.source[1:] for sample in samples])
    span = 2 * (int(sources.max()) - int(sources.min())) / 127.5
    for steps in protocol.STUDENT_STEPS:
        run = report.run("student", backend="onnxruntime", steps=steps)
        assert run is not None and run.endpoint_db == pytest.approx(20 * log10(span / SHIFT), abs=1e-3)
    left = np.zeros((3, 16, 16), bool)
    left[:, :, :8] = True
    truth = np.stack([sample.mask[1:] for sample in samples])
    iou = (truth & left[1:]).sum() / (truth | left[1:]).sum()
    assert all(run.mask_iou == pytest.approx(iou) for run in report.runs)

    done, totals, _ = zip(*told, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[-1] == 2 * 2 * 7


def test_all_runs_of_a_clip_start_from_the_same_noise(samples: list[EditSample]) -> None:
    starts = []
    for kind, steps in (("teacher", 25), ("teacher", 1), ("student", 4), ("student", 1)):
        calls: list[Tensor] = []
        measure(fake_stages(kind, calls=calls), samples[:1], steps=steps, seed=3)
        starts.append(calls[0])  # c_in of the largest sigma times its x: the noise alone, at any sigma
    assert all(torch.allclose(start, starts[0], atol=1e-5) for start in starts)
    assert len({noise_seed(seed, index) for seed in range(5) for index in range(5)}) == 25


def test_a_student_is_compared_by_its_deterministic_sample(samples: list[EditSample]) -> None:
    """Re-noised steps call the network on fresh noise, the deterministic ones do not."""
    calls: list[Tensor] = []
    stages = fake_stages("student", calls=calls)
    endpoints = [torch.zeros(1, 3, 3, 16, 16) for _ in samples]
    measure(stages, samples, steps=2, seed=0, endpoints=endpoints)
    assert len(calls) == 2 * (2 + 2)
    assert torch.equal(calls[0], calls[2]) and not torch.allclose(calls[1], calls[3])
    calls.clear()
    measure(stages, samples, steps=1, seed=0, endpoints=endpoints)
    assert len(calls) == 2  # once is enough


def test_the_ceiling_is_the_truth_through_the_autoencoder(samples: list[EditSample]) -> None:
    lossy = replace(fake_stages("teacher"), decode_window=lambda latents: latents / 2.0 + 2 * 10 / 255)
    ceiling = measure_ceiling(lossy, samples)

    def brighter(sample: EditSample) -> np.ndarray:
        return (sample.target.astype(int) + 10).clip(0, 255).astype(np.uint8)

    expected = measure_frames(brighter, samples)
    assert ceiling.hole_psnr == pytest.approx(expected.hole_psnr, abs=1e-6)
    assert ceiling.keep_psnr == pytest.approx(expected.keep_psnr, abs=1e-6)
    assert measure_frames(identity, samples).keep_psnr is None


def test_seconds_are_medians_of_each_stage() -> None:
    clips = [{"encode": e, "denoise": 1.0, "decode": 2.0, "total": t} for e, t in ((1, 9), (5, 7), (2, 30))]
    seconds = median_seconds(clips)
    assert (seconds.encode, seconds.denoise, seconds.decode, seconds.total) == (2, 1, 2, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": 0}, "got 0 clips"),
        ({"seed": -1}, "seed -1"),
        ({"teacher": "student"}, "expected a teacher"),
        ({"student": "teacher"}, "expected a student"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_file_is_made(
    tmp_path: Path, pair: dict[str, Any], opened: list, change: dict, message: str
) -> None:
    change = {key: pair.get(value, value) for key, value in change.items()}
    with pytest.raises(GenPropError, match=message):
        protocol.run_demo(**{"out": tmp_path / "out", **pair, **change})
    assert not (tmp_path / "out").exists() and not opened


def test_a_pair_must_fit(tmp_path: Path, pair: dict[str, Any]) -> None:
    other = CONFIG.model_copy(update={"clip": ClipConfig(frames=4, height=16, width=16)})
    tensors = {"sce.weight": torch.zeros(1)}
    larger, lame = tmp_path / "larger", tmp_path / "lame"
    write_bundle(larger, kind="teacher", config=other, base="tiny-base", tensors=tensors)
    with pytest.raises(GenPropError, match="frames=4"):
        protocol.check_pair(larger, pair["student"])
    write_bundle(lame, kind="student", config=CONFIG, base="tiny-base", tensors=tensors, sigmas={1: (80.0,)})
    with pytest.raises(GenPropError, match=r"knows \[1\] steps"):
        protocol.check_pair(pair["teacher"], lame)


def test_an_output_that_cannot_be_written_is_refused_first(
    tmp_path: Path, pair: dict[str, Any], opened: list
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenPropError, match="cannot be written"):
        protocol.run_demo(out=tmp_path / "file", **pair)
    assert not opened
