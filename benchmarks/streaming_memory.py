"""Peak memory and speed of `genprop run` on clips of several lengths: memory must not grow with the clip.

    python benchmarks/streaming_memory.py --seconds 5 60 --out benchmarks/results/NAME.json

Each clip is a camera that pans over drawn ground, 1920x1080 at 24 frames a second, with a square that moves;
each run is a process of its own, whose peak resident memory the system tells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from genprop.hardware import describe_hardware
from genprop.video import write_frames, write_image

FPS = 24


def write_scene(folder: Path, *, frames: int, height: int, width: int) -> tuple[Path, Path]:
    """A clip and the mask of its first frame."""
    rng = np.random.default_rng(0)
    whole = np.zeros((height + 64, 2 * width, 3), np.float32)
    for scale, weight in ((6, 25), (24, 45), (90, 60)):
        coarse = rng.uniform(-1, 1, (whole.shape[0] // scale + 2, whole.shape[1] // scale + 2, 3))
        whole += weight * cv2.resize(
            coarse.astype(np.float32), whole.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
    ground = (whole + 128).clip(0, 255).astype(np.uint8)
    video, mask = folder / f"{frames}.mp4", folder / f"{frames}.png"
    side = height // 6
    with write_frames(video, height=height, width=width, fps=Fraction(FPS)) as writer:
        for t in range(frames):
            x = round((np.sin(t / 60) + 1) / 2 * (width - 2))
            frame = ground[32 : 32 + height, x : x + width].copy()
            left, top = width // 3 + round(width / 8 * np.sin(t / 20)), height // 3
            frame[top : top + side, left : left + side] = (200, 30, 40)
            if not t:
                first = np.zeros((height, width), np.uint8)
                first[top : top + side, left : left + side] = 255
                write_image(mask, first)
            writer.write(frame)
    return video, mask


def measure(video: Path, mask: Path, *, frames: int) -> dict[str, float]:
    """Peak memory in MB, seconds and frames a second of one run."""
    command = [
        str(Path(sys.executable).with_name("genprop")),
        "run",
        str(video),
        "--mask",
        str(mask),
        "--steps",
        "1",
    ]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(video.with_suffix(".out.mp4"))])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"genprop run failed on {video}: status {status}")
    peak = usage.ru_maxrss / 1024
    return {
        "frames": frames,
        "peak_mb": round(peak),
        "seconds": round(seconds, 1),
        "fps": round(frames / seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 60])
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            frames = seconds * FPS
            scene = write_scene(Path(folder), frames=frames, height=options.height, width=options.width)
            runs.append({"clip_seconds": seconds, **measure(*scene, frames=frames)})
            print(runs[-1], flush=True)
    document = {"size": [options.height, options.width], "hardware": describe_hardware(), "runs": runs}
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
