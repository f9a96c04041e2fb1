"""A seeded split into training and validation, as a list of names: no file is moved.

Where a clip goes depends on the seed and its name alone, so adding a clip moves no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from genprop.data.recordings import Source
from genprop.errors import GenPropError

Part = Literal["train", "validation"]


def write_split(path: Path, source: Source, fraction: float, seed: int) -> dict[str, list[str]]:
    """Writes which clips of `source` are for "train" and for "validation" as json, and returns it.

    About `fraction` of them go to validation, at least one clip to either. A split that is there already,
    with the same seed and fraction, is extended: its clips stay where they are.

    Raises:
        GenPropError: fewer than two clips, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise GenPropError(f"the fraction is {fraction}, expected one between 0 and 1", "For example 0.1.")
    if len(source.names) < 2:
        raise GenPropError(f"{source.where} has {len(source.names)} clip, expected at least 2 to split")
    settings, before = {"fraction": fraction, "seed": seed}, {}
    if path.exists():
        found = _table(path)
        before = found if {key: found.get(key) for key in settings} == settings else {}
    parts = divide(source.names, fraction, seed, before=before)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"source": source.where, **settings, **parts}, indent=1), encoding="utf-8")
    os.replace(partial, path)
    return parts


def divide(
    names: Sequence[str], fraction: float, seed: int, *, before: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """The names that are for "train" and for "validation", at least one of two or more for either.

    Args:
        before: an earlier division; its names stay where they are.
    """
    rank, before = {name: _rank(seed, name) for name in names}, before or {}
    held_out = {name for name in rank if rank[name] < fraction}
    held_out = (held_out - set(before.get("train", ()))) | (set(before.get("validation", ())) & set(rank))
    if not held_out:
        held_out = {min(rank, key=rank.__getitem__)}
    if len(held_out) == len(rank):
        held_out.remove(max(rank, key=rank.__getitem__))
    train = sorted(name for name in rank if name not in held_out)
    return {"train": train, "validation": sorted(held_out)}


def read_split(path: Path) -> dict[str, list[str]]:
    """The lists that `write_split` wrote; GenPropError where `path` is no such file."""
    table = _table(path)
    return {part: table[part] for part in ("train", "validation")}


def source_of(path: Path) -> str:
    """The folder that a split is of; GenPropError where `path` is no split."""
    table = _table(path)
    if "source" not in table:
        raise GenPropError(f"{path} does not say what it splits", "Make it again: `genprop data split`.")
    return str(table["source"])


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: list(table[part]) for part in ("train", "validation")}
        return {**table, **parts}
    except OSError as error:
        raise GenPropError(
            f"{path} cannot be read: {error.strerror}", "Make it: `genprop data split`."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise GenPropError(
            f"{path} is not a split: {error!r}", "Make it again: `genprop data split`."
        ) from error


def _rank(seed: int, name: str) -> float:
    """A number in [0, 1) that is uniform over names."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56
