"""The bench from models to document, on a model of random weights; the peer; and the probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genprop.bundle import write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.evaluate.bench import plan as plan_module
from genprop.evaluate.bench import run as run_module
from genprop.evaluate.bench.document import Bench, Machine, Opened
from genprop.evaluate.bench.jobs import BENCH_SEED, Job, bench_clip, open_runner, parse_backend
from genprop.evaluate.bench.peers import Peer, adapted, open_peer
from genprop.evaluate.bench.probe import _reason, measure, probe
from genprop.evaluate.bench.run import run_bench
from genprop.evaluate.bench.sources import make_ready, read_source, read_sources
from genprop.evaluate.bench.work import model_work
from genprop.manifest import DECODER, DENOISER, ENCODER, LIGHT_DECODER
from genprop.settings import ClipConfig
from genprop.student.clone import trained_tensors
from genprop.teacher.base import new_base, save_base
from genprop.teacher.net import GenPropNet

SIGMAS = {1: (80.0,), 2: (80.0, 2.0), 8: tuple(80.0 / 2**n for n in range(8))}


@pytest.fixture(scope="module")
def light_config(small_config: Config) -> Config:
    """`small_config` with an autoencoder of one block on 2x2 patches."""
    vae = {
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [8],
        "latent_channels": 4,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.5,
    }
    sampling = small_config.sampling.model_copy(update={"steps": 3})
    base = small_config.base.model_copy(update={"vae": vae, "chunk": 2})
    return small_config.model_copy(update={"base": base, "sampling": sampling})


@pytest.fixture(scope="module")
def models(light_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student` and `teacher`, bundles over one base."""
    folder = tmp_path_factory.mktemp("models")
    base = new_base(light_config.base, seed=0)
    save_base(base, folder / "base")
    tensors = trained_tensors(GenPropNet(base.backbone, light_config.net, light_config.sce), backbone=False)
    common = {"config": light_config, "base": folder / "base", "tensors": tensors}
    write_bundle(folder / "student", kind="student", sigmas=SIGMAS, **common)
    write_bundle(folder / "teacher", kind="teacher", **common)
    return folder


