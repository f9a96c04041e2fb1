"""What a training run writes for people: `log.jsonl`, samples, a tracker's scalars and media, progress.

The tracker is TensorBoard or Weights & Biases. The progress is a bar when stderr is a terminal and a plain
line through `logging` when it is not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from genprop.errors import GenPropError
from genprop.settings import TrainConfig
from genprop.video import write_clip

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where scalars, pictures and clips can be looked at; `step` is the number of steps done."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...
    def picture(self, step: int, image: np.ndarray) -> None: ...
    def video(self, step: int, path: Path) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `out/tensorboard`; what came after step `start` is dropped. Clips are left out."""

    def __init__(self, out: Path, *, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to run a model

        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, image: np.ndarray) -> None:
        self.writer.add_image("val/samples", image, step, dataformats="HWC")

    def video(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of the project `genprop`, online or, with `WANDB_MODE=offline`, in `out/wandb`.

    A resumed training goes on in the same run, whose name `out/wandb-run` keeps. Steps are a metric of
    their own: W&B's counter cannot go back to the checkpoint.
    """

    def __init__(self, out: Path, config: TrainConfig) -> None:
        self.wandb = wandb()
        name = out / "wandb-run"
        self.run = self.wandb.init(
            project="genprop",
            name=out.name,
            dir=str(out),
            config=config.model_dump(),
            id=name.read_text() if name.exists() else None,
            resume="allow",
        )
        name.write_text(self.run.id)
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def picture(self, step: int, image: np.ndarray) -> None:
        self.run.log({"step": step, "val/samples": self.wandb.Image(image)})

    def video(self, step: int, path: Path) -> None:
        self.run.log({"step": step, "val/clip": self.wandb.Video(str(path), format="mp4")})

    def close(self) -> None:
        self.run.finish()


def wandb() -> Any:
    """The library of Weights & Biases.

    Raises:
        GenPropError: it is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise GenPropError(
            f"tracker wandb needs wandb, which cannot be imported: {error}",
            'pip install wandb, or set tracker = "tensorboard"',
        ) from error
    return wandb


class RunLog:
    """The log of one run in the folder `out`; a context manager.

    `start` is the number of steps that are already done: lines beyond it are dropped from the log (the
    run went on after the checkpoint that is resumed, and will do those steps again).
    """

    def __init__(self, out: Path, config: TrainConfig, *, start: int) -> None:
        self.out, self.steps = out, config.steps
        self.path = out / "log.jsonl"
        if self.path.exists():
            drop_lines_after(self.path, start)
        wanted = config.tracker == "wandb"
        self.tracker: Tracker = WandB(out, config) if wanted else TensorBoard(out, start=start)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self.task = self.bar.add_task("training", total=self.steps, completed=start) if self.bar else None

    def __enter__(self) -> RunLog:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        self.tracker.close()

    def advance(self, step: int) -> None:
        """Step `step` (from 1) is done."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write `values` everywhere, under the number of steps done."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.tracker.scalars(step, values)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not self.bar:
            logger.info("step %d/%d  %s", step, self.steps, text)
        elif self.task is not None and "loss" in values:
            self.bar.update(self.task, description=f"loss {values['loss']:.4g}")

    def picture(self, step: int, image: np.ndarray) -> None:
        """Write a picture, uint8 `[H, W, 3]`, to `out/samples/step-<step>.png` and to the tracker."""
        path = self._sample(step, ".png")
        partial = path.with_suffix(".partial")
        Image.fromarray(image).save(partial, format="PNG")
        os.replace(partial, path)
        self.tracker.picture(step, image)

    def video(self, step: int, frames: np.ndarray, fps: float) -> None:
        """Write a clip, uint8 `[T, H, W, 3]`, to `out/samples/step-<step>.mp4` and to the tracker."""
        path = self._sample(step, ".mp4")
        write_clip(path, frames, fps=Fraction(fps).limit_denominator(1001))
        self.tracker.video(step, path)

    def _sample(self, step: int, suffix: str) -> Path:
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        return folder / f"step-{step:08d}{suffix}"


def drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines of a log up to and including `step`; a line that a kill cut short goes, too."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            continue
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept))
    os.replace(partial, path)
