"""Training a base from nothing: the autoencoder, then the image-to-video backbone with its image encoder.

At full size the base is Stable Video Diffusion and is loaded, never trained. The embedded model has no
such giant to stand on, so the repository trains one of the same architecture with these two objectives
and freezes it, as SVD is frozen, before the teacher starts.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genprop.config import Config
from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.edm import add_noise, precondition, sample_sigma, velocity_target
from genprop.errors import GenPropError
from genprop.hub import PARTS, check_layout, locate_base, weight_files
from genprop.latents import Autoencoder, ImageEncoder
from genprop.pixels import to_pixels
from genprop.settings import BaseConfig, NoiseConfig
from genprop.teacher.losses import picture_terms
from genprop.teacher.unet import Backbone


class AutoencoderObjective(nn.Module):
    """Reconstruction in L1, with weak pulls on image gradients, texture and the size of the latents.

    Neither sampling nor KL: noise in the latents and a strong gradient term each hold a small
    autoencoder on a grey plateau for its first thousand steps. A perceptual term would bring weights that
    have to be downloaded; instead, the texture term asks for as much gradient as the truth has in each
    `cell` of pixels, wherever in it: what 16 numbers a cell cannot place is still there, not blurred away.
    """

    gradient_weight = 0.2
    texture_weight = 5.0
    cell = 8
    latent_weight = 1e-4

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, frames: Tensor, draws: Draws) -> dict[str, Tensor]:
        """`frames`: uint8 `[N, H, W, 3]`."""
        pixels = to_pixels(frames).unsqueeze(1)
        latents = self.autoencoder.encode(pixels)
        decoded = self.autoencoder.decode_window(latents).float()
        terms = picture_terms(decoded.squeeze(1), pixels.squeeze(1), cell=self.cell)
        power = latents.float().square().mean()
        loss = (
            terms["l1"]
            + self.gradient_weight * terms["gradient"]
            + self.texture_weight * terms["texture"]
            + self.latent_weight * power
        )
        return {"loss": loss, **terms, "std": power.sqrt()}


@torch.no_grad()
def start_from_pca(autoencoder: Autoencoder, frames: Tensor) -> None:
    """Set a one-block autoencoder to the PCA of the patches of `frames`, in place: training starts there.

    A linear map survives norm and SiLU by three tricks: residual branches start at zero; a pair of
    channels holds a constant that is large beside the data, so that the norm's divisor is one too; and
    each component travels as a pair (u, -u), for silu(u) - silu(-u) = u. Coefficients are divided by the
    root of their deviation: half-way between pixels' own weighting and white.

    Args:
        frames: uint8 `[N, H, W, 3]`.
    """
    vae, patch, constant = autoencoder.vae, autoencoder.patch, 40.0
    encoder: Any = vae.encoder  # upstream's layers are not typed
    decoder: Any = vae.decoder
    count = vae.config["latent_channels"]
    width = vae.config["block_out_channels"][0]
    samples = F.pixel_unshuffle(to_pixels(frames), patch).movedim(1, -1).flatten(0, 2)
    mean = samples.mean(0)
    _, components = torch.linalg.eigh((samples - mean).T @ (samples - mean) / len(samples))
    basis = components.flip(1)[:, :count].T
    scale = ((samples - mean) @ basis.T).std(0).rsqrt()
    divisor = constant * (2 / width) ** 0.5
    for block in [*encoder.mid_block.resnets, *encoder.down_blocks[0].resnets]:
        nn.init.zeros_(block.conv2.weight)
    for block in [*decoder.mid_block.resnets, *decoder.up_blocks[0].resnets]:
        nn.init.zeros_(block.conv2.weight)
    for convolution, rows, offset in (
        (encoder.conv_in, basis, -basis @ mean),
        (decoder.conv_in, torch.diag(1 / scale), torch.zeros(count)),
    ):
        convolution.weight.mul_(0.1)
        convolution.weight[: 2 * count + 2] = 0
        convolution.weight[: 2 * count : 2, :, 1, 1] = rows
        convolution.weight[1 : 2 * count : 2, :, 1, 1] = -rows
        convolution.bias.zero_()
        convolution.bias[: 2 * count : 2], convolution.bias[1 : 2 * count : 2] = offset, -offset
        convolution.bias[2 * count], convolution.bias[2 * count + 1] = constant, -constant
    for convolution, columns, offset in (
        (encoder.conv_out, torch.diag(scale), torch.zeros(count)),
        (decoder.conv_out, basis.T, mean),
    ):
        out = len(columns)
        convolution.weight.mul_(0.1)[:out] = 0
        convolution.bias.zero_()
        convolution.weight[:out, : 2 * count : 2, 1, 1] = columns * divisor
        convolution.weight[:out, 1 : 2 * count : 2, 1, 1] = -columns * divisor
        convolution.bias[:out] = offset


def drop_condition(
    first: Tensor, embedding: Tensor, probability: float, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Zero the first frame and the embedding of some samples, so that guidance has its branch."""
    keep = draws.rand() >= probability
    return first * keep.view(-1, 1, 1, 1, 1), embedding * keep.view(-1, 1, 1)


