"""The protocols on real footage: `pasted`, removals with a known truth; `tracked`, whole natural clips."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genprop.data.corpus import RealClip
from genprop.errors import GenPropError
from genprop.evaluate.hidden import unseen
from genprop.evaluate.methods import methods
from genprop.evaluate.removal import Removal, pasted_removals
from genprop.evaluate.scores import clip_figures, interval, mask_figures
from genprop.export.folder import versions
from genprop.hardware import describe_hardware
from genprop.runtime.backends import Stages
from genprop.runtime.removal import remove
from genprop.sheet import contact_sheet
from genprop.video import write_image

Say = Callable[[str], None]


def run_pasted(
    clips: Sequence[RealClip],
    names: tuple[str, ...],
    stages: Stages | None,
    *,
    pairs: int,
    frames: int,
    seed: int,
    steps: int | None,
    out: Path,
    say: Say,
) -> dict[str, Any]:
    """Every method on every pair; the document of `eval.json`."""
    rows = methods(names, stages, steps=steps)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    recipes = []
    for index, removal in enumerate(pasted_removals(clips, pairs=pairs, frames=frames, seed=seed)):
        hidden = unseen(removal)
        shown = [("video", removal.video), ("truth", removal.truth), ("unseen", hidden)]
        for name, method in rows.items():
            done = method(removal)
            found = clip_figures(done.frames, removal.truth, hole=removal.hole, unseen=hidden)
            if done.mask is not None:
                found |= mask_figures(done.mask, removal.mask)
                shown.append((f"{name}: mask", done.mask))
            found["seconds_a_frame"] = done.seconds / len(removal.video)
            figures[name].append(found)
            shown.append((name, done.frames))
        share = float(hidden.sum() / max(removal.hole[1:].sum(), 1))
        recipes.append({"name": removal.name, **removal.recipe, "unseen": share})
        _sheet(out / f"{index:02d}-{removal.name.replace(' ', '-')}.png", shown, removal.name)
        say(_line(index, removal, figures))
    document = {
        "protocol": "pasted",
        "frames": frames,
        "steps": steps,
        "pairs": recipes,
        "rows": {name: _summary(found, figures) for name, found in figures.items()},
        "clips": figures,
        **_made(seed),
    }
    return _plain(document)


def run_tracked(clips: Sequence[RealClip], *, most: int | None, out: Path, say: Say) -> dict[str, Any]:
    """The masks of natural objects over whole clips, from the first alone, its frame painted by the tool.

    Raises:
        GenPropError: no clip of at least two frames has an object in its first.
    """
    found: dict[str, dict[str, float]] = {}
    for clip in clips:
        for which, mask in enumerate(clip.masks):
            name = clip.name if len(clip.masks) == 1 else f"{clip.name}, {which}"
            frames, truth = clip.frames[:most], mask[:most]
            if len(truth) < 2 or not truth[0].any():
                say(f"{name}: left out, its object is not in the first frame, or there is no second")
                continue
            done = remove(frames, masks={0: truth[0]}, stages=None)
            found[name] = mask_figures(done.mask, truth[: len(done.mask)]) | {
                "frames": len(frames),
                "seconds_a_frame": done.seconds["total"] / len(frames),
            }
            say(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found[name].items()))
            shown = [("video", frames), ("true mask", truth), ("mask", done.mask), ("result", done.frames)]
            _sheet(out / f"{name.replace(', ', '-')}.png", shown, name)
    if not found:
        raise GenPropError(
            f"none of {len(clips)} clips has two frames and an object in its first, expected one that has",
            "Put a mask-0.mp4 beside the video.mp4 of a clip: the object white on black.",
        )
    keys = next(iter(found.values()))
    means = {key: float(np.mean([row[key] for row in found.values()])) for key in keys}
    return {"protocol": "tracked", "rows": {**found, "mean": means}, **_made(0)}


def _summary(found: list[dict[str, float]], everyone: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means with their intervals, and on how many pairs the hole is better than the baselines'."""
    keys = found[0].keys()
    row: dict[str, Any] = {key: interval([clip[key] for clip in found]) for key in keys}
    row["unseen_pairs"] = sum(not np.isnan(clip["unseen"]) for clip in found)
    for other in ("frozen", "telea"):
        if other in everyone:
            theirs = everyone[other]
            better = (mine["hole"] > clip["hole"] for mine, clip in zip(found, theirs, strict=True))
            row[f"better_than_{other}"] = sum(better)
    return row


def _line(index: int, removal: Removal, figures: dict[str, list[dict[str, float]]]) -> str:
    holes = ", ".join(f"{name} {found[-1]['hole']:.1f}" for name, found in figures.items())
    return f"{index:2d} {removal.name}: {holes}"


def _sheet(path: Path, rows: list[tuple[str, np.ndarray]], title: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, contact_sheet(rows, title=title, height=112))


def _plain(value: Any) -> Any:
    """The same without nan, which JSON does not have: a figure with nothing to be measured on is null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _made(seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "hardware": describe_hardware(),
        "versions": versions(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
