"""`genprop distill --stage decoder`: a light decoder learns the frames of the student's own decoder.

Its truth is what the full decoder makes of the same latents, and not the clip they were encoded from: of
what latents have lost nothing can be learned. Part of the latents are the student's, of one step, for those
are what it will be given. Beside L1 it learns slopes and texture (`losses.texture_error`), or it would answer
with the mean of what it cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.bundle import with_decoder
from genprop.config import Config
from genprop.data.latents import Batch
from genprop.distill.plan import of_teacher
from genprop.distill_settings import LightDecoderConfig
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.latents import Autoencoder
from genprop.loop import Validate, Validation, check_run, fit, is_main_process, process_state
from genprop.pixels import to_uint8
from genprop.sampling import consistency
from genprop.sheet import contact_sheet
from genprop.student.clone import load_model
from genprop.student.light_decoder import LightDecoder, new_light_decoder
from genprop.teacher.losses import picture_terms
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.samples import latent_samples
from genprop.teacher.validate import beside, numbers

START_CLIPS = 32


class DecoderObjective(nn.Module):
    """The light decoder against the full one, on encoded latents and on the student's.

    Args:
        light: what trains.
        autoencoder: frozen; its decoder, in its own windows, gives the truth.
        student: makes latents of encoded conditions in one step from `sigma`.
    """

    cell = 8  # pixels within which texture may lie anywhere

    def __init__(
        self,
        light: LightDecoder,
        autoencoder: Autoencoder,
        settings: LightDecoderConfig,
        *,
        student: TeacherObjective,
        sigma: float,
    ) -> None:
        super().__init__()
        self.light, self.autoencoder, self.settings = light, autoencoder, settings
        self.student, self.sigma = student, sigma

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            latents = self.latents(batch, draws)
            true = self.autoencoder.decode(latents).float()
        latents, true = self.crop(latents, true, draws)
        ours = self.light.decode(latents).float()
        terms = picture_terms(ours.flatten(0, 1), true.flatten(0, 1), cell=self.cell)
        settings = self.settings
        loss = terms["l1"] + settings.gradient * terms["gradient"] + settings.texture * terms["texture"]
        return {"loss": loss, **terms}

    def latents(self, batch: Batch, draws: Draws) -> Tensor:
        """Scaled latents `[B, T, C, h, w]`: the encoded target's or, of some samples, the student's."""
        latents = batch["target"].float()
        noise, chosen = draws.randn(*latents.shape[1:]), draws.rand() < self.settings.sampled
        if not chosen.any():
            return latents
        some = {name: value[chosen] for name, value in batch.items()}
        sigmas = torch.tensor([self.sigma, 0.0])
        denoiser = NetDenoiser(self.student.net)
        x0, _ = consistency(denoiser, noise[chosen], sigmas, self.student.inputs(some, None).cond)
        latents = latents.clone()
        latents[chosen] = x0
        return latents

    def crop(self, latents: Tensor, frames: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The same part of all, where each sample draws it: with whole frames, memory would not do."""
        cell, (height, width) = self.light.downsampling, latents.shape[-2:]
        rows, columns = min(self.settings.crop, height), min(self.settings.crop, width)
        tops, lefts = draws.randint(height - rows + 1).tolist(), draws.randint(width - columns + 1).tolist()

        def cut(x: Tensor, unit: int) -> Tensor:
            return torch.stack(
                [
                    clip[..., unit * top : unit * (top + rows), unit * left : unit * (left + columns)]
                    for clip, top, left in zip(x, tops, lefts, strict=True)
                ]
            )

        return cut(latents, 1), cut(frames, cell)


