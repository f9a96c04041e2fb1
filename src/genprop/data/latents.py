"""What training reads: frames in memory for the autoencoder, and encoded samples for all that follows.

The frozen autoencoder would cost more than the tiny denoiser itself, so each sample is encoded once and
kept: a folder of safetensors shards, float16, with an index that names the autoencoder they came from.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genprop.config import ClipConfig
from genprop.errors import GenPropError
from genprop.latents import Autoencoder, ImageEncoder
from genprop.pixels import to_pixels
from genprop.types import EditSample

Batch = dict[str, Tensor]
"""`source`, `target` scaled latents `[B, T, C, h, w]`; `first`, `source_first` unscaled latents of the
noise-augmented first frame of each `[B, C, h, w]`; `image`, `source_image` what the image encoder sees
`[B, 3, s, s]`; `mask` bool `[B, T, H, W]`; `added_time_ids` `[B, 3]`."""

SHARD = 64


def render_frames(dataset: Dataset[EditSample], *, workers: int) -> Tensor:
    """Frame 0 of every source, uint8 `[N, H, W, 3]`, drawn once and kept in memory."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return torch.from_numpy(np.stack([sample.source[0] for sample in loader]))


@torch.no_grad()
def encode_sample(
    sample: EditSample,
    autoencoder: Autoencoder,
    image_encoder: ImageEncoder,
    clip: ClipConfig,
    *,
    generator: torch.Generator,
) -> Batch:
    """One sample without its batch axis; see `Batch`."""
    source, target = (to_pixels(torch.from_numpy(x))[None] for x in (sample.source, sample.target))
    first = {"first": target[:, 0], "source_first": source[:, 0]}
    noise = torch.randn(target[:, 0].shape, generator=generator)
    latents = {
        name: autoencoder.encode((frame + clip.noise_aug * noise)[:, None])[0, 0]
        for name, frame in first.items()
    }
    return {
        "source": autoencoder.encode_scaled(source)[0].half(),
        "target": autoencoder.encode_scaled(target)[0].half(),
        **{name: x.half() for name, x in latents.items()},
        "image": image_encoder.preprocess(first["first"])[0].half(),
        "source_image": image_encoder.preprocess(first["source_first"])[0].half(),
        "mask": torch.from_numpy(sample.mask),
        "added_time_ids": time_ids(clip),
    }


def time_ids(clip: ClipConfig) -> Tensor:
    """SVD's micro-conditioning (fps - 1, motion bucket, noise augmentation), `[3]`."""
    return torch.tensor([clip.fps - 1, clip.motion_bucket, clip.noise_aug], dtype=torch.float32)


def encode_dataset(
    dataset: Dataset[EditSample],
    folder: Path,
    autoencoder: Autoencoder,
    image_encoder: ImageEncoder,
    clip: ClipConfig,
    *,
    seed: int = 0,
    workers: int = 0,
) -> LatentFolder:
    """Encode a dataset into `folder`, going on where an earlier call stopped.

    Raises:
        GenPropError: the folder was encoded by another autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = len(dataset)  # type: ignore[arg-type]
    index = {"count": count, "seed": seed, "clip": clip.model_dump(), "autoencoder": fingerprint(autoencoder)}
    index["image_size"] = image_encoder.size
    path = folder / "index.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != index:
            raise GenPropError(
                f"{folder} holds latents of another run: got {found}, expected {index}", "use another folder"
            )
    else:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(index, indent=1))
        os.replace(temporary, path)
    for shard in range(0, count, SHARD):
        file = folder / f"{shard:06d}.safetensors"
        if file.exists():
            continue
        part = torch.utils.data.Subset(dataset, range(shard, min(shard + SHARD, count)))
        samples = [
            encode_sample(
                sample,
                autoencoder,
                image_encoder,
                clip,
                generator=torch.Generator().manual_seed(seed * 1_000_003 + shard + i),
            )
            for i, sample in enumerate(DataLoader(part, batch_size=None, num_workers=workers))
        ]
        temporary = file.with_suffix(".tmp")
        save_file({k: torch.stack([s[k] for s in samples]) for k in samples[0]}, temporary)
        os.replace(temporary, file)
    return LatentFolder(folder)


def fingerprint(autoencoder: Autoencoder) -> str:
    """The SHA-256 of the autoencoder's encoder and scaling factor: what latents depend on."""
    digest = hashlib.sha256(str(autoencoder.scaling_factor).encode())
    parts = ("encoder.", "quant_conv.")
    weights = {k: v for k, v in autoencoder.vae.state_dict().items() if k.startswith(parts)}
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class LatentFolder(Dataset[dict[str, Any]]):
    """A folder that `encode_dataset` wrote, held in memory. Item `i` is a `Batch` without batch axis."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise GenPropError(f"no encoded samples in {folder}", "encode some with `genprop data encode`")
        try:
            shards = [load_file(file) for file in files]
            self.index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            raise GenPropError(
                f"{folder} cannot be read: {error}",
                "remove what is damaged and encode again: it goes on there",
            ) from error
        self.folder = folder
        self.samples: Batch = {k: torch.cat([s[k] for s in shards]) for k in shards[0]}
        if len(self) != self.index["count"]:
            raise GenPropError(
                f"{folder} has {len(self)} encoded samples, expected {self.index['count']}",
                "run the same `genprop data encode` again: it goes on where it stopped",
            )

    def check(self, autoencoder: Autoencoder, clip: ClipConfig) -> None:
        """Refuse samples of another autoencoder or of clips of another kind.

        Raises:
            GenPropError: names what differs.
        """
        for name, expected in (("clip", clip.model_dump()), ("autoencoder", fingerprint(autoencoder))):
            if (got := self.index[name]) != expected:
                raise GenPropError(
                    f"{self.folder} was encoded with {name} {got}, expected {expected}",
                    "encode the data again for this base and configuration",
                )

    def __len__(self) -> int:
        return len(self.samples["target"])

    def __getitem__(self, index: int) -> Batch:
        return {name: value[index] for name, value in self.samples.items()}
