"""The memory plan: what it counts is what PyTorch allocates, and what it advises helps."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.config import Config, load_config
from genprop.errors import GenPropError
from genprop.settings import TrainConfig
from genprop.teacher.base import Base, new_base, save_base
from genprop.teacher.fits import available_memory, check_fits
from genprop.teacher.net import GenPropNet
from genprop.teacher.outline import ENCODE, SAMPLE, Call, How, Stage, Training, architecture, outline
from genprop.teacher.plan import STEP, Plan, Use, here, make_plan, plan
from genprop.teacher.trace import Tracker, fake_tensors, trace_step
from genprop.teacher.unet import checkpoint_blocks, recompute

CPU = How(cuda=False)


def with_settings(config: Config, **changes: Any) -> Config:
    settings = TrainConfig.model_validate({"steps": 1, "batch_size": 1, **changes})
    return config.model_copy(update={"teacher": settings})


def step_plan(config: Config, how: How = CPU) -> Plan:
    return make_plan(config, "teacher", lambda config, how: outline(config, "teacher", how), how, only=STEP)


def test_the_full_size_model_has_the_parameters_that_its_papers_state() -> None:
    """SVD-XT's UNet has 1,524.6 M, its copy to the second block about 100 M; nothing is allocated for it."""
    config = load_config("svd-xt")
    with torch.device("meta"):
        base = new_base(config.base, seed=0)
        net = GenPropNet(base.backbone, config.net, config.sce)
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in net.named_children()}
    assert count["backbone"] == 1_524_623_082
    assert count["sce"] == 101_616_328
    assert net.sce.fusion is not None
    injected = sum(p.numel() for m in (net.sce.injections, net.sce.fusion) for p in m.parameters())
    assert injected == 4 * (320**2 + 320) + 320**2 + 320 + 3 * (640**2 + 640)
    assert count["mpd"] == 640 * 256 + 256 * 128 + 128 + (256 + 128) * 3 + 1
    assert sum(p.numel() for p in base.autoencoder.parameters()) == 97_742_847
    assert sum(p.numel() for p in base.image_encoder.parameters()) == 632_076_800
    assert type(base.autoencoder.vae).__name__ == "AutoencoderKLTemporalDecoder"
    assert net.tasks is not None and count["tasks"] == 4 * 1280
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 101_814_217 + 4 * 1280


@pytest.mark.parametrize("settings", [{}, {"checkpointing": True, "precision": "bf16", "accumulate": 2}])
def test_the_prediction_is_what_real_tensors_take(small_config: Config, settings: dict[str, Any]) -> None:
    config = with_settings(small_config, **settings)
    predicted = step_plan(config).peak
    made = outline(config, "teacher", CPU)
    if made.settings.checkpointing:
        checkpoint_blocks(made.objective)
    held = list(made.objective.parameters())
    trained = [p for p in held if p.requires_grad]
    measured = trace_step(made.loss, trained, held=held, settings=made.settings, cuda=False)
    total = predicted.activations + predicted.temporary + predicted.gradients
    assert total == pytest.approx(sum(measured.values()), rel=0.03)


