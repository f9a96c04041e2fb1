"""What a run notes of itself: `run.json` and what else is JSON in its folder, each written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from genprop import __version__
from genprop.config import Config

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


def write_json(path: Path, document: object) -> None:
    """Write `document` beside `path`, then put it in its place."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def describe_run(config: Config, *, teacher: str | Path, data: Sequence[str], processes: int) -> dict[str, Any]:
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
            "processes": processes,
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
