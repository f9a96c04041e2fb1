"""The trainings of a base of one's own: the autoencoder, then the image-to-video backbone.

At full size the base is Stable Video Diffusion and is loaded; the embedded model's was made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import TensorDataset

from genprop.config import Config
from genprop.data.latents import render_frames
from genprop.data.procedural import ProceduralClips
from genprop.draws import Draws
from genprop.loop import Validation, fit, is_main_process
from genprop.pixels import to_pixels, to_uint8
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
from genprop.teacher.samples import VALIDATION_SEED, Samples
from genprop.teacher.unet import checkpoint_blocks
from genprop.teacher.validate import numbers, term_validation


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
    made = new_base(config.base, seed=settings.seed) if base is None else load_base(base, config.base)
    if base is None and made.autoencoder.patch == made.autoencoder.downsampling:  # one block
        start_from_pca(made.autoencoder, training[:1000])
    trained = made.autoencoder if base is None else made.autoencoder.vae.decoder
    trained.requires_grad_(True)
    objective = AutoencoderObjective(made.autoencoder)

    def validate(step: int) -> Validation:
        device = next(objective.parameters()).device
        shown = held_out.to(device)
        terms = objective(shown, Draws.of(0, len(shown)))
        latents = made.autoencoder.encode_scaled(to_pixels(shown[:8])[None])
        decoded = to_uint8(made.autoencoder.decode(latents)[0]).cpu().numpy()
        sheet = contact_sheet([("truth", held_out[:8].numpy()), ("decoded", decoded)])
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
        made.autoencoder.cpu()
        with torch.no_grad():
            deviation = float(made.autoencoder.encode(to_pixels(held_out)[None]).std())
        made.autoencoder.vae.register_to_config(scaling_factor=1 / deviation)
    if is_main_process():
        save_base(made, out / "base", dtype=config.base.dtype)
    return summary


def train_backbone(
    config: Config, base: Base, samples: Samples, *, out: Path, resume: bool
) -> dict[str, Any]:
    """Train backbone and image encoder as an image-to-video model."""
    base.backbone.requires_grad_(True)
    base.image_encoder.requires_grad_(True)
    if config.backbone.checkpointing:
        checkpoint_blocks(base.backbone)
    objective = BackboneObjective(base.backbone, base.image_encoder, config)
    summary = fit(
        samples.objective(objective),
        samples.training,
        config.backbone,
        out,
        validate=term_validation(objective, samples.held_out, draws=4),
        resume=resume,
    )
    if is_main_process():
        save_base(base, out / "base", dtype=config.base.dtype)
    return summary
