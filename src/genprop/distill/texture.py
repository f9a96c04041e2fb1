"""A full-reference reward that needs no download: as much texture in the hole as the truth has.

A student that answers in one step tends to the mean of what may be there, which is soft. Distance to the
teacher's endpoint hardly sees it; how much the decoded picture varies in each latent cell does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genprop.latents import Autoencoder
from genprop.teacher.losses import texture_error
from genprop.teacher.objective import Inputs


class TextureReward:
    """`(x0, inputs) -> [B]`: minus `texture_error` of the decoded frames, averaged over the hole.

    Args:
        autoencoder: frozen; both x0 and the truth go through its decoder.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    def __call__(self, x0: Tensor, inputs: Inputs) -> Tensor:
        ours = self.autoencoder.decode(x0[:, 1:])
        with torch.no_grad():
            true = self.autoencoder.decode(inputs.target[:, 1:])
        cell = self.autoencoder.downsampling
        error = texture_error(ours.flatten(0, 1).float(), true.flatten(0, 1).float(), cell=cell)
        mask = inputs.mask[:, 1:, 0]
        weighted = error.unflatten(0, mask.shape[:2]) * mask
        return -weighted.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1e-6)
