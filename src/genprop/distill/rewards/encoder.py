"""A reward that needs no download: the base's own image encoder, as full reference.

SVD's image condition is a CLIP tower that every teacher has at hand. Frames that show what the reference
shows lie near it in that tower's embedding, whatever a pixel or two apart. Embeddings of one tower lie in a
narrow cone (Liang et al. 2022, arXiv:2203.02053, section 3), so what a plain grey frame gives is taken off
first: the embedded model's tower has any two pictures within 0.005 of cosine 1 without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.distill.rewards.base import RewardCard
from genprop.errors import GenPropError
from genprop.latents import ImageEncoder


class EncoderReward:
    """Cosine of a frame's and its reference's embeddings, seen from grey, in [-1, 1]; the mean over frames.

    Args:
        image_encoder: frozen, in eval mode.
        source: the base it belongs to.
        licence: the base's.
    """

    window = 1

    def __init__(self, image_encoder: ImageEncoder, *, source: str, licence: str) -> None:
        self.image_encoder = image_encoder
        self.card = RewardCard("encoder", source, licence)

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """Embeddings of the reference, `[B, n, D]`.

        Raises:
            GenPropError: captions are given; the tower reads none.
        """
        if not isinstance(reference, Tensor):
            raise GenPropError(
                "the encoder reward was given captions, expected frames: an image encoder reads no text",
                "set distill.rewards.encoder.reference to first, truth or teacher",
            )
        return self._embed(reference)

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[B]` of frames `[B, n, 3, H, W]` in [0, 1]."""
        return (self._embed(frames) * prepared).sum(-1).mean(1)

    def _embed(self, frames: Tensor) -> Tensor:
        """Unit embeddings `[B, n, D]` from where a grey frame is, float32."""
        flat = frames.flatten(0, 1).float()
        with torch.autocast(frames.device.type, enabled=False):  # its blur would round to 8 bits
            pixels = self.image_encoder.preprocess(2 * torch.cat([flat, torch.full_like(flat[:1], 0.5)]) - 1)
        *embedded, grey = self.image_encoder.embed(pixels).float().squeeze(1)
        return F.normalize(torch.stack(embedded) - grey, dim=-1).unflatten(0, frames.shape[:2])
