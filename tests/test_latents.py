"""Autoencoder, image encoder and pixels: upstream's numbers, and SVD's two scaling conventions."""

from __future__ import annotations

from typing import Any

import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline
from torch import Tensor

from genprop.latents import Autoencoder, ImageEncoder
from genprop.pixels import to_pixels, to_uint8

Vae = AutoencoderKL | AutoencoderKLTemporalDecoder


@pytest.fixture(scope="module", params=["frames", "temporal"])
def vae(request: pytest.FixtureRequest) -> Vae:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options: dict[str, Any] = {
            "block_out_channels": (64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
        }
        if request.param == "temporal":
            made: Vae = AutoencoderKLTemporalDecoder(**options)
        else:
            made = AutoencoderKL(**options, up_block_types=("UpDecoderBlock2D",) * 2)  # type: ignore[arg-type]
    return made.eval().requires_grad_(False)


@pytest.fixture
def frames(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 5, 3, 12, 16, generator=rng) * 2 - 1


def test_encode_is_the_mode_of_upstreams_posterior(vae: Vae, frames: Tensor) -> None:
    autoencoder = Autoencoder(vae, chunk=3)
    latents = autoencoder.encode(frames)
    assert latents.shape == (2, 5, 4, 6, 8)
    assert latents.is_contiguous()  # safetensors stores nothing else
    expected = torch.stack([vae.encode(clip).latent_dist.mode() for clip in frames])  # type: ignore[union-attr]
    assert torch.allclose(latents, expected, atol=1e-5)


def test_scaled_latents_are_the_factor_times_unscaled_ones(vae: Vae, frames: Tensor) -> None:
    autoencoder = Autoencoder(vae)
    assert autoencoder.scaling_factor == 0.18215
    assert autoencoder.downsampling == 2
    assert torch.allclose(autoencoder.encode_scaled(frames), 0.18215 * autoencoder.encode(frames))


def test_decode_takes_scaled_latents(vae: Vae, rng: torch.Generator) -> None:
    scaled = torch.randn(1, 3, 4, 6, 8, generator=rng) * 0.18215
    arguments = {"num_frames": 3} if isinstance(vae, AutoencoderKLTemporalDecoder) else {}
    expected = vae.decode(scaled[0] / 0.18215, **arguments).sample  # type: ignore[union-attr]
    decoded = Autoencoder(vae).decode(scaled)
    assert decoded.shape == (1, 3, 3, 12, 16)
    assert torch.allclose(decoded[0], expected, atol=1e-5)


def test_a_batch_is_decoded_clip_by_clip(vae: Vae, rng: torch.Generator) -> None:
    autoencoder, latents = Autoencoder(vae), torch.randn(2, 4, 4, 6, 8, generator=rng)
    together = autoencoder.decode(latents)
    for clip, decoded in zip(latents, together, strict=True):
        assert torch.allclose(autoencoder.decode(clip[None])[0], decoded, atol=1e-5)


def test_chunks_change_nothing_unless_the_decoder_mixes_frames(vae: Vae, rng: torch.Generator) -> None:
    latents = torch.randn(1, 5, 4, 6, 8, generator=rng)
    whole, parts = (Autoencoder(vae, chunk=n).decode(latents) for n in (5, 2))
    mixes = isinstance(vae, AutoencoderKLTemporalDecoder)
    assert torch.allclose(whole, parts, atol=1e-5) != mixes


def test_chunks_of_a_temporal_decoder_are_the_pipelines(
    svd_pipeline: StableVideoDiffusionPipeline, rng: torch.Generator
) -> None:
    """Where they divide the clip; else the pipeline's last is short, and ours moved back (`chunks.cut`)."""
    latents = torch.randn(1, 6, 4, 6, 8, generator=rng)
    with torch.no_grad():
        expected = svd_pipeline.decode_latents(latents, num_frames=6, decode_chunk_size=2)
        decoded = Autoencoder(svd_pipeline.vae, chunk=2).decode(latents)
    assert torch.allclose(decoded.transpose(1, 2), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (300, 256)])
def test_the_image_embedding_is_the_pipelines(
    svd_pipeline: StableVideoDiffusionPipeline, size: tuple[int, int], rng: torch.Generator
) -> None:
    frame = torch.randint(0, 256, (*size, 3), generator=rng, dtype=torch.uint8)
    encoder = ImageEncoder(svd_pipeline.image_encoder)
    with torch.no_grad():
        got = encoder(to_pixels(frame)[None])
        expected = svd_pipeline._encode_image(
            PIL.Image.fromarray(frame.numpy()),
            "cpu",
            num_videos_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    assert got.shape == (1, 1, 32)
    assert torch.allclose(got, expected, atol=1e-5)


def test_preprocessing_is_the_feature_extractors(
    svd_pipeline: StableVideoDiffusionPipeline, rng: torch.Generator
) -> None:
    """A blur leaves flat colours alone: what is left is the normalisation."""
    flat = torch.rand(2, 3, 1, 1, generator=rng).expand(2, 3, 224, 224)
    expected = svd_pipeline.feature_extractor(
        images=flat, do_center_crop=False, do_resize=False, do_rescale=False, return_tensors="pt"
    ).pixel_values
    assert torch.allclose(
        ImageEncoder(svd_pipeline.image_encoder).preprocess(flat * 2 - 1), expected, atol=1e-4
    )


def test_pixels_go_there_and_back(rng: torch.Generator) -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    pixels = to_pixels(frames)
    assert pixels.shape == (2, 3, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(to_uint8(pixels), frames)
    outside = torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1)
    assert to_uint8(outside).flatten().tolist() == [0, 128, 255]
