"""A folder that appears whole or not at all: a bundle's, an export's, a model repository's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genprop.errors import GenPropError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        GenPropError: `out` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise GenPropError(f"{out} cannot be written: {error.strerror}", "give another --out") from error
    try:
        yield staging
        staging.chmod(0o755)
        _put_in_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`; what was there goes only when the new one stands."""
    if not out.exists():
        os.replace(staging, out)
        return
    aside = staging.with_name(f"{staging.name}-old")
    os.replace(out, aside)
    try:
        os.replace(staging, out)
    except OSError:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside)
