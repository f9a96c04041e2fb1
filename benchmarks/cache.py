"""Seconds a step of the teacher's training: from mp4 clips, encoded in the step, and from the cache.

    python benchmarks/cache.py                # procedural triplets, written to a temporary folder
    python benchmarks/cache.py --clips DIR    # DIR/<name>/video.mp4 and mask-0.mp4

Both ways train the same fresh teacher of `tiny` on the same samples in the same order, in turns, so their
losses have to be the same; the script fails where they are not. With `--clips` the edited video is the
original itself: what is timed is reading it. CPU seconds are those of the whole run, its workers and its
setup included: on a shared machine they say more than the clock. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from genprop.bundle import locate
from genprop.config import Config, load_config
from genprop.data.encode import encode_dataset
from genprop.data.latents import PixelSamples
from genprop.data.mixture import EditClips
from genprop.data.online import EncodedObjective
from genprop.data.procedural import ProceduralClips
from genprop.data.sources import open_source
from genprop.data.triplets import FOLDERS
from genprop.loop import fit
from genprop.settings import TrainConfig
from genprop.teacher.base import Base, load_base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.video import read_clip, write_clip

WARM_UP = 2
"""Steps at the start of each run that are not counted."""


def write_triplets(folder: Path, *, count: int, frames: int, height: int, width: int) -> None:
    """Procedural clips as mp4 files in the layout of triplets."""
    clips = ProceduralClips(count, 0, frames=frames, height=height, width=width)
    for index in range(count):
        sample = clips[index]
        mask = np.repeat(sample.mask[..., None], 3, axis=-1).astype(np.uint8) * 255
        for part, pixels in zip(FOLDERS, (sample.source, sample.target, mask), strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_clip(folder / part / f"{index}.mp4", pixels, fps=Fraction(16))


def link_triplets(folder: Path, clips: Path) -> None:
    """Real clips and their masks in the same layout, as links."""
    for video in sorted(clips.glob("*/video.mp4")):
        for part, path in zip(FOLDERS, (video, video, video.with_name("mask-0.mp4")), strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / f"{video.parent.name}.mp4").symlink_to(path.resolve())


def describe(folder: Path) -> list[str]:
    """Frames and size of every original."""
    shapes = [read_clip(path).frames.shape for path in sorted((folder / FOLDERS[0]).iterdir())]
    return [f"{frames} frames of {width}x{height}" for frames, height, width, _ in shapes]


def fresh_objective(base: Base, config: Config) -> TeacherObjective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = GenPropNet(base.backbone, config.net, config.sce)
    return TeacherObjective(net, base.image_encoder, config)


def timed(
    objective: nn.Module, samples: Dataset[Any], settings: TrainConfig, out: Path
) -> tuple[list[float], list[float], float]:
    """Train; seconds (without setup and checkpoint) and loss of every step, and CPU seconds in all."""
    before = sum(os.times()[:4])  # of this process and of its children that have ended
    fit(objective, samples, settings, out)
    cpu = sum(os.times()[:4]) - before
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "steps_per_second" in line]
    return [1 / line["steps_per_second"] for line in steps], [line["loss"] for line in steps], cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=Path, help="real clips instead of procedural ones")
    parser.add_argument("--count", type=int, default=4, help="procedural clips")
    parser.add_argument("--frames", type=int, default=80, help="frames of each; DAVIS has 69 on average")
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2, help="processes that read, in both runs")
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind, in turns")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    config, base = load_config("tiny"), load_base(locate("tiny-base"))
    clip = config.clip
    settings = config.teacher.model_copy(
        update={
            "steps": arguments.steps,
            "workers": arguments.workers,
            "seed": arguments.seed,
            "log_every": 1,
            "checkpoint_every": arguments.steps,
        }
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.clips is not None:
            link_triplets(folder / "data", arguments.clips)
        else:
            size = {key: getattr(arguments, key) for key in ("count", "frames", "height", "width")}
            write_triplets(folder / "data", **size)
        count = max(64, arguments.steps * settings.batch_size)
        source = open_source(folder / "data")
        clips = EditClips([(source, 1.0)], config, count=count, seed=arguments.seed)
        encoders = (base.autoencoder, base.image_encoder, clip)
        cache = encode_dataset(clips, folder / "latents", *encoders, seed=arguments.seed)
        pixels = PixelSamples(clips, seed=arguments.seed)
        seconds: dict[str, list[float]] = {"clips": [], "cache": []}
        losses: dict[str, list[float]] = {}
        cpu = {"clips": 0.0, "cache": 0.0}
        for turn in range(arguments.rounds):
            for kind, samples in (("clips", pixels), ("cache", cache)):
                inner = fresh_objective(base, config)
                objective = EncodedObjective(inner, *encoders) if kind == "clips" else inner
                took, losses[kind], used = timed(objective, samples, settings, folder / f"{kind}-{turn}")
                seconds[kind] += took[WARM_UP:]
                cpu[kind] += used / (arguments.steps * arguments.rounds)
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        document = {
            "preset": config.name,
            "clips": describe(folder / "data"),
            "real": arguments.clips is not None,
            "batch_size": settings.batch_size,
            "workers": arguments.workers,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "python": platform.python_version(),
            "steps_counted": len(seconds["cache"]),
            "seconds_per_step": medians,
            "spread": {kind: (min(values), max(values)) for kind, values in seconds.items()},
            "ratio": medians["clips"] / medians["cache"],
            "mean_ratio": statistics.mean(seconds["clips"]) / statistics.mean(seconds["cache"]),
            "cpu_seconds_per_step": cpu,
            "cpu_ratio": cpu["clips"] / cpu["cache"],
            "losses": losses,
            "same_losses": losses["clips"] == losses["cache"],
        }
    print(json.dumps(document, indent=1))
    if not document["same_losses"]:
        sys.exit("the losses differ")


if __name__ == "__main__":
    main()