RESIDENT = """
import ctypes, sys, torch
from genprop.config import parse_config
from genprop.teacher.outline import How, outline
from genprop.teacher.unet import checkpoint_blocks

torch.set_num_threads(1)
config = parse_config(eval(sys.stdin.read()))
made = outline(config, "teacher", How(cuda=False))
if config.teacher.checkpointing:
    checkpoint_blocks(made.objective)

def step():
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.teacher.precision == "bf16"):
        loss = made.loss()
    loss.backward()
    made.objective.zero_grad()

def status(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) * 1024

step()  # code and caches
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
step()
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("settings", [{}, {"checkpointing": True}, {"precision": "bf16"}])
def test_the_prediction_is_what_a_process_grows_by(small_config: Config, settings: dict[str, Any]) -> None:
    """An independent measure: the resident memory of another process, at a size where tensors dominate."""
    config = with_settings(small_config, **settings)
    clip = config.clip.model_copy(update={"frames": 6, "height": 96, "width": 96})
    config = config.model_copy(update={"clip": clip})
    use = step_plan(config).peak
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RESIDENT],
        input=repr(config.model_dump()),
        capture_output=True,
        text=True,
        env={"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    predicted = use.activations + use.temporary + use.gradients
    assert predicted == pytest.approx(int(done.stdout), rel=0.15)


def test_the_tracker_finds_the_peak_and_what_was_in_it() -> None:
    tracker = Tracker(cuda=False)
    held = torch.zeros(1000)
    tracker.ignore([held])
    with tracker:
        kept = held + 1  # 4000 bytes
        view = kept.view(10, 100)  # none
        gone = torch.zeros(500)  # 2000
        del gone
        tracker.phase = "temporary"
        last = torch.zeros(100)  # 400
    assert tracker.peak() == {"activations": 6000, "temporary": 0, "gradients": 0}
    with tracker:
        more = torch.zeros(1000)  # now 4000 + 400 + 4000 are most
    tracker.assign([more], "gradients")
    assert tracker.peak() == {"activations": 4000, "temporary": 400, "gradients": 4000}
    del view, last


def test_norms_run_in_float32_as_under_cuda_autocast_and_only_there() -> None:
    x = torch.zeros(2, 8, dtype=torch.bfloat16)

    def norm_type() -> torch.dtype:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.layer_norm(x, (8,)).dtype

    with fake_tensors(cuda=True):
        assert norm_type() == torch.float32
        assert F.layer_norm(x, (8,)).dtype == torch.bfloat16
    with fake_tensors(cuda=False):
        assert norm_type() == torch.bfloat16
    assert norm_type() == torch.bfloat16


def test_a_convolution_in_16_bits_needs_room_to_transpose_on_cuda() -> None:
    def peak(dtype: torch.dtype, *, cuda: bool) -> int:
        with fake_tensors(), Tracker(cuda=cuda) as tracker:
            x, weight = torch.zeros(1, 32, 16, 16, dtype=dtype), torch.zeros(32, 32, 1, 1, dtype=dtype)
            F.conv2d(x, weight)
        return sum(tracker.peak().values())

    size = 32 * 16 * 16
    assert peak(torch.float32, cuda=True) == peak(torch.float32, cuda=False) == 4 * (2 * size + 32 * 32)
    assert peak(torch.bfloat16, cuda=True) == 2 * (2 * size + 32 * 32) + 2 * 2 * size


def toy(config: Config, how: How) -> Training:
    """A training of four layers, the first frozen, whose tensors grow as those of a video network do."""
    settings, clip = config.teacher, config.clip
    layers = nn.Sequential(
        *(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Sigmoid(), nn.Tanh()) for _ in range(4))
    )
    layers[0].requires_grad_(False)
    rows = clip.frames * clip.height * clip.width // 64

    def loss() -> Tensor:
        x = torch.zeros(settings.batch_size * rows, 64)
        for layer in layers:
            x = recompute(layer, x) if settings.checkpointing else layer(x)
        return x.sum()

    calls = {
        ENCODE: Call(
            lambda: torch.zeros(config.base.chunk * rows, 640), "before" if config.data.cache else "step"
        ),
        SAMPLE: Call(lambda: torch.zeros(config.data.validation * rows, 64)),
    }
    return Training(settings, layers, {"autoencoder": nn.Linear(8, 8)}, loss, calls)


TRAINED, HELD = 3 * (64 * 64 + 64), 4 * (64 * 64 + 64) + 72
"""Parameters of `toy`."""


def toy_plan(config: Config, how: How = CPU, *, only: str | None = None, **settings: Any) -> Plan:
    clip = config.clip.model_copy(update={"frames": 6, "height": 128, "width": 128})
    config = with_settings(config, **settings).model_copy(update={"clip": clip})
    return make_plan(config, "teacher", toy, how, only=only)


def test_what_fit_holds_follows_the_settings(small_config: Config) -> None:
    def use(how: How = CPU, **settings: Any) -> Use:
        return toy_plan(small_config, how, only=STEP, **settings).peak

    plain = use()
    assert (plain.weights, plain.optimizer, plain.ema) == (4 * HELD, 8 * TRAINED, 4 * TRAINED)
    tensor = 6 * 128 * 128 * 4  # bytes; a layer keeps the outputs of its activation functions
    assert 9 * tensor <= plain.activations <= 12 * tensor
    assert use(checkpointing=True).total < 0.7 * plain.total
    assert 2 * TRAINED <= use(optimizer="adamw8bit").optimizer < 2.5 * TRAINED
    assert use(accumulate=2).gradients == 4 * TRAINED
    parallel = use(How(devices=4, cuda=False), accumulate=2)  # DDP keeps a second copy
    assert parallel.gradients == 8 * TRAINED and parallel.weights == plain.weights
    sharded = use(How(devices=4, sharded=True, cuda=False), accumulate=2)
    assert sharded.weights == plain.weights // 4
    assert (sharded.gradients, sharded.optimizer, sharded.ema) == (TRAINED, 2 * TRAINED, TRAINED)


def test_before_the_fit_its_states_are_not_there_and_validation_keeps_a_copy(small_config: Config) -> None:
    uses = {use.name: use for use in toy_plan(small_config).uses}
    assert uses[ENCODE].optimizer == uses[ENCODE].ema == uses[ENCODE].temporary == 0
    assert uses[SAMPLE].optimizer == 8 * TRAINED and uses[SAMPLE].temporary == 4 * TRAINED
    assert uses["optimiser"].gradients == 4 * TRAINED
    assert uses[ENCODE].activations == 8 * 6 * 128 * 128 // 64 * 640 * 4


@pytest.mark.parametrize(
    "stage",
    ["autoencoder", "carry", *(pytest.param(s, marks=pytest.mark.slow) for s in ("backbone", "teacher"))],
)
def test_every_stage_has_a_plan_for_programs_and_for_people(small_config: Config, stage: Stage) -> None:
    net = small_config.net.model_copy(update={"gate": True, "carry": 8})
    config = small_config.model_copy(update={"net": net})
    made = plan(config, stage=stage)
    document = json.loads(json.dumps(made.document()))
    assert document["peak"] == max(use["total"] for use in document["memory"])
    assert document["trained"] == sum(part["trained"] for part in document["parts"]) > 0
    assert "other" not in {part["name"] for part in document["parts"]}
    console = Console(width=140, record=True, file=StringIO())
    for table in made.tables():
        console.print(table)
    text = console.export_text()
    assert STEP in text and "of the parameters train" in text


def test_a_stage_without_its_part_is_refused(small_config: Config) -> None:
    with pytest.raises(GenPropError, match=r"net\.carry is 0"):
        plan(small_config, stage="carry")


def refusal(made: Plan, available: int) -> tuple[str, list[str]]:
    with pytest.raises(GenPropError) as caught:
        check_fits(made, available)
    return caught.value.message, caught.value.hint.split("; ")


def test_what_fits_is_let_through_and_what_does_not_is_told_what_helps_most(small_config: Config) -> None:
    made = toy_plan(small_config, batch_size=3, only=STEP)
    check_fits(made, int(made.peak.total * 1.06))
    message, knobs = refusal(made, made.peak.total // 4)
    assert f"needs {made.peak.total * 1.05 / 1e9:.4g} GB" in message and STEP in message
    assert f"at most {made.peak.total // 4 / 1e9:.4g} GB" in message
    assert [knob.split(" (to")[0] for knob in knobs] == [
        "--set clip.height=64 --set clip.width=64",
        "--set teacher.batch_size=1 --set teacher.accumulate=3",
        "--set clip.frames=3",
        "--set teacher.checkpointing=true",
    ]
    smallest = float(knobs[0].split("(to ")[1].removesuffix(" GB)"))
    assert smallest == pytest.approx(made.peak.total * 1.05 / 1e9 / 4, rel=0.1)


def test_in_shards_what_runs_whole_is_counted_whole(small_config: Config) -> None:
    how = How(devices=4, sharded=True, cuda=False)
    uses = {use.name: use for use in toy_plan(small_config, how).uses}
    assert uses[SAMPLE].weights == 4 * HELD + 4 * HELD // 4  # the objective beside its shards
    assert uses[ENCODE].weights == 4 * HELD
    step, alone = uses[STEP], toy_plan(small_config, only=STEP).peak
    assert step.temporary - alone.temporary == 4 * (HELD - 72)  # no blocks: all of it is gathered


def test_how_this_process_runs_is_the_launchers_business(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    assert here() == How(cuda=torch.cuda.is_available())
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert here() == How(devices=4, sharded=True, cuda=torch.cuda.is_available())


def test_every_piece_is_told_of_its_own_knobs(small_config: Config) -> None:
    _, encoding = refusal(toy_plan(small_config, only=ENCODE), 0)
    assert encoding[0].startswith("--set base.chunk=1")
    assert not any("teacher." in knob for knob in encoding)
    _, sampling = refusal(toy_plan(small_config, only=SAMPLE), 0)
    assert sampling[0].startswith("--set data.validation=1")
    online = small_config.model_copy(update={"data": small_config.data.model_copy(update={"cache": False})})
    made = toy_plan(online, only=ENCODE)
    assert made.peak.optimizer == 8 * TRAINED  # it is done in the step
    _, parallel = refusal(toy_plan(small_config, How(devices=64, cuda=False), only="optimiser"), 0)
    assert parallel[0].startswith("weights sharded")


def test_the_architecture_is_read_from_the_folder_of_the_base(
    small_config: Config, small_base: Base, tmp_path: Path
) -> None:
    save_base(small_base, tmp_path)
    unknown = {"unet": None, "vae": None, "image_encoder": None}
    config = small_config.model_copy(update={"base": small_config.base.model_copy(update=unknown)})
    with torch.device("meta"):
        read = new_base(architecture(config, tmp_path), seed=0)
    for ours, theirs in zip(read, small_base, strict=True):
        shapes = {name: p.shape for name, p in theirs.named_parameters()}
        assert {name: p.shape for name, p in ours.named_parameters()} == shapes


def test_a_base_that_is_not_here_is_described_by_the_tables_or_refused(small_config: Config) -> None:
    away = "stabilityai/some-model-that-is-not-here"
    assert architecture(small_config, away).unet == small_config.base.unet
    bare = small_config.model_copy(update={"base": small_config.base.model_copy(update={"vae": None})})
    with pytest.raises(GenPropError, match=r"some-model-that-is-not-here is not here, and \[base\.vae\]"):
        plan(bare, base=away)


def test_an_autoencoder_of_an_unknown_class_is_refused(small_config: Config) -> None:
    vae = {**(small_config.base.vae or {}), "_class_name": "AutoencoderTiny"}
    with pytest.raises(GenPropError, match=r"vae\._class_name is 'AutoencoderTiny', expected one of"):
        new_base(small_config.base.model_copy(update={"vae": vae}), seed=0)


def test_available_memory_is_the_devices_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < available_memory() < 2**50
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5, 9))
    assert available_memory() == 5


@pytest.mark.slow
def test_the_full_size_teacher_fits_on_80_gb_with_checkpointing_and_not_without() -> None:
    overrides = ["clip.width=576"]
    step = step_plan(load_config("svd-xt", overrides), How()).peak
    assert step.total < 30e9
    overrides += ["teacher.checkpointing=false"]
    assert step_plan(load_config("svd-xt", overrides), How()).peak.total > 80e9
