"""One window of a clip at the model's own size: encode, sample, decode, each of them timed.

Everything that turns frames into frames is here, for any backend; what a person's video needs besides
(its size, its length, compositing) is `propagate`'s. The evaluation measures this function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from genprop.edm import Anchored, Denoiser, Guided, NetDenoiser, karras_sigmas
from genprop.errors import GenPropError
from genprop.runtime.backends import Stages
from genprop.sampling import consistency, euler
from genprop.types import TASKS, Cond, Net, NetOut, time_ids

FEW = 4
"""A student takes its most steps up to this many where none are asked for."""


@dataclass(frozen=True)
class WindowResult:
    """One sampled window, on the device of the stages.

    Attributes:
        frames: `[1, T, 3, H, W]` in about [-1, 1]; the first is the edited frame, given.
        mask_logits: `[1, T, 1, h, w]`.
        latents: the scaled x0 that was decoded, `[1, T, C, h, w]`.
        seconds: of encode, denoise and decode, and their total.
        evaluations: how often the network ran.
    """

    frames: Tensor
    mask_logits: Tensor
    latents: Tensor
    seconds: dict[str, float]
    evaluations: int


@dataclass(frozen=True)
class Denoised:
    """One sampled window before it is decoded; see `WindowResult`. `seconds` are of encode and denoise."""

    latents: Tensor
    mask_logits: Tensor
    seconds: dict[str, float]
    evaluations: int


def schedule(stages: Stages, steps: int | None) -> Tensor:
    """The sigmas of a sampling, float32 `[N + 1]`, the last of them 0.

    A teacher takes any number of Karras' nodes; a student only the schedules its bundle holds.

    Raises:
        GenPropError: a number of steps below 1, or one that the student does not know.
    """
    if stages.kind == "teacher":
        sampling = stages.config.sampling
        count = sampling.steps if steps is None else steps
        if count < 1:
            raise GenPropError(f"steps is {count}, expected at least 1", f"{sampling.steps} is usual.")
        return karras_sigmas(
            count, sigma_min=sampling.sigma_min, sigma_max=sampling.sigma_max, rho=sampling.rho
        )
    if not stages.sigmas:
        raise GenPropError("the student's bundle holds no sigmas, expected them for each number of steps")
    known = sorted(stages.sigmas)
    if steps is None:
        steps = max((n for n in known if n <= FEW), default=known[0])
    if steps not in stages.sigmas:
        raise GenPropError(
            f"the student does not know {steps} steps, expected one of {', '.join(map(str, known))}",
            "Choose one of these; the teacher takes any number.",
        )
    return torch.tensor([*stages.sigmas[steps], 0.0], dtype=torch.float32)


def evaluations_of(stages: Stages, steps: int | None) -> int:
    """How often the network runs for one window: once a step, twice where guidance is on (a teacher)."""
    return (len(schedule(stages, steps)) - 1) * (2 if stages.kind == "teacher" else 1)


@torch.no_grad()
def denoise_window(
    stages: Stages,
    source: Tensor,
    edited: Tensor,
    *,
    steps: int | None = None,
    generator: torch.Generator,
    noise: Tensor | None = None,
    task: str = TASKS[0],
    guidance: float | None = None,
    deterministic: bool = False,
    known: tuple[Tensor, Tensor] | None = None,
    evaluated: Callable[[], None] | None = None,
) -> Denoised:
    """Sample one window at the model's size, up to its latents.

    The generator is drawn from in the order of diffusers' pipeline for SVD: the augmentation of the
    first frame, then the noise of the latents, then the fresh noise of each step (a student whose eta for
    so many steps is above 0).

    Args:
        source: the original frames, `[1, T, 3, H, W]` in [-1, 1].
        edited: the edited first frame, `[1, 3, H, W]` in [-1, 1].
        steps: see `schedule`.
        noise: standard normal `[1, T, C, h, w]` to start from, instead of the generator's.
        task: the kind of edit, for a network that is told of it.
        guidance: the scale of the last frame, for a teacher or a network that is told of it; None is the
            configuration's (`Config.guidance`).
        deterministic: a student follows the ODE instead of drawing fresh noise, as a teacher does anyway.
        known: what a guide knows of the frames, `[1, T, 3, H, W]` in [-1, 1], and how far each of its pixels
            is to be trusted, `[1, T, H', W']` of any size; see `edm.Anchored`.
        evaluated: called after each evaluation of the network.
    """
    clip = stages.config.clip
    assert source.shape == (1, clip.frames, 3, clip.height, clip.width) and edited.shape == source[:, 0].shape
    device = stages.device
    source, edited = source.to(device), edited.to(device)
    sigmas = schedule(stages, steps)
    told, scale = stages.config.net, stages.config.guidance if guidance is None else guidance
    clock = Clock(device)
    net = _Counted(stages.net, evaluated)

    with clock.stage("encode"):
        augmented = edited + clip.noise_aug * _randn(edited.shape, generator, device)
        # All at once: an engine's window has as many frames whether they are needed or not.
        encoded = stages.encode(torch.cat([augmented[:, None], source], dim=1))
        anchor = None
        if known is not None:
            guess = torch.cat([known[0][:, :1], known[0]], dim=1)  # as many frames as an engine's window
            latents = stages.encode(guess.to(device))[:, 1:] * stages.scaling_factor
            # A cell is known as a whole or hardly at all: a half of one says little of the other.
            share = F.interpolate(known[1], size=latents.shape[-2:], mode="area") ** 4
            anchor = latents, share.unsqueeze(2).to(device)
        cond = Cond(
            first=encoded[:, :1].expand(-1, clip.frames, -1, -1, -1).contiguous(),
            source=encoded[:, 1:] * stages.scaling_factor,
            image_embedding=stages.embed(edited),
            added_time_ids=time_ids(clip, task if told.tasks else None, scale if told.guidance else None)[
                None
            ].to(device),
        )
    noise = _randn(cond.source.shape, generator, device) if noise is None else noise.to(device)
    with clock.stage("denoise"):
        denoiser: Denoiser = NetDenoiser(net)
        if stages.kind == "teacher":
            denoiser = Guided(denoiser, stages.config.sampling.guidance_min, scale)
        if anchor is not None:
            denoiser = Anchored(denoiser, *anchor)
        if stages.kind == "teacher":
            latents, mask_logits = euler(denoiser, noise, sigmas, cond)
        else:
            fresh = None if deterministic else generator
            eta = stages.eta.get(len(sigmas) - 1, 1.0)
            latents, mask_logits = consistency(denoiser, noise, sigmas, cond, generator=fresh, eta=eta)
    return Denoised(latents, mask_logits, clock.seconds, net.evaluations)


@torch.no_grad()
def sample_window(
    stages: Stages,
    source: Tensor,
    edited: Tensor,
    *,
    steps: int | None = None,
    generator: torch.Generator,
    noise: Tensor | None = None,
    task: str = TASKS[0],
    guidance: float | None = None,
    deterministic: bool = False,
    evaluated: Callable[[], None] | None = None,
) -> WindowResult:
    """Sample one window and decode it. Arguments are those of `denoise_window`."""
    done = denoise_window(
        stages,
        source,
        edited,
        steps=steps,
        generator=generator,
        noise=noise,
        task=task,
        guidance=guidance,
        deterministic=deterministic,
        evaluated=evaluated,
    )
    clock = Clock(stages.device)
    with clock.stage("decode"):
        decoded = stages.decode(done.latents)
    frames = torch.cat([edited[:, None].to(stages.device), decoded[:, 1:].float()], dim=1)
    seconds = {**done.seconds, **clock.seconds}
    seconds["total"] = sum(seconds.values())
    return WindowResult(frames, done.mask_logits, done.latents, seconds, done.evaluations)


@dataclass
class _Counted:
    """A network that counts its evaluations."""

    net: Net
    evaluated: Callable[[], None] | None = None
    evaluations: int = 0

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        out = self.net(sample, timestep, first, source, image_embedding, added_time_ids)
        self.evaluations += 1
        if self.evaluated is not None:
            self.evaluated()
        return out


@dataclass
class Clock:
    """Wall time by stage. A GPU runs behind the program, and the stream in use is waited for at both ends."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter()


def _randn(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Drawn where the generator is, so that a seed means the same on every device."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)
