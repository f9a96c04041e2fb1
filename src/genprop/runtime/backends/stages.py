"""What a backend gives to the runtime: the stages of a model as plain functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from genprop.chunks import by_windows
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.manifest import SizeRange
from genprop.types import Net


@dataclass(frozen=True)
class Stages:
    """An opened model. Its functions take tensors of any device and return them on `device`.

    None of them records a gradient.

    Attributes:
        backend: "torch", "compile", "onnxruntime", "tensorrt" or "tensorrt-rtx".
        kind: "teacher" or "student".
        config: the model's configuration.
        sigmas: few-step noise levels by number of steps, without the final 0; empty for a teacher.
        scaling_factor: what unscaled latents are multiplied by to be denoised.
        net: the denoising network.
        encode: frames `[1, T, 3, H, W]` in [-1, 1], any number, to unscaled latents `[1, T, C, h, w]`.
        decode_window: scaled latents `[1, t, C, h, w]` to frames `[1, t, 3, H, W]`, as one window of `chunk`
            frames or of a whole shorter clip.
        chunk, overlap: frames in a window of the decoder, and how many neighbours share.
        embed: a frame `[1, 3, H, W]` in [-1, 1] to its embedding `[1, 1, D]`.
        eta: share of fresh noise in few-step sampling, by number of steps; 1 where none is named.
        sizes: between which frame sizes it works; None where the configuration's is the only one.
        concurrent: whether two of the functions may run at once, in two threads.
        why: why this backend was taken, for a person.
    """

    backend: str
    kind: str
    config: Config
    sigmas: Mapping[int, tuple[float, ...]]
    scaling_factor: float
    net: Net
    encode: Callable[[Tensor], Tensor]
    decode_window: Callable[[Tensor], Tensor]
    chunk: int
    embed: Callable[[Tensor], Tensor]
    device: torch.device
    overlap: int = 0
    eta: Mapping[int, float] = field(default_factory=dict)
    sizes: SizeRange | None = None
    concurrent: bool = True
    why: str = ""

    def resized(self, height: int, width: int) -> Stages:
        """The same model for frames of another size, in pixels.

        Raises:
            GenPropError: it does not work at that size.
        """
        clip = self.config.clip
        if (height, width) == (clip.height, clip.width):
            return self
        if self.sizes is None:
            raise GenPropError(
                f"the size is {height}x{width} (height x width), but the model has one, "
                f"{clip.height}x{clip.width}",
                "leave --size out, or export with --min-size and --max-size",
            )
        self.sizes.check(height, width)
        sized = clip.model_copy(update={"height": height, "width": width})
        return replace(self, config=self.config.model_copy(update={"clip": sized}))

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents `[1, T, C, h, w]` to frames `[1, T, 3, H, W]`, window by window."""
        return by_windows(self.decode_window, latents, self.chunk, overlap=self.overlap)
