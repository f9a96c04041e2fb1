"""The training loop: it learns, it resumes exactly, and its arithmetic is what it says."""

from __future__ import annotations

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from genprop.adaptive import Adaptive, OwnOptimizer
from genprop.checkpoint import list_checkpoints
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.loop import Validation, check_run, fit
from genprop.optimizer import adamw, ema_decay, learning_rate
from genprop.settings import TrainConfig
from genprop.stream import Batches, sample_seeds
from genprop.trained import swapped
from genprop.video import read_clip


class Regression(nn.Module):
    """A small MLP with dropout, a frozen layer, and noise from the generator."""

    def __init__(self, *, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.noise = noise

    def forward(self, batch: list[Tensor], draws: Draws) -> dict[str, Tensor]:
        x, y = batch
        x = x + self.noise * draws.randn(*x.shape[1:])
        loss = (self.net(x) - y).square().mean()
        return {"loss": loss, "noise": x.std()}


class Duel(Regression):
    """The same, pulled to a target network that follows it, with a discriminator of its guesses."""

    def __init__(self, *, noise: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__(noise=noise, dropout=dropout)
        self.discriminator = nn.Linear(1, 1)
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.progress = math.nan

    def before_step(self, progress: float) -> None:
        self.progress = progress

    @torch.no_grad()
    def after_step(self) -> None:
        for target, weight in zip(self.target.parameters(), self.net.parameters(), strict=True):
            target.lerp_(weight, 0.1)
        self.steps_seen += 1

    def memory(self) -> dict[str, Tensor]:
        return {
            name: value for name, value in self.state_dict().items() if name.startswith(("target", "steps"))
        }

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        return {"discriminator.": OwnOptimizer(1e-2, (0.0, 0.9), clip=0.05)}

    def forward(self, batch: list[Tensor], draws: Draws) -> dict[str, Tensor]:
        x, y = batch
        x = x + self.noise * draws.randn(*x.shape[1:])
        guess = self.net(x)
        fixed = self.discriminator.weight.detach(), self.discriminator.bias.detach()
        student = (guess - y).square().mean() + 0.3 * (guess - self.target(x)).square().mean()
        student = student - self.progress * F.linear(guess, *fixed).mean()
        judge = F.relu(1 - self.discriminator(y)) + F.relu(1 + self.discriminator(guess.detach()))
        return {"loss": student + judge.mean(), "progress": torch.tensor(self.progress)}


class Constant(nn.Module):
    """One weight whose gradient is always 1: AdamW then moves it by the learning rate a step."""

    def __init__(self, poison: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.poison = poison
        self.calls = 0

    def forward(self, batch: list[Tensor], draws: Draws) -> dict[str, Tensor]:
        self.calls += 1
        scale = self.poison if self.poison is not None and self.calls == 4 else 1.0
        return {"loss": self.weight * scale, "penalty": torch.tensor(0.25)}


def points(count: int = 64) -> TensorDataset:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.sum(1, keepdim=True))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_logs(tmp_path: Path) -> None:
    config = TrainConfig(steps=150, batch_size=8, learning_rate=2e-2, warmup=5, ema=0.9, log_every=25)
    objective = Regression()
    summary = fit(objective, points(), config, tmp_path)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [25, 50, 75, 100, 125, 150]
    assert set(log[0]) == {"step", "loss", "noise", "grad_norm", "lr", "steps_per_second", "memory_gb"}
    assert log[-1]["loss"] < 0.05 * log[0]["loss"]
    assert summary["loss"] == log[-1]["loss"] and summary["steps"] == 150
    assert list((tmp_path / "tensorboard").glob("events*"))
    x, y = points().tensors
    assert objective([x, y], Draws.of(0, len(x)))["loss"] < 0.05 * log[0]["loss"]  # and so do the EMA weights


def test_bf16_trains_and_the_objective_is_itself_again(tmp_path: Path) -> None:
    objective = Regression()
    forward = objective.forward
    config = TrainConfig(steps=60, batch_size=8, learning_rate=2e-2, warmup=1, precision="bf16", log_every=20)
    fit(objective, points(), config, tmp_path)
    assert lines(tmp_path)[-1]["loss"] < 0.5 * lines(tmp_path)[0]["loss"]
    assert objective.forward == forward
    assert all(p.dtype == torch.float32 for p in objective.parameters())


@pytest.mark.parametrize("setting", [{"precision": "fp16"}, {"optimizer": "adamw8bit"}])
def test_what_needs_cuda_is_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = TrainConfig(steps=1, **setting)
    for refused in (
        lambda: check_run(config, tmp_path),
        lambda: fit(Regression(), points(), config, tmp_path),
    ):
        with pytest.raises(
            GenPropError, match=f"{next(iter(setting.values()))} needs a CUDA device"
        ) as caught:
            refused()
        assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "setting"), [("bitsandbytes", {"optimizer": "adamw8bit"}), ("wandb", {"tracker": "wandb"})]
)
def test_a_library_that_is_missing_is_named_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, setting: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(GenPropError, match=f"needs {library}") as caught:
        check_run(TrainConfig(steps=1, **setting), tmp_path)
    assert f"pip install {library}" in caught.value.hint


