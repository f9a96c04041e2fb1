"""With injection off, the teacher's path is diffusers' `StableVideoDiffusionPipeline`, number for number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from diffusers import StableVideoDiffusionPipeline
from torch import Tensor, nn

from genprop.edm import Guided, NetDenoiser, karras_sigmas
from genprop.pixels import to_pixels
from genprop.sampling import euler
from genprop.settings import ClipConfig, NetConfig, SceConfig
from genprop.teacher.base import Base, load_base
from genprop.teacher.net import GenPropNet
from genprop.types import Cond, time_ids

FRAMES, STEPS, SEED = 4, 6, 11
CLIP = ClipConfig(frames=FRAMES, height=32, width=48, fps=7, motion_bucket=127, noise_aug=0.02)


@pytest.fixture(scope="module")
def base(svd_pipeline: StableVideoDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The pipeline's own folder, read as a base: what happens with SVD-XT."""
    folder: Path = tmp_path_factory.mktemp("svd")
    svd_pipeline.save_pretrained(folder)
    return load_base(folder)


@pytest.fixture(scope="module")
def image() -> Tensor:
    size = (CLIP.height, CLIP.width, 3)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


@pytest.fixture(scope="module")
def expected(svd_pipeline: StableVideoDiffusionPipeline, image: Tensor) -> Tensor:
    return svd_pipeline(
        PIL.Image.fromarray(image.numpy()),
        height=CLIP.height,
        width=CLIP.width,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        fps=CLIP.fps,
        motion_bucket_id=CLIP.motion_bucket,
        noise_aug_strength=CLIP.noise_aug,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).frames  # type: ignore[union-attr]


@torch.no_grad()
def sample(
    net: GenPropNet,
    base: Base,
    image: Tensor,
    *,
    guidance: tuple[float, float] = (1.0, 3.0),
    clip: ClipConfig = CLIP,
) -> Tensor:
    """As the pipeline draws: first the noise that augments the image, then the latents."""
    generator = torch.Generator().manual_seed(SEED)
    frame = to_pixels(image)[None]
    augmented = frame + clip.noise_aug * torch.randn(frame.shape, generator=generator)
    first = base.autoencoder.encode(augmented[:, None]).expand(-1, FRAMES, -1, -1, -1)
    noise = torch.randn(first.shape, generator=generator)
    source = torch.randn(first.shape, generator=torch.Generator().manual_seed(99))
    cond = Cond(first, source, base.image_encoder(frame), time_ids(clip)[None])
    sigmas = karras_sigmas(STEPS, sigma_min=0.002, sigma_max=700.0)
    return euler(Guided(NetDenoiser(net), *guidance), noise, sigmas, cond)[0]


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the deviation of the latents."""
    return float((got - expected).abs().max() / expected.std())


@pytest.fixture
def net(base: Base) -> GenPropNet:
    torch.manual_seed(0)
    return GenPropNet(base.backbone, NetConfig(), SceConfig(blocks=2)).eval()


def test_at_the_start_the_latents_are_the_pipelines(
    net: GenPropNet, base: Base, image: Tensor, expected: Tensor
) -> None:
    assert expected.shape == (1, FRAMES, 4, 16, 24)
    assert distance(sample(net, base, image), expected) < 1e-4


def test_with_injection_weight_zero_they_are_again(
    net: GenPropNet, base: Base, image: Tensor, expected: Tensor, enliven: Callable[[nn.Module], nn.Module]
) -> None:
    enliven(net)
    assert distance(sample(net, base, image), expected) > 1e-2
    net.injection_weight = 0.0
    assert distance(sample(net, base, image), expected) < 1e-4


def test_the_comparison_sees_each_part_of_the_path(
    net: GenPropNet, base: Base, image: Tensor, expected: Tensor
) -> None:
    """Networks of random weights do not drown what they are given: each mistake is above the tolerance."""
    assert distance(sample(net, base, 255 - image), expected) > 1e-2
    assert distance(sample(net, base, image, guidance=(1.0, 2.0)), expected) > 1e-3
    assert distance(sample(net, base, image, clip=CLIP.model_copy(update={"fps": 8})), expected) > 1e-3
