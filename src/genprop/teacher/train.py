"""The three trainings of `genprop train`: autoencoder, backbone, teacher.

Each builds its modules, its data and its validation, hands them to `fit`, and writes what it made. At
full size only the last is used. Everything is a function of the configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from genprop.bundle import Bundle, check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.data.latents import Batch, LatentFolder, encode_dataset, render_frames
from genprop.data.procedural import ProceduralClips
from genprop.data.triplets import TripletFolder
from genprop.draws import Draws
from genprop.edm import Guided, NetDenoiser, karras_sigmas
from genprop.errors import GenPropError
from genprop.latents import Autoencoder
from genprop.loop import Validate, Validation, fit, is_main_process
from genprop.pixels import to_pixels, to_uint8
from genprop.sampling import euler
from genprop.sheet import contact_sheet
from genprop.teacher.base import (
    AutoencoderObjective,
    BackboneObjective,
    Base,
    load_base,
    new_base,
    save_base,
    start_from_pca,
)
from genprop.teacher.losses import mask_iou, region_terms
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import CarryObjective, TeacherObjective
from genprop.types import EditSample

Stage = Literal["autoencoder", "backbone", "carry", "teacher"]

VALIDATION_SEED = 1_000_003
"""Added to the data seed for held-out samples."""

PROCEDURAL = "procedural"

LOUD_INJECTION = 3.0
"""Above it, injected features drown the backbone's; the course report measured 14.7 and 260.9."""

logger = logging.getLogger(__name__)


def edit_samples(source: str | Path, config: Config, *, count: int, seed: int) -> Dataset[EditSample]:
    """The samples that `--data` names: `procedural`, or a folder of triplets."""
    clip = config.clip
    if str(source) == PROCEDURAL:
        return ProceduralClips(count, seed, frames=clip.frames, height=clip.height, width=clip.width)
    return TripletFolder(Path(source), frames=clip.frames, height=clip.height, width=clip.width, seed=seed)


