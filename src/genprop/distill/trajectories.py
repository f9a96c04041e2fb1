"""The teacher's trajectories: what a student starts from, made once and kept in shards.

Pulling a student towards the teacher's *endpoint*, from every node of a trajectory, is stable from the
first step on; consistency between neighbouring nodes is not, before the truth has travelled from
sigma 0 to the top. A trajectory costs two evaluations a step, so each is computed once, kept, and used at
all of its nodes; training then needs no teacher in memory.

    trajectories.json       what they were made with; shards of anything else are refused
    000000.safetensors      trajectory [16, N + 1, T, C, h, w] float16, guidance [16] float32
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from genprop.bundle import Bundle
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.targets import grid
from genprop.draws import Draws
from genprop.edm import Denoiser, Guided, NetDenoiser
from genprop.errors import GenPropError
from genprop.loop import process_state
from genprop.sampling import SOLVERS, start
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.types import Cond

SHARD = 16
INDEX = "trajectories.json"

Guide = Callable[[Tensor], Denoiser]
"""The teacher at guidance scales `[B]`, those of the last frame."""


@torch.no_grad()
def trajectory(
    denoiser: Denoiser, noise: Tensor, sigmas: Tensor, cond: Cond, *, solver: str = "euler"
) -> Tensor:
    """Every x of the deterministic sampler, from noise to endpoint. Returns `[B, N + 1, T, C, h, w]`."""
    step = SOLVERS[solver]
    x = start(noise, sigmas[0])
    nodes = [x]
    for sigma, to in zip(sigmas[:-1].to(x.device), sigmas[1:].to(x.device), strict=True):
        x = step(denoiser, x, sigma.expand(len(x)), to.expand(len(x)), cond)
        nodes.append(x)
    return torch.stack(nodes, dim=1)


def guidance_scales(config: Config, draws: Draws) -> Tensor:
    """The guidance scale of each sample: drawn where the student is told of it, else the preset's. `[B]`."""
    if config.distill.guidance == "embedded":
        low, high = config.distill.guidance_range
        return low + (high - low) * draws.rand()
    return torch.full((len(draws),), config.sampling.guidance_max, device=draws.device)


def guided(net: GenPropNet, config: Config, scale: Tensor | None = None) -> Guided:
    """The teacher at guidance scales `[B]`, those of the last frame; the preset's if None."""
    s = config.sampling
    return Guided(NetDenoiser(net), s.guidance_min, s.guidance_max if scale is None else scale)


def fingerprint(teacher: Bundle, samples: Dataset[Batch]) -> str:
    """Of the teacher's weights and of the samples, wherever they lie."""
    digest = hashlib.sha256(json.dumps([teacher.card.files, teacher.card.base_sha256]).encode())
    count = len(samples)  # type: ignore[arg-type]
    for index in (0, count - 1):
        digest.update(samples[index]["target"].numpy().tobytes())
    return f"{digest.hexdigest()[:16]} on {count} samples"


def make_trajectories(
    guide: Guide,
    objective: TeacherObjective,
    samples: Dataset[dict[str, Any]],
    config: Config,
    folder: Path,
    *,
    made_by: str,
) -> Trajectories:
    """`distill.trajectories` trajectories of the first samples (again from the first one, with other noise,
    if there are fewer).

    Shards that are already in `folder` are kept: an interrupted call goes on where it stopped. Several
    processes share the work. A trajectory's noise and scale depend on its number only; `student.batch_size`
    of them are made at a time, in the precision of the student's training.

    Args:
        made_by: of which teacher on which data, for the index.

    Raises:
        GenPropError: `folder` holds trajectories that were made otherwise.
    """
    count, total = config.distill.trajectories, len(samples)  # type: ignore[arg-type]
    device = next(objective.parameters()).device
    state = process_state()
    if state.is_main_process:
        _claim(folder, _settings(config, made_by))
    state.wait_for_everyone()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.student.precision)
    sigmas = grid(config)
    for begin in range(state.process_index * SHARD, count, state.num_processes * SHARD):
        file = folder / f"{begin:06d}.safetensors"
        numbers = range(begin, min(begin + SHARD, count))
        if file.exists() and _rows(file) >= len(numbers):  # a run that asked for fewer may have cut it short
            continue
        nodes, scales = [], []
        for few in torch.tensor(numbers).split(config.student.batch_size):
            batch = default_collate([samples[int(i) % total] for i in few])
            inputs = objective.inputs({k: v.to(device) for k, v in batch.items()}, None)
            draws = Draws([config.student.seed * 1_000_003 + int(i) for i in few], device=device)
            noise, scale = draws.randn(*inputs.target.shape[1:]), guidance_scales(config, draws)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                found = trajectory(guide(scale), noise, sigmas, inputs.cond, solver=config.distill.solver)
            nodes.append(found.half().cpu())
            scales.append(scale.cpu())
        temporary = file.with_suffix(".tmp")
        save_file({"trajectory": torch.cat(nodes), "guidance": torch.cat(scales)}, temporary)
        os.replace(temporary, file)
    state.wait_for_everyone()
    return Trajectories(folder, samples, count=count)


def _rows(shard: Path) -> int:
    with safe_open(shard, "pt") as file:
        return file.get_slice("guidance").get_shape()[0]


def _settings(config: Config, made_by: str) -> dict[str, Any]:
    """What decides over a trajectory of a given number."""
    distill, sampling = config.distill, config.sampling
    scales = distill.guidance_range if distill.guidance == "embedded" else [sampling.guidance_max]
    return {
        "made_by": made_by,
        "nodes": distill.nodes,
        "solver": distill.solver,
        "sigmas": [sampling.sigma_min, sampling.sigma_max, sampling.rho],
        "guidance": [sampling.guidance_min, *scales],
        "seed": config.student.seed,
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the trajectories of a folder are made with, or check that it is the same as before."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    if not index.exists():
        if any(folder.glob("*.safetensors")):
            raise GenPropError(f"{folder} holds trajectories without {INDEX}", "remove the folder")
        temporary = index.with_suffix(".tmp")
        temporary.write_text(json.dumps(settings, indent=1) + "\n")
        os.replace(temporary, index)
        return
    was = json.loads(index.read_text())
    for key, value in settings.items():
        if was.get(key) != value:
            raise GenPropError(
                f"{folder} holds trajectories of another {key}: got {value}, made with {was.get(key)}",
                "remove the folder, or choose another --out",
            )


class Trajectories(Dataset[Batch]):
    """A `Batch` with the teacher's trajectory beside it.

    `trajectory` is `[N + 1, T, C, h, w]` in float16, `guidance` its scale, `[]`.

    Shards are read where they are asked for: at full size they are larger than a machine's memory.
    """

    def __init__(self, folder: Path, samples: Dataset[dict[str, Any]], *, count: int) -> None:
        self.folder, self.samples, self.count = folder, samples, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.count:
            raise IndexError(index)
        sample = self.samples[index % len(self.samples)]  # type: ignore[arg-type]
        shard, row = index - index % SHARD, index % SHARD
        with safe_open(self.folder / f"{shard:06d}.safetensors", "pt") as file:
            nodes, guidance = file.get_slice("trajectory")[row], file.get_slice("guidance")[row : row + 1]
        return {**sample, "trajectory": nodes, "guidance": guidance[0]}
