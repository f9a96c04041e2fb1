"""Clips of noise, encoded by the small base into shards of two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from genprop.config import ClipConfig
from genprop.data import encode as data_encode
from genprop.data.encode import encode_dataset
from genprop.data.shards import LatentFolder
from genprop.teacher.base import Base
from genprop.types import EditSample

FRAMES, SIZE, COUNT = 3, 16, 5


class Noise(Dataset[EditSample]):
    """Random clips; sample `i` is a function of `i`. Counts how often it is asked."""

    def __init__(self, *, broken: int | None = None) -> None:
        self.asked: list[int] = []
        self.broken = broken

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> EditSample:
        self.asked.append(index)
        if index >= COUNT:
            raise IndexError(index)
        if index == self.broken:
            raise RuntimeError("no such clip")
        rng = np.random.default_rng(index)
        source, target = rng.integers(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        mask = rng.random((FRAMES, SIZE, SIZE)) < 0.5
        return EditSample(source, target, mask, task="insert" if index == 1 else "remove")


@pytest.fixture
def noise() -> type[Noise]:
    return Noise


@pytest.fixture
def encoded(small_base: Base, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LatentFolder]:
    """`encoded(folder, clip, ...)`: `encode_dataset` of noise, or of another dataset, in shards of two."""
    monkeypatch.setattr(data_encode, "SHARD", 2)

    def encode(
        folder: Path,
        clip: ClipConfig,
        *,
        base: Base = small_base,
        dataset: Dataset[EditSample] | None = None,
        **options: object,
    ) -> LatentFolder:
        data = Noise() if dataset is None else dataset
        return encode_dataset(data, folder, base.autoencoder, base.image_encoder, clip, **options)  # type: ignore[arg-type]

    return encode
