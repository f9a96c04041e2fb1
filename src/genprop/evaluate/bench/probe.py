"""A lane's load time, first run and peak memory, in a process that does nothing else.

`python -m genprop.evaluate.bench.probe` reads a job on stdin and prints one JSON document. A lane that dies
(memory, a compiler that is missing) dies here, and not in the bench.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError

from genprop.errors import GenPropError
from genprop.evaluate.bench.document import Opened
from genprop.evaluate.bench.jobs import Job, bench_clip, open_runner
from genprop.settings import ClipConfig


def probe(job: Job, *, clip: ClipConfig, steps: int, seed: int, threads: int) -> Opened:
    """Open the job in a process of its own, run its first clip, and say what that took.

    Raises:
        GenPropError: it cannot run; the message is the reason.
    """
    asked = {"job": asdict(job), "clip": clip.model_dump(), "steps": steps, "seed": seed}
    done = subprocess.run(
        [sys.executable, "-m", "genprop.evaluate.bench.probe"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    try:
        if done.returncode == 0:
            return Opened.model_validate_json(done.stdout.splitlines()[-1])
    except (ValidationError, IndexError):
        pass
    raise GenPropError(_reason(done.returncode, done.stderr))


def _reason(code: int, stderr: str) -> str:
    """The last line that an error of Python's starts with, or how the process ended."""
    lines = [line for line in stderr.splitlines() if line and not line.startswith((" ", "\t"))]
    named = [line for line in lines if "Error" in line.split(":")[0] or line.startswith("error: ")]
    if code < 0:
        return f"its process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return (named or lines or [f"its process ended with {code}"])[-1].removeprefix("error: ")


def measure(job: Job, *, clip: ClipConfig, steps: int, seed: int) -> Opened:
    """What `probe` runs in its process."""
    example = bench_clip(clip, seed)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.init()
        free, _ = torch.cuda.mem_get_info()
    libraries = _resident("VmRSS")
    began = time.perf_counter()
    runner = open_runner(job)
    load = time.perf_counter() - began
    began = time.perf_counter()
    runner.run(example, steps=steps, seed=seed)
    first_run = time.perf_counter() - began
    return Opened(
        load=load,
        first_run=first_run,
        host_memory=_resident("VmHWM"),
        libraries=libraries,
        device_memory=torch.cuda.max_memory_allocated() if cuda else None,
        device_used=free - torch.cuda.mem_get_info()[0] if cuda else None,
    )


def _resident(field: str) -> int:
    """Bytes of this process's resident set: now (VmRSS), or the largest (VmHWM).

    Linux hands ru_maxrss of a parent on to its child, /proc does not; elsewhere there is only ru_maxrss.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Read the job, print what was measured."""
    asked = json.load(sys.stdin)
    try:
        opened = measure(
            Job(**asked["job"]), clip=ClipConfig(**asked["clip"]), steps=asked["steps"], seed=asked["seed"]
        )
    except GenPropError as error:
        sys.exit(f"error: {error.message}")
    print(opened.model_dump_json())


if __name__ == "__main__":
    main()
