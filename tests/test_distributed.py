"""Several processes train as one does: DDP and FSDP2 over gloo, with the teacher's own objective.

One pair of processes runs everything that is to be compared (starting them is what takes time); each run
leaves a folder, and the tests compare folders.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, default_collate

from genprop.adaptive import OwnOptimizer
from genprop.checkpoint import list_checkpoints
from genprop.config import Config
from genprop.distill.adversarial import AdversarialTerm
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.rewards.terms import open_rewards
from genprop.distill_settings import (
    AdapterConfig,
    AdversarialConfig,
    DistillConfig,
    FullReferenceConfig,
    RewardsConfig,
    TextureConfig,
)
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.loop import Validation, check_run, fit, is_main_process
from genprop.settings import TrainConfig
from genprop.sharding import local, shard, shard_like, whole
from genprop.student.clone import clone

Floats = dict[str, Tensor]

SETTINGS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 1,
    "learning_rate": 1e-3,
    "warmup": 2,
    "ema": 0.9,
    "log_every": 1,
    "validate_every": 10,
    "checkpoint_every": 10,
    "keep_checkpoints": 9,
}
SHORT = {"steps": 6}
DISTILL = DistillConfig(
    nodes=4,
    trajectory=0.3,
    blend=0.4,
    target_ema=0.9,
    adapter=AdapterConfig(rank=2),
    rewards=RewardsConfig(
        texture=TextureConfig(weight=0.1, frames=1), encoder=FullReferenceConfig(weight=0.5, frames=1)
    ),
    adversarial=AdversarialConfig(weight=0.1, start=0.5, width=16, mean=-3.0, r1=0.1),
)
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {},
    "ddp-accumulated": {**SHORT, "accumulate": 2},
    "fsdp-accumulated": {**SHORT, "accumulate": 2},
    "ddp-bf16": {**SHORT, "precision": "bf16"},
    "fsdp-bf16": {**SHORT, "precision": "bf16"},
}
"""What two processes train with batch 1 each."""


class Latents(Dataset[dict[str, Any]]):
    """Tiny random latents, with a name in each sample."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(index)
        return {
            "target": torch.randn(3, 4, 8, 8, generator=rng),
            "source": torch.randn(3, 4, 8, 8, generator=rng),
            "first": torch.randn(4, 8, 8, generator=rng),
            "image": torch.randn(3, 16, 16, generator=rng),
            "mask": torch.rand(3, 16, 16, generator=rng) > 0.6,
            "added_time_ids": torch.tensor([6.0, 127.0, 0.02]),
            "task": "remove",
        }


def teacher(config: Config, *, seed: int, base_seed: int | None = None) -> Any:
    """The objective over a small network with live injections, and a gate, whose parameters are scalars."""
    from genprop.teacher.base import new_base
    from genprop.teacher.net import GenPropNet
    from genprop.teacher.objective import TeacherObjective

    config = config.model_copy(update={"net": config.net.model_copy(update={"gate": True})})
    if base_seed is None:
        base_seed = int(os.environ.get("RANK", "0"))  # all get the first process's
    base = new_base(config.base, seed=base_seed)
    base.image_encoder.requires_grad_(False)  # as `load_base` has it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GenPropNet(base.backbone, config.net, config.sce)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn(parameter.shape)
    return TeacherObjective(net, base.image_encoder, config)


