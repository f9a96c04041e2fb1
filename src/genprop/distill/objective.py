"""Consistency distillation in sigma space, with the region-aware loss (design: "Distillation").

    L = L_cd + w_region L_RA - w_image J_image - w_video J_video

A student f is pulled to one answer along each of the teacher's trajectories. From node i the guided
teacher goes k Euler steps on, and f(x_i) is pulled to f(x_{i+k}) without gradient (Song et al. 2023,
eq. 10); where the trajectory ends the target is the teacher's own x0. With k = 0, the whole rest of the
trajectory, the target is the teacher's endpoint at every node. f is the student's `Denoiser`, whose EDM
form has f(x, 0) = x already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from genprop.config import Config
from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.edm import Denoiser, NetDenoiser, add_noise, karras_sigmas, precondition
from genprop.latents import ImageEncoder
from genprop.sampling import euler_step
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import Inputs, TeacherObjective
from genprop.types import Cond


class Reward(Protocol):
    """A differentiable score of the student's x0, `(x0, inputs) -> [B]`; higher is better."""

    def __call__(self, x0: Tensor, inputs: Inputs) -> Tensor: ...


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """`sqrt(e^2 + c^2) - c`, element by element (Song and Dhariwal 2024, eq. 8)."""
    return (error.float() ** 2 + c * c).sqrt() - c


def grid(config: Config) -> Tensor:
    """The Karras nodes of trajectories and of consistency, and 0. `[nodes + 1]`."""
    s = config.sampling
    return karras_sigmas(config.distill.nodes, sigma_min=s.sigma_min, sigma_max=s.sigma_max, rho=s.rho)


@torch.no_grad()
def teacher_target(
    teacher: Denoiser,
    student: Denoiser,
    x: Tensor,
    node: Tensor,
    sigmas: Tensor,
    cond: Cond,
    *,
    steps: int,
) -> Tensor:
    """The consistency target of x at node i: k steps of the teacher, then the student's answer there.

    Args:
        node: index into `sigmas` of each sample, `[B]`.
        sigmas: the grid, ends in 0.
        steps: k; 0 goes to the end. A sample that arrives at 0 keeps the x0 that it arrives at.
    """
    last = len(sigmas) - 1
    node = node.clone()
    x = x.clone()
    for _ in range(steps or last):
        moving = node < last
        if not moving.any():
            break
        sigma, to = sigmas[node.clamp(max=last - 1)], sigmas[(node + 1).clamp(max=last)]
        x0, _ = teacher(x, sigma, cond)
        shape = (-1, *[1] * (x.ndim - 1))
        stepped = euler_step(x, x0, sigma.view(shape), to.view(shape))
        x = torch.where(moving.view(shape), stepped, x)
        node = torch.where(moving, node + 1, node)
    arrived = node == last
    if arrived.all():
        return x
    answer, _ = student(x, sigmas[node.clamp(max=last - 1)], cond)
    return torch.where(arrived.view(-1, *[1] * (x.ndim - 1)), x, answer)


class ConsistencyObjective(nn.Module):
    """The student's loss.

    A batch with a `trajectory` has its nodes and its endpoint already, and needs no teacher; without one,
    x is noised data and the teacher's k steps are made here.

    Args:
        student: trains; region-aware loss and mask loss are on the x0 that the consistency term computes.
        teacher: guided; None if every batch has a trajectory.
        rewards: `(weight, reward)` by name, subtracted.
    """

    def __init__(
        self,
        student: GenPropNet,
        image_encoder: ImageEncoder,
        config: Config,
        *,
        teacher: Denoiser | None = None,
        rewards: Mapping[str, tuple[float, Reward]] | None = None,
    ) -> None:
        super().__init__()
        self.region = TeacherObjective(student, image_encoder, config)
        self.teacher, self.rewards, self.config = teacher, rewards or {}, config

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        distill, student = self.config.distill, self.region.net
        inputs = self.region.inputs(batch, None)
        count, device = len(inputs.target), inputs.target.device
        sigmas = grid(self.config).to(device)
        node = draws.randint(len(sigmas) - 1)
        top = draws.rand() < distill.top_share
        node = torch.where(top, 0, node)
        if "trajectory" in batch:
            nodes = batch["trajectory"].float()
            x, target = nodes[torch.arange(count, device=device), node], nodes[:, -1]
        else:
            assert self.teacher is not None, "without trajectories the objective needs the teacher"
            noise = draws.randn(*inputs.target.shape[1:])
            x = add_noise(inputs.target, noise, sigmas[node])
            target = teacher_target(
                self.teacher,
                NetDenoiser(student),
                x,
                node,
                sigmas,
                inputs.cond,
                steps=distill.teacher_steps,
            )
        sigma = sigmas[node]
        p = precondition(sigma)
        c = inputs.cond
        parts = student.parts(p.c_in * x, p.c_noise, c.first, c.source, c.image_embedding, c.added_time_ids)
        x0 = p.c_skip * x + p.c_out * parts.out.velocity.float()
        weight = (sigma - sigmas[node + 1]) ** distill.weight_exponent
        consistency = (pseudo_huber(x0 - target, distill.huber).mean(dim=(1, 2, 3, 4)) * weight).mean()
        terms = self.region.terms(parts, x0 - inputs.target, inputs, draws)
        region = terms.pop("loss")
        loss = consistency + distill.region * region
        for name, (weight_of, reward) in self.rewards.items():
            terms[f"reward_{name}"] = reward(x0, inputs).mean()
            loss = loss - weight_of * terms[f"reward_{name}"]
        with torch.no_grad():
            distance = (x0 - target).square().mean()
        return {"loss": loss, "consistency": consistency, "target_mse": distance, **terms}
