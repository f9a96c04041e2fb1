"""What was wrong with which clip: a log that many workers and processes share.

A dataset of thousands of clips has broken ones. They must not end a training, nor vanish in silence.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Literal

Action = Literal["skipped", "read"]

logger = logging.getLogger(__name__)


class FaultLog:
    """One json line, and one warning through `logging`, for each clip that was skipped, and for each that was
    read although it is unusual.

    A clip has one line for either, whoever reports it, however often, and in a resumed run too; without
    a `path` there is only the warning, once for each process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.known: set[tuple[str, str, str]] = set()
        self.position = 0  # how much of the file is known

    def report(self, clip: str, *, source: str, fault: str, action: Action) -> None:
        """Write it down, unless somebody has."""
        key = (source, clip, action)
        if key in self.known:
            return
        if self.path is None or self._append(key, fault):
            logger.warning("%s %s, a clip of %s: %s", action, clip, source, fault)
        self.known.add(key)

    def counts(self) -> dict[str, int]:
        """How many clips were "skipped" and "read" so far, by any process."""
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position)
                self._catch_up(file.read())
        return dict(Counter(action for _, _, action in self.known))

    def _append(self, key: tuple[str, str, str], fault: str) -> bool:
        """Whether it was news. The lock makes reading the others' lines and writing one's own one act."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self.position)
            rest = file.read()
            self._catch_up(rest)
            if key in self.known:
                return False
            source, clip, action = key
            line = json.dumps({"clip": clip, "source": source, "fault": fault, "action": action})
            # A line that a kill cut short stays alone.
            file.write(b"\n" * (bool(rest) and not rest.endswith(b"\n")) + line.encode() + b"\n")
            return True

    def _catch_up(self, text: bytes) -> None:
        whole = text[: text.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.splitlines():
            try:
                entry = json.loads(line)
                self.known.add((entry["source"], entry["clip"], entry["action"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut short