class AdamW8bit(torch.optim.AdamW):
    """What a checkpoint sees of bitsandbytes': steps in a Python number, moments in bytes."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "state1": torch.zeros_like(p, dtype=torch.uint8)}
                    state["absmax1"] = torch.zeros(1)
                assert type(state["step"]) is int and state["state1"].dtype == torch.uint8
                state["step"] += 1
                state["state1"] += 1
                state["absmax1"] += 0.5
                p -= group["lr"] * p.grad.sign() * state["step"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As bitsandbytes does it: nothing is cast to the parameters' type."""
        ordered = [p for group in self.param_groups for p in group["params"]]
        self.state.update({ordered[i]: state for i, state in state_dict["state"].items()})


def test_an_8_bit_optimizer_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(optim=types.SimpleNamespace(AdamW8bit=AdamW8bit))
    for module in ("loop", "optimizer"):
        monkeypatch.setattr(f"genprop.{module}.bitsandbytes", lambda: fake)
    config = TrainConfig(steps=6, checkpoint_every=3, optimizer="adamw8bit", learning_rate=1e-3)
    whole, broken = Regression(), Regression()
    optimizer = adamw(dict(whole.net.named_parameters()), config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    fit(whole, points(), config, tmp_path / "a")
    shutil.copytree(
        tmp_path / "a" / "checkpoints" / "step-00000003", tmp_path / "b" / "checkpoints" / "step-00000003"
    )
    assert fit(broken, points(), config, tmp_path / "b", resume=True)["resumed_from"] == 3
    assert_same(weights(broken), weights(whole))
    stored = [
        load_file(tmp_path / run / "checkpoints" / "step-00000006" / "optimizer.safetensors") for run in "ab"
    ]
    assert_same(*stored)
    assert stored[0]["step/net.0.bias"] == 6 and stored[0]["state1/net.0.bias"].dtype == torch.uint8


class Strings(TensorDataset):
    """Points, each with its name and a number that is not a tensor."""

    def __getitem__(self, index: int) -> Any:
        return {"points": super().__getitem__(index), "name": f"clip {index}", "where": {"index": index}}


def test_what_is_not_a_tensor_reaches_the_objective_unharmed(tmp_path: Path) -> None:
    class Named(Regression):
        def forward(self, batch: Any, draws: Draws) -> dict[str, Tensor]:
            assert batch["name"] == [f"clip {i}" for i in batch["where"]["index"].tolist()]
            return super().forward(batch["points"], draws)

    fit(Named(), Strings(*points().tensors), TrainConfig(steps=2), tmp_path)


RUN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loop import {kind}, points
from genprop.settings import TrainConfig
from genprop.loop import fit

class Killed({kind}):
    calls = 0
    def forward(self, batch, draws):
        self.calls += 1
        if self.calls == 2 * 17 + 2:  # in the second micro-batch of step 18, after the checkpoint of 15
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch, draws)

