"""Engines that were built before, by all that they depend on.

    <folder>/<key>/engine         the engine
    <folder>/<key>/record.json    what it is, and its hash

The key is the SHA-256 of a fingerprint, a flat table of everything that could change the engine; no name of
a file or folder is in it. An entry appears whole or not at all, and is taken only if its engine has the hash
it had when it was built. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from genprop.errors import GenPropError
from genprop.export.folder import link
from genprop.hub import sha256
from genprop.manifest import EngineSpec
from genprop.settings import Model
from genprop.trt import cache_folder

ENGINE, RECORD = "engine", "record.json"


class Record(Model):
    """`record.json`. `spec.file` and `spec.graph` are those of the export that built it."""

    spec: EngineSpec
    sha256: str


def key_of(fingerprint: Mapping[str, str]) -> str:
    """SHA-256 of a fingerprint, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(dict(fingerprint), sort_keys=True).encode()).hexdigest()


def differences(wanted: Mapping[str, str], built: Mapping[str, str]) -> list[str]:
    """What is not the same in two fingerprints, for a person; hashes by their first digits."""
    names = [name for name in {**wanted, **built} if wanted.get(name) != built.get(name)]
    return [f"{name} ({_short(built.get(name))} there, {_short(wanted.get(name))} here)" for name in names]


class EngineCache:
    """The cache in `folder`; None is `engines` below `trt.cache_folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder() / "engines"

    def find(self, key: str) -> Record | None:
        """An entry's record; None if there is no such entry.

        Raises:
            GenPropError: it is damaged.
        """
        entry = self.folder / key
        if not entry.exists():
            return None
        record = _read(entry)
        if record is None or not (entry / ENGINE).is_file():
            raise GenPropError(f"the cached engine {entry} is not whole")
        if (got := sha256(entry / ENGINE)) != record.sha256:
            raise GenPropError(f"the cached engine {entry} has SHA-256 {got}, expected {record.sha256}")
        return record

    def nearest(self, wanted: Mapping[str, str], graph: str) -> Record | None:
        """The entry that differs in the fewest places; one of a graph of the same name before another."""
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        records = [record for entry in entries if (record := _read(entry)) is not None]

        def distance(record: Record) -> tuple[int, bool]:
            return len(differences(wanted, record.spec.fingerprint)), record.spec.graph != graph

        alike = [
            r for r in records if r.spec.graph == graph or r.spec.fingerprint["graph"] == wanted["graph"]
        ]
        return min(alike, key=distance, default=None)

    @contextmanager
    def new(self) -> Iterator[Path]:
        """A file to build an engine into; `keep` makes an entry of it, or it vanishes with the block.

        Raises:
            GenPropError: the cache cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        except OSError as error:
            raise GenPropError(
                f"the engine cache {self.folder} cannot be written: {error.strerror}",
                "set GENPROP_CACHE to a folder that can",
            ) from error
        try:
            yield staging / ENGINE
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def keep(self, engine: Path, spec: EngineSpec) -> Record:
        """Make an entry of a file that `new` gave, in the place of a damaged one if there is."""
        record = Record(spec=spec, sha256=sha256(engine))
        (engine.parent / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        engine.parent.chmod(0o755)
        shutil.rmtree(self.folder / spec.key, ignore_errors=True)
        os.replace(engine.parent, self.folder / spec.key)
        return record

    def place(self, key: str, file: Path) -> None:
        """Put an entry's engine at `file`: the very same file where the disk allows it, else a copy."""
        link(self.folder / key / ENGINE, file)


def _read(entry: Path) -> Record | None:
    try:
        return Record.model_validate_json((entry / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return f"{value[:12]}…" if len(value) == 64 and " " not in value else value
