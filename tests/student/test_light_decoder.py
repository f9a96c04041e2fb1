"""The light decoder: the autoencoder's interface, frame by frame, and the same again from its bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from genprop.bundle import Bundle, read_bundle, reschedule, with_decoder, write_bundle
from genprop.config import Config
from genprop.distill_settings import LightDecoderConfig
from genprop.errors import GenPropError
from genprop.student.clone import clone, load_model, merge_bundle, trained_tensors
from genprop.student.light_decoder import LightDecoder, load_light_decoder, new_light_decoder
from genprop.student.lora import save_lora
from genprop.teacher.base import Base, save_base
from genprop.teacher.net import GenPropNet

SHAPE = LightDecoderConfig(channels=(8, 8), blocks=(1, 0))


@pytest.fixture
def light(small_base: Base) -> LightDecoder:
    return new_light_decoder(small_base.autoencoder, SHAPE, seed=1).requires_grad_(False)


@pytest.fixture
def student(small_base: Base, small_config: Config, tmp_path: Path) -> Bundle:
    """A student's bundle with a LoRA, without a light decoder."""
    save_base(small_base, tmp_path / "base")
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
    adapter = small_config.distill.adapter.model_copy(update={"rank": 2})
    made = clone(net, adapter=adapter)
    return write_bundle(
        tmp_path / "student",
        kind="student",
        config=small_config,
        base=tmp_path / "base",
        tensors=trained_tensors(made, backbone=False),
        sigmas={1: (80.0,)},
        save_lora=lambda folder: save_lora(made, folder, rank=2),
    )


def latents_of(base: Base, rng: torch.Generator) -> Tensor:
    return torch.randn(2, 3, base.autoencoder.vae.config["latent_channels"], 4, 6, generator=rng)


@pytest.mark.parametrize(("channels", "patch"), [((8,), 2), ((8, 8), 1)], ids=["patches", "upsampling"])
def test_it_stands_in_for_the_autoencoders_decoder(
    small_base: Base, rng: torch.Generator, channels: tuple[int, ...], patch: int
) -> None:
    settings = LightDecoderConfig(channels=channels, blocks=(1,) * len(channels))
    light = new_light_decoder(small_base.autoencoder, settings, seed=0)
    latents = latents_of(small_base, rng)
    assert (light.patch, light.downsampling) == (patch, small_base.autoencoder.downsampling)
    assert light.scaling_factor == small_base.autoencoder.scaling_factor
    assert light.decode_window(latents).shape == small_base.autoencoder.decode_window(latents).shape
    assert torch.allclose(
        light.decode(latents * light.scaling_factor), light.decode_window(latents), atol=1e-6
    )


def test_it_is_upstreams_decode_of_scaled_latents(
    small_base: Base, rng: torch.Generator, tmp_path: Path
) -> None:
    # as diffusers' own pipelines use it: latents over its own scaling factor
    settings = SHAPE.model_copy(update={"scale": 4.0})
    light = new_light_decoder(small_base.autoencoder, settings, seed=1).requires_grad_(False)
    light.save(tmp_path)
    upstream = AutoencoderTiny.from_pretrained(tmp_path)
    scaled = latents_of(small_base, rng)
    with torch.no_grad():
        expected = upstream.decode(scaled.flatten(0, 1) / 4).sample  # type: ignore[union-attr]
    assert torch.allclose(light.decode(scaled).flatten(0, 1), expected, atol=1e-6)


def test_frames_do_not_see_one_another(light: LightDecoder, small_base: Base, rng: torch.Generator) -> None:
    latents = latents_of(small_base, rng)
    whole = light.decode(latents)
    light.chunk = 2
    assert torch.allclose(light.decode(latents), whole, atol=1e-6)
    assert torch.allclose(light.decode(latents[:, 1:2]), whole[:, 1:2], atol=1e-6)


def test_a_bundle_keeps_it_with_its_hashes(
    light: LightDecoder, student: Bundle, small_base: Base, rng: torch.Generator, tmp_path: Path
) -> None:
    assert student.decoder is None
    with_light = with_decoder(student, light.save, out=tmp_path / "light")
    assert {n for n in with_light.card.files if n.startswith("decoder/")} == {
        "decoder/config.json",
        "decoder/diffusion_pytorch_model.safetensors",
    }
    kept = {n: h for n, h in with_light.card.files.items() if not n.startswith("decoder/")}
    assert kept == student.card.files
    loaded, latents = load_light_decoder(with_light, small_base.autoencoder), latents_of(small_base, rng)
    assert torch.equal(loaded.decode(latents), light.decode(latents))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())

    weights = with_light.folder / "decoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(GenPropError, match=r"diffusion_pytorch_model\.safetensors has SHA-256"):
        read_bundle(with_light.folder)


def test_whatever_is_made_of_the_bundle_keeps_it(
    light: LightDecoder, student: Bundle, small_base: Base, rng: torch.Generator, tmp_path: Path
) -> None:
    with_light = with_decoder(student, light.save, out=tmp_path / "light")
    again = new_light_decoder(small_base.autoencoder, SHAPE, seed=2)
    made = [
        reschedule(with_light, sigmas={1: (70.0,)}, eta={}, out=tmp_path / "rescheduled"),
        merge_bundle(with_light.folder, tmp_path / "merged"),
        with_decoder(
            with_decoder(student, again.save, out=tmp_path / "twice"), light.save, out=tmp_path / "twice"
        ),
    ]
    latents = latents_of(small_base, rng)
    for bundle in made:
        loaded = load_light_decoder(bundle, load_model(bundle.folder)[2].autoencoder)
        assert torch.equal(loaded.decode(latents), light.decode(latents))
    assert made[1].lora is None


def test_it_starts_from_a_folder_of_one(light: LightDecoder, small_base: Base, tmp_path: Path) -> None:
    light.save(tmp_path / "one")
    settings = SHAPE.model_copy(update={"path": str(tmp_path / "one"), "channels": (64, 64)})
    started = new_light_decoder(small_base.autoencoder, settings, seed=5)
    for name, value in light.decoder.state_dict().items():
        assert torch.equal(started.decoder.state_dict()[name], value)


def test_what_does_not_fit_is_refused(
    light: LightDecoder, student: Bundle, small_base: Base, tmp_path: Path
) -> None:
    with pytest.raises(GenPropError, match="no light decoder"):
        load_light_decoder(student, small_base.autoencoder)
    deep = LightDecoderConfig(channels=(8,) * 3, blocks=(1,) * 3)
    with pytest.raises(GenPropError, match=r"3 stages, which make 4 pixels .* cells are 2 wide"):
        new_light_decoder(small_base.autoencoder, deep, seed=0)
    light.save(tmp_path / "other")
    table = json.loads((tmp_path / "other" / "config.json").read_text())
    light.config["out_channels"] = table["out_channels"] = 12
    AutoencoderTiny(**{k: v for k, v in table.items() if not k.startswith("_")}).save_pretrained(
        tmp_path / "big"
    )
    settings = SHAPE.model_copy(update={"path": str(tmp_path / "big")})
    with pytest.raises(GenPropError, match=r"4 pixels a cell, expected 4 channels, 2 pixels"):
        new_light_decoder(small_base.autoencoder, settings, seed=0)
    with pytest.raises(ValueError, match="blocks has 1 stages, expected 2"):
        LightDecoderConfig(channels=(8, 8), blocks=(1,))
