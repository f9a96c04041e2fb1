"""`genprop distill`: clone the teacher, make its trajectories, train, choose the sigmas, write the bundle.

What a run leaves beside the student is for whoever reads it (`record.py`): what it was made with, what its
rewards are, the schedules that were tried, the quality of student and teacher at equal numbers of
evaluations, and a report of all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genprop.bundle import Bundle, check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.adversarial import AdversarialTerm
from genprop.distill.objective import ConsistencyObjective
from genprop.distill.plan import of_teacher, plan_distillation
from genprop.distill.quality import measure_quality
from genprop.distill.record import write_json, write_run
from genprop.distill.report import write_report
from genprop.distill.rewards.terms import RewardTerms, open_rewards
from genprop.distill.schedule import Schedule, schedule_student
from genprop.distill.trajectories import make_trajectories
from genprop.edm import Guided, NetDenoiser
from genprop.errors import GenPropError
from genprop.loop import check_run, fit, is_main_process, process_state
from genprop.sampling import consistency
from genprop.student.clone import clone, load_model, save_lora, set_lora, trained_tensors
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

    Raises:
        GenPropError: `teacher` is not a teacher; a reward model that is switched on is not there; settings
            that exclude one another.
    """
    check_run(config.student, out, resume=resume)
    check_together(config)
    check_fits(plan_distillation(teacher, config), available_memory())
    bundle, net, base = load_model(teacher)
    config = of_teacher(config, bundle)
    name = bundle.base
    rewards = open_rewards(config, base, name=name)
    samples, held_out = latent_samples(data, config, base, out / "latents", workers=config.student.workers)
    for module in (net, base.autoencoder, base.image_encoder):
        module.to(process_state().device)

    student = clone(net, config.distill)
    if config.student.checkpointing:
        checkpoint_blocks(student)
    if start is not None:
        restore(student, start)
    config = config.model_copy(
        update={"net": config.net.model_copy(update={"guidance": config.distill.guidance == "embedded"})}
    )
    dataset = samples
    if config.distill.precompute:
        dataset = make_trajectories(
            guide(net, config),
            TeacherObjective(net, base.image_encoder, config),
            samples,
            config,
            trajectories or out / "trajectories",
            made_by=fingerprint(bundle, samples),
        )
    adversarial = (
        AdversarialTerm(net.backbone, config.distill.adversarial) if config.distill.adversarial.weight else None
    )
    objective = ConsistencyObjective(
        student,
        base.image_encoder,
        config,
        teacher=None if config.distill.precompute else Guided(NetDenoiser(net), config.sampling.guidance_min),
        rewards=rewards,
        adversarial=adversarial,
    )
    if config.distill.precompute and adversarial is None:
        del net  # training needs no teacher
    if is_main_process():
        write_run(out, config, teacher=teacher, data=data, rewards=rewards)

    sigmas = torch.tensor([config.sampling.sigma_max, 0.0])

    def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return consistency(NetDenoiser(student), noise, sigmas, told(cond, config))

    validate = sampled_validation(objective.region, held_out, base.autoencoder, sample)
    summary = fit(objective, dataset, config.student, out, validate=validate, resume=resume)
    if not is_main_process():
        return summary
    return {**summary, **finish(student.eval(), teacher, config, held_out, base, out, rewards=rewards)}


def check_together(config: Config) -> None:
    """Refuse settings that exclude one another, before anything is computed.

    Raises:
        GenPropError: what there is no teacher's frame for, or no stored scale.
    """
    distill = config.distill
    hinged = [name for name, reward in distill.rewards.named() if reward.weight and reward.hinge]
    if hinged and not distill.precompute and distill.phases > 1:
        raise GenPropError(
            f"reward {hinged[0]} is hinged at the teacher's frames, but distill.precompute is off and "
            f"distill.phases is {distill.phases}, expected stored trajectories or one phase",
            f"set distill.precompute = true, or distill.rewards.{hinged[0]}.hinge = false",
        )


def guide(net: GenPropNet, config: Config) -> Callable[[Tensor], Guided]:
    """The teacher at guidance scales `[B]`."""
    denoiser, minimum = NetDenoiser(net), config.sampling.guidance_min
    return lambda scale: Guided(denoiser, minimum, scale)


def told(cond: Cond, config: Config) -> Cond:
    """The condition of a student, told the usual scale if it has to be told one."""
    if not config.net.guidance:
        return cond
    return cond.with_guidance(torch.full((len(cond.first),), config.sampling.guidance_max))


def fingerprint(teacher: Bundle, samples: Dataset[Batch]) -> str:
    """Of the teacher's weights and of the samples, wherever they lie."""
    digest = hashlib.sha256(json.dumps([teacher.card.files, teacher.card.base_sha256]).encode())
    count = len(samples)  # type: ignore[arg-type]
    for index in (0, count - 1):
        digest.update(samples[index]["target"].numpy().tobytes())
    return f"{digest.hexdigest()[:16]} on {count} samples"


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
    """Choose the few-step schedule, write the bundle, measure, and write the report."""
    bundle, net, _ = load_model(teacher)
    device = next(student.parameters()).device
    net.to(device)
    region = TeacherObjective(student, base.image_encoder, config)
    schedule = schedule_student(student, net, region, held_out, base.autoencoder)
    write_json(out / "schedule.json", asdict(schedule))
    write_student(student, config, bundle.base, out / "student", schedule=schedule)
    rows = measure_quality(student, net, region, held_out, base.autoencoder, schedule=schedule, rewards=rewards)
    write_json(out / "quality.json", [asdict(row) for row in rows])
    report = write_report(out)
    return {
        "sigmas": schedule.sigmas,
        "eta": schedule.eta,
        "quality": [asdict(row) for row in rows],
        "report": str(report),
    }


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
        save_lora=(lambda target: save_lora(student, target, adapter=adapter, dtype=dtype)) if adapter.rank else None,
        dtype=dtype,
    )
