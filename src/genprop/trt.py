"""TensorRT and TensorRT for RTX: one API in two Python modules, and what export and runtime ask of both.

The two differ in where an engine is built. TensorRT times its kernels on the GPU that will run them, so it
builds for that one. TensorRT for RTX compiles for compute capabilities that it is told, on a machine with no
GPU if need be, and finishes the kernels where they run (the runtime cache). What only one of them has is
found by looking for it. Nothing of either is imported with this module.

Source: NVIDIA's Python API references, TensorRT 10 and 11, TensorRT for RTX 1.7.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any, Literal

from genprop.errors import GenPropError

Backend = Literal["tensorrt", "tensorrt-rtx"]

MODULES: dict[Backend, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[Backend, str] = {
    "tensorrt": "pip install tensorrt, from NVIDIA's own index of packages: only there are its libraries",
    "tensorrt-rtx": 'pip install "tensorrt-rtx>=1.7.1,<1.8"',
}

TARGETS = ("8.0", "8.6", "8.9", "12.0")
"""What TensorRT for RTX builds for where nothing else is asked: Ampere, Ada and Blackwell."""


def library(backend: Backend) -> Any:
    """The Python module of a backend.

    Raises:
        GenPropError: it, or the shared libraries it loads, are not installed.
    """
    try:
        return importlib.import_module(MODULES[backend])
    except (ImportError, OSError) as error:  # a shared library that is not there is one or the other
        raise GenPropError(f"{backend} cannot be used here: {error}", INSTALL[backend]) from error


def collector(trt: Any) -> Any:
    """A logger that prints nothing and keeps `messages`, pairs of severity and text, from INFO up.

    Whatever is made with it holds no reference to it: keep it as long.
    """

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            name = str(severity).rpartition(".")[2]
            if name != "VERBOSE":  # forty thousand of them for a small denoiser
                self.messages.append((name, msg))

    return Collector()


def complaints(logger: Any) -> str:
    """The errors that a library logged, for a person, in its own words."""
    errors = [text.strip() for severity, text in logger.messages if severity in ("ERROR", "INTERNAL_ERROR")]
    # TensorRT for RTX 1.7.1 says so before each build, however that ends.
    errors = [text for text in errors if not text.startswith("Thread context has not been set")]
    return "; ".join(errors[-3:]) or "it gave no reason"


def buildable(trt: Any) -> tuple[str, ...]:
    """The compute capabilities that TensorRT for RTX can be told, as "8.9"; none for TensorRT."""
    members = getattr(trt, "ComputeCapability", None)
    found = [re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(members)] if members is not None else []
    names = [f"{match[1]}.{match[2]}" for match in found if match is not None]
    return tuple(sorted(names, key=float))


def cache_folder() -> Path:
    """Where engines and runtime caches are kept: `GENPROP_CACHE`, else `~/.cache/genprop`."""
    return Path(os.environ.get("GENPROP_CACHE") or Path.home() / ".cache" / "genprop")
