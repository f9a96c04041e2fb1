"""The types that every part shares.

Shapes: B batch, T frames, C channels, H W pixels, h w latent pixels, D embedding width. Video tensors
are `B T C H W` everywhere; uint8 pixels `T H W 3` exist only at the border, in `Clip` and `EditSample`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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


TASK, GUIDANCE = 3, 4
"""Which column of `added_time_ids` holds the task, and which the guidance scale."""


def time_ids(clip: ClipConfig, task: str | None = None, guidance: float | None = None) -> Tensor:
    """What a network is told in numbers, the row of `added_time_ids` (see `Cond`): `[3]`, `[4]` or `[5]`.

    With a guidance scale but no task, the task's column holds 0, which nothing reads.
    """
    values = [clip.fps - 1, clip.motion_bucket, clip.noise_aug]
    if task is not None or guidance is not None:
        values.append(0 if task is None else TASKS.index(task))
    if guidance is not None:
        values.append(guidance)
    return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True)
class MaskedClip:
    """A window of a clip and one object in it, from which a pair can be made.

    Attributes:
        frames: uint8 RGB, `[T, H, W, 3]`.
        mask: the object, bool `[T, H, W]`; empty in frames it is not in.
        caption: what the clip shows, or "".
    """

    frames: np.ndarray
    mask: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class EditSample:
    """One training or evaluation example of a propagated edit.

    Attributes:
        source: the original video, uint8 `[T, H, W, 3]`.
        target: the video with the edit in every frame, uint8 `[T, H, W, 3]`.
        mask: where the two may differ, effects of the object included, bool `[T, H, W]`.
        task: the kind of edit, one of `TASKS`.
        caption: what the target shows, or "".
    """

    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray
    task: str = "remove"
    caption: str = ""

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
        added_time_ids: (fps - 1, motion bucket, noise augmentation), SVD's micro-conditioning, `[B, 3]`; then
            the index of the kind of edit in `TASKS`, `[B, 4]`; then the guidance scale, `[B, 5]`. A column
            means the same to all: a network with `net.tasks` needs the fourth, one with `net.guidance` the
            fifth, whether it reads the fourth or not, and what a network does not know it does not read.
            Encoded samples have four.
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

    def with_guidance(self, scale: Tensor) -> Cond:
        """This condition with the guidance scale of each sample, `[B]`; one that it had is replaced."""
        ids = self.added_time_ids[:, :GUIDANCE]
        scale = scale.to(ids).unsqueeze(1)
        task = ids.new_zeros(len(ids), GUIDANCE - ids.shape[1])
        return replace(self, added_time_ids=torch.cat([ids, task, scale], dim=1))

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
    `[B, 3]`, `[B, 4]` or `[B, 5]` (see `Cond`).
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
