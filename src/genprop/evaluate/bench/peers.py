"""The peer: diffusers' own pipeline for Stable Video Diffusion over the same base, eager and compiled.

It does less than we do (no original video is encoded, nothing is injected, no mask predicted) with 25 guided
steps, which is what a person would run without genprop. Over SVD it is the pipeline as it ships. The embedded
base differs in two places from what the pipeline expects: its autoencoder reads patches, and its image
encoder is smaller than 224 pixels; two subclasses reconcile them, and the lane's note says so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from genprop.bundle import read_bundle
from genprop.config import Config
from genprop.evaluate.bench.jobs import Timed
from genprop.manifest import DTYPES, Precision
from genprop.teacher.base import Base, load_base
from genprop.types import EditSample

CLIP_SIZE = 224
"""Written into the pipeline."""


class PatchAutoencoder(AutoencoderKL):
    """An autoencoder of patches that takes and gives pixels."""

    @property
    def patch(self) -> int:
        return round((self.config["in_channels"] // 3) ** 0.5)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[Any]:
        return super().encode(F.pixel_unshuffle(x, self.patch), return_dict=return_dict)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        decoded = super().decode(z, return_dict=False)[0]  # type: ignore[index]
        return DecoderOutput(sample=F.pixel_shuffle(decoded, self.patch))


class SmallImageEncoder(CLIPVisionModelWithProjection):
    """A CLIP tower of another size than the pipeline's."""

    def forward(self, pixel_values: Tensor) -> Any:  # type: ignore[override]
        size: Any = self.config.image_size
        return super().forward(F.interpolate(pixel_values, (size, size), mode="bicubic", antialias=True))


class BorderScheduler(EulerDiscreteScheduler):
    """SVD's scheduler, which also notes when it is first asked: encoding has ended then."""

    encoded = 0.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        self.encoded = now()
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)  # type: ignore[arg-type]


def now() -> float:
    """Seconds; a GPU is waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def adapted(base: Base) -> tuple[Any, Any]:
    """The base's autoencoder and image encoder, as the pipeline can run them."""
    vae: Any = base.autoencoder.vae
    if base.autoencoder.patch > 1:
        vae = PatchAutoencoder.from_config(dict(vae.config))
        vae.load_state_dict(base.autoencoder.vae.state_dict())
    clip: Any = base.image_encoder.clip
    if base.image_encoder.size != CLIP_SIZE:
        clip = SmallImageEncoder(base.image_encoder.clip.config)
        clip.load_state_dict(base.image_encoder.clip.state_dict())
    return vae.eval(), clip.eval()


def pipeline(base: Base, config: Config, *, dtype: torch.dtype) -> StableVideoDiffusionPipeline:
    """diffusers' pipeline over a base, on a GPU if there is one."""
    unet: Any = UNetSpatioTemporalConditionModel.from_config(
        {k: v for k, v in base.backbone.config.items() if not k.startswith("_")}
    )
    unet.load_state_dict(base.backbone.state_dict())
    vae, clip = adapted(base)
    scheduler = BorderScheduler(
        # As scheduler/scheduler_config.json of stabilityai/stable-video-diffusion-img2vid-xt has it.
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=config.sampling.sigma_min,
        sigma_max=config.sampling.sigma_max,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    pipe = StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=clip,
        unet=unet.eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessorPil(),  # type: ignore[arg-type]
    )
    if isinstance(vae, PatchAutoencoder):
        pipe.vae_scale_factor = base.autoencoder.downsampling
        pipe.video_processor = VideoProcessor(do_resize=True, vae_scale_factor=pipe.vae_scale_factor)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.vae, pipe.image_encoder, pipe.unet):
        if dtype != torch.float32:  # said even where nothing changes, it brings a notice
            module.to(dtype)  # type: ignore[call-overload]
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Peer:
    """The opened pipeline. `note` says what was adapted for it to run over this base."""

    pipe: StableVideoDiffusionPipeline
    config: Config
    note: str

    def run(self, example: EditSample, *, steps: int, seed: int) -> Timed:
        """Animate the edited first frame; stages have the same borders as ours."""
        clip, sampling, pipe = self.config.clip, self.config.sampling, self.pipe
        denoised = 0.0

        def stepped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            if step == steps - 1:
                denoised = now()
            return tensors

        began = now()
        pipe(
            Image.fromarray(example.edited),
            height=clip.height,
            width=clip.width,
            num_frames=clip.frames,
            num_inference_steps=steps,
            min_guidance_scale=sampling.guidance_min,
            max_guidance_scale=self.config.guidance,
            fps=clip.fps,
            motion_bucket_id=clip.motion_bucket,
            noise_aug_strength=clip.noise_aug,
            decode_chunk_size=self.config.base.chunk,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=stepped,  # type: ignore[arg-type]
        )
        ended = now()
        scheduler: Any = pipe.scheduler
        seconds = {
            "encode": scheduler.encoded - began,
            "denoise": denoised - scheduler.encoded,
            "decode": ended - denoised,
            "total": ended - began,
        }
        return Timed(seconds, evaluations=2 * steps)

    def frames(self, example: EditSample, *, steps: int, seed: int) -> Tensor | None:
        """None: it makes another video."""
        return None


def open_peer(bundle: str, *, compiled: bool, precision: Precision) -> Peer:
    """The pipeline over a bundle's base.

    Args:
        compiled: its UNet goes through `torch.compile`, as diffusers' documentation does it.

    Raises:
        GenPropError: a broken bundle or base.
    """
    found = read_bundle(bundle)
    config = found.card.config
    base = load_base(found.base, config.base)
    pipe = pipeline(base, config, dtype=DTYPES[precision])
    if compiled:
        mode = "reduce-overhead" if torch.cuda.is_available() else None
        pipe.unet = torch.compile(pipe.unet, mode=mode, dynamic=False)  # type: ignore[assignment]
    return Peer(pipe, config, note(base))


def note(base: Base) -> str:
    """What the pipeline runs, and what had to be adapted."""
    said = ["StableVideoDiffusionPipeline over the same base, both branches of guidance in one batch"]
    if base.autoencoder.patch > 1:
        said.append(f"the autoencoder reads patches of {base.autoencoder.patch} pixels, cut by a subclass")
    if base.image_encoder.size != CLIP_SIZE:
        said.append(f"the image encoder takes {base.image_encoder.size} pixels, resized by a subclass")
    return "; ".join(said)
