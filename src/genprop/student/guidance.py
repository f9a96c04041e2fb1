"""A student that can be told its guidance scale: the embedding put on a clone, and its configuration.

A teacher has none: it is guided by two evaluations. So `teacher.guidance.GuidanceEmbedding` comes onto the
clone, where it starts without effect.
"""

from __future__ import annotations

import torch

from genprop.config import Config
from genprop.teacher.guidance import GuidanceEmbedding
from genprop.teacher.net import GenPropNet


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
