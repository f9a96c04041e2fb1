"""Where a student is asked, and what it has to answer: the targets of consistency distillation.

All of it lives on one grid of Karras nodes, `s_0 > s_1 > ... > s_N = 0`. The student is asked at node i and
lands, by one straight step along its x0, on the end of node i's phase: sigma 0, or with phased consistency
(Wang et al. 2024, arXiv:2405.18407) the next edge of the grid. Where it has to land is one of two things:

    the trajectory's end   the teacher goes all the way; stable from the first update on
    consistency            the teacher goes k nodes on, and the target network lands from there
                           (Song et al. 2023, eq. 10)

What the teacher does is read off its stored trajectories, or, from noised data, done in the step.

Shapes: x `[B, T, C, h, w]`; nodes are indices `[B]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genprop.config import Config
from genprop.edm import Denoiser, karras_sigmas
from genprop.sampling import SOLVERS, euler_step
from genprop.types import Cond


def grid(config: Config) -> Tensor:
    """The Karras nodes of trajectories and of consistency, and 0. `[nodes + 1]`."""
    s = config.sampling
    return karras_sigmas(config.distill.nodes, sigma_min=s.sigma_min, sigma_max=s.sigma_max, rho=s.rho)


def edges(nodes: int, phases: int) -> list[int]:
    """The nodes at which phases begin, from 0, and last the end of the grid; as even as can be."""
    return [round(nodes * phase / phases) for phase in range(phases + 1)]


class Asked(NamedTuple):
    """Node and phase of each sample: where it is asked, where its phase ends."""

    node: Tensor
    end: Tensor


def phase_of(node: Tensor, *, nodes: int, phases: int) -> tuple[Tensor, Tensor]:
    """The first node of the phase that each node is in, and the node at which that phase ends."""
    at = torch.tensor(edges(nodes, phases), device=node.device)
    phase = torch.bucketize(node, at, right=True) - 1
    return at[phase], at[phase + 1]


def land(x: Tensor, x0: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """One straight step along x0 from `sigma` to `to`, both `[B]`; at 0 it is x0 itself."""
    landed = euler_step(x, x0, _wide(sigma), _wide(to))
    return torch.where(_wide(to) == 0, x0, landed)  # exactly, whatever the rounding of the step


def whole_share(progress: float, *, trajectory: float, blend: float) -> float:
    """The share of the samples whose target is the trajectory's end, when `progress` of the updates is done.

    All of them in the first `trajectory` of a training, then fewer and fewer, none after `blend` more.
    """
    if progress < trajectory or trajectory >= 1:
        return 1.0
    return max(0.0, 1 - (progress - trajectory) / blend) if blend else 0.0


@torch.no_grad()
def stored_target(
    nodes: Tensor, asked: Asked, on: Tensor, sigmas: Tensor, cond: Cond, *, network: Denoiser | None
) -> tuple[Tensor, Tensor]:
    """What a stored trajectory asks for.

    Args:
        nodes: the teacher's trajectories, `[B, N + 1, T, C, h, w]`.
        on: how many nodes the teacher goes on, `[B]`; past the phase's end it stops there.
        network: gives the answer where the teacher has not arrived; None where it always has.

    Returns:
        x at the asked node, and where to land from it.
    """
    rows = torch.arange(len(nodes), device=nodes.device)
    reached = torch.minimum(asked.node + on, asked.end)
    x, there = nodes[rows, asked.node].float(), nodes[rows, reached].float()
    return x, answered(there, reached, asked.end, sigmas, cond, network=network)


@torch.no_grad()
def stepped_target(
    x: Tensor,
    asked: Asked,
    on: Tensor,
    sigmas: Tensor,
    cond: Cond,
    *,
    teacher: Denoiser,
    network: Denoiser | None,
    solver: str,
    steps: int | None = None,
) -> Tensor:
    """What the teacher asks for from x, after it has gone `on` nodes on; otherwise as `stored_target`.

    Args:
        steps: the most that anybody goes, where it is known; else it is asked of the device in every step.
    """
    step = SOLVERS[solver]
    node, reached = asked.node, torch.minimum(asked.node + on, asked.end)
    taken = 0
    while taken < steps if steps is not None else bool((node < reached).any()):
        taken, moving = taken + 1, node < reached
        sigma, to = sigmas[node.clamp(max=len(sigmas) - 2)], sigmas[(node + 1).clamp(max=len(sigmas) - 1)]
        x = torch.where(_wide(moving), step(teacher, x, sigma, to, cond), x)
        node = torch.where(moving, node + 1, node)
    return answered(x, reached, asked.end, sigmas, cond, network=network)


@torch.no_grad()
def answered(
    x: Tensor, node: Tensor, end: Tensor, sigmas: Tensor, cond: Cond, *, network: Denoiser | None
) -> Tensor:
    """x where the end is reached; where it is not, where the network lands from x."""
    if network is None:
        return x
    arrived = node == end
    sigma = sigmas[node.clamp(max=len(sigmas) - 2)]
    x0, _ = network(x, sigma, cond)
    return torch.where(_wide(arrived), x, land(x, x0, sigma, sigmas[end]))


def _wide(values_b: Tensor) -> Tensor:
    """`[B]` to multiply `[B, T, C, h, w]`."""
    return values_b.view(-1, 1, 1, 1, 1)
