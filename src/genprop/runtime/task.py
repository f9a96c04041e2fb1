"""`genprop run`: a video file and an edited frame in, a video file out.

Everything that a person can have got wrong is checked before the model is opened, and the output before
anything is computed: minutes of work are not lost to a folder that cannot be written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from genprop.errors import GenPropError
from genprop.runtime.propagate import Model
from genprop.types import TASKS
from genprop.video import (
    check_edited,
    check_output,
    fill_first_frame,
    read_clip,
    read_image,
    read_mask,
    write_clip,
)


def run_video(
    video: Path,
    open_model: Callable[[], Model],
    *,
    edited: Path | None = None,
    mask: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    task: str = TASKS[0],
    guidance: float | None = None,
    out: Path | None = None,
    composite: bool = True,
    save_mask: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Propagate the edit of the first frame of a file; the sound is kept.

    Args:
        edited: the edited first frame; or
        mask: a mask of the first frame, which is then filled by Telea's method.
        guidance: see `Model.propagate`.
        out: the output; beside `video` if None.

    Returns:
        What `genprop run --json` prints.

    Raises:
        GenPropError: any wrong input; no output is left behind.
    """
    clip = read_clip(video)
    height, width = clip.frames.shape[1:3]
    if mask is not None:
        first = fill_first_frame(clip.frames[0], read_mask(mask, size=(height, width)))
    else:
        assert edited is not None
        first = read_image(edited)
        check_edited(first, clip)
    sound = video if video.is_file() else None
    target = out if out is not None else beside(video)
    check_distinct(filter(None, (target, save_mask)), inputs=filter(None, (video, edited, mask)))
    check_output(target, audio_from=sound)
    if save_mask is not None:
        check_output(save_mask)
    model = open_model()
    result = model.propagate(
        clip,
        first,
        steps=steps,
        seed=seed,
        task=task,
        guidance=guidance,
        composite=composite,
        progress=progress,
    )
    result.save(target, audio_from=sound)
    if save_mask is not None:
        grey = (result.mask * 255).round().astype(np.uint8)
        write_clip(save_mask, np.repeat(grey[..., None], 3, axis=-1), fps=clip.fps)
    return {
        "out": str(target),
        "frames": len(result.frames),
        "height": height,
        "width": width,
        "fps": float(clip.fps),
        "backend": model.stages.backend,
        "why": model.stages.why,
        "evaluations": result.evaluations,
        "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        "edited_share": float((result.mask > 0.5).mean()),
    }


def beside(video: Path) -> Path:
    """Where the output goes if no one says: `VIDEO-genprop.mp4`. A folder's name may be `.` or `..`."""
    named = video if video.name not in ("", "..") else Path(os.path.abspath(video))
    return named.with_name(f"{named.stem}-genprop.mp4")


def check_distinct(outputs: Iterable[Path], *, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace an input or another output."""
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise GenPropError(
                f"{path} is an input or another output, expected a file of its own", "Give it another name."
            )
        taken.add(path.resolve())
