"""The autoencoders in slices: upstream's one-shot numbers, whatever the slice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor

from genprop.errors import GenPropError
from genprop.latents import Autoencoder
from genprop.sliced import Vae, decode_sliced, encode_sliced

ONE_ROW, SOME, WHOLE = 1, 6_000, 10**9
"""Sizes of a slice: less than a row of any layer; some rows of some layers, all of others; everything."""


@pytest.fixture(scope="module", params=["frames", "temporal"])
def vae(request: pytest.FixtureRequest) -> Vae:
    """Three levels; biases and norms moved from where they start, or half the arithmetic would not show."""
    options: dict[str, Any] = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "layers_per_block": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "temporal":
            made: Vae = AutoencoderKLTemporalDecoder(**options)
        else:
            made = AutoencoderKL(**options, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn(parameter.shape)
    return made.eval().requires_grad_(False)


def one_shot(vae: Vae, latents: Tensor) -> Tensor:
    """Upstream's own decode of each clip as a whole."""
    frames = {"num_frames": latents.shape[1]} if isinstance(vae, AutoencoderKLTemporalDecoder) else {}
    model: Any = vae
    return torch.stack([model.decode(clip, **frames).sample for clip in latents])


@pytest.mark.parametrize("size", [ONE_ROW, SOME, WHOLE])
def test_decoding_in_slices_is_decoding_at_once(vae: Vae, rng: torch.Generator, size: int) -> None:
    latents = 2 * torch.randn(2, 5, 4, 3, 6, generator=rng)
    before = latents.clone()
    sliced = decode_sliced(vae, latents, size=size)
    assert (sliced - one_shot(vae, latents)).abs().max() < 1e-5
    assert torch.equal(latents, before)  # it works in place, but not on what it was given


@pytest.mark.parametrize("size", [ONE_ROW, SOME, WHOLE])
@pytest.mark.parametrize("height", [12, 20])
def test_encoding_in_slices_is_encoding_at_once(
    vae: Vae, rng: torch.Generator, size: int, height: int
) -> None:
    frames = torch.rand(2, 3, height, 24, generator=rng) * 2 - 1
    model: Any = vae
    expected = model.encode(frames).latent_dist.mode()
    assert (encode_sliced(vae, frames, size=size) - expected).abs().max() < 1e-5


def test_a_large_mean_costs_no_precision(vae: Vae, rng: torch.Generator) -> None:
    # sums of squares would cancel: frames far from zero, with little on them
    latents = 30 + 0.1 * torch.randn(1, 3, 4, 3, 6, generator=rng)
    assert (decode_sliced(vae, latents, size=SOME) - one_shot(vae, latents)).abs().max() < 1e-4


def test_half_precision_is_as_near_to_float32_as_upstreams(vae: Vae, rng: torch.Generator) -> None:
    latents = torch.randn(1, 3, 4, 3, 6, generator=rng)
    exact = one_shot(vae, latents)
    half = copy.deepcopy(vae)
    half.to(torch.bfloat16)  # type: ignore[call-arg]
    upstream = (one_shot(half, latents.bfloat16()).float() - exact).square().mean()
    ours = (decode_sliced(half, latents.bfloat16(), size=SOME).float() - exact).square().mean()
    assert ours < 1.3 * upstream


def test_windows_are_exact_only_where_frames_are_decoded_alone(vae: Vae, rng: torch.Generator) -> None:
    latents = 0.2 * torch.randn(1, 10, 4, 2, 4, generator=rng)
    with torch.no_grad():
        clip, windows = (
            Autoencoder(vae, chunk=n, overlap=o, slice=SOME).decode(latents) for n, o in ((10, 0), (8, 6))
        )
    exact = (clip - windows).abs().max() < 1e-5
    assert exact != isinstance(vae, AutoencoderKLTemporalDecoder)


def test_an_autoencoder_runs_in_slices_where_it_is_asked_to(
    vae: Vae, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = torch.rand(1, 3, 3, 12, 24, generator=rng) * 2 - 1
    plain, sliced = Autoencoder(vae), Autoencoder(vae, slice=SOME)
    latents = plain.encode_scaled(frames)
    with_gradient = sliced.decode(latents.clone().requires_grad_(True))
    assert with_gradient.requires_grad  # upstream's forward: training is what it was

    def no_upstream(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole autoencoder was run at once")

    expected = plain.decode(latents)
    for part in ("encode", "decode"):
        monkeypatch.setattr(vae, part, no_upstream)
    with torch.inference_mode():
        assert torch.allclose(sliced.encode_scaled(frames), latents, atol=1e-5)
        assert torch.allclose(sliced.decode(latents), expected, atol=1e-5)


@pytest.mark.parametrize("size", [None, SOME])
def test_channels_last_changes_the_layout_and_no_number(
    vae: Vae, rng: torch.Generator, size: int | None
) -> None:
    frames = torch.rand(1, 3, 3, 12, 24, generator=rng) * 2 - 1
    plain, other = Autoencoder(vae), Autoencoder(copy.deepcopy(vae), slice=size).channels_last()
    weight = other.vae.decoder.conv_in.weight  # type: ignore[union-attr]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()  # type: ignore[operator]
    with torch.no_grad():
        latents = plain.encode_scaled(frames)
        assert torch.allclose(other.encode_scaled(frames), latents, atol=1e-5)
        assert torch.allclose(other.decode(latents), plain.decode(latents), atol=1e-5)


def test_patches_are_decoded_in_slices_too(rng: torch.Generator) -> None:
    vae = AutoencoderKL(
        in_channels=12,
        out_channels=12,
        block_out_channels=(16,),  # type: ignore[arg-type]
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    frames = torch.rand(1, 2, 3, 12, 16, generator=rng) * 2 - 1
    with torch.no_grad():
        plain, sliced = Autoencoder(vae), Autoencoder(vae, slice=200)
        latents = plain.encode_scaled(frames)
        assert torch.allclose(sliced.encode_scaled(frames), latents, atol=1e-5)
        assert torch.allclose(sliced.decode(latents), plain.decode(latents), atol=1e-5)


def test_a_block_that_cannot_be_sliced_is_refused() -> None:
    vae = AutoencoderKL(
        block_out_channels=(32,),  # type: ignore[arg-type]
        down_block_types=("AttnDownEncoderBlock2D",),  # type: ignore[arg-type]
    )
    with pytest.raises(GenPropError, match="AttnDownEncoderBlock2D"):
        encode_sliced(vae, torch.zeros(1, 3, 8, 8), size=WHOLE)
