"""Rewards of latents: `reward(decode(x0))` with its exact gradient, in memory that frames do not add to.

The graph of a decoder weighs gigabytes for each frame of 576x1024, so only `chunk` frames have one at a
time. The gradient with respect to the latents is computed in the forward pass, chunk by chunk, and only
scaled in the backward pass: `score.mean().backward()` works as always, under DDP, accumulation and autocast.

- A reward of single frames: decode some with their graph, score, pull the gradient back, free.
- A reward of a window that is longer than a chunk sees all of its frames at once. They are decoded without
  a graph and scored with one that ends at the frames; then each chunk is decoded again, with its graph, and
  the gradient of its frames pulled back through it (two-stage backward, as checkpointing at the frames).

A temporal decoder mixes neighbouring frames. So a single frame is decoded as a window of one, and a longer
window in contiguous chunks, each a window of the decoder's own, as `Autoencoder.decode` does; frames picked
at random from a clip never meet in one.

Shapes: N items (frames, or windows of frames), k frames in an item: the reward's window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from genprop.distill.rewards.base import Reward
from genprop.latents import Autoencoder


class LatentReward:
    """A reward of scaled latents `[N, k, C, h, w]`, one score for each item.

    Args:
        autoencoder: frozen, in eval mode.
        chunk: frames that are decoded at a time.
    """

    def __init__(self, reward: Reward, autoencoder: Autoencoder, *, chunk: int) -> None:
        self.reward, self.autoencoder, self.chunk = reward, autoencoder, chunk
        self.items = max(1, chunk // reward.window)  # at a time

    def decode(self, latents: Tensor) -> Tensor:
        """Frames `[N, k, 3, H, W]` of one decoder window, in [0, 1] as a file has them, float32."""
        frames = self.autoencoder.decode_window(latents / self.autoencoder.scaling_factor)
        return ((frames.float() + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """What items are compared with, `[N, ...]`.

        Args:
            reference: scaled latents `[N, k, C, h, w]`, or N captions.
            mask: on the latent grid, `[N, k, 1, h, w]`.
        """
        if not isinstance(reference, Tensor):
            return self.reward.prepare(reference)
        parts = reference.split(self.items)
        masks = [None] * len(parts) if mask is None else map(self._pixels, mask.split(self.items))
        pairs = zip(parts, masks, strict=True)
        return torch.cat([self.reward.prepare(self._frames(part), there) for part, there in pairs])

    def __call__(self, latents: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[N]`, float32, differentiable (once) in the latents."""
        if torch.is_grad_enabled() and latents.requires_grad:
            return _Score.apply(latents, prepared, self)  # type: ignore[no-any-return]
        parts = zip(latents.split(self.items), prepared.split(self.items), strict=True)
        return torch.cat([self.reward(self._frames(part), of_part).float() for part, of_part in parts])

    def scores_and_gradients(self, latents: Tensor, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `[N]`, and of each the gradient with respect to its own item, `[N, k, C, h, w]`."""
        parts = zip(latents.split(self.items), prepared.split(self.items), strict=True)
        found = [self._pull(part, of_part) for part, of_part in parts]
        return torch.cat([score for score, _ in found]), torch.cat([gradient for _, gradient in found])

    @torch.enable_grad()
    def _pull(self, latents: Tensor, prepared: Tensor) -> tuple[Tensor, Tensor]:
        chunks = [chunk.detach().requires_grad_() for chunk in latents.split(self.chunk, dim=1)]
        if len(chunks) == 1:
            score = self.reward(self.decode(chunks[0]), prepared).float()
            (gradient,) = torch.autograd.grad(score.sum(), chunks)  # items are independent
            return score.detach(), gradient
        frames = self._frames(latents).requires_grad_()
        score = self.reward(frames, prepared).float()
        (by_frame,) = torch.autograd.grad(score.sum(), frames)
        pulled = [
            torch.autograd.grad(self.decode(chunk), chunk, gradient)[0]
            for chunk, gradient in zip(chunks, by_frame.split(self.chunk, dim=1), strict=True)
        ]
        return score.detach(), torch.cat(pulled, dim=1)

    @torch.no_grad()
    def _frames(self, latents: Tensor) -> Tensor:
        return torch.cat([self.decode(chunk) for chunk in latents.split(self.chunk, dim=1)], dim=1)

    def _pixels(self, mask: Tensor) -> Tensor:
        """A mask on the latent grid at the frames' size: each pixel has its cell's value."""
        cell = self.autoencoder.downsampling
        return mask.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)


class _Score(torch.autograd.Function):
    """Computes scores and their gradients at once; the backward pass only multiplies."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, prepared: Tensor, reward: LatentReward) -> Tensor:
        scores, gradients = reward.scores_and_gradients(latents, prepared)
        ctx.save_for_backward(gradients)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        return gradients * grad.view(-1, 1, 1, 1, 1), None, None
