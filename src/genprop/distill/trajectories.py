"""The teacher's trajectories: what a student starts from.

Pulling a student towards the teacher's *endpoint*, from every node of a trajectory, is stable from the
first step on; consistency between neighbouring nodes is not, before the truth has travelled from
sigma 0 to the top. A trajectory costs two evaluations a step, so each is computed once, kept, and used at
all of its nodes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from genprop.data.latents import Batch
from genprop.edm import Denoiser
from genprop.loop import process_state
from genprop.sampling import euler_step, start
from genprop.teacher.objective import TeacherObjective
from genprop.types import Cond

SHARD = 16


@torch.no_grad()
def trajectory(denoiser: Denoiser, noise: Tensor, sigmas: Tensor, cond: Cond) -> Tensor:
    """Every x of the Euler sampler, from the noise to the endpoint. Returns `[B, N + 1, T, C, h, w]`."""
    x = start(noise, sigmas[0])
    nodes = [x]
    for sigma, to in zip(sigmas[:-1].to(x.device), sigmas[1:].to(x.device), strict=True):
        x0, _ = denoiser(x, sigma.expand(len(x)), cond)
        x = euler_step(x, x0, sigma, to)
        nodes.append(x)
    return torch.stack(nodes, dim=1)


def make_trajectories(
    teacher: Denoiser,
    objective: TeacherObjective,
    samples: Dataset[dict[str, Any]],
    sigmas: Tensor,
    folder: Path,
    *,
    count: int,
    seed: int,
) -> Trajectories:
    """Trajectories of the first `count` samples (again from the first one, with other noise, if fewer).

    Shards that are already in `folder` are kept: an interrupted call goes on where it stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = len(samples)  # type: ignore[arg-type]
    device = next(objective.parameters()).device
    state = process_state()  # they share the work
    for begin in range(state.process_index * SHARD, count, state.num_processes * SHARD):
        file = folder / f"{begin:06d}.safetensors"
        if file.exists():
            continue
        batch = default_collate([samples[i % total] for i in range(begin, min(begin + SHARD, count))])
        inputs = objective.inputs({k: v.to(device) for k, v in batch.items()}, None)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + begin)
        noise = torch.randn(inputs.target.shape, generator=generator).to(device)
        nodes = trajectory(teacher, noise, sigmas, inputs.cond)
        temporary = file.with_suffix(".tmp")
        save_file({"trajectory": nodes.half().cpu()}, temporary)
        os.replace(temporary, file)
    state.wait_for_everyone()
    return Trajectories(folder, samples)


class Trajectories(Dataset[Batch]):
    """A `Batch` with the teacher's trajectory beside it: `trajectory` `[N + 1, T, C, h, w]`."""

    def __init__(self, folder: Path, samples: Dataset[dict[str, Any]]) -> None:
        shards = [load_file(file)["trajectory"] for file in sorted(folder.glob("*.safetensors"))]
        self.nodes, self.samples = torch.cat(shards), samples

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> Batch:
        sample = self.samples[index % len(self.samples)]  # type: ignore[arg-type]
        return {**sample, "trajectory": self.nodes[index]}
