"""Carrying the edit of the first frame through a video: encode, sample, decode, composite.

`load("tiny").propagate(video, edited)` is the whole product. A clip is worked through window by window,
so memory does not grow with its length, the pixels that go in and out excepted.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from genprop.errors import GenPropError
from genprop.manifest import Precision
from genprop.pixels import to_pixels
from genprop.runtime.backends import Stages, open_stages
from genprop.runtime.behind import OneBehind
from genprop.runtime.canvas import Canvas
from genprop.runtime.composite import resize
from genprop.runtime.sample import WindowResult, denoise_window, evaluations_of, sample_window
from genprop.runtime.windows import windows
from genprop.types import TASKS, Clip
from genprop.video import check_edited, read_clip, read_image, write_clip

__all__ = ["Model", "Propagation", "WindowResult", "load", "sample_window"]

ARRAY_FPS = Fraction(16)
"""The rate of frames in an array, which cannot state their own: that of a folder of frames."""


@dataclass(frozen=True)
class Propagation:
    """A video with the edit in every frame.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, as many and as large as the video's; the first is the edited one.
        mask: where the edit is, as predicted, float32 `[T, H, W]` in [0, 1].
        fps: the video's.
        seconds: of encode, denoise and decode over all windows, and the total with everything else. Stages
            that ran at once have their time counted twice.
        evaluations: how often the network ran.
    """

    frames: np.ndarray
    mask: np.ndarray
    fps: Fraction
    seconds: dict[str, float]
    evaluations: int

    def save(self, path: str | Path, audio_from: str | Path | None = None) -> None:
        """Write the frames as a video, with the sound of another; see `video.write_clip`."""
        sound = Path(audio_from) if audio_from is not None else None
        write_clip(Path(path), self.frames, fps=self.fps, audio_from=sound)


@dataclass(frozen=True)
class Model:
    """A model that is ready to run.

    Attributes:
        stages: the opened model.
        pipelined: whether a window is finished while the next is begun; the result is the same.
    """

    stages: Stages
    pipelined: bool = True

    def propagate(
        self,
        video: Clip | str | Path | np.ndarray,
        edited: np.ndarray | str | Path,
        *,
        steps: int | None = None,
        seed: int = 0,
        task: str = TASKS[0],
        guidance: float | None = None,
        composite: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Propagation:
        """Carry the edit of the first frame through the video.

        The model has one size: each frame is squashed to it, whatever its aspect, and stretched back.
        With `composite` only the predicted mask's pixels are taken from there, all others are the
        video's own.

        Args:
            video: a clip, a video file, a folder of frames, or uint8 frames `[T, H, W, 3]`.
            edited: the edited first frame, a picture or uint8 `[H, W, 3]`, as large as the video.
            steps: sampling steps; None is the teacher's own number, and at most 4 for a student.
            seed: of all noise. The same seed gives the same result on the same backend.
            task: the kind of edit, one of `TASKS`; only a model with a task embedding takes another than
                the first.
            guidance: how strongly the edited first frame is insisted on, the scale of the last frame; None is
                the model's own. For a teacher, or a student that was distilled to be told it.
            progress: called after each evaluation of the network with how many are done and how many
                there are in all.

        Raises:
            GenPropError: no video, no frames, an edited frame of another size or aspect, or a number of
                steps, a task or a guidance that the model does not know; before anything is computed.
        """
        began = time.perf_counter()
        check_task(task, known=self.stages.config.net.tasks)
        check_guidance(guidance, self.stages)
        per_window = evaluations_of(self.stages, steps)
        clip = _clip(video)
        first = _picture(edited)
        check_edited(first, clip)
        config = self.stages.config.clip
        spans = windows(len(clip.frames), config.frames)
        generator = torch.Generator().manual_seed(seed)
        done = 0

        def evaluated() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, per_window * len(spans))

        result = Canvas(self.stages, clip.frames, first, composite=composite)
        seconds = {"encode": 0.0, "denoise": 0.0}
        with OneBehind(self.stages.device, threaded=self.pipelined) as behind:
            for span, following in itertools.zip_longest(spans, spans[1:]):
                small = resize(clip.frames[span.start : span.stop], height=config.height, width=config.width)
                padding = np.repeat(small[-1:], config.frames - len(small), axis=0)
                given = resize(result.frames[span.start][None], height=config.height, width=config.width)
                made = denoise_window(
                    self.stages,
                    to_pixels(torch.from_numpy(np.concatenate([small, padding])))[None],
                    to_pixels(torch.from_numpy(given)),
                    steps=steps,
                    generator=generator,
                    task=task,
                    guidance=guidance,
                    evaluated=evaluated,
                )
                seconds = {stage: s + made.seconds[stage] for stage, s in seconds.items()}
                behind.wait()  # where windows overlap, the later one's frames stay
                behind.put(result.begin(span, made, needed=following.start if following else None))
            behind.wait()
        seconds["decode"] = result.clock.seconds.get("decode", 0.0)
        seconds["total"] = time.perf_counter() - began
        return Propagation(result.frames, result.mask, clip.fps, seconds, done)


def load(
    model: str | Path = "tiny",
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    strict: bool = False,
    unverified: bool = False,
    light: bool = False,
    size: tuple[int, int] | None = None,
) -> Model:
    """Open a model: an embedded name, a bundle, or an export folder. See `backends.open_stages`."""
    return Model(
        open_stages(
            model,
            backend=backend,
            precision=precision,
            strict=strict,
            unverified=unverified,
            light=light,
            size=size,
        )
    )


def check_task(task: str, *, known: bool) -> None:
    """Refuse a task that there is not, or that the model was not trained to be told of.

    Raises:
        GenPropError: names the tasks.
    """
    if task not in TASKS:
        raise GenPropError(f"no task {task!r}: expected one of {', '.join(TASKS)}", "Choose one of these.")
    if task != TASKS[0] and not known:
        raise GenPropError(
            f"the task is {task!r}, but the model has no task embedding: expected {TASKS[0]!r}",
            "Use a model that was trained with net.tasks = true.",
        )


def check_guidance(guidance: float | None, stages: Stages) -> None:
    """Refuse a guidance scale that the model was not trained to be told, or none at all.

    Raises:
        GenPropError: a student whose guidance is baked in; a scale outside of the range.
    """
    if guidance is None:
        return
    low, high = (0.0, math.inf) if stages.kind == "teacher" else stages.config.distill.guidance_range
    if stages.kind == "student" and not stages.config.net.guidance:
        raise GenPropError(
            f"the guidance is {guidance:g}, but this student has its own baked in: expected none",
            'Leave it out, or distil a student with distill.guidance = "embedded".',
        )
    if not low <= guidance <= high or math.isinf(guidance):
        expected = f"one from {low:g} to {high:g}" if math.isfinite(high) else f"a number from {low:g} on"
        raise GenPropError(
            f"the guidance is {guidance:g}, expected {expected}",
            "A student knows the scales that it was shown in training (distill.guidance_range).",
        )


def _clip(video: Clip | str | Path | np.ndarray) -> Clip:
    """Whatever was given as a clip, checked."""
    if isinstance(video, str | Path):
        return read_clip(Path(video))
    clip = Clip(video, ARRAY_FPS) if isinstance(video, np.ndarray) else video
    frames = clip.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise GenPropError(
            f"the video is {frames.dtype} of shape {list(frames.shape)}, expected uint8 [T, H, W, 3]",
            "Give RGB frames from 0 to 255.",
        )
    if not frames.size:
        raise GenPropError("the video holds no frames, expected at least one", "Give a video with pictures.")
    return clip


def _picture(edited: np.ndarray | str | Path) -> np.ndarray:
    """The edited frame as an array, checked; its size is `check_edited`'s business."""
    if isinstance(edited, str | Path):
        return read_image(Path(edited))
    if edited.dtype != np.uint8 or edited.ndim != 3 or edited.shape[-1] != 3:
        raise GenPropError(
            f"the edited frame is {edited.dtype} of shape {list(edited.shape)}, expected uint8 [H, W, 3]",
            "Give RGB from 0 to 255.",
        )
    return edited
