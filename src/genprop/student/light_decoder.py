"""A light decoder in the place of the autoencoder's own, which at full size is most of a one-step run.

It is the decoder of diffusers' `AutoencoderTiny` (TAESD): a few convolutions, no norm, no attention and no
frame but its own, so it decodes any number of frames at a time with the same answer. For 25 frames of
576x1024 it needs 8 TFLOP, the temporal decoder 174. A bundle keeps it in `decoder/`, in diffusers' layout;
the encoder that class cannot be without is a stub.
"""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.bundle import Bundle
from genprop.chunks import by_windows
from genprop.distill_settings import LightDecoderConfig
from genprop.errors import GenPropError
from genprop.latents import Autoencoder
from genprop.teacher.base import load_frozen

STUB: Any = {"encoder_block_out_channels": (1,), "num_encoder_blocks": (0,)}
"""The smallest encoder there is: nobody runs it."""


class LightDecoder(nn.Module):
    """Latents to frames, as `Autoencoder.decode_window` and `decode` have them.

    Args:
        tiny: only its decoder is used; one with 3 p^2 output channels gives p x p patches.
        scaling_factor: of the autoencoder whose latents it reads.
        chunk: frames that `decode` does at a time; bounds memory, and changes nothing else.
    """

    def __init__(self, tiny: AutoencoderTiny, *, scaling_factor: float, chunk: int = 8) -> None:
        super().__init__()
        self.decoder = tiny.decoder
        # What the class is called with; upstream adds keys to its config that it does not take.
        taken = inspect.signature(AutoencoderTiny.__init__).parameters
        self.config = {name: value for name, value in tiny.config.items() if name in taken}
        self.scaling_factor, self.chunk = scaling_factor, chunk

    @property
    def patch(self) -> int:
        """Pixels a patch is wide: 1 where the last layer gives pixels."""
        return math.isqrt(self.config["out_channels"] // 3)

    @property
    def downsampling(self) -> int:
        """Pixels a latent cell is wide."""
        return self.patch * 2 ** (len(self.config["num_decoder_blocks"]) - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of scaled latents. `[B, T, C, h, w]` to `[B, T, 3, H, W]`, about [-1, 1]."""
        return by_windows(self.decode_window, latents / self.scaling_factor, self.chunk)

    def decode_window(self, latents: Tensor) -> Tensor:
        """Frames of *unscaled* latents, `[B, T, C, h, w]`, each on its own."""
        own = latents.flatten(0, 1) * (self.scaling_factor / self.config["scaling_factor"])
        return F.pixel_shuffle(self.decoder(own), self.patch).unflatten(0, latents.shape[:2])

    def save(self, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write it as an `AutoencoderTiny` in diffusers' layout, the numbers rounded to `dtype`."""
        table = {**self.config, **STUB}
        with torch.device("meta"):
            shapes = AutoencoderTiny(**table).encoder.state_dict()
        tensors = {f"encoder.{name}": torch.zeros(value.shape) for name, value in shapes.items()}
        tensors |= {f"decoder.{name}": value.cpu() for name, value in self.decoder.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.to(dtype).contiguous() for name, value in tensors.items()},
            folder / "diffusion_pytorch_model.safetensors",
            metadata={"format": "pt"},
        )
        named = json.dumps({"_class_name": "AutoencoderTiny", **table}, indent=2)
        (folder / "config.json").write_text(named + "\n", encoding="utf-8")


def new_light_decoder(autoencoder: Autoencoder, config: LightDecoderConfig, *, seed: int) -> LightDecoder:
    """A light decoder for the latents of `autoencoder`: of random weights, or from `config.path`.

    Raises:
        GenPropError: more stages than the autoencoder's downsampling has; or a folder that holds none, or one
            for other latents.
    """
    cell, channels = autoencoder.downsampling, autoencoder.vae.config["latent_channels"]
    if config.path is not None:
        return _fitting(load_frozen(AutoencoderTiny, Path(config.path)), autoencoder, config.path)
    upsampling = 2 ** (len(config.channels) - 1)
    if cell % upsampling:
        raise GenPropError(
            f"light.channels has {len(config.channels)} stages, which make {upsampling} pixels of a latent "
            f"cell, but the autoencoder's cells are {cell} wide",
            "leave out stages: what is missing to pixels comes as patches",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiny = AutoencoderTiny(
            out_channels=3 * (cell // upsampling) ** 2,
            **STUB,
            decoder_block_out_channels=config.channels,
            num_decoder_blocks=config.blocks,
            latent_channels=channels,
            scaling_factor=config.scale,
        )
    return LightDecoder(tiny, scaling_factor=autoencoder.scaling_factor, chunk=autoencoder.chunk)


def load_light_decoder(bundle: Bundle, autoencoder: Autoencoder) -> LightDecoder:
    """The light decoder of a bundle, frozen, in float32.

    Raises:
        GenPropError: the bundle has none, or one for other latents.
    """
    if bundle.decoder is None:
        raise GenPropError(
            f"{bundle.folder} has no light decoder", "train one with: genprop distill --stage decoder"
        )
    tiny = load_frozen(AutoencoderTiny, bundle.decoder, torch_dtype=torch.float32)
    return _fitting(tiny, autoencoder, bundle.decoder).requires_grad_(False).eval()


def _fitting(tiny: AutoencoderTiny, autoencoder: Autoencoder, name: str | Path) -> LightDecoder:
    light = LightDecoder(tiny, scaling_factor=autoencoder.scaling_factor, chunk=autoencoder.chunk)
    channels = autoencoder.vae.config["latent_channels"]
    expected, got = (
        (channels, autoencoder.downsampling),
        (light.config["latent_channels"], light.downsampling),
    )
    if got != expected:
        raise GenPropError(
            f"{name} decodes latents of {got[0]} channels, {got[1]} pixels a cell, "
            f"expected {expected[0]} channels, {expected[1]} pixels",
            "use a light decoder that was trained for this base",
        )
    return light
