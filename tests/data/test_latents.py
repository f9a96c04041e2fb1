"""Encoded samples: SVD's scaling conventions, in the precision that is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genprop.config import Config
from genprop.data.latents import Batch, PixelSamples, encode_sample, fingerprint, render_frames
from genprop.pixels import to_pixels
from genprop.teacher.base import Base
from genprop.types import TASKS, time_ids

SIZE = 16


@pytest.fixture
def sample(noise: Any) -> Batch:
    return PixelSamples(noise(), seed=3)[0]


def encode(sample: Batch, base: Base, config: Config) -> Batch:
    return encode_sample(sample, base.autoencoder, base.image_encoder, config.clip)


def pixels(frames: Tensor) -> Tensor:
    return to_pixels(frames)[None]


def test_pixels_are_the_datasets_with_task_and_seed(noise: Any) -> None:
    samples, clips = PixelSamples(noise(), seed=3), noise()
    assert len(samples) == len(clips)
    item = samples[1]
    for name, expected in vars(clips[1]).items():
        if name not in ("task", "caption"):
            assert np.array_equal(item[name].numpy(), expected)
    assert TASKS[item["task"]] == "insert" and TASKS[samples[0]["task"]] == "remove"
    seeds = [int(PixelSamples(noise(), seed=s)[i]["seed"]) for s in (0, 3) for i in range(5)]
    assert len(set(seeds)) == 10


@torch.no_grad()
def test_videos_are_scaled_and_the_augmented_first_frame_is_not(
    small_base: Base, small_config: Config, sample: Batch
) -> None:
    autoencoder, clip = small_base.autoencoder, small_config.clip
    assert autoencoder.scaling_factor == 0.5
    got = encode(sample, small_base, small_config)
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(int(sample["seed"])))
    for name in ("source", "target"):
        assert torch.allclose(got[name].float(), 0.5 * autoencoder.encode(pixels(sample[name]))[0], atol=2e-3)
    for name, frames in (("source_first", sample["source"]), ("first", sample["target"])):
        augmented = pixels(frames)[:, 0] + clip.noise_aug * noise
        expected = autoencoder.encode(augmented[:, None])[0, 0]
        clean = autoencoder.encode(pixels(frames)[:, :1])[0, 0]
        assert torch.allclose(got[name].float(), expected, atol=2e-3)
        assert (got[name].float() - clean).abs().max() > 4e-3  # the noise is there
    for name, frames in (("source_image", sample["source"]), ("image", sample["target"])):
        expected = small_base.image_encoder.preprocess(pixels(frames)[:, 0])[0]  # of the clean frame, as SVD
        assert torch.allclose(got[name].float(), expected, atol=2e-3)


@torch.no_grad()
def test_the_embedding_is_that_of_the_stored_picture(
    small_base: Base, small_config: Config, sample: Batch
) -> None:
    got = encode(sample, small_base, small_config)
    expected = small_base.image_encoder.embed(got["image"][None].float())[0]
    assert got["embedding"].dtype == torch.float32 and torch.equal(got["embedding"], expected)
    of_the_frame = small_base.image_encoder(pixels(sample["target"])[:, 0])[0]
    assert torch.allclose(got["embedding"], of_the_frame, atol=5e-3)
    assert (got["embedding"] - small_base.image_encoder(pixels(sample["source"])[:, 0])[0]).abs().max() > 1e-2


def test_without_augmentation_the_first_frame_is_the_videos_own(
    small_base: Base, small_config: Config, sample: Batch
) -> None:
    clip = small_config.clip.model_copy(update={"noise_aug": 0.0})
    got = encode_sample(sample, small_base.autoencoder, small_base.image_encoder, clip)
    assert torch.allclose(0.5 * got["first"].float(), got["target"][0].float(), atol=2e-3)
    assert torch.equal(got["added_time_ids"], time_ids(clip, "remove")) and got["added_time_ids"][2] == 0


def test_the_task_comes_after_svds_own_conditioning(
    small_base: Base, small_config: Config, noise: Any
) -> None:
    clip = small_config.clip
    assert torch.allclose(time_ids(clip), torch.tensor([6.0, 127.0, 0.02]))
    for index, task in enumerate(TASKS):
        assert torch.equal(time_ids(clip, task), torch.cat([time_ids(clip), torch.tensor([float(index)])]))
    got = encode(PixelSamples(noise())[1], small_base, small_config)
    assert torch.equal(got["added_time_ids"], time_ids(clip, "insert"))


def test_fingerprints_are_of_what_latents_depend_on(small_base: Base) -> None:
    def both() -> tuple[str, str]:
        return fingerprint(small_base.autoencoder), fingerprint(small_base.image_encoder)

    before = both()
    assert before == both() and all(len(part) == 64 for part in before)
    with torch.no_grad():
        next(small_base.autoencoder.vae.decoder.parameters()).add_(1)
    assert both() == before  # a decoder may be trained on
    with torch.no_grad():
        next(small_base.image_encoder.parameters()).add_(1)
    assert both()[0] == before[0] and both()[1] != before[1]
    with torch.no_grad():
        next(small_base.autoencoder.vae.encoder.parameters()).add_(1)
    assert both()[0] != before[0]


def test_rendered_frames_are_the_first_of_each_source(noise: Any) -> None:
    frames = render_frames(noise(), workers=0)
    assert frames.shape == (5, SIZE, SIZE, 3) and frames.dtype == torch.uint8
    assert np.array_equal(frames[2].numpy(), noise()[2].source[0])
