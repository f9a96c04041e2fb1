"""Around the graphs: what a manifest records of where they came from, and where an export may go."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path

from genprop import __version__
from genprop.bundle import Bundle
from genprop.errors import GenPropError
from genprop.hub import sha256
from genprop.manifest import is_export

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


def versions() -> dict[str, str]:
    """The versions that made and checked the graphs."""
    return {"genprop": __version__} | {name: version(name) for name in TOOLS}


def weight_hashes(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the bundle's files and, as `base`, of its base's weights."""
    return {**bundle.card.files, "base": bundle.card.base_sha256}


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in `folder`."""
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def link(file: Path, to: Path) -> None:
    """Let `to` be the same file, or a copy where file systems differ; graphs and engines are gigabytes."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


def check_output(out: Path) -> None:
    """Refuse an output that is something else than an older export.

    Raises:
        GenPropError: a file, or a folder with other things in it.
    """
    if out.exists() and not out.is_dir():
        raise GenPropError(f"{out} is a file, expected a folder to export into", "give another --out")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise GenPropError(
            f"{out} holds other things than an export, expected an empty folder or none", "give another --out"
        )
