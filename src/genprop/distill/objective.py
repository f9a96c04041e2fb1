"""Consistency distillation in sigma space, with region-aware loss, rewards and an adversary.

    L = L_cd + w_region L_RA + w_adv L_adv - sum_r w_r J_r          (design: "Distillation")

A student f is pulled to one answer along each of the teacher's trajectories (`targets.py`). f is the
student's `Denoiser`, whose EDM form has f(x, 0) = x already. Region-aware loss, rewards and adversary are
all on the x0 that the consistency term computes: one evaluation of the student with gradient in an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genprop.adaptive import OwnOptimizer
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.adversarial import AdversarialTerm
from genprop.distill.rewards.terms import RewardTerms
from genprop.distill.targets import Asked, grid, land, phase_of, stepped_target, stored_target, whole_share
from genprop.distill.trajectories import guidance_scales
from genprop.draws import Draws
from genprop.edm import Denoiser, Guided, NetDenoiser, add_noise, precondition
from genprop.latents import ImageEncoder
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import Inputs, TeacherObjective
from genprop.types import Cond, NetOut

SNR_CUT = 5.0
"""Above it the weight `1 / s^2 + 1` grows no further (min-SNR, Hang et al. 2023)."""


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """`sqrt(e^2 + c^2) - c`, element by element (Song and Dhariwal 2024, eq. 8)."""
    return (error.float() ** 2 + c * c).sqrt() - c


def weight_of(sigma: Tensor, to: Tensor, *, kind: str, exponent: float) -> Tensor:
    """The weight of a sample asked at `sigma`, whose next node is at `to`; both `[B]`."""
    if kind == "gap":
        return (sigma - to) ** exponent
    return (1 / sigma**2 + 1).clamp(max=SNR_CUT) if kind == "snr" else torch.ones_like(sigma)


class Question(NamedTuple):
    """What an update asks: where, from which x, what the answer has to land on, and under which condition.

    `endpoint` is the teacher's, for rewards.
    """

    asked: Asked
    x: Tensor
    target: Tensor
    endpoint: Tensor
    cond: Cond


class ConsistencyObjective(nn.Module):
    """The student's loss; see `loop.Adaptive` for what the loop calls beside it.

    A batch with a `trajectory` has the teacher's nodes already and needs no teacher; without one, data is
    noised and the teacher steps here.

    Args:
        student: trains.
        teacher: guided; None if every batch has a trajectory.
        rewards: those that are switched on.
        adversarial: a discriminator over the frozen backbone; its heads train, too.
    """

    def __init__(
        self,
        student: GenPropNet,
        image_encoder: ImageEncoder,
        config: Config,
        *,
        teacher: Denoiser | None = None,
        rewards: RewardTerms | None = None,
        adversarial: AdversarialTerm | None = None,
    ) -> None:
        super().__init__()
        self.region = TeacherObjective(student, image_encoder, config)
        self.adversarial = adversarial
        self.teacher, self.rewards, self.config = teacher, rewards, config
        self.progress = 0.0
        followed = dict(student.named_parameters()) if config.distill.target_ema else {}
        self.target = _Copies({n: p for n, p in followed.items() if p.requires_grad})

    @property
    def student(self) -> GenPropNet:
        return self.region.net

    def before_step(self, progress: float) -> None:
        self.progress = progress

    @torch.no_grad()
    def after_step(self) -> None:
        parameters = dict(self.student.named_parameters())
        for name, copied in self.target.tensors().items():
            copied.lerp_(parameters[name].float(), 1 - self.config.distill.target_ema)

    def memory(self) -> dict[str, Tensor]:
        return self.target.tensors()

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        if self.adversarial is None:
            return {}
        return {"adversarial.": self.adversarial.own_optimizer(clip=self.config.student.clip)}

    @property
    def share(self) -> float:
        """The share of the samples whose target is the trajectory's end, in this update."""
        distill = self.config.distill
        if not distill.teacher_steps:
            return 1.0
        return whole_share(self.progress, trajectory=distill.trajectory, blend=distill.blend)

    def target_network(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        """The network that gives targets: the student as it is, or its average over the last updates."""
        inputs = (sample, timestep, first, source, image_embedding, added_time_ids)
        followed = self.target.tensors()
        return functional_call(self.student, followed, inputs) if followed else self.student(*inputs)

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        distill = self.config.distill
        inputs = self.region.inputs(batch, None)
        sigmas = grid(self.config).to(inputs.target.device)
        q = self.question(batch, inputs, sigmas, draws)
        sigma, c = sigmas[q.asked.node], q.cond
        p = precondition(sigma)
        parts = self.student.parts(
            p.c_in * q.x, p.c_noise, c.first, c.source, c.image_embedding, c.added_time_ids
        )
        x0 = p.c_skip * q.x + p.c_out * parts.out.velocity.float()
        error = land(q.x, x0, sigma, sigmas[q.asked.end]) - q.target
        weight = weight_of(
            sigma, sigmas[q.asked.node + 1], kind=distill.weighting, exponent=distill.weight_exponent
        )
        consistency = (pseudo_huber(error, distill.huber).mean(dim=(1, 2, 3, 4)) * weight).mean()
        terms = self.region.terms(parts, x0 - inputs.target, inputs._replace(cond=c), draws)
        loss = consistency + distill.region * terms.pop("loss")
        terms |= {"consistency": consistency, "target_mse": error.detach().square().mean()}
        if self.rewards is not None:
            found = self.rewards(
                x0,
                truth=inputs.target,
                teacher=q.endpoint,
                mask=inputs.mask,
                captions=batch.get("caption"),
                draws=draws,
            )
            loss = loss - found.total
            terms |= found.scores
        if self.adversarial is not None:
            sets_in = self.progress >= distill.adversarial.start
            judged = self.adversarial(x0, inputs, draws, on=sets_in)
            loss = loss + judged.pop("loss")
            terms |= judged
        return {"loss": loss, **terms}

    def question(self, batch: Batch, inputs: Inputs, sigmas: Tensor, draws: Draws) -> Question:
        """Where each sample is asked, and what it has to answer; see `targets`."""
        distill, cond, teacher = self.config.distill, inputs.cond, self.teacher
        asked, on = self.ask(len(sigmas) - 1, draws)
        told = cond
        if distill.guidance == "embedded":
            scale = (
                batch["guidance"].float() if "trajectory" in batch else guidance_scales(self.config, draws)
            )
            told = cond.with_guidance(scale)
            if isinstance(teacher, Guided):
                teacher = replace(teacher, maximum=scale)

        def follow(x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
            return NetDenoiser(self.target_network)(x, sigma, told)

        network = None if self.share == 1 else follow  # nobody asks where every trajectory arrives
        if "trajectory" in batch:
            x, target = stored_target(batch["trajectory"], asked, on, sigmas, cond, network=network)
            return Question(asked, x, target, batch["trajectory"][:, -1].float(), told)
        assert teacher is not None, "without trajectories the objective needs the teacher"
        x = add_noise(inputs.target, draws.randn(*inputs.target.shape[1:]), sigmas[asked.node])
        target = stepped_target(
            x,
            asked,
            on,
            sigmas,
            cond,
            teacher=teacher,
            network=network,
            solver=distill.solver,
            steps=None if self.share else distill.teacher_steps,
        )
        # The target stands for the endpoint; with more than one phase `distill.train` refuses who needs one.
        return Question(asked, x, target, target, told)

    def ask(self, nodes: int, draws: Draws) -> tuple[Asked, Tensor]:
        """A node of each sample, the end of its phase, and how many nodes the teacher goes on from it."""
        distill = self.config.distill
        node = draws.randint(nodes)
        first, _ = phase_of(node, nodes=nodes, phases=distill.phases)
        node = torch.where(draws.rand() < distill.top_share, first, node)
        _, end = phase_of(node, nodes=nodes, phases=distill.phases)
        on = torch.where(draws.rand() < self.share, nodes, distill.teacher_steps)
        return Asked(node, end), on


class _Copies(nn.Module):
    """Float32 copies of tensors, by name: buffers, so that they move with the module."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(tensors)
        for i, tensor in enumerate(tensors.values()):
            self.register_buffer(f"copy_{i}", tensor.detach().to(torch.float32, copy=True), persistent=False)

    def tensors(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"copy_{i}") for i, name in enumerate(self.names)}
