"""The trainings of `genprop train` over a frozen base: the teacher, and its carry before it.

Each builds its network, its objective and its validation, hands them to `fit`, and writes what it made.
Those of a base of one's own are in `train_base`. Everything is a function of the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from genprop.bundle import Bundle, check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.edm import Guided, NetDenoiser, karras_sigmas
from genprop.errors import GenPropError
from genprop.loop import check_run, fit, is_main_process
from genprop.sampling import euler
from genprop.teacher.base import Base, load_base
from genprop.teacher.fits import available_memory, check_fits
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import CarryObjective, TeacherObjective
from genprop.teacher.plan import here, plan
from genprop.teacher.samples import Samples, training_samples
from genprop.teacher.train_base import train_autoencoder, train_backbone
from genprop.teacher.train_tracker import train_tracker
from genprop.teacher.unet import checkpoint_blocks
from genprop.teacher.validate import VALIDATION_STEPS, sampled_validation, term_validation
from genprop.types import Cond

Stage = Literal["autoencoder", "backbone", "carry", "teacher", "tracker"]


@dataclass(frozen=True)
class Run:
    """One training over a base.

    Attributes:
        base_path: what the bundle calls the base: a folder, a hub id or an embedded name.
        start: a teacher over the same base to go on from; what it lacks starts anew.
    """

    config: Config
    base: Base
    base_path: str | Path
    samples: Samples
    out: Path
    start: str | Path | None
    resume: bool

    def net(self) -> GenPropNet:
        """A fresh network over the base, with the weights of `start` where it has them."""
        net = GenPropNet(self.base.backbone, self.config.net, self.config.sce)
        if self.start is not None:
            bundle = read_bundle(self.start)
            check_base(bundle, self.base_path)
            net.load_state_dict(bundle.tensors(), strict=False)
        return net


def train(
    stage: Stage,
    config: Config,
    *,
    data: Sequence[str],
    base: str | Path | None,
    out: Path,
    start: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run one stage; `out/base` or `out/teacher` is what it made.

    Args:
        data: what `--data` names: `procedural`, folders of clips, or a folder of encoded samples.
        base: the base to go on from; with none, the autoencoder starts one.
        start: a teacher to go on from; for carry and teacher.

    Raises:
        GenPropError: whatever can be known to fail, before anything is loaded or encoded: an `out` that
            cannot be written or holds another run, too little memory; then, a base or data that are none.
    """
    if stage == "carry" and not config.net.carry:
        raise GenPropError("net.carry is 0, so there is no carry to train", "for example --set net.carry=56")
    if config.net.guidance:
        raise GenPropError(
            "net.guidance is on, expected off: a teacher is guided by a second evaluation",
            'leave it out; with distill.guidance = "embedded" the student gets it',
        )
    settings = getattr(config, stage)
    check_run(settings, out, resume=resume)
    if stage == "tracker":
        return train_tracker(config, data=data, out=out, start=start, resume=resume)
    check_fits(plan(config, stage=stage, base=base, how=here()), available_memory())
    if stage == "autoencoder":
        return train_autoencoder(config, base=base, out=out, resume=resume)
    assert base is not None
    loaded = load_base(base, config.base)
    samples = training_samples(data, config, loaded, out, workers=settings.workers)
    if stage == "backbone":
        return train_backbone(config, loaded, samples, out=out, resume=resume)
    run = Run(config, loaded, base, samples, out, start, resume)
    return train_carry(run) if stage == "carry" else train_teacher(run)


def train_teacher(run: Run) -> dict[str, Any]:
    """Train content encoder, injections and mask decoder over the frozen base."""
    config, samples, net = run.config, run.samples, run.net()
    if config.teacher.checkpointing:
        checkpoint_blocks(net)
    objective = TeacherObjective(net, run.base.image_encoder, config)
    sampling = config.sampling
    denoiser = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
    sigmas = karras_sigmas(
        VALIDATION_STEPS, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
    )

    def sample(noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        return euler(denoiser, noise, sigmas, cond)

    summary = fit(
        samples.objective(objective),
        samples.training,
        config.teacher,
        run.out,
        validate=sampled_validation(objective, samples.held_out, run.base.autoencoder, sample),
        resume=run.resume,
    )
    if is_main_process():
        write_teacher(net, config, run.base_path, run.out / "teacher")
    return summary


def train_carry(run: Run) -> dict[str, Any]:
    """Train the carry alone; what it writes is a teacher to start from."""
    config, samples, net = run.config, run.samples, run.net()
    objective = CarryObjective(TeacherObjective(net, run.base.image_encoder, config))
    assert net.carry is not None
    net.requires_grad_(False)
    net.carry.requires_grad_(True)
    net.carry.trust.requires_grad_(False)  # read by the gate only
    summary = fit(
        samples.objective(objective),
        samples.training,
        config.carry,
        run.out,
        validate=term_validation(objective, samples.held_out),
        resume=run.resume,
    )
    if is_main_process():
        write_teacher(net, config, run.base_path, run.out / "teacher")
    return summary


def write_teacher(net: GenPropNet, config: Config, base: str | Path, folder: Path) -> Bundle:
    """A teacher's bundle: what was trained, and the name of the base."""
    tensors = {n: v for n, v in net.state_dict().items() if not n.startswith("backbone.")}
    return write_bundle(
        folder, kind="teacher", config=config, base=base, tensors=tensors, dtype=config.base.dtype
    )
