"""One model at one step count over a list of clips: its times and its quality.

Frames are judged as they come out of the decoder: nothing is composited. Clips go one at a time, as a
person's video does, so times are those of batch 1, and every run of a clip starts from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import SeedSequence
from torch import Tensor

from genprop.evaluate.report import Regions, Run, Seconds
from genprop.metrics import EndpointPsnr, MaskIoU, RegionPsnr, Sharpness
from genprop.pixels import to_pixels, to_uint8
from genprop.runtime.backends import Stages
from genprop.runtime.composite import upsample_mask
from genprop.runtime.sample import WindowResult, sample_window
from genprop.types import EditSample


@dataclass(frozen=True)
class Result:
    """A run and what it made of each clip: frames uint8 `[T, H, W, 3]`, masks bool `[T, H, W]`."""

    run: Run
    frames: list[np.ndarray]
    masks: list[np.ndarray]


def noise_seed(seed: int, index: int) -> int:
    """Of clip `index`; as independent of all other clips' and seeds' as a hash."""
    return int(SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def run_clip(
    stages: Stages, example: EditSample, *, steps: int, seed: int, deterministic: bool = False
) -> WindowResult:
    """A clip through a model. Its initial noise is drawn before any that re-noises: one seed, one start."""
    return sample_window(
        stages,
        to_pixels(torch.from_numpy(example.source))[None],
        to_pixels(torch.from_numpy(example.edited))[None],
        steps=steps,
        generator=torch.Generator().manual_seed(seed),
        deterministic=deterministic,
    )


def measure(
    stages: Stages,
    samples: Sequence[EditSample],
    *,
    steps: int,
    seed: int,
    endpoints: Sequence[Tensor] = (),
    after_clip: Callable[[], None] = lambda: None,
) -> tuple[Result, list[Tensor]]:
    """One model at one step count over all clips.

    Args:
        seed: of all noise; see `noise_seed`.
        endpoints: latents that the teacher's full sampling of each clip ended in, on the same backend.
            With none given, there is no `endpoint_db`.
        after_clip: called after each clip.

    Returns:
        The result, and the latents of each clip's sample.
    """
    quality, iou, sharpness, endpoint = RegionPsnr(), MaskIoU(), Sharpness(), EndpointPsnr()
    windows, frames, masks = [], [], []
    for index, example in enumerate(samples):
        noise = noise_seed(seed, index)
        window = run_clip(stages, example, steps=steps, seed=noise)
        height, width = example.mask.shape[1:]
        windows.append(window)
        frames.append(pixels_of(window.frames))
        masks.append(upsample_mask(window.mask_logits, height=height, width=width) > 0.5)
        quality.add(frames[-1], example.target, example.mask)
        sharpness.add(frames[-1], example.target, example.mask)
        iou.add(masks[-1], example.mask)
        if endpoints:
            # A teacher's samples are deterministic, and so is a single step: no fresh noise is drawn.
            if stages.kind == "student" and steps > 1:
                window = run_clip(stages, example, steps=steps, seed=noise, deterministic=True)
            endpoint.add(window.latents, endpoints[index])
        after_clip()
    run = Run(
        name=stages.kind,
        backend=stages.backend,
        steps=steps,
        evaluations=windows[0].evaluations,
        seconds=median_seconds([window.seconds for window in windows]),
        hole_psnr=quality.hole,
        keep_psnr=quality.keep,
        mask_iou=iou.value,
        sharpness=sharpness.value,
        endpoint_db=endpoint.value,
    )
    return Result(run, frames, masks), [window.latents for window in windows]


def measure_frames(make: Callable[[EditSample], np.ndarray], samples: Sequence[EditSample]) -> Regions:
    """The PSNR of whatever `make` makes of each sample: frames like its source."""
    quality = RegionPsnr()
    for example in samples:
        quality.add(make(example), example.target, example.mask)
    return Regions(hole_psnr=quality.hole, keep_psnr=quality.keep)


def measure_ceiling(stages: Stages, samples: Sequence[EditSample]) -> Regions:
    """The truth through the autoencoder: what no model on these latents can exceed but by chance."""

    def through(example: EditSample) -> np.ndarray:
        truth = to_pixels(torch.from_numpy(example.target))[None]
        return pixels_of(stages.decode(stages.encode(truth) * stages.scaling_factor))

    return measure_frames(through, samples)


def pixels_of(frames: Tensor) -> np.ndarray:
    """`[1, T, 3, H, W]` in [-1, 1] to uint8 `[T, H, W, 3]`."""
    return to_uint8(frames[0]).cpu().numpy()


def median_seconds(clips: Sequence[Mapping[str, float]]) -> Seconds:
    """Each stage's median over the clips: one clip that the machine was busy in does not count."""
    names = ("encode", "denoise", "decode", "total")
    return Seconds(**{name: float(np.median([seconds[name] for seconds in clips])) for name in names})
