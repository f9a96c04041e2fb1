"""The latent cache on disk: WebDataset's convention, one seek a sample, and what is refused."""

from __future__ import annotations

import gc
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch.utils.data import DataLoader

from genprop.config import Config
from genprop.data.latents import PixelSamples, encode_sample
from genprop.data.shards import LatentFolder, locate_samples
from genprop.errors import GenPropError
from genprop.teacher.base import Base, new_base

FRAMES, SIZE, COUNT = 3, 16, 5

Encoded = Callable[..., LatentFolder]


@pytest.fixture
def folder(encoded: Encoded, small_config: Config, tmp_path: Path) -> LatentFolder:
    return encoded(tmp_path / "latents", small_config.clip, seed=3, source="noise")


def test_a_sample_has_the_shapes_of_a_batch(folder: LatentFolder, noise: Any) -> None:
    assert len(folder) == COUNT
    video, still, image = (FRAMES, 4, 8, 8), (4, 8, 8), (3, 16, 16)
    shapes = {
        "source": video,
        "target": video,
        "first": still,
        "source_first": still,
        "image": image,
        "source_image": image,
        "embedding": (1, 32),
        "mask": (FRAMES, SIZE, SIZE),
        "added_time_ids": (4,),
        "caption": (256,),
    }
    for i in range(COUNT):
        item = folder[i]
        assert {name: tuple(value.shape) for name, value in item.items()} == shapes
        assert torch.equal(item["mask"], torch.from_numpy(noise()[i].mask))  # the samples keep their order
    item = folder[0]
    assert {item[n].dtype for n in ("source", "target", "first", "source_first", "image")} == {torch.float16}
    assert item["mask"].dtype == torch.bool and item["embedding"].dtype == torch.float32


def test_an_item_is_what_was_encoded_in_any_order_and_in_any_process(
    folder: LatentFolder, noise: Any, small_base: Base, small_config: Config
) -> None:
    pixels = PixelSamples(noise(), seed=3)
    order = [4, 0, 3, 3, 1]
    again = pickle.loads(pickle.dumps(folder))
    for loader in (
        DataLoader(folder, sampler=order, batch_size=None),
        DataLoader(again, sampler=order, batch_size=None, num_workers=2),
    ):
        items = list(loader)
        assert len(items) == len(order)
        for i, item in zip(order, items, strict=True):
            expected = encode_sample(
                pixels[i], small_base.autoencoder, small_base.image_encoder, small_config.clip
            )
            assert item.keys() == expected.keys()
            assert all(torch.equal(item[name], value) for name, value in expected.items())


def test_an_item_beyond_the_last_is_an_index_error(folder: LatentFolder) -> None:
    with pytest.raises(IndexError):
        folder[COUNT]
    assert torch.equal(folder[-1]["target"], folder[COUNT - 1]["target"])


def test_a_shard_holds_pairs_of_tensors_and_facts(folder: LatentFolder) -> None:
    with tarfile.open(folder.folder / "latents-000001.tar") as tar:
        assert tar.getnames() == [
            "00000002.safetensors", "00000002.json", "00000003.safetensors", "00000003.json",
        ]  # fmt: skip
        member = tar.extractfile("00000003.json")
        assert member is not None
        facts = json.load(member)
    assert facts == {"index": 3, "seed": 3 * 1_000_003 + 3, "task": "remove", "source": "noise"}


