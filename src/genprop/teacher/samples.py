"""What a training reads: samples of what `--data` names, encoded before or in the training step.

Encoded before, they are a latent cache, which several trainings can share; encoded in the step, a training
starts at once and never sees the disk fill. The numbers are the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

from genprop.config import Config
from genprop.data.encode import encode_dataset
from genprop.data.faults import FaultLog
from genprop.data.latents import Batch, PixelSamples
from genprop.data.mixture import EditClips
from genprop.data.online import EncodedObjective
from genprop.data.shards import LatentFolder
from genprop.data.sources import open_parts
from genprop.errors import GenPropError
from genprop.loop import process_state
from genprop.teacher.base import Base
from genprop.types import EditSample

VALIDATION_SEED = 1_000_003
"""Added to the data seed for held-out samples."""

FAULTS = "faults.jsonl"


class Samples(NamedTuple):
    """What a training reads, and the batch that it is validated on.

    `online` samples are pixels: `objective` encodes them in the step.
    """

    training: Dataset[Any]
    held_out: Batch
    base: Base
    config: Config
    online: bool = False

    def objective(self, objective: nn.Module) -> nn.Module:
        """An objective of encoded batches as one of what `training` yields."""
        if not self.online:
            return objective
        return EncodedObjective(objective, self.base.autoencoder, self.base.image_encoder, self.config.clip)


def parse_source(text: str) -> tuple[str, float]:
    """`PATH` or `PATH=WEIGHT`."""
    path, separator, weight = text.rpartition("=")
    if not separator or Path(text).exists():
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise GenPropError(
            f"the weight of {path} is {weight!r}, expected a number", "for example --data DAVIS=3"
        ) from error


def edit_samples(
    data: Sequence[str], config: Config, faults: FaultLog | None = None
) -> tuple[EditClips, EditClips]:
    """Training and held-out samples of what `--data` names.

    Raises:
        GenPropError: no known layout, no clips, or a weight that is not above 0.
    """
    seed = config.data.seed
    named = [(open_parts(path, seed=seed), weight) for path, weight in map(parse_source, data)]
    return (
        EditClips(
            [(parts["train"], weight) for parts, weight in named],
            config,
            count=config.data.count,
            seed=seed,
            faults=faults,
        ),
        EditClips(
            [(parts["validation"], weight) for parts, weight in named],
            config,
            count=config.data.validation,
            seed=seed + VALIDATION_SEED,
            faults=faults,
        ),
    )


def cached(data: Sequence[str]) -> Path | None:
    """The folder of encoded samples that `data` names, if it does.

    Raises:
        GenPropError: encoded samples among other data.
    """
    encoded = [path for path in map(Path, data) if (path / "index.json").is_file()]
    if encoded and len(data) > 1:
        raise GenPropError(
            f"{encoded[0]} holds encoded samples and cannot be mixed with {len(data) - 1} more",
            "encode all of them together: genprop data encode A=1 B=2 ...",
        )
    return encoded[0] if encoded else None


def latent_samples(
    data: Sequence[str], config: Config, base: Base, folder: Path, *, workers: int, processes: int = 1
) -> tuple[Dataset[Batch], Batch]:
    """Training samples and one held-out batch, encoded into `folder` (or read, where `data` holds them).

    Args:
        workers, processes: as for `encode_dataset`.
    """
    found = cached(data)
    if found is not None:
        everything = LatentFolder(found).for_base(base.autoencoder, base.image_encoder, config.clip)
        held_out = min(config.data.validation, max(1, len(everything) // 10))
    else:
        training, validation = edit_samples(data, config, FaultLog(folder / FAULTS))
        held_out = len(validation)
        made_by = {
            "sources": [list(parse_source(text)) for text in data],
            "data": config.data.model_dump(exclude={"cache"}),
            "synthesis": config.synthesis.model_dump(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        both: Dataset[EditSample] = ConcatDataset([training, validation])
        with process_state().main_process_first():  # the others find it done
            everything = encode_dataset(
                both,
                folder,
                base.autoencoder,
                base.image_encoder,
                config.clip,
                seed=config.data.seed,
                workers=workers,
                processes=processes,
                source=" ".join(data),
                made_by=made_by,
            )
    count = len(everything) - held_out
    batch = default_collate([everything[i] for i in range(count, len(everything))])
    return Subset(everything, range(count)), batch


def training_samples(data: Sequence[str], config: Config, base: Base, out: Path, *, workers: int) -> Samples:
    """The samples of a training in the folder `out`: from the cache, unless `data.cache` is off."""
    if config.data.cache or cached(data):
        return Samples(*latent_samples(data, config, base, out / "latents", workers=workers), base, config)
    out.mkdir(parents=True, exist_ok=True)
    training, validation = edit_samples(data, config, FaultLog(out / FAULTS))
    # The validation's noise is not the training's.
    held_out = PixelSamples(validation, seed=config.data.seed + VALIDATION_SEED)
    pixels = default_collate([held_out[i] for i in range(len(held_out))])
    encode = EncodedObjective(nn.Identity(), base.autoencoder, base.image_encoder, config.clip).encode
    return Samples(PixelSamples(training, seed=config.data.seed), encode(pixels), base, config, online=True)


def held_out_clips(data: Sequence[str], config: Config, base: Base, clips: int) -> Batch:
    """So many encoded clips that the student was not trained on (fewer, where a cache holds fewer)."""
    update = {"validation": clips, "cache": False}
    config = config.model_copy(update={"data": config.data.model_copy(update=update)})
    with tempfile.TemporaryDirectory() as folder:  # of the notes on clips that cannot be read
        return training_samples(data, config, base, Path(folder), workers=0).held_out
