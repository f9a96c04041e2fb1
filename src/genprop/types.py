"""The types that every part shares.

Shapes: B batch, T frames, C channels, H W pixels, h w latent pixels, D embedding width. Video tensors
are `B T C H W` everywhere; uint8 pixels `T H W 3` exist only at the border, in `Clip` and `EditSample`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from genprop.settings import ClipConfig


@dataclass(frozen=True)
class Clip:
    """A decoded video.

    Attributes:
        frames: uint8 RGB, `[T, H, W, 3]`.
        fps: frames a second, as the container states it.
        path: the file or folder it came from; None for a generated clip.
    """

    frames: np.ndarray
    fps: Fraction
    path: Path | None = None


TASKS = ("remove", "insert", "track", "deblur")
"""The kinds of edit a network can be told of, by their index (GenProp S1)."""


def time_ids(clip: ClipConfig, task: str | None = None) -> Tensor:
    """SVD's micro-conditioning (fps - 1, motion bucket, noise augmentation), `[3]`.

    With a task, its index in `TASKS` comes last, `[4]`: what networks with `net.tasks` read.
    """
    values = [clip.fps - 1, clip.motion_bucket, clip.noise_aug]
    return torch.tensor(values if task is None else [*values, TASKS.index(task)], dtype=torch.float32)


@dataclass(frozen=True)
class MaskedClip:
    """A window of a clip and one object in it, from which a pair can be made.

    Attributes:
        frames: uint8 RGB, `[T, H, W, 3]`.
        mask: the object, bool `[T, H, W]`; empty in frames it is not in.
    """

    frames: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class EditSample:
    """One training or evaluation example of a propagated edit.

    Attributes:
        source: the original video, uint8 `[T, H, W, 3]`.
        target: the video with the edit in every frame, uint8 `[T, H, W, 3]`.
        mask: where the two may differ, effects of the object included, bool `[T, H, W]`.
        task: the kind of edit, one of `TASKS`.
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    task: str = "remove"

    @property
    def edited(self) -> np.ndarray:
        """The edited first frame, uint8 `[H, W, 3]`: all that the model is told of the edit."""
        return self.target[0]


@dataclass(frozen=True)
class Cond:
    """What a network is conditioned on. Tensors only.

    Attributes:
        first: latents of the edited first frame, unscaled (as SVD has it), repeated, `[B, T, C, h, w]`.
        source: latents of the original video, times the scaling factor, `[B, T, C, h, w]`.
        image_embedding: embedding of the edited first frame, `[B, 1, D]`.
        added_time_ids: (fps - 1, motion bucket, noise augmentation), `[B, 3]`; for a network with a task
            embedding, the index of the kind of edit in `TASKS` is a fourth column, `[B, 4]`.
    """

    first: Tensor
    source: Tensor
    image_embedding: Tensor
    added_time_ids: Tensor

    def unconditional(self) -> Cond:
        """The branch that guidance moves away from: no first frame, no image embedding (SVD)."""
        return Cond(
            torch.zeros_like(self.first),
            self.source,
            torch.zeros_like(self.image_embedding),
            self.added_time_ids,
        )

    def to(self, device: torch.device | str) -> Cond:
        return Cond(*(getattr(self, f.name).to(device) for f in fields(self)))


class NetOut(NamedTuple):
    """What a network returns.

    Attributes:
        velocity: the prediction F of EDM's eq. 7 (v-prediction for SVD), `[B, T, C, h, w]`.
        mask_logits: where the edit is, before the sigmoid, `[B, T, 1, h, w]`.
    """

    velocity: Tensor
    mask_logits: Tensor


class Net(Protocol):
    """A denoising network on any backend: torch, ONNX Runtime or TensorRT.

    `sample` is `c_in * x` and `timestep` is `c_noise`, `[B]`: all EDM arithmetic stays outside
    (`edm.Denoiser`), so backends are interchangeable and parity is checked here. `added_time_ids` is
    `[B, 3]`, or `[B, 4]` with the task (see `Cond`).
    """

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut: ...