def distill_decoder(
    student: str | Path, config: Config, *, data: Sequence[str], out: Path, resume: bool = False
) -> dict[str, Any]:
    """Train a light decoder for `student`; `out/student` is the student with it.

    Args:
        config: `decoder` and `light` are read, and what data is; what the model is, the student says.
        data: as for training.

    Returns:
        What `fit` returns, then `student` (a path) and `parameters` (of the light decoder, and of the full).

    Raises:
        GenPropError: `student` is none; a light decoder that does not fit its latents.
    """
    check_run(config.decoder, out, resume=resume)
    bundle, net, base = load_model(student)
    if 1 not in bundle.card.sigmas:
        raise GenPropError(
            f"{student} has no schedule of one step, expected a student's",
            "give a student; genprop distill schedule chooses its sigmas",
        )
    config = of_teacher(config, bundle)
    light = new_light_decoder(base.autoencoder, config.light, seed=config.decoder.seed).requires_grad_(True)
    for module in (net, base.autoencoder, base.image_encoder, light):
        module.to(process_state().device)
    samples, held_out = latent_samples(data, config, base, out / "latents", workers=config.decoder.workers)
    one_stage = len(config.light.channels) == 1
    if one_stage and config.light.path is None and config.light.channels[0] >= held_out["target"].shape[2]:
        shown = range(min(START_CLIPS, len(samples)))  # type: ignore[arg-type]
        start_linear(light, base.autoencoder, (samples[i]["target"] for i in shown))
    objective = DecoderObjective(
        light,
        base.autoencoder,
        config.light,
        student=TeacherObjective(net, base.image_encoder, config),
        sigma=bundle.card.sigmas[1][0],
    )
    summary = fit(
        objective,
        samples,
        config.decoder,
        out,
        validate=decoder_validation(objective, held_out),
        resume=resume,
    )
    if not is_main_process():
        return summary
    said = bundle.card.config.model_copy(update={"light": config.light, "decoder": config.decoder})
    dtype = bundle.card.config.base.dtype
    with_decoder(bundle, lambda to: light.save(to, dtype=dtype), out=out / "student", config=said)
    full: Any = base.autoencoder.vae.decoder
    return {
        **summary,
        "student": str(out / "student"),
        "parameters": {"light": _parameters(light), "full": _parameters(full)},
    }


@torch.no_grad()
def start_linear(light: LightDecoder, autoencoder: Autoencoder, clips: Iterable[Tensor]) -> None:
    """Set a light decoder of one stage to the best linear one, in place: training starts there.

    A pixel is then a linear function of the 3 x 3 cells around, by least squares against the full decoder. It
    passes the ReLUs because the class clamps latents to -3 ... 3: 3 more, and none is negative. Residual
    branches start at zero.

    Args:
        clips: scaled latents `[T, C, h, w]`.
    """
    layers: Any = light.decoder.layers  # upstream's are not typed
    first, _, *blocks, last = layers
    count, width = first.in_channels, first.out_channels
    taps = count * first.weight[0, 0].numel()
    squares, products = (
        torch.zeros(taps + 1, taps + 1).double(),
        torch.zeros(taps + 1, last.out_channels).double(),
    )
    for clip in clips:
        scaled = clip[None].to(first.weight)
        pictures = (autoencoder.decode(scaled)[0] + 1) / 2  # the class's own range
        offset = 3 * torch.tanh(scaled[0] / light.config["scaling_factor"] / 3) + 3
        cells = F.unfold(offset, 3, padding=1).movedim(1, -1).flatten(0, 1)
        cells = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1).double().cpu()
        patches = F.pixel_unshuffle(pictures, light.patch).movedim(1, -1).flatten(0, 2).double().cpu()
        squares += cells.T @ cells
        products += cells.T @ patches
    ridge = 1e-6 * squares.diagonal().mean() * torch.eye(taps + 1)
    solution = torch.linalg.solve(squares + ridge, products).to(first.weight)
    first.weight[:count], first.bias[:count] = 0, 3
    first.weight[range(count), range(count), 1, 1] = 1
    last.weight[:, count:width] = 0
    last.weight[:, :count] = solution[:-1].T.view(-1, count, 3, 3)
    last.bias.copy_(solution[-1])
    for block in blocks:
        nn.init.zeros_(block.conv[-1].weight)
        nn.init.zeros_(block.conv[-1].bias)


def decoder_validation(objective: DecoderObjective, held_out: Batch) -> Validate:
    """The objective's terms on held-out clips, always the same draws, and a clip of each decoder."""

    def validate(step: int) -> Validation:
        batch, device = beside(objective, held_out)
        terms = objective(batch, Draws.of(0, len(batch["target"]), device=device))
        latents = batch["target"][:1].float()
        full, light = (
            to_uint8(decoder.decode(latents)[0]).cpu().numpy()
            for decoder in (objective.autoencoder, objective.light)
        )
        return Validation(numbers(terms), picture=contact_sheet([("full decoder", full), ("light", light)]))

    return validate


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