class Trajectories(Latents):
    """The same with a teacher's trajectory beside each."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = torch.Generator().manual_seed(100 + index)
        nodes = torch.randn(5, 3, 4, 8, 8, generator=rng)
        return {**super().__getitem__(index), "trajectory": nodes, "guidance": torch.tensor(1.5)}


def student(config: Config, *, seed: int) -> ConsistencyObjective:
    """A distillation with all that it can have: LoRA, averaged target, rewards and an adversary."""
    from genprop.teacher.base import new_base

    config = config.model_copy(update={"distill": DISTILL})
    region = teacher(config, seed=seed, base_seed=0)  # the adversary's backbone is no part of the objective
    base = new_base(config.base, seed=0)
    base.autoencoder.requires_grad_(False).eval()
    rewards = open_rewards(
        DISTILL.rewards, base.autoencoder, region.image_encoder.eval(), base_name="small", frames=3
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = clone(region.net, adapter=DISTILL.adapter)
        adversary = AdversarialTerm(region.net.backbone, DISTILL.adversarial)
    return ConsistencyObjective(net, region.image_encoder, config, rewards=rewards, adversarial=adversary)


def train_student(config: Config, out: Path, settings: dict[str, Any], *, resume: bool = False) -> None:
    table = TrainConfig(**{**SETTINGS, **SHORT, **settings})
    fit(student(config, seed=0), Trajectories(), table, out, resume=resume)


def train(
    config: Config, out: Path, settings: dict[str, Any], *, seed: int = 0, resume: bool = False
) -> None:
    """One training; beside the run's own files, `left.safetensors` has the objective after it."""
    objective = teacher(config, seed=seed)
    original = dict(objective.named_parameters())

    def validate(step: int) -> Validation:
        """Calls the inner network alone, as a sampler does, and finds plain parameters in it."""
        inputs = objective.inputs(default_collate([Latents()[i] for i in range(2)]), None)
        c = inputs.cond
        out = objective.net(
            inputs.target, torch.zeros(2), c.first, c.source, c.image_embedding, c.added_time_ids
        )
        assert all(type(p) is nn.Parameter for p in objective.parameters())
        return Validation({"velocity": float(out.velocity.float().square().mean())})

    table = TrainConfig(**{**SETTINGS, **settings})
    fit(objective, Latents(), table, out, validate=validate, resume=resume)
    assert all(p is original[name] for name, p in objective.named_parameters())
    if is_main_process():
        save_file(
            {name: v.contiguous() for name, v in objective.state_dict().items()}, out / "left.safetensors"
        )


