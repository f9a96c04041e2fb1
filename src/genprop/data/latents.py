"""What training reads: frames in memory for the autoencoder, and encoded samples for all that follows.

The frozen autoencoder would cost more than the tiny denoiser itself, so a sample is encoded once and kept
(`data.encode` writes, `data.shards` reads), or, where there is no cache, in the training step
(`data.online`). All of it goes through `encode_sample`, which has its noise from the sample's own seed: both
ways give the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genprop.data.captions import encode_caption
from genprop.latents import Autoencoder, ImageEncoder
from genprop.pixels import to_pixels
from genprop.settings import ClipConfig
from genprop.types import TASKS, EditSample, time_ids

Batch = dict[str, Tensor]
"""`source`, `target` scaled latents `[B, T, C, h, w]`; `first`, `source_first` unscaled latents of the
noise-augmented first frame of each `[B, C, h, w]`; `image`, `source_image` what the image encoder sees
`[B, 3, s, s]`; `embedding` what it answers to `image` `[B, 1, D]` (not there where it would be another image
encoder's); `mask` bool `[B, T, H, W]`; `added_time_ids` `[B, 4]`, the task last; `caption` uint8
`[B, 256]` (`data.captions`). Latents and images are float16, the rest of the numbers float32."""


def render_frames(dataset: Dataset[EditSample], *, workers: int) -> Tensor:
    """Frame 0 of every source, uint8 `[N, H, W, 3]`, drawn once and kept in memory."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return torch.from_numpy(np.stack([sample.source[0] for sample in loader]))


class PixelSamples(Dataset[Batch]):
    """Samples before they are encoded, as tensors.

    Item `i` is `source`, `target` uint8 `[T, H, W, 3]`, `mask` bool `[T, H, W]`, `task` (its index in
    `types.TASKS`) and `seed` (of its noise augmentation), both int64 `[]`, and `caption` uint8 `[256]`.
    """

    def __init__(self, dataset: Dataset[EditSample], *, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        sample = self.dataset[index]
        return {
            "source": torch.from_numpy(np.ascontiguousarray(sample.source)),
            "target": torch.from_numpy(np.ascontiguousarray(sample.target)),
            "mask": torch.from_numpy(np.ascontiguousarray(sample.mask)),
            "task": torch.tensor(TASKS.index(sample.task)),
            "seed": torch.tensor(self.seed * 1_000_003 + index),
            "caption": encode_caption(sample.caption),
        }


@torch.no_grad()
def encode_sample(
    pixels: Batch, autoencoder: Autoencoder, image_encoder: ImageEncoder, clip: ClipConfig
) -> Batch:
    """An item of `PixelSamples`, encoded, without its batch axis (see `Batch`), on the device it lies on.

    One sample at a time: in a batch, sums come out a little different, and a last bit of float16 with them.
    """
    device = pixels["source"].device
    source, target = (to_pixels(pixels[name])[None] for name in ("source", "target"))
    first = {"first": target[:, 0], "source_first": source[:, 0]}
    # drawn on the CPU, so that it is the same noise on every device
    generator = torch.Generator().manual_seed(int(pixels["seed"]))
    noise = clip.noise_aug * torch.randn(target[:, 0].shape, generator=generator).to(device)
    image = image_encoder.preprocess(first["first"]).half()
    return {
        "source": autoencoder.encode_scaled(source)[0].half(),
        "target": autoencoder.encode_scaled(target)[0].half(),
        **{name: autoencoder.encode((x + noise)[:, None])[0, 0].half() for name, x in first.items()},
        "image": image[0],
        "source_image": image_encoder.preprocess(first["source_first"])[0].half(),
        # of the rounded picture: who embeds the stored one gets the same
        "embedding": image_encoder.embed(image.float())[0].float(),
        "mask": pixels["mask"],
        "added_time_ids": time_ids(clip, TASKS[int(pixels["task"])]).to(device),
        "caption": pixels["caption"],
    }


def fingerprint(module: Autoencoder | ImageEncoder) -> str:
    """A SHA-256 of what encoded samples depend on.

    Of an autoencoder these are its encoder and its scaling factor (the decoder may be trained on), of an
    image encoder all of its weights.
    """
    if isinstance(module, Autoencoder):
        digest = hashlib.sha256(str(module.scaling_factor).encode())
        parts = ("encoder.", "quant_conv.")
        weights = {k: v for k, v in module.vae.state_dict().items() if k.startswith(parts)}
    else:
        digest = hashlib.sha256(str(module.size).encode())
        weights = module.clip.state_dict()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
