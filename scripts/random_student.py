"""A student of random weights, of any preset: what export and runtime are tried and timed on at full size.

    python scripts/random_student.py svd-xt OUT [--reduce 8] [--set clip.frames=3 ...]

Writes OUT/base (diffusers' layout, fp16) and OUT/student. What starts at zero is random, too, so that nothing
in the network is without effect. `--reduce N` divides every width by N. One part is in memory at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genprop.bundle import write_bundle
from genprop.config import Config, load_config
from genprop.student.clone import trained_tensors
from genprop.teacher.base import new_vae
from genprop.teacher.net import GenPropNet
from genprop.teacher.unet import Backbone

SIGMAS = {1: (700.0,), 2: (700.0, 2.0), 4: (700.0, 40.0, 6.0, 1.0)}


def reduced(config: Config, factor: int) -> Config:
    """The same architecture, its widths divided and rounded up to what norms of 32 groups take."""

    def narrower(widths: list[int]) -> list[int]:
        return [max(64, -(-width // factor // 32) * 32) for width in widths]

    unet: dict[str, Any] = dict(config.base.unet or {})
    vae: dict[str, Any] = dict(config.base.vae or {})
    clip: dict[str, Any] = dict(config.base.image_encoder or {})
    unet["block_out_channels"] = narrower(unet["block_out_channels"])
    unet["num_attention_heads"] = [2] * len(unet["num_attention_heads"])
    unet["cross_attention_dim"] = clip["projection_dim"] = max(32, clip["projection_dim"] // factor)
    vae["block_out_channels"] = narrower(vae["block_out_channels"])
    clip |= {side: clip[side] // factor for side in ("hidden_size", "intermediate_size")}
    clip |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    base = config.base.model_copy(update={"unet": unet, "vae": vae, "image_encoder": clip})
    return config.model_copy(update={"base": base})


@torch.no_grad()
def materialise(module: nn.Module, generator: torch.Generator, *, dtype: torch.dtype) -> Any:
    """Fill a module that was built on no device: matrices by their fan-in, norms and biases about 1 and 0."""
    module.to(dtype).to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(drawn / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(0.02 * drawn + float("norm" in name and name.endswith("weight")))
    return module


def clip_of(**settings: Any) -> nn.Module:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))


def write_student(config: Config, out: Path, *, seed: int = 0) -> Path:
    """A base and a student of it below `out`."""
    config = config.model_copy(update={"base": config.base.model_copy(update={"variant": None})})
    base, generator, half = config.base, torch.Generator().manual_seed(seed), torch.float16
    for part, kind, settings in (
        ("unet", UNetSpatioTemporalConditionModel, base.unet),
        ("vae", new_vae, base.vae),
        ("image_encoder", clip_of, base.image_encoder),
    ):
        with torch.device("meta"):
            module = kind(**(settings or {}))
        materialise(module, generator, dtype=half).save_pretrained(out / "base" / part)
        del module
    with torch.device("meta"):
        net = GenPropNet(Backbone(**(base.unet or {})), config.net, config.sce)
        net.backbone = nn.Module()  # a bundle holds what was trained beside it
    write_bundle(
        out / "student",
        kind="student",
        config=config,
        base=out / "base",
        tensors=trained_tensors(materialise(net, generator, dtype=half), backbone=False),
        sigmas=SIGMAS,
        dtype=half,
    )
    return out / "student"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--reduce", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    preset = load_config(arguments.preset, arguments.overrides)
    if arguments.reduce > 1:
        preset = reduced(preset, arguments.reduce)
    print(write_student(preset, arguments.out, seed=arguments.seed))