config = TrainConfig(**{config!r})
fit(Killed(noise=0.1, dropout=0.2), points(22), config, Path({out!r}))
"""


@pytest.mark.parametrize("kind", [Regression, Duel])
def test_killed_and_resumed_is_bit_identical_to_uninterrupted(tmp_path: Path, kind: type[Regression]) -> None:
    numbers = {"steps": 30, "batch_size": 3, "accumulate": 2, "warmup": 4, "ema": 0.9, "checkpoint_every": 5}
    config = TrainConfig(**numbers, log_every=1, keep_checkpoints=3)  # type: ignore[arg-type]
    whole, broken = kind(noise=0.1, dropout=0.2), kind(noise=0.1, dropout=0.2)
    fit(whole, points(22), config, tmp_path / "whole")

    out = tmp_path / "broken"
    tests = str(Path(__file__).parent)
    script = RUN.format(tests=tests, kind=kind.__name__, config=config.model_dump(), out=str(out))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [folder.name for folder in list_checkpoints(out)] == [
        "step-00000005",
        "step-00000010",
        "step-00000015",
    ]
    (out / "checkpoints" / "partial-step-00000020").mkdir()  # a kill in the middle of a checkpoint
    (out / "checkpoints" / "partial-step-00000020" / "weights.safetensors").write_bytes(b"half")
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 18, "lo')  # and in the middle of a line

    with torch.no_grad():  # the state must come from the checkpoint, not from the new process
        for name, value in broken.state_dict().items():
            if not name.startswith("frozen"):
                value.fill_(7.0)
    torch.manual_seed(99)
    summary = fit(broken, points(22), config, out, resume=True)
    assert summary["resumed_from"] == 15
    assert_same(dict(broken.state_dict()), dict(whole.state_dict()))
    files = ["ema", "objective", "optimizer", "weights"] if kind is Duel else ["ema", "optimizer", "weights"]
    newest = Path("checkpoints", "step-00000030")
    assert sorted(path.stem for path in (out / newest).glob("*.safetensors")) == files
    for file in files:
        path = newest / f"{file}.safetensors"
        assert_same(load_file(tmp_path / "whole" / path), load_file(out / path))
    assert not list((out / "checkpoints").glob("partial-*"))
    assert [line["step"] for line in lines(out)] == list(range(1, 31))
    a, b = lines(out)[-1], lines(tmp_path / "whole")[-1]
    assert a["loss"] == b["loss"] and a["lr"] == b["lr"]


class Told(Constant):
    """What the loop says to an objective that changes, and the weight at that moment."""

    def __init__(self, kept: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.discriminator = nn.Linear(2, 1)
        self.kept = kept or {}
        self.told: list[tuple[str, float, float]] = []
        nn.init.zeros_(self.discriminator.weight)

    def before_step(self, progress: float) -> None:
        self.told.append(("before", progress, self.weight.item()))

    def after_step(self) -> None:
        self.told.append(("after", math.nan, self.weight.item()))

    def memory(self) -> dict[str, Tensor]:
        return self.kept

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        return {"discriminator.": OwnOptimizer(0.01, (0.0, 0.5), clip=2.0)}

    def forward(self, batch: list[Tensor], draws: Draws) -> dict[str, Tensor]:
        pull = torch.tensor([[3.0, 4.0]]) * self.discriminator.weight
        return {"loss": 0.5 * self.weight + pull.sum() + 0 * self.discriminator.bias.sum()}


def test_an_objective_is_told_of_every_step_before_it_and_after_it(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, checkpoint_every=2, learning_rate=0.1, warmup=0, min_learning_rate_ratio=1)
    objective = Told()
    assert isinstance(objective, Adaptive) and not isinstance(Constant(), Adaptive)
    fit(objective, points(), config, tmp_path)
    assert [(kind, progress) for kind, progress, _ in objective.told[::2]] == [
        ("before", i / 4) for i in range(4)
    ]
    assert [kind for kind, _, _ in objective.told[1::2]] == ["after"] * 4
    seen = [weight for _, _, weight in objective.told]
    assert seen == pytest.approx([0, -0.1, -0.1, -0.2, -0.2, -0.3, -0.3, -0.4], rel=1e-5)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    resumed = Told()
    fit(resumed, points(), config, tmp_path, resume=True)
    assert [progress for _, progress, _ in resumed.told[::2]] == [0.5, 0.75]


def test_a_part_with_an_optimiser_of_its_own_has_its_own_numbers(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=4,
        learning_rate=0.1,
        warmup=2,
        weight_decay=0.5,
        betas=(0.5, 0.9),
        clip=0.25,
        ema=0,
        log_every=1,
    )
    objective = Told()
    fit(objective, points(), config, tmp_path)
    assert [line["grad_norm"] for line in lines(tmp_path)] == pytest.approx([0.5] * 4)
    assert [line["discriminator.grad_norm"] for line in lines(tmp_path)] == pytest.approx([5.0] * 4)
    rates = [learning_rate(step, config) for step in range(4)]
    assert objective.weight.item() == pytest.approx(-sum(rates), rel=1e-4)
    # the same shape a tenth as high, and no decay, although a matrix
    torch.testing.assert_close(
        objective.discriminator.weight.detach(), torch.full((1, 2), -sum(rates) / 10), rtol=1e-4, atol=0
    )
    own = [learning_rate(step, config, peak=0.01) for step in range(4)]
    assert own == pytest.approx([rate / 10 for rate in rates])
    moments = load_file(list_checkpoints(tmp_path)[-1] / "optimizer.safetensors")
    assert moments["exp_avg/weight"].item() == pytest.approx(0.25 * (1 - 0.5**4), rel=1e-5)
    clipped = torch.tensor([[1.2, 1.6]])  # to 2, from 5; and beta is 0
    torch.testing.assert_close(moments["exp_avg/discriminator.weight"], clipped)
    torch.testing.assert_close(moments["exp_avg_sq/discriminator.weight"], clipped**2 * (1 - 0.5**4))


def test_a_checkpoint_with_other_things_kept_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(steps=1)
    fit(Told({"a": torch.ones(2)}), points(), config, tmp_path / "kept")
    fit(Told(), points(), config, tmp_path / "old")
    assert not list((tmp_path / "old").rglob("objective.safetensors"))
    fit(Told(), points(), config, tmp_path / "old", resume=True)
    for run, kept, message in (
        ("old", {"a": torch.ones(2)}, r"a got nothing, expected \(2,\)"),
        ("kept", {"a": torch.ones(3)}, r"a got \(2,\), expected \(3,\)"),
        ("kept", {}, r"a got \(2,\), expected nothing"),
    ):
        with pytest.raises(GenPropError, match=message) as caught:
            fit(Told(kept), points(), config, tmp_path / run, resume=True)
        assert caught.value.hint


def test_a_kill_while_saving_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(steps=4, checkpoint_every=2)

    def full_disk(*_: object) -> None:
        if list_checkpoints(tmp_path):
            raise OSError("no space left")

    import genprop.checkpoint

    save = genprop.checkpoint.save_file
    monkeypatch.setattr(genprop.checkpoint, "save_file", lambda *a: (full_disk(), save(*a)))
    with pytest.raises(OSError, match="no space"):
        fit(Regression(), points(), config, tmp_path)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002"]
    monkeypatch.undo()
    assert fit(Regression(), points(), config, tmp_path, resume=True)["resumed_from"] == 2


def test_accumulation_equals_a_larger_batch(tmp_path: Path) -> None:
    small, large = Regression(), Regression()
    shared = {"steps": 20, "warmup": 2, "learning_rate": 1e-2, "ema": 0.5}
    fit(small, points(30), TrainConfig(**shared, batch_size=2, accumulate=2), tmp_path / "a")  # type: ignore[arg-type]
    fit(large, points(30), TrainConfig(**shared, batch_size=4), tmp_path / "b")  # type: ignore[arg-type]
    start = weights(Regression())
    for name, value in weights(small).items():
        torch.testing.assert_close(value, weights(large)[name], rtol=1e-4, atol=1e-5)
        assert name.startswith("frozen") or not torch.equal(value, start[name])


def test_ema_closed_form(tmp_path: Path) -> None:
    config = TrainConfig(steps=6, learning_rate=0.1, warmup=0, min_learning_rate_ratio=1, ema=0.3, clip=10)
    objective = Constant()
    fit(objective, points(), config, tmp_path)
    # a constant gradient: AdamW's corrected moments are 1 and 1, so the weight falls by 0.1 a step
    expected, decays = 0.0, [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3]
    for step, decay in enumerate(decays):
        expected = decay * expected + (1 - decay) * -0.1 * (step + 1)
        assert ema_decay(step, config) == pytest.approx(decay)
    stored = tmp_path / "checkpoints" / "step-00000006"
    assert objective.weight.item() == pytest.approx(expected, rel=1e-5)
    assert load_file(stored / "ema.safetensors")["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert load_file(stored / "weights.safetensors")["weight"].item() == pytest.approx(-0.6, rel=1e-5)


def test_checkpoints_hold_only_what_trains_and_old_ones_go(tmp_path: Path) -> None:
    objective = Regression()
    frozen = weights(objective.frozen)
    fit(objective, points(), TrainConfig(steps=5, checkpoint_every=1, keep_checkpoints=2), tmp_path)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]
    names = {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias"}
    newest = list_checkpoints(tmp_path)[-1]
    assert set(load_file(newest / "weights.safetensors")) == names
    assert set(load_file(newest / "ema.safetensors")) == names
    assert {n.split("/")[1] for n in load_file(newest / "optimizer.safetensors")} == names
    assert_same(weights(objective.frozen), frozen)


def test_vectors_do_not_decay(tmp_path: Path) -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))

        def forward(self, batch: object, draws: Draws) -> dict[str, Tensor]:
            return {"loss": 0.0 * (self.matrix.sum() + self.vector.sum())}

    config = TrainConfig(
        steps=2, learning_rate=0.1, warmup=0, weight_decay=0.5, min_learning_rate_ratio=1, ema=0
    )
    objective = Still()
    fit(objective, points(), config, tmp_path)
    torch.testing.assert_close(objective.vector.detach(), torch.ones(2))
    torch.testing.assert_close(objective.matrix.detach(), torch.full((2, 2), (1 - 0.1 * 0.5) ** 2))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, poison: float) -> None:
    config = TrainConfig(steps=9, checkpoint_every=2, log_every=1)
    with pytest.raises(GenPropError, match=r"step 4.*loss = .*penalty = 0\.25") as caught:
        fit(Constant(poison), points(), config, tmp_path)
    assert caught.value.hint
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_validation_sees_the_ema_and_training_goes_on_undisturbed(tmp_path: Path) -> None:
    config = TrainConfig(steps=6, learning_rate=0.05, warmup=0, validate_every=2, checkpoint_every=2, seed=3)
    seen: dict[int, dict[str, Tensor]] = {}
    objective, plain = Regression(noise=0.1, dropout=0.2), Regression(noise=0.1, dropout=0.2)

    def validate(step: int) -> Validation:
        assert not torch.is_grad_enabled()
        seen[step] = weights(objective.net)
        torch.rand(3)  # whatever it draws must not matter
        return Validation({"psnr": 10.0 * step}, np.full((4, 6, 3), step, np.uint8) if step > 2 else None)

    summary = fit(objective, points(), config, tmp_path / "a", validate=validate)
    fit(plain, points(), config, tmp_path / "b")
    assert sorted(seen) == [2, 4, 6] and summary["validation"] == {"psnr": 60.0}
    assert_same(weights(objective), weights(plain))
    for step in (4, 6):
        folder = tmp_path / "a" / "checkpoints" / f"step-{step:08d}"
        ema = load_file(folder / "ema.safetensors")
        assert_same({f"net.{name}": value for name, value in seen[step].items()}, ema)
        assert not torch.equal(load_file(folder / "weights.safetensors")["net.0.weight"], ema["net.0.weight"])
    assert [line["val/psnr"] for line in lines(tmp_path / "a") if "val/psnr" in line] == [20.0, 40.0, 60.0]
    assert sorted(p.name for p in (tmp_path / "a" / "samples").iterdir()) == [
        "step-00000004.png",
        "step-00000006.png",
    ]


def test_a_clip_is_written_beside_the_picture(tmp_path: Path) -> None:
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    clip[1:, 8:] = 200
    config = TrainConfig(steps=2, validate_every=1)
    fit(Regression(), points(), config, tmp_path, validate=lambda step: Validation({}, clip=clip, fps=5))
    written = read_clip(tmp_path / "samples" / "step-00000002.mp4")
    assert written.fps == 5 and np.abs(written.frames.astype(int) - clip).mean() < 3
    assert len(list((tmp_path / "samples").iterdir())) == 2


class FakeRun:
    """A run of W&B that remembers."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.id = settings, settings["id"] or "k7"
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.finished = False

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


