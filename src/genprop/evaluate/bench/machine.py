"""The machine: how fast it is at best, and what else a person has to know of where times were taken."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from genprop.evaluate.bench.document import Machine
from genprop.evaluate.report import Hardware
from genprop.export.folder import versions
from genprop.hardware import describe_hardware
from genprop.manifest import DTYPES, Precision

SLOW = 0.2
"""Seconds of a matrix product after which no larger one is tried."""

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
LIBRARIES = ("diffusers", "transformers", "numpy", "tensorrt", "tensorrt-rtx")


def describe_run() -> dict[str, Any]:
    """The document's `hardware`, `driver`, `versions`, `environment` and `load_average`."""
    found = {"python": platform.python_version(), **versions()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    driver = Path("/proc/driver/nvidia/version")
    return {
        "hardware": Hardware(**describe_hardware()),
        "driver": driver.read_text(encoding="utf-8").splitlines()[0].strip() if driver.is_file() else None,
        "versions": found,
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def measure_machine(precisions: Sequence[Precision]) -> Machine:
    """Peak rates in float32 and in each of `precisions`, and the bandwidth. Takes seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, elements = ((4096, 8192), 2**28) if device.type == "cuda" else ((512, 1024, 1536), 2**25)
    flops: dict[Precision, float] = {}
    for precision in dict.fromkeys(("fp32", *precisions)):
        flops[precision] = 0.0
        for size in sizes:
            rate = matmul_rate(size, DTYPES[precision], device)
            flops[precision] = max(flops[precision], rate)
            if 2 * size**3 / rate > SLOW:  # a CPU without float16 arithmetic would take minutes
                break
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    seconds = best_seconds(lambda: target.copy_(source), device)
    return Machine(flops=flops, bandwidth=2 * source.numel() * source.itemsize / seconds)


def matmul_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of two square matrices.

    On CUDA float32 is measured as TF32: torch's convolutions use it, and a peak without it would be none.
    """
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    kept = torch.get_float32_matmul_precision()
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        return 2 * size**3 / best_seconds(lambda: a @ b, device)
    finally:
        torch.set_float32_matmul_precision(kept)


def best_seconds(function: Callable[[], object], device: torch.device, *, budget: float = 0.5) -> float:
    """The shortest of as many runs as fit into `budget` seconds."""

    def timed() -> float:
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < budget:
        times.append(timed())
    return min(times)
