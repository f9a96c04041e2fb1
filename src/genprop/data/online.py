"""Training straight from clips: samples are encoded in the training step.

For data that are seen once or are too many to keep encoded. The numbers are those of the latent cache, bit
for bit on the same device, so the losses are, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genprop.data.latents import Batch, encode_sample
from genprop.draws import Draws
from genprop.latents import Autoencoder, ImageEncoder
from genprop.settings import ClipConfig


class EncodedObjective(nn.Module):
    """An objective that reads a `Batch`, for batches of `PixelSamples`.

    Args:
        objective: what trains; its parameters are trained as they are without this.
        autoencoder: is frozen.
        image_encoder: stays as it is: an objective may train it.
    """

    def __init__(
        self, objective: nn.Module, autoencoder: Autoencoder, image_encoder: ImageEncoder, clip: ClipConfig
    ) -> None:
        super().__init__()
        self.objective = objective
        self.autoencoder = autoencoder.requires_grad_(False)
        self.image_encoder, self.clip = image_encoder, clip

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        return self.objective(self.encode(batch), draws)

    def encode(self, pixels: Batch) -> Batch:
        """A batch of `PixelSamples` as the cache would have it: in full precision, whatever the step's is."""
        count, device = len(pixels["seed"]), pixels["source"].device
        with torch.autocast(device.type, enabled=False):
            samples = [
                encode_sample(
                    {name: value[i] for name, value in pixels.items()},
                    self.autoencoder,
                    self.image_encoder,
                    self.clip,
                )
                for i in range(count)
            ]
            return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
