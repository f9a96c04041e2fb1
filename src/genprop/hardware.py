"""What times were taken on, and what memory is left there."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def describe_hardware() -> dict[str, Any]:
    """`cpu`, `gpu` (None without one), `cores` that this process may use, `threads` that torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": cores,
        "threads": torch.get_num_threads(),
    }


def free_memory() -> int:
    """Bytes of memory that are free, of the machine or of the control group we are in."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():  # caches count as free there
        lines = dict(line.split(":") for line in meminfo.read_text(encoding="utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = group / "memory.max"
    if limit.is_file() and (most := limit.read_text(encoding="utf-8").strip()).isdigit():
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        free = min(free, int(most) - used)
    return free