def test_wandb_is_told_everything_and_a_resumed_run_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(**settings))
        return runs[-1]

    fake = types.SimpleNamespace(
        init=init,
        Image=lambda image: ("image", image.shape),
        Video=lambda path, *, format: ("video", Path(path).name, format),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    picture, clip = np.zeros((4, 6, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8)
    config = TrainConfig(steps=2, log_every=1, validate_every=2, tracker="wandb")

    def validate(step: int) -> Validation:
        return Validation({"psnr": 1.5}, picture, clip)

    fit(Regression(), points(), config, tmp_path, validate=validate)
    fit(Regression(), points(), config.model_copy(update={"steps": 3}), tmp_path, resume=True)
    first, second = runs
    assert first.settings["id"] is None and second.settings["id"] == "k7"
    assert first.settings["config"]["steps"] == 2 and first.settings["resume"] == "allow"
    assert first.metrics == [("*", "step")] and first.finished and second.finished
    assert [line["step"] for line in first.logged] == [1, 2, 2, 2, 2]
    assert first.logged[1]["loss"] == lines(tmp_path)[1]["loss"]
    assert first.logged[2:] == [
        {"step": 2, "val/psnr": 1.5},
        {"step": 2, "val/samples": ("image", (4, 6, 3))},
        {"step": 2, "val/clip": ("video", "step-00000002.mp4", "mp4")},
    ]
    assert [line["step"] for line in second.logged] == [3]
    assert not (tmp_path / "tensorboard").exists()


def test_swapped_restores_after_an_error() -> None:
    parameters = {"w": nn.Parameter(torch.ones(2))}
    with pytest.raises(ZeroDivisionError), swapped(parameters, {"w": torch.zeros(2)}):
        assert parameters["w"].sum() == 0
        raise ZeroDivisionError
    assert parameters["w"].sum() == 2


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    config = TrainConfig(steps=2)
    fit(Regression(), points(), config, tmp_path)
    before = (list_checkpoints(tmp_path)[-1] / "weights.safetensors").read_bytes()
    for refused in (
        lambda: check_run(config, tmp_path),
        lambda: fit(Regression(), points(), config, tmp_path),
    ):
        with pytest.raises(GenPropError, match="already holds a run") as caught:
            refused()
        assert "--resume" in caught.value.hint
    assert check_run(config, tmp_path, resume=True) == list_checkpoints(tmp_path)[-1]
    assert (list_checkpoints(tmp_path)[-1] / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("batch_size", 5), ("accumulate", 3)])
def test_resuming_another_run_is_an_error(tmp_path: Path, key: str, value: int) -> None:
    config = TrainConfig(steps=1)
    fit(Regression(), points(), config, tmp_path)
    expected = getattr(config, key)
    with pytest.raises(GenPropError, match=f"{key}: got {value}, expected {expected}"):
        fit(Regression(), points(), config.model_copy(update={key: value}), tmp_path, resume=True)


def test_resuming_with_another_model_is_an_error(tmp_path: Path) -> None:
    fit(Regression(), points(), TrainConfig(steps=1), tmp_path)
    with pytest.raises(GenPropError, match=r"net\.0\.bias got \(8,\), expected nothing"):
        fit(Constant(), points(), TrainConfig(steps=2), tmp_path, resume=True)


def test_steps_may_grow_and_a_finished_run_is_only_loaded(tmp_path: Path) -> None:
    first, again, longer = Regression(), Regression(), Regression()
    fit(first, points(), TrainConfig(steps=3), tmp_path, resume=True)  # nothing there: from scratch
    summary = fit(again, points(), TrainConfig(steps=3), tmp_path, resume=True)
    assert summary["resumed_from"] == 3 and summary["loss"] is None
    assert_same(weights(again), weights(first))
    summary = fit(longer, points(), TrainConfig(steps=5), tmp_path, resume=True)
    assert summary["steps"] == 5 and list_checkpoints(tmp_path)[-1].name == "step-00000005"


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="dataset is empty"):
        fit(Regression(), points(0), TrainConfig(steps=1), tmp_path)
    with pytest.raises(GenPropError, match="requires a gradient"):
        fit(Regression().requires_grad_(False), points(), TrainConfig(steps=1), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(GenPropError, match="cannot write"):
        fit(Regression(), points(), TrainConfig(steps=1), tmp_path / "file" / "run")


def test_learning_rate_closed_form() -> None:
    config = TrainConfig(steps=110, warmup=10, learning_rate=2.0, min_learning_rate_ratio=0.1)
    got = [learning_rate(step, config) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert got == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])
    quarter = 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert learning_rate(35, config) == pytest.approx(quarter)
    assert learning_rate(0, config.model_copy(update={"warmup": 0})) == 2.0


