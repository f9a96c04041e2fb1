"""`genprop distill`: clone the teacher, make its trajectories, train, choose the sigmas, write the bundle.

What a run leaves beside the student is for whoever reads it: what it was made with, what its rewards are,
the schedules that were tried, the quality of student and teacher at equal numbers of evaluations, and a
report of all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprop.bundle import Bundle, check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.adversarial import AdversarialTerm
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.plan import of_teacher, plan_distillation
from genprop.distill.quality import Case, measure_quality
from genprop.distill.report.provenance import describe_run
from genprop.distill.report.records import quality_document, write_json, write_quality
from genprop.distill.report.write import write_report
from genprop.distill.reschedule import CLIPS, schedule_on
from genprop.distill.rewards.terms import RewardTerms, open_rewards, read_captions
from genprop.distill.schedule import Schedule
from genprop.distill.trajectories import fingerprint, guided, make_trajectories
from genprop.distill_settings import RewardConfig
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.loop import check_run, fit, is_main_process, process_state
from genprop.sampling import consistency
from genprop.student.clone import clone, load_model, trained_tensors
from genprop.student.guidance import guided_config, with_guidance
from genprop.student.lora import save_lora, set_lora
from genprop.teacher.base import Base
from genprop.teacher.fits import available_memory, check_fits
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.samples import latent_samples
from genprop.teacher.unet import checkpoint_blocks
from genprop.teacher.validate import sampled_validation
from genprop.types import Cond


def distill(
    teacher: str | Path,
    config: Config,
    *,
    data: Sequence[str],
    out: Path,
    start: str | Path | None = None,
    trajectories: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Distil `teacher` into `out/student`.

    Args:
        data: as for training.
        start: a student to go on from, instead of a clone of the teacher.
        trajectories: where the teacher's trajectories are, or will be; `out/trajectories` if None.

    Returns:
        What `fit` returns, then `sigmas`, `eta`, `quality` (rows) and `report` (a path).

    Raises:
        GenPropError: `teacher` is not a teacher; a reward model that is switched on is not there; settings
            that exclude one another; trajectories that were made otherwise.
    """
    check_run(config.student, out, resume=resume)
    check_together(config)
    check_fits(plan_distillation(teacher, config), available_memory())
    bundle, net, base = load_model(teacher)
    config = of_teacher(config, bundle)
    distillation, device = config.distill, process_state().device
    for module in (net, base.autoencoder, base.image_encoder):
        module.to(device)
    rewards = open_rewards(
        distillation.rewards,
        base.autoencoder,
        base.image_encoder,
        base_name=bundle.base,
        frames=config.clip.frames,
    )
    samples, held_out = latent_samples(data, config, base, out / "latents", workers=config.student.workers)
    if rewards is not None and rewards.needs_captions:
        read_captions(samples[0]["caption"][None], name="text")  # refused now, not after hours
    dataset = samples
    if distillation.precompute:
        dataset = make_trajectories(
            partial(guided, net, config),
            TeacherObjective(net, base.image_encoder, config),
            samples,
            config,
            trajectories or out / "trajectories",
            made_by=fingerprint(bundle, samples),
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.student.seed)  # of a LoRA's and of the adversary's first weights
        student = clone(net, adapter=distillation.adapter)
        adversary = None
        if distillation.adversarial.weight:
            adversary = AdversarialTerm(net.backbone, distillation.adversarial)
    if distillation.guidance == "embedded":
        student, config = with_guidance(student, seed=config.student.seed), guided_config(config)
    if config.student.checkpointing:
        checkpoint_blocks(student, net)  # the adversary's gradient goes through the teacher's backbone
    if start is not None:
        restore(student, start)
    objective = ConsistencyObjective(
        student,
        base.image_encoder,
        config,
        teacher=None if distillation.precompute else guided(net, config),
        rewards=rewards,
        adversarial=adversary,
    )
    del net, adversary  # where trajectories are stored and nobody judges, no teacher is in memory
    if is_main_process():
        write_json(out / "run.json", describe_run(config, teacher=teacher, data=data))
        write_json(out / "rewards.json", rewards.cards() if rewards else [])

    sigmas = torch.tensor([config.sampling.sigma_max, 0.0])

    def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return consistency(NetDenoiser(student), noise, sigmas, cond)

    validate = sampled_validation(objective.region, held_out, base.autoencoder, sample)
    summary = fit(objective, dataset, config.student, out, validate=validate, resume=resume)
    if not is_main_process():
        return summary
    about = describe_run(config, teacher=teacher, data=data)
    about |= {"seconds": summary["seconds"], "resumed_from": summary["resumed_from"]}
    write_json(out / "run.json", about)
    return {**summary, **finish(student.eval(), teacher, config, held_out, base, out, rewards=rewards)}