def test_the_index_says_what_the_samples_are_and_where(folder: LatentFolder, small_config: Config) -> None:
    index = json.loads((folder.folder / "index.json").read_text())
    assert index["count"] == len(index["samples"]) == COUNT and index["seed"] == 3
    assert index["clip"] == small_config.clip.model_dump() and index["source"] == "noise"
    assert len(index["autoencoder"]) == len(index["image_encoder"]) == 64
    assert [place[0] for place in index["samples"]] == [0, 0, 1, 1, 2]
    shard, offset, size = index["samples"][3]
    content = (folder.folder / f"latents-{shard:06d}.tar").read_bytes()[offset : offset + size]
    assert torch.equal(load(content)["target"], folder[3]["target"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # its files are closed by the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_webdataset_library_reads_it(folder: LatentFolder) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = str(folder.folder / "latents-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{i:08d}" for i in range(COUNT)]
    for i, sample in enumerate(samples):
        assert json.loads(sample["json"])["index"] == i
        assert torch.equal(load(sample["safetensors"])["source"], folder[i]["source"])
    gc.collect()


# --- for which base ---


def test_samples_of_another_clip_or_autoencoder_are_refused(
    folder: LatentFolder, small_base: Base, small_config: Config
) -> None:
    _, autoencoder, image_encoder = small_base
    assert "embedding" in folder.for_base(autoencoder, image_encoder, small_config.clip)[0]
    with pytest.raises(GenPropError, match="with clip"):
        folder.for_base(autoencoder, image_encoder, small_config.clip.model_copy(update={"frames": 2}))
    autoencoder.vae.register_to_config(scaling_factor=2.0)
    with pytest.raises(GenPropError, match="with autoencoder"):
        folder.for_base(autoencoder, image_encoder, small_config.clip)


def test_an_image_encoder_that_was_trained_since_makes_its_own_embeddings(
    folder: LatentFolder, small_base: Base, small_config: Config
) -> None:
    _, autoencoder, image_encoder = small_base
    with torch.no_grad():
        next(image_encoder.parameters()).add_(0.1)
    item, kept = folder.for_base(autoencoder, image_encoder, small_config.clip)[2], folder[2]
    assert kept.keys() - item.keys() == {"embedding"}
    assert all(torch.equal(value, kept[name]) for name, value in item.items())


def test_pictures_of_another_size_are_refused(
    folder: LatentFolder, small_base: Base, small_config: Config
) -> None:
    settings = {**(small_config.base.image_encoder or {}), "image_size": 24}
    other = new_base(small_config.base.model_copy(update={"image_encoder": settings}), seed=0)
    with pytest.raises(GenPropError, match="with image_size 16, expected 24"):
        folder.for_base(small_base.autoencoder, other.image_encoder, small_config.clip)


# --- what cannot be read ---


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="no encoded samples"):
        LatentFolder(tmp_path)


def test_a_cache_of_an_earlier_version_is_to_be_encoded_again(tmp_path: Path) -> None:
    save_file({"target": torch.zeros(2, 3)}, tmp_path / "000000.safetensors")
    (tmp_path / "index.json").write_text(json.dumps({"count": 2, "seed": 0, "clip": {}, "autoencoder": ""}))
    with pytest.raises(GenPropError, match="format 1, expected 2") as caught:
        LatentFolder(tmp_path)
    assert "encode the data again" in caught.value.hint


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_index_is_named(folder: LatentFolder, content: str) -> None:
    (folder.folder / "index.json").write_text(content)
    with pytest.raises(GenPropError, match=r"index\.json cannot be read"):
        LatentFolder(folder.folder)


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_shard_that_is_missing_or_cut_short_is_named_at_once(folder: LatentFolder, fault: str) -> None:
    shard = folder.folder / "latents-000001.tar"
    content = shard.read_bytes()
    shard.unlink()
    if fault == "cut":
        shard.write_bytes(content[:2000])
    with pytest.raises(GenPropError, match=r"latents-000001\.tar cannot be read") as caught:
        LatentFolder(folder.folder)
    assert "remove that file" in caught.value.hint


def test_a_damaged_sample_is_named(folder: LatentFolder) -> None:
    shard, offset, _ = folder.places[0]
    path = folder.folder / f"latents-{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(GenPropError, match=r"latents-000000\.tar cannot be read"):
        folder[0]
    assert folder[1]["target"].isfinite().all()


def test_a_shard_of_other_samples_is_named(folder: LatentFolder) -> None:
    (folder.folder / "latents-000000.tar").replace(folder.folder / "latents-000001.tar")
    with pytest.raises(GenPropError, match=r"latents-000000\.tar cannot be read"):
        locate_samples(folder.folder, COUNT, size=2)
    (folder.folder / "latents-000001.tar").rename(folder.folder / "latents-000000.tar")
    with pytest.raises(GenPropError, match=r"got 2 samples, expected 1 from 00000000"):
        locate_samples(folder.folder, 1, size=2)
