"""`genprop data encode`: a dataset into a latent cache, in parallel processes, resumable.

Every shard is a function of the dataset, the base and the seed alone, and appears whole or not at all: so
the shards that are there are done, whoever made them and whenever they were killed, and the index is
made of them at the end.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from genprop.data.jobs import Job, encode_here, encode_in_processes
from genprop.data.latents import PixelSamples, fingerprint
from genprop.data.shards import FORMAT, SHARD, LatentFolder, locate_samples, read_index, shard_path
from genprop.errors import GenPropError
from genprop.latents import Autoencoder, ImageEncoder
from genprop.settings import ClipConfig
from genprop.types import EditSample

LOG_SECONDS = 10.0

logger = logging.getLogger(__name__)


def encode_dataset(
    dataset: Dataset[EditSample],
    folder: Path,
    autoencoder: Autoencoder,
    image_encoder: ImageEncoder,
    clip: ClipConfig,
    *,
    seed: int = 0,
    workers: int = 0,
    processes: int = 1,
    source: str = "",
    made_by: dict[str, Any] | None = None,
) -> LatentFolder:
    """Encode a dataset into `folder`, going on where an earlier call stopped.

    Args:
        dataset: `dataset[i]` depends on `i` only; with several processes it has to be picklable.
        seed: of the noise augmentation.
        workers: processes that read samples for the one that encodes.
        processes: with more than 1, as many encode, each a part of the shards; each reads its own
            samples. A GPU is used where there is one; several processes deal themselves out to all.
        source: what the data are called; stands with every sample.
        made_by: the settings that the samples depend on; recorded in the index.

    Raises:
        GenPropError: no samples; the folder holds others, or damaged ones; a process died.
    """
    samples = PixelSamples(dataset, seed=seed)
    if not len(samples):
        raise GenPropError(f"{source or 'the dataset'} has no samples to encode, expected at least one")
    folder.mkdir(parents=True, exist_ok=True)
    index = {
        "format": FORMAT,
        "count": len(samples),
        "seed": seed,
        "source": source,
        "made_by": made_by or {},
        "clip": clip.model_dump(),
        "autoencoder": fingerprint(autoencoder),
        "image_encoder": fingerprint(image_encoder),
        "image_size": image_encoder.size,
        "shard_size": SHARD,
    }
    index = json.loads(json.dumps(index))  # as it will be read again: tuples are lists
    finished = _begin(folder, index)
    shards = [n for n in range(-(-len(samples) // SHARD)) if not shard_path(folder, n).is_file()]
    if finished and not shards:
        return LatentFolder(folder)
    for leftover in folder.glob("latents-*.tmp"):  # of a killed run
        leftover.unlink(missing_ok=True)
    job = Job(samples, autoencoder, image_encoder, clip, folder, source, SHARD, workers)
    processes = min(processes, len(shards))
    numbers = encode_in_processes(job, shards, processes) if processes > 1 else encode_here(job, shards)
    started = logged = time.perf_counter()
    done, total = 0, len(samples)
    before = total - sum(min(SHARD, total - n * SHARD) for n in shards)
    for number in numbers:
        done, now = done + number, time.perf_counter()
        if now - logged > LOG_SECONDS or before + done == total:
            rate = done / (now - started)
            logger.info("encoded %d of %d samples, %.1f samples/s", before + done, total, rate)
            logged = now
    _write_index(folder, {**index, "samples": locate_samples(folder, total, size=SHARD)})
    return LatentFolder(folder)


def _begin(folder: Path, index: dict[str, Any]) -> bool:
    """Whether `folder` holds the whole of what `index` describes; into an empty one the index is put."""
    if not (folder / "index.json").exists():
        if orphans := sorted(folder.glob("latents-*.tar")):
            raise GenPropError(
                f"{folder} holds {orphans[0].name}, but no index.json that says what it was encoded from",
                "remove it, or use another folder",
            )
        _write_index(folder, index)
        return False
    found = read_index(folder)
    finished = bool(found.pop("samples", None))
    names = [name for name in {**found, **index} if found.get(name) != index.get(name)]
    if names:
        differences = "; ".join(
            f"{name} is {found.get(name)!r}, expected {index.get(name)!r}" for name in names
        )
        raise GenPropError(f"{folder} holds latents of another run: {differences}", "use another folder")
    return finished


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    temporary = folder / "index.tmp"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    os.replace(temporary, folder / "index.json")
