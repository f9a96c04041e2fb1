"""What a run was made with: `run.json`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from genprop import __version__
from genprop.config import Config
from genprop.hardware import describe_hardware
from genprop.loop import process_state

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft")


def describe_run(config: Config, *, teacher: str | Path, data: Sequence[str]) -> dict[str, Any]:
    """The configuration, and what it ran on and with."""
    return {
        "config": config.model_dump(mode="json"),
        "teacher": str(teacher),
        "data": list(data),
        "versions": {"genprop": __version__, "python": platform.python_version(), **_versions()},
        "hardware": {**describe_hardware(), "processes": process_state().num_processes},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
