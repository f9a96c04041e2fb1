"""The backends, and which of them runs a model: `open_stages`."""

from __future__ import annotations

from pathlib import Path

from genprop.errors import GenPropError
from genprop.hub import locate
from genprop.manifest import is_export
from genprop.runtime.backends.stages import Stages

__all__ = ["BACKENDS", "Stages", "open_stages"]

BACKENDS = ("auto", "torch", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx")


def open_stages(model: str | Path, *, backend: str = "auto") -> Stages:
    """Open a model: a bundle with torch or compile, an export folder with onnxruntime.

    Args:
        model: an embedded name, a bundle's folder or an export's.
        backend: one of `BACKENDS`; "auto" takes the one that fits the folder.

    Raises:
        GenPropError: no such model or backend, the two do not fit, or a file is damaged.
    """
    if backend not in BACKENDS:
        raise GenPropError(f"no backend named {backend!r}", f"backends are {', '.join(BACKENDS)}")
    if backend in ("tensorrt", "tensorrt-rtx"):
        raise GenPropError(
            f"backend {backend!r} needs TensorRT engines, which this version does not build",
            "use --backend onnxruntime with an export folder, or --backend torch with a bundle",
        )
    folder = locate(model)
    if backend == "auto":
        backend = "onnxruntime" if is_export(folder) else "torch"
    if backend == "onnxruntime":
        if not is_export(folder) and (folder / "bundle.json").is_file():
            raise GenPropError(
                f"{model} is a bundle, and backend 'onnxruntime' runs export folders",
                f"first: genprop export {model} --to onnx --out DIR",
            )
        from genprop.runtime.backends.onnxruntime import open_onnxruntime

        return open_onnxruntime(folder)
    if is_export(folder):
        raise GenPropError(
            f"{model} is an export folder, and backend {backend!r} runs bundles",
            "use --backend onnxruntime, or give the bundle it was exported from",
        )
    from genprop.runtime.backends.torch import open_torch

    return open_torch(model, compiled=backend == "compile")
