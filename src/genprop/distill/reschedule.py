"""`genprop distill schedule`: the few-step schedule of a student that there is already, measured anew.

What suits a student depends on the clips it is for and on the teacher it is held against; neither needs
training. The weights stay as they are, only the bundle's card is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprop.bundle import Bundle, check_schedule_target, read_bundle, reschedule
from genprop.data.latents import Batch
from genprop.distill.schedule import STEPS, Schedule, candidate_sigmas, find_schedule, phase_schedule
from genprop.distill.targets import grid
from genprop.distill.trajectories import guided, trajectory
from genprop.draws import Draws
from genprop.edm import Denoiser, NetDenoiser
from genprop.errors import GenPropError
from genprop.latents import Autoencoder
from genprop.loop import process_state
from genprop.student.clone import load_model
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.samples import held_out_clips
from genprop.types import Cond

CLIPS = 8


def schedule_bundle(
    student: str | Path,
    teacher: str | Path,
    *,
    data: Sequence[str],
    out: Path | None = None,
    clips: int = CLIPS,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a student's sigmas and eta on held-out clips and write them into its bundle.

    Schedules of other numbers of steps stay as they are. A phased student keeps the schedule of its phases.

    Args:
        teacher: what the student was distilled from; its endpoints are what sigmas are chosen by.
        data: as for training; what is held out depends on the student's `data.seed`.
        out: folder of a copy with the new schedule; None rewrites the student's own card.
        clips: how many are measured on.
        seed: of all noise.

    Returns:
        `student` (the folder), `sigmas`, `eta`, `clips`, `seed` and `rows` (see `Schedule`).

    Raises:
        GenPropError: no student, no teacher or not its own, no clips, an embedded student without `out`.
    """
    bundle = check_pair(student, teacher)
    check_schedule_target(bundle, out)
    if clips < 1 or not steps or min(steps) < 1:
        raise GenPropError(f"clips is {clips} and steps {list(steps)}, expected at least 1 of each")
    config = bundle.card.config
    _, net, base = load_model(student)
    _, guide, _ = load_model(teacher)
    device = process_state().device
    for module in (net, guide, base.autoencoder, base.image_encoder):
        module.to(device)
    batch = {name: value.to(device) for name, value in held_out_clips(data, config, base, clips).items()}
    found = schedule_on(
        NetDenoiser(net),
        guided(guide, config),
        batch,
        objective=TeacherObjective(net, base.image_encoder, config),
        autoencoder=base.autoencoder,
        steps=steps,
        seed=seed,
    )
    sigmas = dict(sorted({**bundle.card.sigmas, **found.sigmas}.items()))
    eta = dict(sorted({**bundle.card.eta, **found.eta}.items()))
    written = reschedule(bundle, sigmas=sigmas, eta=eta, out=out)
    return {
        "student": str(written.folder),
        "sigmas": sigmas,
        "eta": eta,
        "clips": len(batch["target"]),
        "seed": seed,
        "rows": found.rows,
    }


def schedule_on(
    student: Denoiser,
    teacher: Denoiser,
    batch: Batch,
    *,
    objective: TeacherObjective,
    autoencoder: Autoencoder,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
) -> Schedule:
    """The schedule of a student on encoded clips; the teacher's endpoints are on the student's grid.

    Args:
        teacher: guided.
        batch: encoded clips, all on one device.
        objective: for conditions and settings.
        seed: of all noise.
    """
    config = objective.config
    inputs, fixed = objective.inputs(batch, None), phase_schedule(config)
    noise = Draws.of(seed, len(inputs.target), device=inputs.target.device).randn(*inputs.target.shape[1:])
    nodes = trajectory(ClipByClip(teacher), noise, grid(config), inputs.cond, solver=config.distill.solver)
    return find_schedule(
        ClipByClip(student),
        nodes[:, -1],
        noise,
        inputs.cond,
        inputs.target,
        batch["mask"],
        autoencoder,
        candidate_sigmas(config),
        sigma_max=config.sampling.sigma_max,
        steps=tuple(fixed) or steps,
        fixed=fixed,
        seed=seed,
    )


def check_pair(student: str | Path, teacher: str | Path) -> Bundle:
    """The student's bundle, if the two are a student and a teacher of one base and one size of clips.

    Raises:
        GenPropError: they are not.
    """
    bundles = read_bundle(student), read_bundle(teacher)
    for name, bundle, kind in zip((student, teacher), bundles, ("student", "teacher"), strict=True):
        if bundle.card.kind != kind:
            raise GenPropError(f"{name} is a {bundle.card.kind}, expected a {kind}")
    ours, theirs = (bundle.card for bundle in bundles)
    if (ours.base_sha256, ours.config.clip) != (theirs.base_sha256, theirs.config.clip):
        raise GenPropError(
            f"{student} and {teacher} differ in their base or in the size of their clips",
            "give the teacher that the student was distilled from",
        )
    return bundles[0]


@dataclass(frozen=True)
class ClipByClip:
    """A denoiser that evaluates one clip at a time: the memory of one, whatever the batch."""

    denoiser: Denoiser

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        parts = zip(
            x.split(1),
            sigma.split(1),
            cond.first.split(1),
            cond.source.split(1),
            cond.image_embedding.split(1),
            cond.added_time_ids.split(1),
            strict=True,
        )
        x0, mask_logits = zip(*(self.denoiser(x, s, Cond(*c)) for x, s, *c in parts), strict=True)
        return torch.cat(x0), torch.cat(mask_logits)