def test_the_order_of_the_data() -> None:
    config = TrainConfig(steps=9, batch_size=3, accumulate=2, seed=5)
    batches = list(Batches(10, config))
    assert len(batches) == len(Batches(10, config)) == 18
    flat = [index for batch in batches for index in batch]
    for epoch in range(5):  # every epoch is a permutation, each another one
        assert sorted(flat[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert flat[:10] != flat[10:20]
    for start in (0, 1, 4, 8, 9):  # and it can start anywhere
        assert list(Batches(10, config, start=start)) == batches[2 * start :]
    dealt = [list(Batches(10, config, process=p, processes=2)) for p in (0, 1)]
    together = [index for a, b in zip(*dealt, strict=True) for index in a + b]
    assert together[: len(flat)] == flat
    assert list(Batches(10, config.model_copy(update={"seed": 6}))) != batches


def test_skipped_samples_are_not_loaded() -> None:
    class Counting(TensorDataset):
        loaded = 0

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            self.loaded += 1
            return super().__getitem__(index)

    data = Counting(torch.zeros(10, 1))
    next(iter(DataLoader(data, batch_sampler=Batches(10, TrainConfig(steps=1000), start=900))))
    assert data.loaded == 4


def test_every_sample_has_its_own_seed_whoever_computes_it() -> None:
    def seeds(processes: int, **settings: int) -> list[int]:
        config = TrainConfig(steps=1, **settings)  # type: ignore[arg-type]
        return [
            seed
            for step in range(3)
            for micro in range(config.accumulate)
            for process in range(processes)
            for seed in sample_seeds(config, step=step, process=process, processes=processes, micro=micro)
        ]

    alone = seeds(1, batch_size=4)
    assert len(set(alone)) == 12 and not set(alone) & set(seeds(1, batch_size=4, seed=1))
    assert seeds(2, batch_size=2) == seeds(1, batch_size=2, accumulate=2) == alone


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    alone, helped = Regression(noise=0.1), Regression(noise=0.1)
    fit(alone, points(), TrainConfig(steps=4), tmp_path / "a")
    fit(helped, points(), TrainConfig(steps=4, workers=1), tmp_path / "b")
    assert_same(weights(alone), weights(helped))


def test_the_caller_s_random_state_is_left_alone(tmp_path: Path) -> None:
    objective = Regression(dropout=0.2)
    before = torch.get_rng_state()
    fit(objective, points(), TrainConfig(steps=2), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 1, "ema": 1.0}, {"steps": 1, "unknown": 2}])
def test_config_rejects(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        TrainConfig(**bad)  # type: ignore[arg-type]
