"""What no frame shows is made by the model, in a crop around it, with what the guide knows put in.

A window of frames is one crop of the model's aspect around all that is unseen in it, at a useful scale: the
model never sees the whole frame squashed. Windows without unseen pixels need no model at all.

Shapes: T frames, H W pixels of the video, h w latent cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from genprop.guide.geometry import Region, place
from genprop.guide.propagation import Guided
from genprop.pixels import to_pixels
from genprop.runtime.backends import Stages
from genprop.runtime.composite import resize
from genprop.runtime.sample import denoise_window

CONTEXT = 1.8
"""A crop is so many times as large as what is unseen in it, at least at the model's own size."""


class Sampling(NamedTuple):
    """How the model samples: its steps and its guidance scale; None is the model's own (`denoise_window`)."""

    steps: int | None = None
    guidance: float | None = None


def crop_around(unseen: np.ndarray, *, height: int, width: int) -> Region:
    """The crop for a window: its aspect is `width / height`, and it lies in the frame if it fits.

    Args:
        unseen: bool `[H, W]`, all frames' together, not empty.
        height, width: the model's.
    """
    (x, y), across, down = place(unseen)
    scale = max(CONTEXT * across / width, CONTEXT * down / height, 1.0)
    size = round(scale * width), round(scale * height)
    region = Region.about((x, y), *size)
    limits = unseen.shape[1] - size[0], unseen.shape[0] - size[1]
    x0, y0 = (
        int(np.clip(at, 0, most)) if most >= 0 else most // 2
        for at, most in zip((region.x, region.y), limits, strict=True)
    )
    return Region(x0, y0, *size)


def generate(
    stages: Stages,
    window: Sequence[Guided],
    first: np.ndarray,
    *,
    sampling: Sampling,
    generator: torch.Generator,
) -> tuple[list[np.ndarray], int]:
    """The model's frames of a window, float32 `[H, W, 3]` each, of use where its crop is.

    Returns them, and how often the network ran.

    Args:
        window: at most as many frames as the model has; the first of them is finished.
        first: that frame, uint8 `[H, W, 3]`.
    """
    clip = stages.config.clip
    unseen = np.any([item.unseen for item in window], axis=0)
    region = crop_around(unseen, height=clip.height, width=clip.width)
    length = clip.frames
    items = [*window, *[window[-1]] * (length - len(window))]

    def crops(frames: Sequence[np.ndarray]) -> Tensor:
        cut = np.stack([region.cut(frame) for frame in frames])
        return to_pixels(torch.from_numpy(resize(cut, height=clip.height, width=clip.width)))[None]

    known = crops([first, *(item.known for item in items[1:])])
    trust = np.stack([region.cut(item.trust) for item in items])
    trust[0] = 1
    done = denoise_window(
        stages,
        crops([item.tracked.original for item in items]),
        known[:, 0],
        steps=sampling.steps,
        guidance=sampling.guidance,
        generator=generator,
        known=(known, torch.from_numpy(trust)[None]),
    )
    pixels = stages.decode(done.latents)[0].movedim(1, -1).float().cpu().numpy()
    made = []
    for item, small in zip(window, (pixels + 1) * 127.5, strict=False):
        frame = item.known.astype(np.float32)
        large = cv2.resize(small, (region.width, region.height), interpolation=cv2.INTER_CUBIC)
        region.paste(large, frame)
        made.append(frame)
    return made, done.evaluations
