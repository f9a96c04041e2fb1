"""What a run was made with: `run.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from genprop import __version__
from genprop.config import Config
from genprop.loop import process_state

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


def describe_run(config: Config, *, teacher: str | Path, data: Sequence[str]) -> dict[str, Any]:
    """The configuration, and what it ran on and with."""
    return {
        "config": config.model_dump(mode="json"),
        "teacher": str(teacher),
        "data": list(data),
        "versions": {"genprop": __version__, "python": platform.python_version(), **_versions()},
        "hardware": {
            "cpu": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "processes": process_state().num_processes,
            "threads": torch.get_num_threads(),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
