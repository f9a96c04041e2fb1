"""A full-reference reward that needs no download: as much texture in the hole as the reference has.

A student that answers in one step tends to the mean of what may be there, which is soft. Distance to the
teacher's endpoint hardly sees it; how much the decoded picture varies in each latent cell does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.distill.rewards.base import RewardCard
from genprop.errors import GenPropError
from genprop.teacher.losses import texture_error


class TextureReward:
    """Minus `texture_error` of a frame, averaged over the hole; the mean over the frames, 0 at best.

    A frame without a hole scores 0. Slopes are those of pixels in [-1, 1], as in the autoencoder's training.

    Args:
        cell: pixels a cell of the comparison is wide: the latents'.
    """

    window = 1
    card = RewardCard("texture", "computed, no weights", "Apache-2.0")

    def __init__(self, cell: int) -> None:
        self.cell = cell

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """Reference and mask, one upon the other: `[B, n, 4, H, W]`.

        Raises:
            GenPropError: captions are given, or no mask.
        """
        if not isinstance(reference, Tensor) or mask is None:
            got = "no mask" if isinstance(reference, Tensor) else "captions"
            raise GenPropError(
                f"the texture reward was given {got}, expected the true frames and their mask",
                "set distill.rewards.texture.reference to truth or teacher",
            )
        return torch.cat([reference.float(), mask.float()], dim=2)

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[B]` of frames `[B, n, 3, H, W]` in [0, 1]."""
        reference, mask = prepared.flatten(0, 1).split([3, 1], dim=1)
        error = 2 * texture_error(frames.flatten(0, 1).float(), reference, cell=self.cell)
        hole = F.avg_pool2d(mask, self.cell).squeeze(1)
        each = (error * hole).sum(dim=(1, 2)) / hole.sum(dim=(1, 2)).clamp(min=1e-6)
        return -each.unflatten(0, frames.shape[:2]).mean(1)