@pytest.fixture
def near_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe without a process of its own, and a machine of known speed: both take seconds."""

    def here(job: Job, *, clip: ClipConfig, steps: int, seed: int, threads: int) -> Opened:
        return measure(job, clip=clip, steps=steps, seed=seed)

    machine = Machine(flops={"fp32": 1e10}, bandwidth=1e10)
    monkeypatch.setattr(plan_module, "probe", here)
    monkeypatch.setattr(run_module, "measure_machine", lambda precisions: machine)


def test_bench_of_a_student_and_its_teacher(models: Path, near_probe: None, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    document = run_bench(
        [models / "student"],
        teacher=models / "teacher",
        backends=("torch", "tensorrt"),
        repeats=3,
        warmup=1,
        quality_clips=1,
        out=tmp_path / "out",
        progress=lambda done, total, what: told.append((done, total, what)),
    )
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    assert (tmp_path / "out" / "bench.png").is_file()
    bench = Bench.model_validate(document)
    student, teacher = bench.lane("student", "torch"), bench.lane("teacher", "torch")
    assert student is not None and teacher is not None
    assert [row.steps for row in student.rows] == [2, 1]
    assert [(row.steps, row.evaluations) for row in teacher.rows] == [(4, 8), (3, 6)]
    for row in (*student.rows, *teacher.rows):
        assert row.seconds.keys() == row.floor.keys() == {"encode", "denoise", "decode", "total"}
        assert len(row.totals) == 3 and row.psnr_eager is None and row.hole_psnr is not None
        stages = sum(row.seconds[s].p50 for s in ("encode", "denoise", "decode"))
        assert 0.5 * stages < row.seconds["total"].p50 and row.fps == 3 / row.seconds["total"].p50
        assert row.floor["denoise"].flops > 0
    assert student.opened.host_memory > student.opened.libraries > 0 and student.opened.first_run > 0
    assert student.size and student.size > 0 and student.build is None
    assert [(s.role, s.backend) for s in bench.skipped] == [("student", "tensorrt")]
    assert bench.skipped[0].reason
    assert any(r.bar == 15.0 and r.fast == "student torch" for r in bench.ratios)
    assert told[0][2] == "student, torch: first run" and (16, 16) in [(d, n) for d, n, _ in told]


def test_frames_of_another_backend_are_held_against_eager(
    models: Path, near_probe: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)  # a compiler takes a minute
    document = run_bench(
        [models / "student"],
        backends=("compile", "torch"),
        steps=(1,),
        repeats=1,
        out=tmp_path,
        quality_clips=0,
    )
    compiled, eager = Bench.model_validate(document).lanes
    assert (compiled.backend, eager.backend) == ("compile", "torch")
    assert (compiled.rows[0].psnr_eager or 0) > 100  # the same but for a rewrite
    assert not (tmp_path / "bench.png").exists()
    (ratio,) = document["ratios"]
    assert ratio["fast"] == "student compile" and ratio["bar"] is None


def test_nothing_that_runs_is_an_error_that_says_why(models: Path, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="none of the backends runs here: tensorrt: "):
        run_bench([models / "student"], backends=("tensorrt",), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"seed": -1}])
def test_counts_that_are_none_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="expected at least 1"):
        run_bench(["tiny"], out=tmp_path, **wrong)


def test_sources_are_checked_before_anything_runs(models: Path) -> None:
    student = read_source(models / "student", steps=None)
    assert (student.role, student.steps, student.bundle) == ("student", (2, 1), True)
    assert read_source(models / "student", steps=(8,)).steps == (8,)
    with pytest.raises(GenPropError, match=r"knows \[1, 2, 8\] steps, expected \[3\]"):
        read_source(models / "student", steps=(3,))
    with pytest.raises(GenPropError, match="is a student, expected a teacher"):
        read_sources([models / "teacher"], teacher=models / "student", steps=None)
    with pytest.raises(GenPropError, match="made for clips of"):
        read_sources([models / "student"], teacher="tiny-teacher", steps=None)
    with pytest.raises(GenPropError, match="no model to bench"):
        read_sources([], teacher=None, steps=None)
    with pytest.raises(GenPropError, match="has no light decoder"):
        make_ready(student, parse_backend("torch+light"), exports=models / "none")
    ready = make_ready(student, parse_backend("torch:bf16"), exports=models / "none")
    assert (ready.job.precision, ready.job.light, ready.build) == ("bf16", False, None)


def test_work_of_a_model_is_by_graph_and_window(models: Path) -> None:
    student, teacher = model_work(models / "student"), model_work(models / "teacher")
    # Three frames and the edited one, two at a time; three frames to decode, two at a time.
    assert (student.windows[ENCODER], student.windows[DECODER]) == (2, 2)
    assert student.calls("decode", 4, light=True) == {LIGHT_DECODER: 2}
    assert student.calls("denoise", 4)[DENOISER] == 4 and student.calls("decode", 4) == {DECODER: 2}
    assert (student.branches, teacher.branches) == (1, 2)
    assert all(work.flops > 0 for work in student.graphs.values())
    whole = sum(work.weights for work in (student.graphs[ENCODER], student.graphs[DECODER]))
    assert student.graphs[ENCODER].weights < whole  # each of its half of the autoencoder only


def test_clip_depends_on_the_seed_alone(light_config: Config) -> None:
    clip = light_config.clip
    one, same, other = (bench_clip(clip, seed) for seed in (0, 0, 1))
    assert one.source.shape == (3, 16, 16, 3) and BENCH_SEED > 0
    assert (one.source == same.source).all() and (one.source != other.source).any()


def test_peer_runs_over_a_base_of_patches(models: Path, light_config: Config) -> None:
    peer = open_peer(str(models / "student"), compiled=False, precision="fp32")
    assert isinstance(peer, Peer)
    timed = peer.run(bench_clip(light_config.clip, 0), steps=2, seed=0)
    assert timed.evaluations == 4 and all(seconds > 0 for seconds in timed.seconds.values())
    stages = [timed.seconds[stage] for stage in ("encode", "denoise", "decode")]
    assert sum(stages) == pytest.approx(timed.seconds["total"])
    assert "patches of 2 pixels" in peer.note and "16 pixels" in peer.note
    assert peer.frames(bench_clip(light_config.clip, 0), steps=2, seed=0) is None


@torch.no_grad()
def test_peers_autoencoder_is_the_bases_own(light_config: Config, rng: torch.Generator) -> None:
    base = new_base(light_config.base, seed=0)
    vae, clip = adapted(base)
    frames = 2 * torch.rand(2, 3, 16, 16, generator=rng) - 1
    latents = vae.encode(frames).latent_dist.mode()
    torch.testing.assert_close(latents, base.autoencoder.encode(frames[None])[0])
    torch.testing.assert_close(vae.decode(latents).sample, base.autoencoder.decode_window(latents[None])[0])
    assert clip(torch.rand(1, 3, 224, 224)).image_embeds.shape == (1, 32)


def test_reason_of_a_probe_that_died() -> None:
    trace = 'Traceback (most recent call last):\n  File "x"\nRuntimeError: no compiler\nwarned: later\n'
    assert _reason(1, trace) == "RuntimeError: no compiler"
    assert _reason(1, "error: tensorrt is not installed\n") == "tensorrt is not installed"
    assert _reason(-9, "") == "its process was ended by signal 9 (out of memory?)"
    assert _reason(3, "") == "its process ended with 3"


@pytest.mark.slow
def test_probe_is_a_process_of_its_own(models: Path, light_config: Config) -> None:
    job = Job("student", str(models / "student"), "torch", "fp32")
    opened = probe(job, clip=light_config.clip, steps=1, seed=0, threads=1)
    assert opened.load > 0 and opened.first_run > 0
    assert 100e6 < opened.libraries < opened.host_memory < 3e9
    assert (opened.device_memory is None) == (not torch.cuda.is_available())
    with pytest.raises(GenPropError, match="no model named"):
        probe(Job("student", "nowhere", "torch", "fp32"), clip=light_config.clip, steps=1, seed=0, threads=1)


@pytest.mark.slow
def test_onnxruntime_is_exported_once_and_agrees_with_eager(
    models: Path, near_probe: None, tmp_path: Path
) -> None:
    def bench() -> Bench:
        arguments = {"backends": ("torch", "onnxruntime"), "steps": (1,), "repeats": 1, "warmup": 0}
        return Bench.model_validate(run_bench([models / "student"], **arguments, out=tmp_path))

    first = bench().lane("student", "onnxruntime")
    again = bench().lane("student", "onnxruntime")
    assert first is not None and again is not None
    assert first.build and first.build > 0 and again.build is None  # it is kept
    assert first.rows[0].psnr_eager and first.rows[0].psnr_eager > 60
    export = next((tmp_path / "exports").iterdir())
    runner = open_runner(Job("student", str(export), "onnxruntime", "fp32"))
    assert runner.run(bench_clip(read_source(export, steps=None).clip, 0), steps=2, seed=0).evaluations == 2
