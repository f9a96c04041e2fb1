"""A student that can be told its guidance scale: the embedding put on a clone, and its configuration.

A teacher has none: it is guided by two evaluations. So `teacher.guidance.GuidanceEmbedding` comes onto the
clone, where it starts without effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genprop.config import Config
from genprop.edm import Denoiser
from genprop.teacher.guidance import GuidanceEmbedding
from genprop.teacher.net import GenPropNet
from genprop.types import Cond


def with_guidance(net: GenPropNet, *, seed: int = 0) -> GenPropNet:
    """Give a network the embedding of the guidance scale, in place; one that has it keeps it.

    Args:
        seed: of its weights, the same in every process.

    Returns:
        `net`, which trains the embedding with the rest.
    """
    if net.guidance is None:
        like = next(net.mpd.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net.guidance = GuidanceEmbedding(4 * net.backbone.config["block_out_channels"][0]).to(like.device)
    return net


def guided_config(config: Config) -> Config:
    """The configuration of such a student: `net.guidance` is on, so that its bundle is read with one."""
    return config.model_copy(update={"net": config.net.model_copy(update={"guidance": True})})


@dataclass(frozen=True)
class Told:
    """A student as a denoiser that is told the usual guidance scale, if it has to be told one."""

    denoiser: Denoiser
    config: Config

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        if self.config.net.guidance:
            scale = self.config.sampling.guidance_max
            cond = cond.with_guidance(torch.full((len(x),), scale, device=x.device))
        return self.denoiser(x, sigma, cond)