def work(config: Config, out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    os.environ["FSDP_VERSION"] = "2"
    for name, settings in RUNS.items():
        os.environ["ACCELERATE_USE_FSDP"] = str(name.startswith("fsdp")).lower()
        train(config, out / name, settings, seed=rank)  # all start as the first process does
    os.environ["ACCELERATE_USE_FSDP"] = "false"
    train_student(config, out / "ddp-student", {})
    for name in ("ddp", "fsdp"):
        os.environ["ACCELERATE_USE_FSDP"] = str(name == "fsdp").lower()
        checkpoint = Path("checkpoints", "step-00000010")
        if rank == 0:
            shutil.copytree(out / name / checkpoint, out / f"{name}-resumed" / checkpoint)
        dist.barrier()
        train(config, out / f"{name}-resumed", {}, seed=7, resume=True)
    dist.destroy_process_group()


def start_two(config: Config, out: Path) -> None:
    """Two nodes of one process each, with the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_distributed as t\n"
        f"t.work(t.Config.model_validate_json({config.model_dump_json()!r}), t.Path({str(out)!r}))"
    )
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    with ExitStack() as stack:
        logs = [stack.enter_context((out / f"log-{rank}").open("w")) for rank in range(2)]
        started = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                env={**environment, "RANK": str(rank)},
                stdout=logs[rank],
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
        codes = [process.wait(timeout=600) for process in started]
    assert codes == [0, 0], "\n".join((out / f"log-{rank}").read_text() for rank in range(2))


@pytest.fixture(scope="module")
def runs(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of `RUNS`, and `one-*` of one process with batch 2, or 4 where they accumulate."""
    out = tmp_path_factory.mktemp("runs")
    start_two(small_config, out)
    train(small_config, out / "one", {"batch_size": 2})
    train(small_config, out / "one-accumulated", {**SHORT, "batch_size": 4})
    train_student(small_config, out / "one-student", {"batch_size": 2})
    return out


def logged(out: Path, name: str) -> list[float]:
    """One scalar, step by step."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def newest(out: Path) -> dict[str, Floats]:
    files = ("weights", "ema", "optimizer")
    return {file: load_file(list_checkpoints(out)[-1] / f"{file}.safetensors") for file in files}


def assert_close(got: Floats, expected: Floats, *, rtol: float = 0, atol: float = 0) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_with_batch_1_have_the_losses_of_one_with_batch_2(runs: Path, name: str) -> None:
    expected = logged(runs / "one", "loss")
    assert len(expected) == 20 and max(expected) > 1.01 * min(expected)
    assert logged(runs / name, "loss") == pytest.approx(expected, rel=0, abs=1e-5)
    assert logged(runs / name, "grad_norm") == pytest.approx(logged(runs / "one", "grad_norm"), rel=1e-3)
    # AdamW divides by the gradient's size, so where that is 0 but for rounding a weight may wander
    steps_taken = 20 * SETTINGS["learning_rate"]
    for file in ("weights", "ema"):
        assert_close(newest(runs / name)[file], newest(runs / "one")[file], atol=0.05 * steps_taken)
    velocity = logged(runs / "one", "val/velocity")
    assert logged(runs / name, "val/velocity") == pytest.approx(velocity, rel=1e-3) and len(velocity) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accumulating_on_two_processes_is_a_batch_of_4_on_one(runs: Path, name: str) -> None:
    expected = logged(runs / "one-accumulated", "loss")
    assert logged(runs / f"{name}-accumulated", "loss") == pytest.approx(expected, rel=0, abs=1e-5)
    got = logged(runs / f"{name}-accumulated", "grad_norm")
    assert got == pytest.approx(logged(runs / "one-accumulated", "grad_norm"), rel=1e-3)


@pytest.mark.slow
def test_a_distillation_on_two_processes_is_that_of_one(runs: Path) -> None:
    names = ("loss", "consistency", "adversarial", "discriminator", "r1", "reward_texture", "reward_encoder")
    for name in names:
        expected = logged(runs / "one-student", name)
        assert len(expected) == 6 and max(expected) > min(expected)
        assert logged(runs / "ddp-student", name) == pytest.approx(expected, rel=0, abs=1e-5), name
    for name in ("grad_norm", "adversarial.grad_norm"):
        expected = logged(runs / "one-student", name)
        assert logged(runs / "ddp-student", name) == pytest.approx(expected, rel=1e-3)
    kept = [
        list_checkpoints(runs / run)[-1] / "objective.safetensors" for run in ("ddp-student", "one-student")
    ]
    # AdamW divides by the root of its second moment: where a gradient is nearly nothing, so is its rounding
    assert_close(load_file(kept[0]), load_file(kept[1]), atol=1e-4)


@pytest.mark.slow
def test_a_distillation_that_goes_on_is_one_that_never_stopped(small_config: Config, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 3, "keep_checkpoints": 9}
    train_student(small_config, tmp_path / "whole", settings)
    checkpoint = Path("checkpoints", "step-00000003")
    shutil.copytree(tmp_path / "whole" / checkpoint, tmp_path / "resumed" / checkpoint)
    train_student(small_config, tmp_path / "resumed", settings, resume=True)
    last = [list_checkpoints(tmp_path / run)[-1] for run in ("whole", "resumed")]
    for file in ("weights", "ema", "optimizer", "objective"):  # student, heads, moments, target network
        a, b = (load_file(checkpoint / f"{file}.safetensors") for checkpoint in last)
        assert a and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("adversarial.") for name in load_file(last[0] / "weights.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(runs: Path, name: str) -> None:
    for file, tensors in newest(runs / f"{name}-resumed").items():
        assert_close(tensors, newest(runs / name)[file])
    assert logged(runs / f"{name}-resumed", "loss") == logged(runs / name, "loss")[10:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "one"])
def test_the_objective_holds_the_ema_and_its_frozen_weights(
    runs: Path, small_config: Config, name: str
) -> None:
    left, fresh = load_file(runs / name / "left.safetensors"), teacher(small_config, seed=0)
    ema = newest(runs / name)["ema"]
    assert ema["net.gate.scale"].shape == ()
    for key, value in fresh.state_dict().items():
        assert isinstance(value, Tensor) and torch.equal(left[key], ema.get(key, value)), key


@pytest.mark.slow
def test_shards_train_in_bf16_as_whole_weights_do(runs: Path) -> None:
    first, exact = (logged(runs / name, "loss")[0] for name in ("fsdp-bf16", "fsdp"))
    assert first == logged(runs / "ddp-bf16", "loss")[0] and first != exact
    for name in ("loss", "grad_norm", "val/velocity"):  # from there on gradients are rounded differently
        expected = logged(runs / "ddp-bf16", name)
        assert logged(runs / "fsdp-bf16", name) == pytest.approx(expected, rel=0.03)
    assert {value.dtype for value in newest(runs / "fsdp-bf16")["weights"].values()} == {torch.float32}


# --- one process is a group, too: what does not need two ---


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one, and a launcher that asked for FSDP2."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_copy_computes_the_same_and_the_original_stays(small_config: Config, group: None) -> None:
    objective = teacher(small_config, seed=0)
    copy = shard(objective, torch.device("cpu"))
    parameters = dict(copy.named_parameters())
    assert all(isinstance(p, DTensor) for p in parameters.values())
    assert not any(isinstance(p, DTensor) for p in objective.parameters())
    batch = default_collate([Latents()[0]])
    expected, got = (model(batch, Draws.of(0, 1))["loss"] for model in (objective, copy))
    assert torch.equal(got, expected)
    got.backward()
    expected.backward()
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            gradient = parameters[name].grad
            assert gradient is not None
            torch.testing.assert_close(whole(gradient, parameter.shape), parameter.grad)


def test_shards_and_whole_tensors_are_the_same_numbers(group: None) -> None:
    linear = nn.Linear(3, 5)
    linear.scale = nn.Parameter(torch.tensor(2.0))
    for name, sharded in shard(linear, torch.device("cpu")).named_parameters():
        plain = linear.get_parameter(name).detach()
        assert torch.equal(whole(sharded, plain.shape), plain) and whole(plain, plain.shape) is plain
        again = shard_like(plain + 1, sharded)
        assert torch.equal(local(again), local(sharded) + 1) and shard_like(plain, plain) is plain


class Toy(nn.Module):
    """A network with a frozen layer, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        assert batch["task"] == ["remove"] * len(draws)
        x = batch["target"].mean(dim=(2, 3))[:, :, :3].flatten(0, 1)
        return {"loss": (self.scale * self.net(x) - x.sum(1, keepdim=True)).square().mean()}


def test_a_sharded_run_is_that_of_a_plain_one(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, **settings: int) -> Toy:
        objective = Toy()

        def validate(step: int) -> Validation:
            with torch.no_grad():
                return Validation(
                    {"scale": float(objective.scale), "one": float(objective.net(torch.ones(3)))}
                )

        table = TrainConfig(**{**SETTINGS, "learning_rate": 0.05, "validate_every": 2, **settings})
        fit(objective, Latents(), table, tmp_path / folder, validate=validate, resume=True)
        return objective

    run("sharded", steps=3)
    sharded = run("sharded", steps=6)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    run("plain", steps=3)
    plain = run("plain", steps=6)
    for file, tensors in newest(tmp_path / "plain").items():
        assert_close(newest(tmp_path / "sharded")[file], tensors, rtol=1e-5, atol=1e-6)
    assert_close(sharded.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    for name in ("loss", "grad_norm", "val/scale", "val/one"):
        assert logged(tmp_path / "sharded", name) == pytest.approx(logged(tmp_path / "plain", name), rel=1e-4)


class ToldToy(Toy):
    """The same, told of the steps; with whatever else it is given."""

    def __init__(
        self, kept: dict[str, Tensor] | None = None, own: dict[str, OwnOptimizer] | None = None
    ) -> None:
        super().__init__()
        self.kept, self.own, self.progress, self.after = kept or {}, own or {}, 0.0, 0

    def before_step(self, progress: float) -> None:
        self.progress = progress

    def after_step(self) -> None:
        self.after += 1

    def memory(self) -> dict[str, Tensor]:
        return self.kept

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        return self.own

    def forward(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        told = {"progress": torch.tensor(self.progress), "after": torch.tensor(float(self.after))}
        return {**super().forward(batch, draws), **told}


def test_a_sharded_copy_is_told_of_the_steps(tmp_path: Path, group: None) -> None:
    fit(ToldToy(), Latents(), TrainConfig(**{**SETTINGS, "steps": 4}), tmp_path)
    assert logged(tmp_path, "progress") == [0, 0.25, 0.5, 0.75]
    assert logged(tmp_path, "after") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("kept", "own", "named"),
    [
        ({}, {"scale": OwnOptimizer(1e-3, (0.0, 0.9), 1.0)}, "scale"),
        ({"average": torch.ones(2)}, {}, "average"),
    ],
)
def test_an_objective_with_more_than_parameters_is_not_sharded(
    tmp_path: Path, group: None, kept: dict[str, Tensor], own: dict[str, OwnOptimizer], named: str
) -> None:
    with pytest.raises(GenPropError, match=f"{named}.*expected none with FSDP") as caught:
        fit(ToldToy(kept, own), Latents(), TrainConfig(steps=1), tmp_path)
    assert "without --use_fsdp" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("variable", "value", "settings", "message"),
    [
        ("FSDP_VERSION", "1", {}, "version 1, expected 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", {}, "parameters on the CPU"),
        ("FSDP_VERSION", "2", {"optimizer": "adamw8bit"}, "adamw8bit cannot be sharded"),
    ],
)
def test_what_cannot_be_sharded_is_refused_early(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(GenPropError, match=message) as caught:
        check_run(TrainConfig(steps=1, **settings), tmp_path)
    assert caught.value.hint
