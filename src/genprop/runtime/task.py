"""`genprop run`: a video file and a mask or an edited frame in, a video file out, frame by frame.

Everything that a person can have got wrong is checked before the model is opened, and the output before
anything is computed: minutes of work are not lost to a folder that cannot be written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from genprop.codec import count_packets
from genprop.errors import GenPropError
from genprop.guide.edit import edit_mask
from genprop.runtime.propagate import Model, check_guidance, check_task
from genprop.runtime.removal import Finished, Seconds, check_first_mask, stream_removal
from genprop.runtime.review import Review
from genprop.runtime.sample import evaluations_of
from genprop.runtime.unseen import Sampling
from genprop.types import TASKS, Clip
from genprop.video import (
    VideoReader,
    check_edited_size,
    check_output,
    fill_first_frame,
    open_frames,
    open_masks,
    read_image,
    read_mask,
    write_frames,
    write_image,
)

Progress = Callable[[int, int | None], None]
"""Is told how many frames are done, and how many there are as far as it is known."""


def run_video(
    video: Path,
    open_model: Callable[[], Model] | None,
    *,
    edited: Path | None = None,
    mask: Path | None = None,
    masks: Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    task: str = TASKS[0],
    guidance: float | None = None,
    out: Path | None = None,
    guide: bool = True,
    composite: bool = True,
    save_mask: Path | None = None,
    save_first: Path | None = None,
    review: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Carry the edit of the first frame through a file; the sound is kept.

    Args:
        open_model: opens the model; None leaves what no frame shows to the guide.
        edited: the edited first frame.
        mask: a mask of the first frame; without `edited` that is then filled.
        masks: masks of all frames or some, a video or a folder; they are believed.
        guidance: see `Model.propagate`.
        out: the output; beside `video` if None.
        guide: whether motion and tracking lead; without them the model works alone, on squashed frames.
        composite: see `Model.propagate`; for the model alone.
        save_mask: where to write the masks, as a video.
        save_first: where to write the first frame without the object.
        review: a folder for the frames that a person should look at.

    Returns:
        What `genprop run --json` prints.

    Raises:
        GenPropError: any wrong input; no output is left behind.
    """
    if edited is None and mask is None and masks is None:
        raise GenPropError("nothing says what to remove", "Give --mask, --masks or --edited.")
    target = out if out is not None else beside(video)
    outputs = [path for path in (target, save_mask, save_first) if path is not None]
    check_distinct(outputs, inputs=filter(None, (video, edited, mask, masks)))
    sound = video if video.is_file() else None
    with ExitStack() as stack:
        reader = stack.enter_context(open_frames(video))
        size = reader.height, reader.width
        frames = iter(reader)
        first = next(frames)
        picture = None if edited is None else read_image(edited)
        if picture is not None:
            check_edited_size(picture, height=size[0], width=size[1])
        given = None if mask is None else read_mask(mask, size=size)
        every = None
        if masks is not None:
            count = count_packets(video) if video.is_file() else reader.expected
            every = stack.enter_context(open_masks(masks, height=size[0], width=size[1], frames=count))
        if guide and given is None and (every is None or every.get(0) is None):
            given = edit_mask(first, picture) if picture is not None else None
            check_first_mask(given)
        check_output(target, audio_from=sound)
        if save_mask is not None:
            check_output(save_mask)
        model = open_model() if open_model is not None else None
        if model is not None:
            check_task(task, known=model.stages.config.net.tasks)
            check_guidance(guidance, model.stages)
            evaluations_of(model.stages, steps)
        began, seconds = time.perf_counter(), Seconds()
        if guide:

            def masks_of(index: int) -> np.ndarray | None:
                found = None if every is None else every.get(index)
                return given if index == 0 and found is None else found

            def all_frames() -> Iterator[np.ndarray]:
                yield first
                yield from frames

            result = stream_removal(
                all_frames(),
                edited=picture,
                masks=masks_of,
                stages=None if model is None else model.stages,
                sampling=Sampling(steps, guidance),
                seed=seed,
                seconds=seconds,
            )
        else:
            assert model is not None
            clip = Clip(np.stack([first, *frames]), reader.fps, video)
            edit = picture if picture is not None else fill_first_frame(first, _known(given))
            options = {
                "steps": steps,
                "seed": seed,
                "task": task,
                "guidance": guidance,
                "composite": composite,
            }
            result = _alone(model, clip, edit, options, seconds)
        look = Review()
        document = _write(
            result,
            reader,
            target,
            sound=sound,
            save_mask=save_mask,
            save_first=save_first,
            look=look,
            seconds=seconds,
            progress=progress,
        )
        if every is not None:
            every.finish(document["frames"])
        if review is not None:
            look.write(review)
    seconds.add("total", began)
    return {
        **document,
        "backend": "none" if model is None else model.stages.backend,
        "why": "the guide alone" if model is None else model.stages.why,
        "evaluations": seconds.evaluations,
        "seconds": {stage: round(value, 3) for stage, value in seconds.by_stage.items()},
        "review": look.document(),
    }


def _write(
    result: Generator[Finished],
    reader: VideoReader,
    target: Path,
    *,
    sound: Path | None,
    save_mask: Path | None,
    save_first: Path | None,
    look: Review,
    seconds: Seconds,
    progress: Progress | None,
) -> dict[str, Any]:
    """Every frame as it is finished, into the files that are asked for; they appear whole, at the end."""
    size = {"height": reader.height, "width": reader.width, "fps": reader.fps}
    count, edited, sure, unseen = 0, 0.0, 0.0, 0.0
    with ExitStack() as stack:
        writer = stack.enter_context(write_frames(target, audio_from=sound, **size))
        masks = stack.enter_context(write_frames(save_mask, **size)) if save_mask is not None else None
        stack.enter_context(closing(result))  # first to be closed: its threads read what the others hold
        first = None
        for frame in result:
            began = time.perf_counter()
            writer.write(frame.frame)
            if masks is not None:
                masks.write(np.repeat(frame.mask[..., None].astype(np.uint8) * 255, 3, axis=-1))
            first = frame.frame if first is None else first
            look.add(frame)
            count, edited = count + 1, edited + float(frame.mask.mean())
            sure, unseen = sure + frame.confidence, unseen + frame.unseen
            seconds.add("writing", began)
            if progress is not None:
                progress(count, reader.expected)
        if save_first is not None and first is not None:
            write_image(save_first, first)
    return {
        "out": str(target),
        "frames": count,
        "height": reader.height,
        "width": reader.width,
        "fps": float(reader.fps),
        "edited_share": edited / count,
        "confidence": sure / count,
        "unseen_share": unseen / count,
    }


def _alone(
    model: Model, clip: Clip, edited: np.ndarray, options: dict[str, Any], seconds: Seconds
) -> Generator[Finished]:
    """The model without the guide, as if it streamed: it holds the whole clip."""
    done = model.propagate(clip, edited, **options)
    seconds.evaluations = done.evaluations
    seconds.by_stage |= {stage: value for stage, value in done.seconds.items() if stage != "total"}
    everywhere = np.ones(clip.frames.shape[1:3], bool)
    for index, (frame, mask) in enumerate(zip(done.frames, done.mask, strict=True)):
        yield Finished(index, frame, clip.frames[index], mask > 0.5, everywhere, 1.0, 0.0)


def _known(mask: np.ndarray | None) -> np.ndarray:
    """A mask that has to be there.

    Raises:
        GenPropError: there is none.
    """
    if mask is None:
        raise GenPropError(
            "the model alone knows no --masks: expected --edited or --mask", "Leave out --no-guide."
        )
    return mask


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
