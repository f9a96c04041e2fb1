"""Several processes train as one does: DDP and FSDP2 over gloo, with the teacher's own objective.

One pair of processes runs everything that is to be compared (starting it is what takes time); each run
leaves its folder, and the tests compare folders.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from genprop.config import Config, TrainConfig
from genprop.loop import Validation, fit, is_main_process

STEPS = 20
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "warmup": 2,
    "ema": 0.9,
    "log_every": 1,
    "validate_every": 10,
    "checkpoint_every": 5,
    "keep_checkpoints": 9,
}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"batch_size": 1},
    "fsdp": {"batch_size": 1},
    "ddp-accumulated": {"steps": 6, "batch_size": 1, "accumulate": 2},
    "fsdp-accumulated": {"steps": 6, "batch_size": 1, "accumulate": 2},
    "fsdp-bf16": {"steps": 6, "batch_size": 1, "precision": "bf16"},
}
"""What two processes train; what one process is to find the same is in the tests."""


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


def teacher(config: Config, *, seed: int) -> nn.Module:
    """The objective over a small network with a gate (whose parameters are scalars) and live injections."""
    from genprop.teacher.base import new_base
    from genprop.teacher.net import GenPropNet
    from genprop.teacher.objective import TeacherObjective

    base = new_base(config.base, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GenPropNet(base.backbone, config.net, config.sce)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn(parameter.shape)
    return TeacherObjective(net, base.image_encoder, config)


def run(config: Config, out: Path, settings: dict[str, Any], *, seed: int = 0, resume: bool = False) -> None:
    """One training, and what it left in the objective."""
    objective = teacher(config, seed=seed)
    kinds: list[tuple[type, str]] = []

    def validate(step: int) -> Validation:
        # inner modules alone, as a sampler calls them
        batch = torch.utils.data.default_collate([Latents()[i] for i in range(2)])
        inputs = objective.inputs(batch, None)  # type: ignore[operator]
        c = inputs.cond
        out = objective.net(  # type: ignore[operator]
            inputs.target, torch.zeros(2), c.first, c.source, c.image_embedding, c.added_time_ids
        )
        kinds.extend((type(p), p.device.type) for p in objective.parameters())
        return Validation({"velocity": float(out.velocity.float().square().mean())})

    fit(objective, Latents(), TrainConfig(**{**SETTINGS, **settings}), out, validate=validate, resume=resume)
    assert set(kinds) <= {(nn.Parameter, "cpu")}
    if is_main_process():
        save_file({n: v.contiguous() for n, v in objective.state_dict().items()}, out / "left.safetensors")


def work(config: Config, out: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    for name, settings in RUNS.items():
        os.environ.update({"ACCELERATE_USE_FSDP": str(name.startswith("fsdp")).lower(), "FSDP_VERSION": "2"})
        # what trains starts as the main process has it, whatever the others drew
        run(config, out / name, settings, seed=int(os.environ["RANK"]))
    # the newest half goes, as if the run had been killed, and is done again
    for name in ("ddp", "fsdp"):
        os.environ["ACCELERATE_USE_FSDP"] = str(name == "fsdp").lower()
        part = out / f"{name}-resumed"
        run(config, part, {"batch_size": 1, "steps": 10} | {"learning_rate": 1e-3}, seed=7)
    dist.destroy_process_group()


def two_processes(config: Config, out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
        "import test_distributed as t; "
        f"t.work(t.parse_config({config.model_dump()!r}), Path({str(out)!r}))"
    )
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


if __name__ == "__main__":
    pass
