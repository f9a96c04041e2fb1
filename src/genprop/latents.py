"""The frozen autoencoder and image encoder, behind one small interface.

SVD conditions on the *unscaled* mode of the posterior of the first frame, and denoises latents *times*
the scaling factor; both kinds are made here and nowhere else. SVD's own autoencoder is
`AutoencoderKLTemporalDecoder`, whose decoder mixes neighbouring frames; `AutoencoderKL`, which decodes
frame by frame, is taken as well. One whose input has 3 p^2 channels reads the picture as p x p patches:
the embedded model's does, which makes it cheap enough for two CPU cores. Pixels are `[-1, 1]`,
`[B, T, 3, H, W]`.

Decoded frame by frame, windows are exact, whatever their size. Those of a temporal decoder are not, with any
overlap, since its norms see all frames: only one window over the clip is the one-shot answer, and `slice`
bounds its memory (`sliced.py`).
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from genprop.chunks import by_windows, even_size
from genprop.errors import GenPropError
from genprop.sliced import decode_sliced, encode_sliced

# CLIP's, as openai/clip-vit-large-patch14 and every SVD checkpoint have them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Autoencoder(nn.Module):
    """Frames to latents and back.

    Args:
        vae: the upstream module; its config names the scaling factor.
        chunk: frames encoded or decoded at a time; bounds memory. A temporal decoder mixes frames only inside
            one.
        overlap: frames that neighbouring windows of the decoder share.
        slice: run layer by layer, each layer on slices of so many numbers; None runs upstream's own forward.
            Not where there is a gradient or a graph is captured.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderKLTemporalDecoder,
        *,
        chunk: int = 8,
        overlap: int = 0,
        slice: int | None = None,
    ) -> None:
        super().__init__()
        self.vae = vae
        self.chunk, self.overlap, self.slice = chunk, overlap, slice

    @property
    def scaling_factor(self) -> float:
        return float(self.vae.config["scaling_factor"])

    @property
    def patch(self) -> int:
        """Pixels a patch is wide: 1 where pixels enter as they are."""
        return math.isqrt(self.vae.config["in_channels"] // 3)

    @property
    def downsampling(self) -> int:
        """Pixels a latent cell is wide: 8 for SVD's four blocks."""
        return self.patch * 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def encode(self, frames: Tensor) -> Tensor:
        """The unscaled mode of the posterior. `[B, T, 3, H, W]` in [-1, 1] to `[B, T, C, h, w]`.

        Raises:
            GenPropError: H or W is not a multiple of `downsampling`.
        """
        batch, (height, width) = frames.shape[0], frames.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise GenPropError(
                f"frames of {width}x{height} pixels, expected multiples of {self.downsampling}",
                "set clip.height and clip.width to multiples of it",
            )
        chunks = [
            self._mode(F.pixel_unshuffle(part, self.patch))
            for part in frames.flatten(0, 1).split(even_size(batch * frames.shape[1], self.chunk))
        ]
        # Attention leaves its own strides behind, which safetensors refuses to store.
        return torch.cat(chunks).contiguous().unflatten(0, (batch, -1))

    def _mode(self, patches: Tensor) -> Tensor:
        if (size := self._slice) is not None:
            return encode_sliced(self.vae, patches, size=size)
        return self.vae.encode(patches, return_dict=False)[0].mode()

    def encode_scaled(self, frames: Tensor) -> Tensor:
        """`encode` times the scaling factor: what is denoised, and what the content encoder reads."""
        return self.encode(frames) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of scaled latents. `[B, T, C, h, w]` to `[B, T, 3, H, W]`, about [-1, 1]."""
        return by_windows(self.decode_window, latents / self.scaling_factor, self.chunk, overlap=self.overlap)

    def decode_window(self, latents: Tensor) -> Tensor:
        """Decode *unscaled* latents `[B, T, C, h, w]` as one window."""
        if (size := self._slice) is not None:
            return F.pixel_shuffle(decode_sliced(self.vae, latents, size=size), self.patch)
        batch, frames = latents.shape[:2]
        temporal = isinstance(self.vae, AutoencoderKLTemporalDecoder)
        window: dict[str, Any] = {"num_frames": frames} if temporal else {}
        vae: Any = self.vae
        decoded = vae.decode(latents.flatten(0, 1), **window, return_dict=False)[0]
        return F.pixel_shuffle(decoded, self.patch).unflatten(0, (batch, frames))

    def channels_last(self) -> Self:
        """Keep the weights of its 2D convolutions channels last, which activations then are, too.

        The numbers are the same up to rounding. On a CPU decoding gains a tenth, encoding nothing.
        """
        for module in self.vae.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    @property
    def _slice(self) -> int | None:
        """`slice`, where it can be had: it has no gradient, and a graph would unroll it."""
        return None if torch.is_grad_enabled() or torch.compiler.is_compiling() else self.slice


class ImageEncoder(nn.Module):
    """The CLIP tower that gives SVD its image embedding, preprocessing included."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def size(self) -> int:
        size = self.clip.config.image_size
        assert isinstance(size, int)
        return size

    def preprocess(self, frame: Tensor) -> Tensor:
        """What the tower sees. `[B, 3, H, W]` in [-1, 1] to `[B, 3, size, size]`.

        Resized as in diffusers' pipeline (blur, then bicubic): its function is called, not rewritten.
        """
        small = _resize_with_antialiasing(frame, (self.size, self.size))
        return ((small + 1) / 2 - self.mean) / self.std

    def embed(self, pixels: Tensor) -> Tensor:
        """Embedding of preprocessed pixels `[B, 3, size, size]`, as `[B, 1, D]`."""
        return self.clip(pixels.to(self.clip.dtype)).image_embeds.unsqueeze(1)

    def forward(self, frame: Tensor) -> Tensor:
        """Embedding of a frame `[B, 3, H, W]` in [-1, 1], as `[B, 1, D]`."""
        return self.embed(self.preprocess(frame))
