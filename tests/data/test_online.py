"""Training straight from clips: the numbers of the cache, hence its losses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from genprop.config import Config
from genprop.data.latents import Batch, PixelSamples
from genprop.data.online import EncodedObjective
from genprop.data.shards import LatentFolder
from genprop.draws import Draws
from genprop.loop import fit
from genprop.settings import TrainConfig
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective

Encoded = Callable[..., LatentFolder]
SEED = 4


class Seen(nn.Module):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[Batch] = []

    def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        self.batches.append(batch)
        return {"loss": self.weight * len(draws)}


def online(objective: nn.Module, base: Base, config: Config) -> EncodedObjective:
    return EncodedObjective(objective, base.autoencoder, base.image_encoder, config.clip)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_batch_is_the_caches_bit_for_bit_in_any_precision(
    encoded: Encoded,
    noise: Any,
    small_base: Base,
    small_config: Config,
    tmp_path: Path,
    dtype: torch.dtype | None,
) -> None:
    cached = default_collate([encoded(tmp_path, small_config.clip, seed=SEED)[i] for i in (3, 1, 2)])
    pixels = default_collate([PixelSamples(noise(), seed=SEED)[i] for i in (3, 1, 2)])
    seen = Seen()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        terms = online(seen, small_base, small_config)(pixels, Draws.of(0, 3))
    assert terms["loss"].requires_grad
    (got,) = seen.batches
    assert got.keys() == cached.keys()
    for name, value in cached.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_only_the_objectives_parameters_train(small_base: Base, small_config: Config) -> None:
    small_base.image_encoder.requires_grad_(False)
    objective = online(Seen(), small_base, small_config)
    assert [n for n, p in objective.named_parameters() if p.requires_grad] == ["objective.weight"]


def losses(objective: nn.Module, samples: Any, settings: TrainConfig, out: Path) -> list[float]:
    fit(objective, samples, settings, out)
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_from_clips_has_the_losses_of_training_from_the_cache(
    encoded: Encoded, noise: Any, small_base: Base, small_config: Config, tmp_path: Path, precision: str
) -> None:
    settings = TrainConfig(steps=3, batch_size=2, log_every=1, precision=precision)  # type: ignore[arg-type]
    small_base.image_encoder.requires_grad_(False)

    def objective() -> TeacherObjective:
        torch.manual_seed(0)
        net = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
        return TeacherObjective(net, small_base.image_encoder, small_config)

    cache = encoded(tmp_path / "latents", small_config.clip, seed=SEED)
    cached = losses(objective(), cache, settings, tmp_path / "cached")
    pixels = PixelSamples(noise(), seed=SEED)
    straight = losses(online(objective(), small_base, small_config), pixels, settings, tmp_path / "straight")
    assert len(cached) == 3 and cached == straight
    other = PixelSamples(noise(), seed=SEED + 1)
    assert cached != losses(
        online(objective(), small_base, small_config), other, settings, tmp_path / "other"
    )


def test_the_cache_trains_without_the_image_encoder(
    encoded: Encoded, small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    """A base whose image encoder was trained on has other embeddings: only then is it asked."""
    folder = encoded(tmp_path, small_config.clip)
    net = GenPropNet(small_base.backbone, small_config.net, small_config.sce)
    objective = TeacherObjective(net, small_base.image_encoder, small_config)
    stored = default_collate([folder[i] for i in range(2)])
    bare = {name: value for name, value in stored.items() if name != "embedding"}
    torch.testing.assert_close(
        objective.inputs(stored, None).cond.image_embedding,
        objective.inputs(bare, None).cond.image_embedding,
    )
    with torch.no_grad():
        for parameter in small_base.image_encoder.parameters():
            parameter.fill_(float("nan"))
    assert objective(stored, Draws.of(0, 2))["loss"].isfinite()
    assert not objective(bare, Draws.of(0, 2))["loss"].isfinite()
