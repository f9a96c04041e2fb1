"""The Mask Prediction Decoder (GenProp, section 3.2): where the edit lives in every frame.

Three 1x1x1 convolutions, C-256-128-1, over the features of the backbone's penultimate up block,
brought to the latent grid by (tri)linear interpolation; the frame count stays as it is.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MaskPredictionDecoder(nn.Module):
    """Features `[N, C, h', w']` to mask logits `[N, 1, h, w]` on the latent grid, N = batch x frames."""

    def __init__(self, channels: int, *, hidden: tuple[int, int] = (256, 128), groups: int = 8) -> None:
        super().__init__()
        first, second = hidden
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, 1),
            nn.GroupNorm(groups, first),
            nn.SiLU(),
            nn.Conv2d(first, second, 1),
            nn.GroupNorm(groups, second),
            nn.SiLU(),
            nn.Conv2d(second, 1, 1),
        )

    def forward(self, features_nchw: Tensor, *, size: tuple[int, int]) -> Tensor:
        logits = self.layers(features_nchw)
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits
