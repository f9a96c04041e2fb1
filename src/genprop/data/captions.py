"""A clip's caption: one sentence that a person wrote, and how it travels in a `Batch`.

What a text reward compares with is what the *edited* video shows, so that is what a caption says. A folder of
clips may hold `captions.json`, `{clip name: caption}`. In a batch a caption is a row of bytes like any other
tensor: collating, devices and processes need to know nothing of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from genprop.errors import GenPropError

FILE = "captions.json"

SIZE = 256
"""Bytes of a caption. CLIP's tokenizer stops at 77 tokens, which few sentences of this length have."""

logger = logging.getLogger(__name__)


def encode_caption(caption: str) -> Tensor:
    """UTF-8, zeros after its end, uint8 `[SIZE]`; all zeros without a caption.

    One that is too long ends with the last character that fits in whole.
    """
    fitting = caption.encode(errors="replace")[:SIZE].decode(errors="ignore").encode()
    return torch.tensor(list(fitting.ljust(SIZE, b"\0")), dtype=torch.uint8)


def decode_captions(encoded: Tensor) -> list[str]:
    """The captions of a batch, uint8 `[B, SIZE]`; "" where there is none."""
    return [bytes(row).rstrip(b"\0").decode() for row in encoded.cpu().tolist()]


def read_captions(folder: Path, names: Collection[str]) -> dict[str, str]:
    """The captions of a folder of clips, by name; none where it has no `captions.json`.

    A name that is no clip's is warned of, since a clip goes without its caption then; clips without one are
    as usual.

    Args:
        names: of all clips that are in the folder, whichever part of them is read.

    Raises:
        GenPropError: the file is not a table of texts.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GenPropError(f"{path} cannot be read: {error}", 'expected {"clip": "what it shows"}') from error
    rows = table.items() if isinstance(table, dict) else [("the file", table)]
    for name, text in rows:
        if not isinstance(text, str) or not isinstance(table, dict):
            raise GenPropError(
                f"{path}: {name} is {json.dumps(text)[:60]}, expected a table of texts by names of clips",
                'for example {"bear": "A bear walks over rocks."}',
            )
    if strays := sorted(set(table) - set(names)):
        logger.warning("%s: %d captions are of no clip, %s for one", path, len(strays), strays[0])
    return table