class BackboneObjective(nn.Module):
    """SVD's own training: denoise a clip from its first frame (Blattmann et al. 2023, EDM weighting).

    The image encoder learns along, since there is no CLIP to take; half of the samples are the original
    clip, half the edited one, so that the backbone has seen both kinds of motion.
    """

    def __init__(self, backbone: Backbone, image_encoder: ImageEncoder, config: Config) -> None:
        super().__init__()
        self.backbone, self.image_encoder = backbone, image_encoder
        self.noise: NoiseConfig = config.noise

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        edited = draws.rand() < 0.5
        pick = edited.view(-1, 1, 1, 1, 1)
        x0 = torch.where(pick, batch["target"], batch["source"]).float()
        first = torch.where(pick[:, 0], batch["first"], batch["source_first"]).float()
        pixels = torch.where(pick[:, 0], batch["image"], batch["source_image"]).float()
        first = first.unsqueeze(1).expand_as(x0)
        embedding = self.image_encoder.embed(pixels)
        first, embedding = drop_condition(first, embedding, self.noise.drop, draws)
        sigma = sample_sigma(draws, mean=self.noise.mean, std=self.noise.std)
        x = add_noise(x0, draws.randn(*x0.shape[1:]), sigma)
        p = precondition(sigma)
        stem = self.backbone.stem(
            torch.cat([p.c_in * x, first], dim=2), p.c_noise, embedding, batch["added_time_ids"][:, :3]
        )
        velocity = self.backbone.body(stem).velocity_btchw.float()
        loss = F.mse_loss(velocity, velocity_target(x0, x, sigma))
        with torch.no_grad():
            high = F.mse_loss(p.c_skip * x + p.c_out * velocity, x0)
        return {"loss": loss, "x0_mse": high}


class Base(NamedTuple):
    """What GenProp stands on: backbone, autoencoder and image encoder."""

    backbone: Backbone
    autoencoder: Autoencoder
    image_encoder: ImageEncoder


def load_base(
    name: str | Path, settings: BaseConfig | None = None, *, dtype: torch.dtype = torch.float32
) -> Base:
    """A frozen base in diffusers' layout: a folder, an embedded name or a hub id.

    Args:
        settings: which variant of the weights, and the autoencoder's chunk.
        dtype: of backbone and image encoder; the autoencoder is in float32.

    Raises:
        GenPropError: the folder lacks a part, or the hub does not have it; names the layout that is expected.
    """
    settings = settings or BaseConfig()
    folder = locate_base(name, variant=settings.variant)
    check_layout(folder)
    parts = {part: folder / part for part in PARTS}
    try:
        vae_class = json.loads((parts["vae"] / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError) as error:
        raise GenPropError(
            f"{parts['vae']}/config.json names no class: {error}", "copy the base again"
        ) from error
    vae_type = {c.__name__: c for c in (AutoencoderKL, AutoencoderKLTemporalDecoder)}.get(vae_class)
    if vae_type is None:
        raise GenPropError(
            f"{parts['vae']} holds a {vae_class}, expected an AutoencoderKL of either kind",
            "give the autoencoder of Stable Video Diffusion, or one that `genprop train` made",
        )
    read = {file.parent.name: ".fp16" in file.name for file in weight_files(folder, variant=settings.variant)}

    def pretrained(kind: Any, part: str, **dtype: torch.dtype) -> Any:
        return load_frozen(kind, parts[part], variant="fp16" if read[part] else None, **dtype)

    return Base(
        pretrained(Backbone, "unet", torch_dtype=dtype),
        Autoencoder(
            pretrained(vae_type, "vae", torch_dtype=torch.float32),
            chunk=settings.chunk,
            overlap=settings.overlap,
            slice=settings.slice,
        ),
        ImageEncoder(pretrained(CLIPVisionModelWithProjection, "image_encoder", dtype=dtype)),
    )


def load_frozen(kind: Any, folder: Path, *, variant: str | None = None, **dtype: torch.dtype) -> Any:
    """A frozen upstream module of class `kind`, in eval mode.

    Raises:
        GenPropError: it cannot be read, or lacks weights: those are an error, not random numbers.
    """
    try:
        module, found = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, variant=variant, **dtype
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise GenPropError(f"{folder} cannot be loaded: {error}", "copy the base again") from error
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        raise GenPropError(
            f"{folder} lacks {len(names)} tensors of a {kind.__name__}, {names[0]} for one",
            "copy the base again",
        )
    return module.requires_grad_(False).eval()


def new_base(config: BaseConfig, *, seed: int) -> Base:
    """A base of random weights, of the preset's architecture.

    Raises:
        GenPropError: arguments that upstream does not take.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            backbone = Backbone(**(config.unet or {}))
            vae = new_vae(**(config.vae or {}))
            clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**(config.image_encoder or {})))
        except (TypeError, ValueError) as error:
            raise GenPropError(
                f"base: {error}", "the keys of base.unet, base.vae and base.image_encoder are upstream's"
            ) from error
    return Base(backbone, Autoencoder(vae), ImageEncoder(clip))


def new_vae(
    *, _class_name: str = "AutoencoderKL", **arguments: Any
) -> AutoencoderKL | AutoencoderKLTemporalDecoder:
    """An autoencoder of the class that diffusers' own key names."""
    classes = {c.__name__: c for c in (AutoencoderKL, AutoencoderKLTemporalDecoder)}
    if _class_name not in classes:
        raise ValueError(f"vae._class_name is {_class_name!r}, expected one of {', '.join(classes)}")
    return classes[_class_name](**arguments)


def save_base(base: Base, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write `base` in diffusers' layout. With float16 the stored numbers are rounded; the modules are not."""
    upstream: Any = UNetSpatioTemporalConditionModel.from_config(
        {k: v for k, v in base.backbone.config.items() if not k.startswith("_")}
    )
    upstream.load_state_dict(base.backbone.state_dict())  # so that the folder names upstream's class
    modules = {"unet": upstream, "vae": base.autoencoder.vae, "image_encoder": base.image_encoder.clip}
    for part, module in modules.items():
        stored: Any = copy.deepcopy(module)
        stored.to(dtype).save_pretrained(folder / part)
        config = folder / part / "config.json"
        table = json.loads(config.read_text(encoding="utf-8"))
        table.pop("_name_or_path", None)  # a path of this machine
        config.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