def latent_samples(
    source: str | Path, config: Config, base: Base, folder: Path, *, workers: int
) -> tuple[Dataset[dict[str, Any]], Batch]:
    """Training samples and one held-out batch, encoded into `folder` (or read, where `source` holds them)."""
    if (Path(source) / "index.json").is_file():
        everything = LatentFolder(Path(source))
        everything.check(base.autoencoder, config.clip)
    else:
        samples = edit_samples(
            source, config, count=config.data.count + config.data.validation, seed=config.data.seed
        )
        everything = encode_dataset(
            samples,
            folder,
            base.autoencoder,
            base.image_encoder,
            config.clip,
            seed=config.data.seed,
            workers=workers,
        )
    held_out = min(config.data.validation, max(1, len(everything) // 10))
    training = len(everything) - held_out
    batch = default_collate([everything[i] for i in range(training, len(everything))])
    return Subset(everything, range(training)), batch


def train(
    stage: Stage,
    config: Config,
    *,
    data: str | Path,
    base: str | Path | None,
    out: Path,
    start: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run one stage; `out/base` or `out/teacher` is what it made.

    Args:
        data: `procedural`, a folder of triplets, or a folder of encoded samples.
        base: the base to go on from; with none, the autoencoder starts one.
        start: a teacher to go on from; for carry and teacher.
    """
    if stage == "autoencoder":
        return train_autoencoder(config, base=base, out=out, resume=resume)
    assert base is not None
    loaded = load_base(base)
    samples, held_out = latent_samples(
        data, config, loaded, out / "latents", workers=getattr(config, stage).workers
    )
    if stage == "backbone":
        return train_backbone(config, loaded, samples, held_out, out=out, resume=resume)
    train_stage = train_carry if stage == "carry" else train_teacher
    return train_stage(config, loaded, samples, held_out, base_path=base, out=out, start=start, resume=resume)


def train_autoencoder(config: Config, *, base: str | Path | None, out: Path, resume: bool) -> dict[str, Any]:
    """Train the autoencoder on procedural frames; its scaling factor is set to give unit variance.

    With a base, only the decoder trains: latents, and all that was learned on them, stay what they are.
    """
    settings = config.autoencoder
    size = {"frames": 1, "height": config.clip.height, "width": config.clip.width}
    training = render_frames(
        ProceduralClips(config.data.count, config.data.seed, **size), workers=settings.workers
    )
    held_out = render_frames(ProceduralClips(64, config.data.seed + VALIDATION_SEED, **size), workers=0)
    made = load_base(base) if base is not None else new_base(config.base, seed=settings.seed)
    if base is None and made.autoencoder.patch == made.autoencoder.downsampling:  # one block
        start_from_pca(made.autoencoder, training[:1000])
    trained = made.autoencoder if base is None else made.autoencoder.vae.decoder
    trained.requires_grad_(True)
    objective = AutoencoderObjective(made.autoencoder)

    def validate(step: int) -> Validation:
        terms = objective(held_out, Draws.of(0, len(held_out)))
        shown = held_out[:8]
        decoded = to_uint8(made.autoencoder.decode(made.autoencoder.encode_scaled(to_pixels(shown)[None])))
        sheet = contact_sheet([("truth", shown.numpy()), ("decoded", decoded[0].numpy())])
        return Validation(numbers(terms), picture=sheet)

    summary = fit(
        objective,
        TensorDataset(training),
        settings,
        out,
        collate=lambda items: torch.stack([item[0] for item in items]),
        validate=validate,
        resume=resume,
    )
    if base is None:
        with torch.no_grad():
            deviation = float(made.autoencoder.encode(to_pixels(held_out)[None]).std())
        made.autoencoder.vae.register_to_config(scaling_factor=1 / deviation)
    if is_main_process():
        save_base(made, out / "base", dtype=config.base.dtype)
    return summary


def train_backbone(
    config: Config, base: Base, samples: Dataset[Any], held_out: Batch, *, out: Path, resume: bool
) -> dict[str, Any]:
    """Train backbone and image encoder as an image-to-video model."""
    base.backbone.requires_grad_(True)
    base.image_encoder.requires_grad_(True)
    objective = BackboneObjective(base.backbone, base.image_encoder, config)

    def validate(step: int) -> Validation:
        terms = [numbers(objective(held_out, Draws.of(seed, len(held_out["target"])))) for seed in range(4)]
        return Validation({name: float(np.mean([t[name] for t in terms])) for name in terms[0]})

    summary = fit(objective, samples, config.backbone, out, validate=validate, resume=resume)
    if is_main_process():
        save_base(base, out / "base", dtype=config.base.dtype)
    return summary


def train_teacher(
    config: Config,
    base: Base,
    samples: Dataset[Any],
    held_out: Batch,
    *,
    base_path: str | Path,
    out: Path,
    resume: bool,
    start: str | Path | None = None,
) -> dict[str, Any]:
    """Train content encoder, injections and mask decoder over the frozen base.

    Args:
        start: a teacher over the same base to go on from; what it lacks starts anew.
    """
    net = _net(config, base, base_path=base_path, start=start)
    objective = TeacherObjective(net, base.image_encoder, config)
    sampling = config.sampling
    denoiser = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
    sigmas = karras_sigmas(10, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho)

    def sample(noise: Tensor, objective: TeacherObjective) -> tuple[Tensor, Tensor]:
        return euler(denoiser, noise, sigmas, objective.inputs(held_out, None).cond)

    summary = fit(
        objective,
        samples,
        config.teacher,
        out,
        validate=sampled_validation(objective, held_out, base.autoencoder, sample),
        resume=resume,
    )
    if is_main_process():
        write_teacher(net, config, base_path, out / "teacher")
    return summary


def train_carry(
    config: Config,
    base: Base,
    samples: Dataset[Any],
    held_out: Batch,
    *,
    base_path: str | Path,
    out: Path,
    resume: bool,
    start: str | Path | None = None,
) -> dict[str, Any]:
    """Train the carry alone; what it writes is a teacher to start from.

    Args:
        start: as for `train_teacher`.

    Raises:
        GenPropError: the configuration has no carry.
    """
    if not config.net.carry:
        raise GenPropError("net.carry is 0, so there is no carry to train", "for example --set net.carry=56")
    net = _net(config, base, base_path=base_path, start=start)
    objective = CarryObjective(TeacherObjective(net, base.image_encoder, config))
    assert net.carry is not None
    net.requires_grad_(False)
    net.carry.requires_grad_(True)
    net.carry.trust.requires_grad_(False)  # read by the gate only

    def validate(step: int) -> Validation:
        return Validation(numbers(objective(held_out, Draws.of(0, len(held_out["target"])))))

    summary = fit(objective, samples, config.carry, out, validate=validate, resume=resume)
    if is_main_process():
        write_teacher(net, config, base_path, out / "teacher")
    return summary


def _net(config: Config, base: Base, *, base_path: str | Path, start: str | Path | None) -> GenPropNet:
    """A fresh network over `base`, with the weights of the teacher `start` where it has them."""
    net = GenPropNet(base.backbone, config.net, config.sce)
    if start is not None:
        bundle = read_bundle(start)
        check_base(bundle, base_path)
        net.load_state_dict(bundle.tensors(), strict=False)
    return net


def write_teacher(net: GenPropNet, config: Config, base: str | Path, folder: Path) -> Bundle:
    """A teacher's bundle: what was trained, and the name of the base."""
    tensors = {n: v for n, v in net.state_dict().items() if not n.startswith("backbone.")}
    return write_bundle(
        folder, kind="teacher", config=config, base=base, tensors=tensors, dtype=config.base.dtype
    )


def sampled_validation(
    objective: TeacherObjective,
    held_out: Batch,
    autoencoder: Autoencoder,
    sample: Callable[[Tensor, TeacherObjective], tuple[Tensor, Tensor]],
) -> Validate:
    """Validation by sampling: latent error by region, mask IoU, and a contact sheet of two clips."""

    def validate(step: int) -> Validation:
        inputs = objective.inputs(held_out, None)
        noise = Draws.of(0, len(inputs.target)).randn(*inputs.target.shape[1:])
        x0, logits = sample(noise.to(inputs.target.device), objective)
        terms = region_terms((x0 - inputs.target)[:, 1:], inputs.mask[:, 1:], objective.config.loss)
        ratio = float(objective(held_out, Draws.of(0, len(x0)))["injection_ratio"])
        if ratio > LOUD_INJECTION:
            logger.warning("injected features deviate %.1f times as much as the backbone's", ratio)
        scalars = {
            "hole": float(terms["hole"]),
            "keep": float(terms["keep"]),
            "iou": float(mask_iou(logits[:, 1:], inputs.mask[:, 1:])),
            "injection_ratio": ratio,
        }
        shown = {"original": inputs.cond.source, "truth": inputs.target, "sample": x0}
        rows = []
        for i in range(min(2, len(x0))):
            for name, latents in shown.items():
                frames = to_uint8(autoencoder.decode(latents[i : i + 1])[0])
                rows.append((f"{name} {i}", frames.cpu().numpy()))
            rows.append((f"mask {i}", (logits[i, :, 0] > 0).cpu().numpy()))
        return Validation(scalars, picture=contact_sheet(rows))

    return validate


def numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers."""
    return {name: float(value) for name, value in terms.items()}
