"""Encoded samples: SVD's scaling conventions, and an encoding that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from genprop.config import ClipConfig, Config
from genprop.data import latents as data_latents
from genprop.data.latents import LatentFolder, encode_dataset, encode_sample, render_frames, time_ids
from genprop.errors import GenPropError
from genprop.pixels import to_pixels
from genprop.teacher.base import Base, new_base
from genprop.types import EditSample

FRAMES, SIZE, COUNT = 3, 16, 5


class Noise(Dataset[EditSample]):
    """Random clips; sample `i` is a function of `i`. Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> EditSample:
        self.asked.append(index)
        if index >= COUNT:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        source, target = rng.integers(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        return EditSample(source, target, rng.random((FRAMES, SIZE, SIZE)) < 0.5)


@pytest.fixture(autouse=True)
def shards_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(data_latents, "SHARD", 2)
    yield


def encode(
    folder: Path, base: Base, clip: ClipConfig, *, seed: int = 0, dataset: Noise | None = None
) -> LatentFolder:
    return encode_dataset(dataset or Noise(), folder, base.autoencoder, base.image_encoder, clip, seed=seed)


def shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def sample() -> EditSample:
    return Noise()[0]


def pixels(frames: np.ndarray) -> Tensor:
    return to_pixels(torch.from_numpy(frames))[None]


def test_a_sample_has_the_shapes_of_a_batch(small_base: Base, small_config: Config, tmp_path: Path) -> None:
    folder = encode(tmp_path / "latents", small_base, small_config.clip)
    assert len(folder) == COUNT
    video, still, image = (FRAMES, 4, 8, 8), (4, 8, 8), (3, 16, 16)
    shapes = {
        "source": video,
        "target": video,
        "first": still,
        "source_first": still,
        "image": image,
        "source_image": image,
        "mask": (FRAMES, SIZE, SIZE),
        "added_time_ids": (3,),
    }
    for i in range(COUNT):
        item = folder[i]
        assert {name: tuple(value.shape) for name, value in item.items()} == shapes
        assert torch.equal(item["mask"], torch.from_numpy(Noise()[i].mask))  # the samples keep their order
    assert folder[0]["mask"].dtype == torch.bool
    assert torch.allclose(folder[0]["added_time_ids"], torch.tensor([6.0, 127.0, 0.02]))


@torch.no_grad()
def test_videos_are_scaled_and_the_augmented_first_frame_is_not(
    small_base: Base, small_config: Config, sample: EditSample
) -> None:
    autoencoder, clip = small_base.autoencoder, small_config.clip
    assert autoencoder.scaling_factor == 0.5
    got = encode_sample(
        sample, autoencoder, small_base.image_encoder, clip, generator=torch.Generator().manual_seed(3)
    )
    noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    for name, frames in (("source", sample.source), ("target", sample.target)):
        assert torch.allclose(got[name].float(), 0.5 * autoencoder.encode(pixels(frames))[0], atol=2e-3)
    for name, frames in (("source_first", sample.source), ("first", sample.target)):
        augmented = pixels(frames)[:, 0] + clip.noise_aug * noise
        expected = autoencoder.encode(augmented[:, None])[0, 0]
        clean = autoencoder.encode(pixels(frames)[:, :1])[0, 0]
        assert torch.allclose(got[name].float(), expected, atol=2e-3)
        assert (got[name].float() - clean).abs().max() > 4e-3  # the noise is there
    for name, frames in (("source_image", sample.source), ("image", sample.target)):
        expected = small_base.image_encoder.preprocess(pixels(frames)[:, 0])[0]  # of the clean frame, as SVD
        assert torch.allclose(got[name].float(), expected, atol=2e-3)


def test_without_augmentation_the_first_frame_is_the_videos_own(
    small_base: Base, small_config: Config, sample: EditSample
) -> None:
    clip = small_config.clip.model_copy(update={"noise_aug": 0.0})
    got = encode_sample(
        sample, small_base.autoencoder, small_base.image_encoder, clip, generator=torch.Generator()
    )
    assert torch.allclose(0.5 * got["first"].float(), got["target"][0].float(), atol=2e-3)
    assert torch.equal(got["added_time_ids"], time_ids(clip)) and got["added_time_ids"][2] == 0


def test_encoding_goes_on_where_it_stopped(small_base: Base, small_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    encode(folder, small_base, small_config.clip)
    whole = shards(folder)
    assert list(whole) == ["000000.safetensors", "000002.safetensors", "000004.safetensors", "index.json"]
    (folder / "000002.safetensors").unlink()
    dataset = Noise()
    encode(folder, small_base, small_config.clip, dataset=dataset)
    assert shards(folder) == whole
    assert dataset.asked == [2, 3]
    again = Noise()
    encode(folder, small_base, small_config.clip, dataset=again)
    assert again.asked == []


def test_a_failure_leaves_whole_shards_and_can_be_resumed(
    small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    class Failing(Noise):
        def __getitem__(self, index: int) -> EditSample:
            if index == 3:
                raise RuntimeError("no such clip")
            return super().__getitem__(index)

    folder = tmp_path / "latents"
    with pytest.raises(RuntimeError, match="no such clip"):
        encode(folder, small_base, small_config.clip, dataset=Failing())
    assert list(shards(folder)) == ["000000.safetensors", "index.json"]
    encode(folder, small_base, small_config.clip)
    encode(tmp_path / "straight", small_base, small_config.clip)
    assert shards(folder) == shards(tmp_path / "straight")


@pytest.mark.parametrize("change", ["autoencoder", "scaling", "seed", "clip"])
def test_latents_of_another_run_are_refused(
    small_base: Base, small_config: Config, tmp_path: Path, change: str
) -> None:
    folder, clip = tmp_path / "latents", small_config.clip
    encode(folder, small_base, clip)
    before, other, seed = shards(folder), small_base, 0
    if change == "autoencoder":
        other = new_base(small_config.base, seed=1)
    elif change == "scaling":
        vae = {**(small_config.base.vae or {}), "scaling_factor": 0.25}
        other = new_base(small_config.base.model_copy(update={"vae": vae}), seed=0)
    elif change == "seed":
        seed = 1
    else:
        clip = clip.model_copy(update={"noise_aug": 0.1})
    with pytest.raises(GenPropError, match="latents of another run"):
        encode(folder, other, clip, seed=seed)
    assert shards(folder) == before


def test_the_seed_moves_the_augmentation_and_nothing_else(
    small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    first = encode(tmp_path / "a", small_base, small_config.clip)
    second = encode(tmp_path / "b", small_base, small_config.clip, seed=1)
    assert torch.equal(first.samples["target"], second.samples["target"])
    assert not torch.equal(first.samples["first"], second.samples["first"])


def test_shards_are_float16_and_name_their_autoencoder(
    small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    encode(tmp_path / "latents", small_base, small_config.clip)
    shard = load_file(tmp_path / "latents" / "000000.safetensors")
    assert {shard[n].dtype for n in ("source", "target", "first", "image")} == {torch.float16}
    index = json.loads((tmp_path / "latents" / "index.json").read_text())
    assert len(index["autoencoder"]) == 64 and index["count"] == COUNT


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="no encoded samples"):
        LatentFolder(tmp_path)


def test_rendered_frames_are_the_first_of_each_source() -> None:
    frames = render_frames(Noise(), workers=0)
    assert frames.shape == (COUNT, SIZE, SIZE, 3) and frames.dtype == torch.uint8
    assert np.array_equal(frames[2].numpy(), Noise()[2].source[0])


def test_samples_of_another_clip_or_autoencoder_are_refused(tmp_path, small_base, small_config):
    folder = encode_dataset(
        Noise(), tmp_path, small_base.autoencoder, small_base.image_encoder, small_config.clip
    )
    folder.check(small_base.autoencoder, small_config.clip)
    with pytest.raises(GenPropError, match="clip"):
        folder.check(small_base.autoencoder, small_config.clip.model_copy(update={"frames": 2}))
    small_base.autoencoder.vae.register_to_config(scaling_factor=2.0)
    with pytest.raises(GenPropError, match="autoencoder"):
        folder.check(small_base.autoencoder, small_config.clip)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "000000.safetensors").write_bytes(b"not one")
    with pytest.raises(GenPropError, match="cannot be read"):
        LatentFolder(tmp_path)
