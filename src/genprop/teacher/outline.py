"""The trainings of `genprop train` as outlines: their modules, their batches and what runs, without contents.

It is `teacher.train` in short, for the memory plan: each objective is the real one, made on whatever device
is the default (`plan` makes it on the meta device), and fed with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genprop.config import Config
from genprop.data.captions import encode_caption
from genprop.data.latents import Batch
from genprop.draws import Draws
from genprop.edm import Denoiser, Guided, NetDenoiser
from genprop.errors import GenPropError
from genprop.hub import EMBEDDED, HUB_ID, PARTS, locate
from genprop.settings import BaseConfig, TrainConfig
from genprop.teacher.base import AutoencoderObjective, BackboneObjective, Base, new_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import CarryObjective, TeacherObjective

Stage = Literal["autoencoder", "backbone", "carry", "teacher"]

ENCODE, SAMPLE, DECODE = "encode", "validation sample", "decode"


@dataclass(frozen=True)
class How:
    """What the configuration does not say.

    Attributes:
        devices: processes, one on each.
        sharded: whether they share out the weights (FSDP), or each has them all.
        cuda: whether the device is CUDA's; if not, it is a CPU.
    """

    devices: int = 1
    sharded: bool = False
    cuda: bool = True


@dataclass(frozen=True)
class Call:
    """What runs without gradients: before the fit, within its steps, or in its validation.

    Validation is under autocast, and while it runs the weights that train are kept aside for their EMA.
    """

    run: Callable[[], Any]
    when: Literal["before", "step", "validation"] = "validation"


@dataclass(frozen=True)
class Training:
    """A training on modules without contents.

    Attributes:
        objective: whose parameters `fit` trains.
        others: what is on the device beside it, by name.
        loss: the forward pass of one micro-batch.
        calls: what else runs.
    """

    settings: TrainConfig
    objective: nn.Module
    others: dict[str, nn.Module]
    loss: Callable[[], Tensor]
    calls: dict[str, Call] = field(default_factory=dict)


def outline(config: Config, stage: Stage, how: How) -> Training:
    """A stage of `genprop train`.

    Raises:
        GenPropError: the stage is the carry's, and the configuration has none.
    """
    if stage == "carry" and not config.net.carry:
        raise GenPropError("net.carry is 0, so there is no carry to train", "for example --set net.carry=56")
    base = frozen_base(config, how)
    if stage == "autoencoder":
        return _autoencoder(config, base)
    settings = {"backbone": config.backbone, "carry": config.carry, "teacher": config.teacher}[stage]
    calls = encoding(config, base)
    if stage == "backbone":
        base.backbone.requires_grad_(True)
        base.image_encoder.requires_grad_(True)
        objective: nn.Module = BackboneObjective(base.backbone, base.image_encoder, config)
    else:
        net = GenPropNet(base.backbone, config.net, config.sce)
        region = TeacherObjective(net, base.image_encoder, config)
        sampling = config.sampling
        guided = Guided(NetDenoiser(net), sampling.guidance_min, sampling.guidance_max)
        if stage == "carry":
            objective = CarryObjective(region)
            net.requires_grad_(False)
            assert net.carry is not None
            net.carry.requires_grad_(True)
        else:
            objective = region
            calls |= validation(config, base, region, guided)
    loss = batch_loss(objective, config, base, settings)
    return Training(settings, objective, {"autoencoder": base.autoencoder}, loss, calls)


def _autoencoder(config: Config, base: Base) -> Training:
    """The autoencoder on single frames, all of it; nothing else is there."""
    base.autoencoder.requires_grad_(True)
    objective, clip = AutoencoderObjective(base.autoencoder), config.clip
    count = config.autoencoder.batch_size

    def loss() -> Tensor:
        frames = torch.zeros(count, clip.height, clip.width, 3, dtype=torch.uint8)
        return objective(frames, Draws.of(0, count))["loss"]

    return Training(config.autoencoder, objective, {}, loss)


def encoding(config: Config, base: Base) -> dict[str, Call]:
    """The encoding of a clip, in full precision: before the fit, or in the step where there is no cache."""
    when = "before" if config.data.cache else "step"
    return {ENCODE: Call(lambda: base.autoencoder.encode_scaled(empty_clip(config)), when)}


def batch_loss(
    objective: nn.Module, config: Config, base: Base, settings: TrainConfig, **more: tuple[int, ...]
) -> Callable[[], Tensor]:
    """The forward pass of one micro-batch of encoded samples.

    Args:
        more: shapes of what else is in a sample.
    """
    count = settings.batch_size

    def loss() -> Tensor:
        batch = empty_batch(config, base, count)
        batch |= {name: torch.zeros(count, *shape).half() for name, shape in more.items()}
        return objective(batch, Draws.of(0, count))["loss"]

    return loss


def validation(config: Config, base: Base, region: TeacherObjective, denoiser: Denoiser) -> dict[str, Call]:
    """One step of the sampler on the whole held-out batch, and the decoding of one clip."""
    count = config.data.validation

    def sample() -> None:
        inputs = region.inputs(empty_batch(config, base, count), None)
        denoiser(torch.zeros_like(inputs.target), torch.ones(count), inputs.cond)

    def decode() -> None:
        base.autoencoder.decode(empty_batch(config, base, 1)["target"].float())

    return {SAMPLE: Call(sample), DECODE: Call(decode)}


def frozen_base(config: Config, how: How) -> Base:
    """The base, as `load_base` returns it."""
    base = new_base(config.base, seed=0)
    for module in base:
        module.requires_grad_(False).eval()
    return base


def empty_batch(config: Config, base: Base, count: int) -> Batch:
    """A batch as the latent cache gives it."""
    clip, cell = config.clip, base.autoencoder.downsampling
    grid = (base.autoencoder.vae.config["latent_channels"], clip.height // cell, clip.width // cell)
    video, frame = torch.zeros(count, clip.frames, *grid).half(), torch.zeros(count, *grid).half()
    image = torch.zeros(count, 3, base.image_encoder.size, base.image_encoder.size).half()
    return {
        "source": video,
        "target": video.clone(),
        "first": frame,
        "source_first": frame.clone(),
        "image": image,
        "embedding": torch.zeros(count, 1, base.image_encoder.clip.config.projection_dim),
        "source_image": image.clone(),
        "mask": torch.zeros(count, clip.frames, clip.height, clip.width, dtype=torch.bool),
        "added_time_ids": torch.zeros(count, 4),
        "caption": encode_caption("").repeat(count, 1),
    }


def empty_clip(config: Config) -> Tensor:
    """Pixels of a clip, `[1, T, 3, H, W]`."""
    return torch.zeros(1, config.clip.frames, 3, config.clip.height, config.clip.width)


def architecture(config: Config, base: str | Path | None = None) -> BaseConfig:
    """What the base is: as its own config.json files have it, else as the configuration's tables do.

    Args:
        base: a folder, an embedded name or a hub id, as for `load_base`; nothing is downloaded.

    Raises:
        GenPropError: neither is there.
    """
    name = base if base is not None else config.base.path
    found = {part: _stored(name, part) for part in PARTS} if name is not None else {}
    tables = {part: found.get(part) or config.base.model_dump(include={part})[part] for part in PARTS}
    if missing := [part for part, table in tables.items() if table is None]:
        raise GenPropError(
            f"the base {name} is not here, and [base.{missing[0]}] is not set: expected either",
            "give a folder with --base, or describe it in the tables of the configuration, as svd-xt does",
        )
    return config.base.model_copy(update=tables)


def _stored(name: str | Path, part: str) -> dict[str, Any] | None:
    """The config.json of a part of a base that is on this machine, as `new_base` takes it."""
    if str(name) in EMBEDDED or Path(name).is_dir():
        file = locate(name) / part / "config.json"
    elif HUB_ID.fullmatch(str(name)):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(str(name), f"{part}/config.json")
        file = Path(cached) if isinstance(cached, str) else Path()
    else:
        return None
    if not file.is_file():
        return None
    table = json.loads(file.read_text(encoding="utf-8"))
    about_the_file = {"architectures", "dtype", "model_type", "torch_dtype", "transformers_version"}
    kept = {"_class_name"} if part == "vae" else set()
    return {k: v for k, v in table.items() if k in kept or not (k.startswith("_") or k in about_the_file)}
