"""What this installation can do."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from genprop import __version__
from genprop.hub import EMBEDDED, locate

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "onnx", "onnxruntime")


def describe() -> dict[str, Any]:
    """Versions, devices, backends whose library is installed, and the embedded models."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    libraries = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
    return {
        "genprop": __version__,
        "python": platform.python_version(),
        **versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "libraries": [name for name, module in libraries.items() if find_spec(module)],
        "models": [name for name in EMBEDDED if locate(name).is_dir()],
    }
