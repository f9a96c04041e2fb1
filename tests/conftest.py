"""What every test shares: one thread, seeded randomness, no network, and real clips where there are any."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import StableVideoDiffusionPipeline

    from genprop.config import Config
    from genprop.teacher.base import Base

REPOSITORY = Path(__file__).resolve().parents[1]

# A test may not reach out for weights: huggingface_hub reads this when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples in every run, and no deadline: the machine may be busy.
settings.register_profile("genprop", derandomize=True, deadline=None)
settings.load_profile("genprop")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in a fixed order, and no threads that fight over a small machine."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    """A CPU generator with a fixed seed, fresh for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips (`<name>/video.mp4`, `<name>/mask-0.mp4`) beside the repository."""
    clips = REPOSITORY.parent / "shared" / "data" / "clips"
    if not clips.is_dir():
        pytest.skip(f"no sample clips: {clips} is not a folder")
    return clips


# Models of random weights, smaller than `tiny`. 64 channels at the stem: with 32, upstream's 32 groups are
# instance norms, behind which a bias has no gradient. Heavy libraries are imported only where they are used.


@pytest.fixture(scope="session")
def small_config() -> Config:
    """3 frames of 16x16 pixels, latents of 4 channels at half that size."""
    from genprop.config import parse_config

    unet = {
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [64, 64],
        "down_block_types": ["DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"],
        "up_block_types": ["CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"],
        "layers_per_block": 1,
        "num_attention_heads": [2, 2],
        "cross_attention_dim": 32,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "num_frames": 3,
    }
    vae = {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    }
    image_encoder = {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }
    return parse_config(
        {
            "name": "small",
            "clip": {"frames": 3, "height": 16, "width": 16},
            "base": {"unet": unet, "vae": vae, "image_encoder": image_encoder},
            "net": {"mpd_hidden": [32, 16]},
        }
    )


@pytest.fixture
def small_base(small_config: Config) -> Base:
    """A fresh base of `small_config`, in eval mode."""
    from genprop.teacher.base import new_base

    base = new_base(small_config.base, seed=0)
    for module in base:
        module.eval()
    return base


@pytest.fixture
def enliven() -> Callable[[nn.Module], nn.Module]:
    """Moves every parameter that trains a little, so that nothing zero-initialised stays without effect."""

    def move(module: nn.Module, *, seed: int = 0, scale: float = 0.02) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter += scale * torch.randn(parameter.shape, generator=generator)
        return module

    return move


@pytest.fixture
def net_inputs(rng: torch.Generator) -> tuple[Tensor, ...]:
    """The six arguments of a `Net`, for a batch of two of `small_config`."""
    sample, first, source = torch.randn(3, 2, 3, 4, 8, 8, generator=rng)
    embedding = torch.randn(2, 1, 32, generator=rng)
    added_time_ids = torch.tensor([[6.0, 127.0, 0.02], [11.0, 60.0, 0.1]])
    return sample, torch.tensor([-0.4, 0.9]), first, source, embedding, added_time_ids


@pytest.fixture(scope="session")
def svd_pipeline() -> StableVideoDiffusionPipeline:
    """diffusers' pipeline of SVD, with SVD's scheduler and random weights.

    The image encoder takes 224 pixels, since that size is written into the pipeline.
    """
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(2, 4),
            cross_attention_dim=32,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            layers_per_block=1,
            num_frames=4,
        )
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(64, 64),  # type: ignore[arg-type]
            down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
            sample_size=32,
        )
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=224,
                patch_size=32,
                hidden_size=32,
                intermediate_size=37,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
            )
        )
    # As scheduler/scheduler_config.json of stabilityai/stable-video-diffusion-img2vid-xt has it.
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    pipeline = StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=clip.eval(),
        unet=unet.eval(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessorPil(),  # type: ignore[arg-type]
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
