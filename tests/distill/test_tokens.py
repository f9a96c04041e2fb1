"""Captions as token ids: CLIP's order, cut and padded as CLIP does; and never an empty vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from genprop.distill.rewards.tokens import tokenize
from genprop.errors import GenPropError

WORDS = ("<|startoftext|>", "<|endoftext|>", "a</w>", "c", "t</w>", "at</w>", "cat</w>")
START, END, A, CAT = 0, 1, 2, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vocabulary of two words, in the two files of CLIP's."""
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate((*WORDS, "a"))}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    return tmp_path


def test_a_caption_is_start_words_end_and_padding(folder: Path):
    ids = tokenize(["A  cat", "a"], tokenizer=str(folder), length=6)
    assert torch.equal(ids, torch.tensor([[START, A, CAT, END, 0, 0], [START, A, END, 0, 0, 0]]))
    assert ids.dtype == torch.int64
    assert torch.equal(tokenize(["a"], tokenizer=str(folder), pad=9)[0, 3:], torch.full((74,), 9))


def test_what_is_too_long_is_cut_before_the_end_token(folder: Path):
    ids = tokenize(["cat " * 100], tokenizer=str(folder))
    assert torch.equal(ids[0], torch.tensor([START, *[CAT] * 75, END]))


def test_a_tokenizer_in_one_file_gives_the_same_ids(folder: Path, tmp_path: Path):
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "one")
    assert (tmp_path / "one" / "tokenizer.json").is_file()
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / "one" / file).unlink(missing_ok=True)
    one = tokenize(["a cat"], tokenizer=str(tmp_path / "one"))
    assert torch.equal(one, tokenize(["a cat"], tokenizer=str(folder)))


def test_a_missing_tokenizer_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, words in {
        "openai/clip-vit-large-patch14": "the hub did not give it",
        str(tmp_path): "expected vocab.json and merges.txt",
        "/no/such/folder": "expected a folder or a hub id",
    }.items():
        with pytest.raises(GenPropError, match=words) as caught:
            tokenize(["a"], tokenizer=name)
        assert "hf download openai/clip-vit-large-patch14 vocab.json merges.txt" in caught.value.hint


def test_a_snapshot_without_the_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--acme--clip" / "snapshots" / ("a" * 40)
    (tmp_path / "models--acme--clip" / "refs").mkdir(parents=True)
    (tmp_path / "models--acme--clip" / "refs" / "main").write_text("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer_config.json").write_text("{}")
    with pytest.raises(GenPropError, match="no CLIP tokenizer in"):
        tokenize(["a"], tokenizer="acme/clip")


def test_a_broken_vocabulary_is_named(folder: Path):
    (folder / "vocab.json").write_text("{")
    with pytest.raises(GenPropError, match="cannot be read"):
        tokenize(["a"], tokenizer=str(folder))
