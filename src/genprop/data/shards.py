"""The latent cache on disk: WebDataset shards with an index.

    index.json                    what the samples are and by which base; where each one lies
    latents-000000.tar            00000000.safetensors   a `Batch` without batch axis
                                  00000000.json          index, seed, task, source
    latents-000001.tar            00000064.safetensors   ...

A shard is a plain tar (ustar, times zero: the same samples are the same bytes), so that the `webdataset`
library streams it; the index has the offset of every sample in it, so that here item `i` is one seek.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.utils.data import Dataset

from genprop.data.captions import encode_caption
from genprop.data.latents import Batch, fingerprint
from genprop.errors import GenPropError
from genprop.latents import Autoencoder, ImageEncoder
from genprop.settings import ClipConfig

FORMAT = 2
"""1 was bare safetensors files of 64 samples each, without image embeddings and tasks."""

SHARD = 64
"""Samples in a shard."""

AGAIN = "run the same `genprop data encode` again: it goes on where it stopped"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"latents-{shard:06d}.tar"


def sample_name(index: int) -> str:
    """Of a sample's member with the tensors."""
    return f"{index:08d}.safetensors"


def write_shard(path: Path, samples: Iterable[tuple[Batch, dict[str, Any]]]) -> None:
    """Write samples, each with what its `.json` says (`index` included); the file appears whole or not.

    The name it is written under holds the process id: what a killed run's process still writes is
    never this one's.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for batch, facts in samples:
                name = sample_name(facts["index"])
                cpu = {key: value.cpu().contiguous() for key, value in batch.items()}
                for member, content in (
                    (name, save(cpu)),
                    (name.replace(".safetensors", ".json"), json.dumps(facts).encode()),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def locate_samples(folder: Path, count: int, *, size: int) -> list[tuple[int, int, int]]:
    """Shard, offset and size in bytes of each of `count` samples, read from shards of `size` samples.

    Raises:
        GenPropError: names a shard that is damaged or holds other samples.
    """
    places = []
    for shard in range(-(-count // size)):
        path = shard_path(folder, shard)
        expected = [sample_name(i) for i in range(shard * size, min((shard + 1) * size, count))]
        try:
            with tarfile.open(path, "r:") as tar:
                members = [m for m in tar if m.name.endswith(".safetensors")]
        except (OSError, tarfile.TarError) as error:
            raise damaged(path, error) from error
        if [m.name for m in members] != expected:
            raise damaged(path, f"got {len(members)} samples, expected {len(expected)} from {expected[0]} on")
        places += [(shard, m.offset_data, m.size) for m in members]
    return places


def damaged(path: Path, fault: object) -> GenPropError:
    return GenPropError(f"{path} cannot be read: {fault}", f"remove that file, and {AGAIN}")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache, finished or not.

    Raises:
        GenPropError: there is none, it cannot be read, or an earlier version wrote it.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise GenPropError(
            f"no encoded samples in {folder}: it has no index.json", "encode some with `genprop data encode`"
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index.get("format", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise GenPropError(
            f"{path} cannot be read: {error}", "encode the data again, into another folder"
        ) from error
    if found != FORMAT:
        raise GenPropError(
            f"{folder} holds encoded samples in format {found}, expected {FORMAT}",
            "another version of genprop wrote them: encode the data again, into another folder",
        )
    return index


class LatentFolder(Dataset[Batch]):
    """The samples that `encode_dataset` wrote into `folder`. Item `i` is a `Batch` without batch axis.

    Only the index is in memory; an item is read from its place when it is asked for, the same in any
    process and any order.

    Args:
        embeddings: whether items have their `embedding`.

    Raises:
        GenPropError: no finished cache, one of another version, or a shard that is missing or cut short.
    """

    def __init__(self, folder: Path, *, embeddings: bool = True) -> None:
        self.folder, self.embeddings = folder, embeddings
        self.index = read_index(folder)
        places = self.index.pop("samples", None)
        if not places:
            raise GenPropError(
                f"{folder} is not finished: got no samples in its index, expected {self.index['count']}",
                AGAIN,
            )
        self.places = np.array(places, dtype=np.int64)
        shards, last = np.unique(self.places[::-1, 0], return_index=True)
        for shard, (_, offset, size) in zip(shards, self.places[::-1][last], strict=True):
            path = shard_path(folder, shard)
            got = path.stat().st_size if path.is_file() else 0
            if got < offset + size:
                raise damaged(path, f"got {got} bytes, expected at least {offset + size}")

    def for_base(
        self, autoencoder: Autoencoder, image_encoder: ImageEncoder, clip: ClipConfig
    ) -> LatentFolder:
        """These samples for a training over that base.

        A base may have been trained on since with the same autoencoder: then its image encoder is another,
        and the samples are without their embeddings, which the training makes anew from `image`.

        Raises:
            GenPropError: names what differs: the autoencoder, the clip, the image encoder's size.
        """
        for name, expected in (
            ("clip", clip.model_dump()),
            ("autoencoder", fingerprint(autoencoder)),
            ("image_size", image_encoder.size),
        ):
            if (got := self.index[name]) != expected:
                raise GenPropError(
                    f"{self.folder} was encoded with {name} {got}, expected {expected}",
                    "encode the data again for this base and configuration",
                )
        same = self.index["image_encoder"] == fingerprint(image_encoder)
        return LatentFolder(self.folder, embeddings=same)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Batch:
        shard, offset, size = map(int, self.places[index])
        path = shard_path(self.folder, shard)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                batch = load(file.read(size))
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from error
        if not self.embeddings:
            del batch["embedding"]
        batch.setdefault("caption", encode_caption(""))  # earlier caches have none
        return batch
