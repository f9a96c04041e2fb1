"""`genprop distill`: clone the teacher, make its trajectories, train, choose the sigmas, write the bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprop.bundle import Bundle, check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.distill.objective import ConsistencyObjective, grid
from genprop.distill.plan import of_teacher, plan_distillation
from genprop.distill.schedule import candidate_sigmas, find_schedule, phase_schedule
from genprop.distill.texture import TextureReward
from genprop.distill.trajectories import make_trajectories, trajectory
from genprop.edm import Guided, NetDenoiser
from genprop.loop import check_run, fit, is_main_process, process_state
from genprop.sampling import consistency
from genprop.student.clone import clone, load_model, trained_tensors
from genprop.student.lora import save_lora, set_lora
from genprop.teacher.fits import available_memory, check_fits
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.samples import latent_samples
from genprop.teacher.unet import checkpoint_blocks
from genprop.teacher.validate import beside, sampled_validation
from genprop.types import Cond


def distill(
    teacher: str | Path,
    config: Config,
    *,
    data: Sequence[str],
    out: Path,
    start: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil `teacher` into `out/student`.

    Args:
        data: as for training.
        start: a student to go on from, instead of a clone of the teacher.

    Raises:
        GenPropError: `teacher` is not a teacher.
    """
    check_run(config.student, out, resume=resume)
    check_fits(plan_distillation(teacher, config), available_memory())
    bundle, net, base = load_model(teacher)
    config = of_teacher(config, bundle)
    sampling = config.sampling
    samples, held_out = latent_samples(data, config, base, out / "latents", workers=config.student.workers)
    for module in (net, base.autoencoder, base.image_encoder):
        module.to(process_state().device)
    guided = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
    trajectories = make_trajectories(
        guided,
        TeacherObjective(net, base.image_encoder, config),
        samples,
        grid(config),
        out / "trajectories",
        count=config.distill.trajectories,
        seed=config.student.seed,
    )

    student = clone(net, adapter=config.distill.adapter)
    if config.student.checkpointing:
        checkpoint_blocks(student)
    if start is not None:
        restore(student, start)
    texture = config.distill.rewards.texture.weight
    rewards = {"texture": (texture, TextureReward(base.autoencoder))} if texture else {}
    objective = ConsistencyObjective(student, base.image_encoder, config, teacher=guided, rewards=rewards)
    sigmas = torch.tensor([sampling.sigma_max, 0.0])

    def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return consistency(NetDenoiser(student), noise, sigmas, cond)

    validate = sampled_validation(objective.region, held_out, base.autoencoder, sample)
    summary = fit(objective, trajectories, config.student, out, validate=validate, resume=resume)

    if not is_main_process():
        return summary
    student.eval()
    batch, device = beside(student, {name: value[:4] for name, value in held_out.items()})
    net.to(device)
    inputs = objective.region.inputs(batch, None)
    cond = inputs.cond
    noise = torch.randn(cond.source.shape, generator=torch.Generator().manual_seed(0)).to(device)
    endpoint = trajectory(guided, noise, grid(config), cond)[:, -1]
    found = find_schedule(
        NetDenoiser(student),
        endpoint,
        noise,
        cond,
        inputs.target,
        batch["mask"],
        base.autoencoder,
        candidate_sigmas(config),
        sigma_max=sampling.sigma_max,
        fixed=phase_schedule(config),
    )
    (out / "schedule.json").write_text(json.dumps(found._asdict(), indent=1))
    write_student(student, config, bundle.base, out / "student", sigmas=found.sigmas, eta=found.eta)
    return {**summary, "sigmas": found.sigmas, "eta": found.eta}


def restore(student: GenPropNet, name: str | Path) -> None:
    """Give a fresh clone the weights of an earlier student with the same kind of adapter."""
    bundle = read_bundle(name)
    check_base(bundle)
    student.load_state_dict(bundle.tensors(), strict=False)
    if bundle.lora is not None:
        set_lora(student, bundle.lora)


def write_student(
    student: GenPropNet,
    config: Config,
    base: str | Path,
    folder: Path,
    *,
    sigmas: dict[int, tuple[float, ...]],
    eta: dict[int, float],
) -> Bundle:
    """A student's bundle: content encoder, mask decoder, and the LoRA or the whole backbone."""
    rank, dtype = config.distill.adapter.rank, config.base.dtype
    return write_bundle(
        folder,
        kind="student",
        config=config,
        base=base,
        tensors=trained_tensors(student, backbone=not rank),
        sigmas=sigmas,
        eta=eta,
        save_lora=(lambda target: save_lora(student, target, rank=rank, dtype=dtype)) if rank else None,
        dtype=dtype,
    )