def finish(
    student: GenPropNet,
    teacher: str | Path,
    config: Config,
    held_out: Batch,
    base: Base,
    out: Path,
    *,
    rewards: RewardTerms | None,
) -> dict[str, Any]:
    """Choose the few-step schedule, write the bundle, measure student and teacher, and write the report."""
    bundle, net, _ = load_model(teacher)
    device = next(student.parameters()).device
    net.to(device)
    region = TeacherObjective(student, base.image_encoder, config)
    denoiser, reference = NetDenoiser(student), guided(net, config)
    few = {name: value[:CLIPS].to(device) for name, value in held_out.items()}
    schedule = schedule_on(denoiser, reference, few, objective=region, autoencoder=base.autoencoder)
    write_json(out / "schedule.json", schedule._asdict())
    write_student(student, config, bundle.base, out / "student", schedule=schedule)

    def score(x0: Tensor, case: Case) -> dict[str, Tensor]:
        assert rewards is not None
        inputs = case.inputs
        found = rewards(
            x0,
            truth=inputs.target,
            teacher=case.endpoint,
            mask=inputs.mask,
            draws=Draws.of(case.index, 1, device=x0.device),
            captions=held_out["caption"][case.index : case.index + 1] if "caption" in held_out else None,
        )
        return {name: value for name, value in found.scores.items() if name.count("_") == 1}

    rows = measure_quality(
        denoiser,
        reference,
        held_out,
        objective=region,
        autoencoder=base.autoencoder,
        sigmas=schedule.sigmas,
        eta=schedule.eta,
        score=score if rewards else None,
    )
    write_quality(out / "quality.json", rows)
    document = quality_document(rows)
    return {
        "sigmas": schedule.sigmas,
        "eta": schedule.eta,
        "quality": document["rows"],
        "report": str(write_report(out)),
    }


def check_together(config: Config) -> None:
    """Refuse settings that exclude one another, before anything is computed.

    Raises:
        GenPropError: rewards that need a teacher's endpoint where there is none.
    """
    distill = config.distill
    if distill.precompute or distill.phases == 1:
        return
    for name, reward in distill.rewards:
        if not isinstance(reward, RewardConfig) or not reward.weight:
            continue
        if reward.hinge or reward.reference == "teacher":
            raise GenPropError(
                f"the {name} reward needs the teacher's endpoint, but distill.precompute is off and "
                f"distill.phases is {distill.phases}: expected stored trajectories, or one phase",
                f"set distill.precompute = true, or switch it off with distill.rewards.{name}.weight=0",
            )


def restore(student: GenPropNet, name: str | Path) -> None:
    """Give a fresh clone the weights of an earlier student with the same kind of adapter."""
    bundle = read_bundle(name)
    check_base(bundle)
    student.load_state_dict(bundle.tensors(), strict=False)
    if bundle.lora is not None:
        set_lora(student, bundle.lora)


def write_student(
    student: GenPropNet, config: Config, base: str | Path, folder: Path, *, schedule: Schedule
) -> Bundle:
    """A student's bundle: content encoder, mask decoder, and the LoRA or the whole backbone."""
    adapter, dtype = config.distill.adapter, config.base.dtype
    return write_bundle(
        folder,
        kind="student",
        config=config,
        base=base,
        tensors=trained_tensors(student, backbone=not adapter.rank),
        sigmas=schedule.sigmas,
        eta=schedule.eta,
        save_lora=(lambda target: save_lora(student, target, rank=adapter.rank, dtype=dtype))
        if adapter.rank
        else None,
        dtype=dtype,
    )
