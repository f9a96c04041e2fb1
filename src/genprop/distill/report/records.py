"""What a distillation leaves in its folder, read back for people: curves, quality, samples and settings.

Only `log.jsonl` has to be there. A run may be going on, may have been killed, or may be of an older version,
and its report has to say what it lacks instead of failing on it.

    log.jsonl       one JSON object a line: `step` and scalars; those of validation begin with `val/`
    run.json        `config`, `versions`, `hardware`, `teacher`, `data`, `seconds`, `resumed_from`
    quality.json    `rows`: student, teacher and baselines (`quality.py`)
    schedule.json   `sigmas` and `eta` by number of steps, `rows`: what was tried
    rewards.json    a card for each reward
    samples/        contact sheets, step-<step>.png
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genprop.errors import GenPropError

VALIDATION = "val/"


@dataclass(frozen=True)
class QualityRow:
    """One way to make the held-out clips, and what came of it; see `quality.measure_quality`.

    A figure is nan where there was nothing to measure and infinite where a PSNR had no error.

    Attributes:
        name: "student", "teacher", or a baseline's.
        evaluations: of the network for one clip; 0 for a baseline.
        steps: of the sampler.
        eta: share of fresh noise in a student's steps.
        hole_psnr, keep_psnr: dB of decoded frames against the decoded truth, inside and outside of the mask.
        sharpness, motion: in the hole, over the truth's.
        endpoint_db: of the deterministic sample's latents against the teacher's full sampling.
        rewards: mean score by name.
        seconds: of denoising one clip, median.
    """

    name: str
    evaluations: int
    steps: int = 0
    eta: float = 0.0
    hole_psnr: float = math.nan
    keep_psnr: float = math.nan
    sharpness: float = math.nan
    motion: float = math.nan
    endpoint_db: float = math.nan
    mask_iou: float = math.nan
    rewards: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan


class Curve(NamedTuple):
    """A scalar over updates; both `[n]`, finite values only."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """A run's folder, read. What is not there is empty, and named in `missing`.

    Attributes:
        training, validation: curves by their name in the log, without `val/`.
        about: `run.json`.
        schedule: `schedule.json`.
        rewards: the cards.
        sheets: contact sheets by update, in order.
        missing: what is not there or cannot be read, one phrase each.
    """

    folder: Path
    name: str
    training: dict[str, Curve]
    validation: dict[str, Curve]
    about: dict[str, Any]
    quality: list[QualityRow]
    schedule: dict[str, Any]
    rewards: list[dict[str, Any]]
    sheets: dict[int, Path]
    missing: list[str]

    @property
    def updates(self) -> int:
        """The last update in the log."""
        curves = (*self.training.values(), *self.validation.values())
        return int(max((curve.steps[-1] for curve in curves), default=0))

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as `table.key: value`."""
        return flat(self.about.get("config") or {})

    def quality_of(self, name: str) -> list[QualityRow]:
        """The rows of that name, fewest evaluations first."""
        return sorted((row for row in self.quality if row.name == name), key=lambda row: row.evaluations)


def read_run(folder: Path) -> Run:
    """Read what is there.

    Raises:
        GenPropError: `folder` is not a run: it has no log.
    """
    log = folder / "log.jsonl"
    if not log.is_file():
        what = "has no log.jsonl" if folder.is_dir() else "is not a folder"
        raise GenPropError(
            f"{folder} {what}, expected a run's folder",
            "give the folder that was --out of `genprop distill`",
        )
    missing: list[str] = []
    curves = read_log(log)
    if not curves:
        missing.append("any line in log.jsonl")
    about = _read(folder / "run.json", dict, missing, "configuration, versions and hardware")
    quality = _rows(_read(folder / "quality.json", object, missing, "quality on held-out clips"))
    schedule = _read(folder / "schedule.json", dict, missing, "the sampling schedule")
    cards = _rows(_read(folder / "rewards.json", object, missing, "the rewards' cards"))
    pictures = {p.stem.removeprefix("step-"): p for p in sorted((folder / "samples").glob("step-*.png"))}
    sheets = {int(step): picture for step, picture in pictures.items() if step.isdecimal()}
    if not sheets:
        missing.append("samples/step-*.png: contact sheets")
    return Run(
        folder,
        folder.resolve().name,
        {name: curve for name, curve in curves.items() if not name.startswith(VALIDATION)},
        {n.removeprefix(VALIDATION): curve for n, curve in curves.items() if n.startswith(VALIDATION)},
        about or {},
        [row_of(row) for row in quality],
        schedule or {},
        cards,
        sheets,
        missing,
    )


def read_log(path: Path) -> dict[str, Curve]:
    """The curves of a log; a line that a kill cut short is left out, and so is what is not finite."""
    found: dict[str, list[tuple[int, float]]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
            step = int(line.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
        for name, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return {name: Curve(*np.array(points).T) for name, points in found.items()}


def row_of(table: Mapping[str, Any]) -> QualityRow:
    """A row as JSON has it: null is nan, keys of other versions are passed over."""
    known = {f.name for f in fields(QualityRow)}
    row = {name: math.nan if value is None else value for name, value in table.items() if name in known}
    scores = table.get("rewards") or {}
    row["rewards"] = {name: math.nan if value is None else value for name, value in scores.items()}
    return QualityRow(**{"name": "?", "evaluations": 0, **row})


def quality_document(rows: Sequence[QualityRow]) -> dict[str, Any]:
    """What `quality.json` holds. A figure that is not finite is null, as in every report."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {"rows": [plain(asdict(row)) for row in rows]}


def write_json(path: Path, document: object) -> None:
    """Write a document, whole or not at all."""
    text = json.dumps(document, indent=1) + "\n"
    write_whole(path.parent, {path.name: text.encode()})


def write_quality(path: Path, rows: Sequence[QualityRow]) -> None:
    """Write `quality.json`, whole or not at all."""
    write_json(path, quality_document(rows))


def write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their names in `folder`: all of them, the last one last, or none that was not there.

    Everything is on the disk before the first takes its place, so that what can fail has failed by then.

    Raises:
        GenPropError: they cannot be written.
    """
    partials = {name: (folder / name).with_name(f".{Path(name).name}.partial") for name in files}
    try:
        for name, content in files.items():
            partials[name].parent.mkdir(parents=True, exist_ok=True)
            partials[name].write_bytes(content)
        for name, partial in partials.items():
            os.replace(partial, folder / name)
    except OSError as error:
        raise GenPropError(
            f"cannot write into {folder}: {error}", "give a folder that can be written"
        ) from error
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as `a.b.c: value`."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _read(path: Path, kind: type, missing: list[str], what: str) -> Any:
    """A JSON file; None, and a word in `missing`, where it is not there or not what was expected."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name}: {what}")
        return None
    except ValueError:
        document = None
    if not isinstance(document, kind) or document is None:
        missing.append(f"{path.name}: {what} (the file is there, but cannot be read)")
        return None
    return document


def _rows(document: Any) -> list[dict[str, Any]]:
    """A list of tables, bare, under "rows", or by name."""
    if isinstance(document, dict):
        named = [{"name": name, **table} for name, table in document.items() if isinstance(table, dict)]
        document = document.get("rows", named)
    return [row for row in document if isinstance(row, dict)] if isinstance(document, list) else []
