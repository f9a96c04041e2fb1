"""EDM in the parameterisation of Stable Video Diffusion (Karras et al. 2022, arXiv:2206.00364).

Every sigma in the package is float32 and every bit of EDM arithmetic is in this file, so a network is
only `F(c_in x, c_noise)` and torch, ONNX Runtime and TensorRT are interchangeable behind `Denoiser`.
SVD is a v-prediction model with sigma_data = 1:

    c_skip = 1 / (s^2 + 1)    c_out = -s / sqrt(s^2 + 1)    c_in = 1 / sqrt(s^2 + 1)    c_noise = ln(s) / 4
    x0 = c_skip x + c_out F(c_in x, c_noise)

Shapes: `x`, `x0`, `velocity` are `[B, T, C, h, w]`; `sigma` is `[B]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from genprop.draws import Draws
from genprop.types import Cond, Net


class Preconditioning(NamedTuple):
    """The four factors of EDM's Table 1, each shaped to multiply `[B, T, C, h, w]` (c_noise: `[B]`)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """The factors for `sigma` `[B]`, all of them above 0."""
    sigma = sigma.float()
    s = sigma.view(-1, 1, 1, 1, 1)
    c_in = (s**2 + 1).rsqrt()
    return Preconditioning(c_in**2, -s * c_in, c_in, sigma.log() / 4)


def velocity_target(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """What the network has to return for `x = x0 + sigma n`: `(x0 - c_skip x) / c_out` (EDM eq. 8)."""
    p = precondition(sigma)
    return (x0 - p.c_skip * x) / p.c_out


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`x0 + sigma noise`, in float32."""
    return x0.float() + sigma.float().view(-1, 1, 1, 1, 1) * noise.float()


def sample_sigma(draws: Draws, *, mean: float, std: float) -> Tensor:
    """Training noise levels, `ln s ~ N(mean, std^2)` (EDM 5; SVD-XT: 0.7 and 1.6). Returns `[B]`."""
    return (mean + std * draws.randn()).exp()


def karras_sigmas(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """`steps` falling noise levels and a final 0 (EDM eq. 5). Returns float32 `[steps + 1]`."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


class Denoiser(Protocol):
    """`(x, sigma, cond) -> (x0, mask_logits)`."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class NetDenoiser:
    """A network as a denoiser. At sigma 0 the form satisfies `f(x, 0) = x`: no boundary scaling is needed."""

    net: Net

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        p = precondition(sigma)
        out = self.net(
            p.c_in * x, p.c_noise, cond.first, cond.source, cond.image_embedding, cond.added_time_ids
        )
        return p.c_skip * x + p.c_out * out.velocity.float(), out.mask_logits.float()


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance whose scale rises linearly over the frames, as SVD's does.

    Two evaluations, one after the other: an exported graph has a fixed batch. The mask is the
    conditional branch's.

    Attributes:
        minimum: the scale of the first frame.
        maximum: of the last; one for all samples, or each sample's own, `[B]`.
    """

    denoiser: Denoiser
    minimum: float = 1.0
    maximum: float | Tensor = 3.0

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        x0, mask_logits = self.denoiser(x, sigma, cond)
        base, _ = self.denoiser(x, sigma, cond.unconditional())
        return base + self._scale(x.shape[1], x.device) * (x0 - base), mask_logits

    def _scale(self, frames: int, device: torch.device) -> Tensor:
        """`[1, T, 1, 1, 1]`, or `[B, T, 1, 1, 1]` where each sample has its own."""
        if isinstance(self.maximum, Tensor):
            rise = torch.linspace(0, 1, frames, device=device)
            scale = self.minimum + rise * (self.maximum.to(rise)[:, None] - self.minimum)
        else:
            scale = torch.linspace(self.minimum, self.maximum, frames, device=device)[None]
        return scale[..., None, None, None]


@dataclass(frozen=True)
class Anchored:
    """A denoiser that is told what is known: after each evaluation x0 moves there, as far as it is trusted.

    So what a guide knows enters any network, exported ones too, without a change to it; what is not known is
    made to fit, since the network sees the known at every following step.

    Attributes:
        known: scaled latents, `[B, T, C, h, w]`.
        trust: in [0, 1], `[B, T, 1, h, w]`.
    """

    denoiser: Denoiser
    known: Tensor
    trust: Tensor

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        x0, mask_logits = self.denoiser(x, sigma, cond)
        return x0 + self.trust * (self.known - x0), mask_logits
