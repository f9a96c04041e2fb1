"""Captions: from a folder's `captions.json` to the text a reward reads, through the cache and past it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import PCG64, Generator
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import default_collate

from genprop.config import Config
from genprop.data.captions import decode_captions, encode_caption, read_captions
from genprop.data.davis import davis
from genprop.data.latents import Batch, PixelSamples
from genprop.data.online import EncodedObjective
from genprop.data.rovi import Rovi
from genprop.data.shards import LatentFolder
from genprop.data.sources import open_source
from genprop.data.synthesis import draw_edit
from genprop.data.window import View
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.settings import SynthesisConfig
from genprop.teacher.base import Base
from genprop.types import MaskedClip

VIEW = View(4, 24, 32)
Encoded = Callable[..., LatentFolder]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
def test_a_caption_survives_its_bytes(caption: str) -> None:
    row = encode_caption(caption)
    assert row.dtype == torch.uint8 and row.shape == (256,)
    assert decode_captions(torch.stack([row, encode_caption("")])) == [caption, ""]


@pytest.mark.parametrize(("character", "width"), [("a", 1), ("ü", 2), ("猫", 3), ("🐻", 4)])
@pytest.mark.parametrize("before", range(4))
def test_a_long_caption_ends_with_a_whole_character(character: str, width: int, before: int) -> None:
    (got,) = decode_captions(encode_caption("." * before + character * 300)[None])
    assert got == "." * before + character * ((256 - before) // width)


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert decode_captions(encode_caption("a \ud83d dog")[None]) == ["a ? dog"]


def test_the_cache_and_the_step_hold_the_same_captions(
    encoded: Encoded, noise: Any, small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    folder = encoded(tmp_path, small_config.clip)
    cached = default_collate([folder[i] for i in range(3)])
    assert decode_captions(cached["caption"]) == ["", "", "Grüße."]
    seen: list[Batch] = []

    class Seen(nn.Module):
        def forward(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
            seen.append(batch)
            return {"loss": torch.zeros(())}

    online = EncodedObjective(Seen(), small_base.autoencoder, small_base.image_encoder, small_config.clip)
    online(default_collate([PixelSamples(noise())[i] for i in range(3)]), Draws.of(0, 3))
    assert torch.equal(seen[0]["caption"], cached["caption"])


def test_a_cache_from_before_captions_is_read_as_one_without(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    """As it is after an update in the middle of encoding: some samples have the key, and some do not."""
    folder = encoded(tmp_path, small_config.clip)
    shard, offset, size = map(int, folder.places[2])
    path = tmp_path / f"latents-{shard:06d}.tar"
    content = path.read_bytes()
    batch = load(content[offset : offset + size])
    assert decode_captions(batch.pop("caption")[None]) == ["Grüße."]
    bare = save(batch)
    path.write_bytes(content[:offset] + bare.ljust(size, b"\0") + content[offset + size :])
    folder.places[2, 2] = len(bare)
    assert decode_captions(default_collate([folder[2], folder[0]])["caption"]) == ["", ""]
    assert torch.equal(folder[2]["target"], batch["target"])


def test_a_folder_of_davis_has_them_beside_its_clips(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bear", "swan", "held-out"):
        make.folder(tmp_path / "JPEGImages" / "480p" / name, make.frames(6), suffix="jpg")
        make.labels(tmp_path / "Annotations" / "480p" / name, make.half(6)[..., 0] // 255)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("bear\nswan\n")
    captions = {"bear": "A bear walks.", "held-out": "Something else."}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    source = open_source(tmp_path)
    clips = [source.read(i, Generator(PCG64(0)), VIEW) for i in range(2)]
    assert [clip.caption for clip in clips] == ["A bear walks.", ""]
    assert not caplog.records  # a clip of the other part is not unknown
    (tmp_path / "captions.json").write_text(json.dumps({"baer": "A bear walks.", "swan": "A swan."}))
    with caplog.at_level(logging.WARNING):
        source = davis(tmp_path)
    assert "1 captions are of no clip, baer for one" in caplog.text
    assert source.read(1, Generator(PCG64(0)), VIEW).caption == "A swan."


def test_recorded_edits_have_them_too(triplet: Callable[..., None], make: Any, tmp_path: Path) -> None:
    triplet(tmp_path / "triplets", "walk")
    (tmp_path / "triplets" / "captions.json").write_text('{"walk": "An empty street."}')
    source = open_source(tmp_path / "triplets")
    assert source.read(0, Generator(PCG64(0)), VIEW).caption == "An empty street."
    root = tmp_path / "rovi"
    make.folder(root / "JPEGImages" / "v", make.frames(6), suffix="jpg")
    make.folder(root / "InpaintImages" / "v" / "1", make.frames(6))
    make.labels(root / "Annotations" / "v", make.half(6)[..., 0] // 255)
    (root / "captions.json").write_text('{"v/1": "A lawn."}')
    assert Rovi(root).read(0, Generator(PCG64(0)), VIEW).caption == "A lawn."


@pytest.mark.parametrize("content", ["{", '["a"]', '{"bear": 3}', '"bear"', "\xff"])
def test_a_file_of_captions_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(GenPropError, match=r"captions\.json") as caught:
        read_captions(tmp_path, ["bear"])
    assert "bear" in caught.value.hint or "clip" in caught.value.hint


@pytest.mark.parametrize(
    ("task", "kept"),
    [("copy_paste", True), ("mask_fill", True), ("masked_blur", True), ("colour_fill", False)],
)
def test_a_made_pair_keeps_the_caption_where_its_target_is_the_real_clip(task: str, kept: bool) -> None:
    frequencies = dict.fromkeys(("copy_paste", "mask_fill", "colour_fill", "masked_blur"), 0.0)
    config = SynthesisConfig.model_validate({**frequencies, task: 1.0})
    mask = np.zeros((2, 64, 64), bool)
    mask[:, 16:48, 16:48] = True
    clip = MaskedClip(np.full((2, 64, 64, 3), 90, np.uint8), mask, "A grey wall.")
    donor = MaskedClip(clip.frames, mask, "Another wall.")
    sample = draw_edit(clip, donor=lambda: donor, rng=np.random.default_rng(0), config=config)
    assert sample.caption == ("A grey wall." if kept else "")
