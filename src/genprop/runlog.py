"""What a training run writes for people: `log.jsonl`, TensorBoard scalars, sample pictures, progress.

The progress is a bar when stderr is a terminal and a plain line through `logging` when it is not.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class RunLog:
    """The log of one run in the folder `out`; a context manager.

    `start` is the number of steps that are already done: lines beyond it are dropped from the log (the
    run went on after the checkpoint that is resumed, and will do those steps again).
    """

    def __init__(self, out: Path, *, start: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to run a model

        self.out, self.steps = out, steps
        self.path = out / "log.jsonl"
        if self.path.exists():
            drop_lines_after(self.path, start)
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self.task = self.bar.add_task("training", total=steps, completed=start) if self.bar else None

    def __enter__(self) -> RunLog:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        self.writer.close()

    def advance(self, step: int) -> None:
        """Step `step` (from 1) is done."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write `values` everywhere, under the number of steps done."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not self.bar:
            logger.info("step %d/%d  %s", step, self.steps, text)
        elif self.task is not None and "loss" in values:
            self.bar.update(self.task, description=f"loss {values['loss']:.4g}")

    def picture(self, step: int, image: np.ndarray) -> None:
        """Write a picture, uint8 `[H, W, 3]`, to `out/samples/step-<step>.png` and to TensorBoard."""
        path = self.out / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        Image.fromarray(image).save(partial, format="PNG")
        os.replace(partial, path)
        self.writer.add_image("val/samples", image, step, dataformats="HWC")


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
