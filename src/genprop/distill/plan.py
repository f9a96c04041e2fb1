"""The memory plan of a distillation: the teacher and its student, side by side."""

from __future__ import annotations

from pathlib import Path

import torch

from genprop.bundle import Bundle, read_bundle
from genprop.config import Config
from genprop.distill.adversarial import AdversarialTerm
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.rewards.terms import open_rewards
from genprop.distill_settings import RewardConfig
from genprop.edm import Guided, NetDenoiser
from genprop.errors import GenPropError
from genprop.student.clone import clone
from genprop.student.guidance import guided_config, with_guidance
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.outline import (
    Call,
    How,
    Training,
    architecture,
    batch_loss,
    empty_batch,
    encoding,
    frozen_base,
    validation,
)
from genprop.teacher.plan import Plan, here, make_plan

TRAJECTORIES = "trajectories"


def plan_distillation(teacher: str | Path, config: Config) -> Plan:
    """The plan of distilling the bundle `teacher`.

    Raises:
        GenPropError: no such bundle, or one that is not a teacher's.
    """
    bundle = read_bundle(teacher)
    if bundle.card.kind != "teacher":
        raise GenPropError(
            f"{teacher} is a {bundle.card.kind}, expected a teacher", "give the teacher's bundle"
        )
    return plan_student(of_teacher(config, bundle), base=bundle.base, how=here())


def of_teacher(config: Config, teacher: Bundle) -> Config:
    """A student is what its teacher is; how it is trained is the configuration's."""
    theirs = teacher.card.config
    return config.model_copy(update={"clip": theirs.clip, "net": theirs.net, "sce": theirs.sce})


def plan_student(config: Config, *, base: str | Path | None = None, how: How | None = None) -> Plan:
    """The plan of `genprop distill`; `base` is the teacher's. See `teacher.plan.plan`."""
    described = config.model_copy(update={"base": architecture(config, base)})
    return make_plan(described, "student", outline_student, how or How())


def outline_student(config: Config, how: How) -> Training:
    """`distill.train` in short: trajectories by the guided teacher, then the student's step.

    The networks of HPSv2.1 and ViCLIP are not in it: what they weigh is known when they are there.
    """
    if not config.distill.precompute:  # one step of the teacher takes as much memory as many, of any kind
        one = {"teacher_steps": 1, "trajectory": 0.0, "blend": 0.0, "solver": "euler"}
        steps = config.distill.model_copy(update=one)
        config = config.model_copy(update={"distill": steps})
    base, sampling, distill = frozen_base(config, how), config.sampling, config.distill
    net = GenPropNet(base.backbone, config.net, config.sce).requires_grad_(False)
    guided = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
    student = clone(net, adapter=distill.adapter)
    if distill.guidance == "embedded":
        student, config = with_guidance(student), guided_config(config)
    off = RewardConfig()
    rewards = open_rewards(
        distill.rewards.model_copy(update={"hps": off, "viclip": off}),
        base.autoencoder,
        base.image_encoder,
        base_name=config.name,
        frames=config.clip.frames,
    )
    adversarial = AdversarialTerm(net.backbone, distill.adversarial) if distill.adversarial.weight else None
    objective = ConsistencyObjective(
        student,
        base.image_encoder,
        config,
        teacher=None if distill.precompute else guided,
        rewards=rewards,
        adversarial=adversarial,
    )
    region, count = TeacherObjective(net, base.image_encoder, config), config.student.batch_size

    def trajectories() -> None:
        inputs = region.inputs(empty_batch(config, base, count), None)
        guided(torch.zeros_like(inputs.target), torch.ones(count), inputs.cond)

    calls = encoding(config, base)
    latents = empty_batch(config, base, 1)["target"].shape[1:]
    more: dict[str, tuple[int, ...]] = {}
    if distill.precompute:
        calls |= {TRAJECTORIES: Call(trajectories, "before")}
        more = {"trajectory": (distill.nodes + 1, *latents), "guidance": ()}
    return Training(
        config.student,
        objective,
        {"autoencoder": base.autoencoder, "teacher": net},  # before and after, if not throughout
        batch_loss(objective, config, base, config.student, **more),
        calls | validation(config, base, objective.region, NetDenoiser(student)),
    )
