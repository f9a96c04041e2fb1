"""Captions as the token ids of CLIP, which the text towers of HPSv2.1 and ViCLIP both read.

The tokenizer's files are looked for before transformers sees their name: its `CLIPTokenizer`, given a folder
or a hub id that it finds nothing in, is an empty vocabulary in which every caption reads alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from genprop.errors import GenPropError
from genprop.hub import HUB_ID

FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def tokenize(texts: Sequence[str], *, tokenizer: str, pad: int = 0, length: int = 77) -> Tensor:
    """Start token, the caption's tokens, end token, and padding; int64 `[B, length]`.

    What is too long is cut, and the end token kept, as CLIP does. A caption is lowercased and its white
    space joined; OpenCLIP would repair broken Unicode and HTML entities as well.

    Args:
        texts: B captions.
        tokenizer: hub id, or a folder with vocab.json and merges.txt (or tokenizer.json).
        pad: the id behind the end token; 0 with OpenAI's and OpenCLIP's own tokenizers.

    Raises:
        GenPropError: the tokenizer is not there, or cannot be read.
    """
    rows = _load(tokenizer)(list(texts), truncation=True, max_length=length)["input_ids"]
    ids = torch.full((len(rows), length), pad)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


@lru_cache(maxsize=2)
def _load(name: str) -> CLIPTokenizer:
    """The tokenizer, read once: a run tokenizes captions in every update."""
    folder = _locate(name)
    present = {file for file in FILES if (folder / file).is_file()}
    if not ({"vocab.json", "merges.txt"} <= present or "tokenizer.json" in present):
        raise GenPropError(f"no CLIP tokenizer in {folder}: expected vocab.json and merges.txt", _hint(name))
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises nothing narrower
        raise GenPropError(f"the CLIP tokenizer in {folder} cannot be read: {error}", _hint(name)) from error


def _locate(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise GenPropError(f"no tokenizer {name!r}: expected a folder or a hub id", _hint(name))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GenPropError(
            f"the tokenizer {name} is no folder here, and the hub did not give it: {reason}", _hint(name)
        ) from error


def _hint(name: str) -> str:
    wanted = name if HUB_ID.fullmatch(name) else "openai/clip-vit-large-patch14"
    return (
        f"where there is a network, `hf download {wanted} {' '.join(FILES[:2])} --local-dir DIR`, then give "
        "DIR as the reward's tokenizer; rewards whose reference is not text need none"
    )
