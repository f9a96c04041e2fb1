"""The backends, and which of them runs a model: `open_stages`.

Nothing falls back in silence: what is opened says why it was taken and what was passed over for what reason
(`Stages.why`), and `strict` refuses to pass anything over.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import cuda  # the name `torch` is that of a module beside this one

from genprop.errors import GenPropError
from genprop.hub import locate
from genprop.manifest import Manifest, Precision, is_export, parse_manifest
from genprop.runtime.backends.stages import Stages

__all__ = ["BACKENDS", "Stages", "open_stages"]

BUNDLES = ("torch", "compile")
ENGINES = ("tensorrt", "tensorrt-rtx")
EXPORTS = ("onnxruntime", "onnxruntime-tensorrt", *ENGINES)
BACKENDS = ("auto", *BUNDLES, *EXPORTS)


def open_stages(
    model: str | Path,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    strict: bool = False,
    unverified: bool = False,
    light: bool = False,
    size: tuple[int, int] | None = None,
) -> Stages:
    """Open a model: a bundle with torch or compile, an export folder with all others.

    Args:
        model: an embedded name, a bundle's folder or an export's.
        backend: one of `BACKENDS`. "auto" takes the fastest that is present and fits the folder: engines of
            TensorRT for this GPU, else ONNX Runtime; for a bundle torch, which starts at once.
            "onnxruntime-tensorrt" is ONNX Runtime's TensorRT provider.
        precision: of a bundle's weights, float32 if None; an export's is its own.
        strict: with "auto", refuse if something faster that the folder was made for does not run here.
        unverified: open an export whose gates were not run.
        light: decode with the light decoder, where the model has one.
        size: height and width to work at, in pixels; the model's own if None.

    Raises:
        GenPropError: no such model or backend, the two do not fit, a file is damaged, an export without
            verification, or with `strict` a backend that would be passed over; no light decoder, or another
            size than the model can have.
    """
    stages = _open(
        model, backend=backend, precision=precision, strict=strict, unverified=unverified, light=light
    )
    return stages if size is None else stages.resized(*size)


def _open(
    model: str | Path,
    *,
    backend: str,
    precision: Precision | None,
    strict: bool,
    unverified: bool,
    light: bool,
) -> Stages:
    """`open_stages`, at the model's own size."""
    if backend not in BACKENDS:
        raise GenPropError(f"no backend named {backend!r}", f"backends are {', '.join(BACKENDS)}")
    folder = locate(model)
    if not is_export(folder):
        return _open_bundle(model, folder, backend=backend, precision=precision or "fp32", light=light)
    manifest = parse_manifest(folder)
    if backend in BUNDLES:
        raise GenPropError(
            f"{model} is an export folder, and backend {backend!r} runs bundles",
            "use --backend onnxruntime, or give the bundle it was exported from",
        )
    if precision not in (None, manifest.precision):
        raise GenPropError(
            f"precision {precision} was asked for, and {model} was exported in {manifest.precision}",
            f"genprop export MODEL --precision {precision} --out DIR",
        )
    if not (manifest.verified or unverified):
        raise GenPropError(
            f"{model} was exported without verification: nothing says that it does what its model does",
            "export it again without --no-verify, or run it as it is with --unverified",
        )
    if backend != "auto":
        return _open_export(folder, backend, light=light)
    return _open_fastest(folder, manifest, strict=strict, light=light)


def _open_bundle(
    model: str | Path, folder: Path, *, backend: str, precision: Precision, light: bool
) -> Stages:
    """A bundle, by PyTorch."""
    if backend in EXPORTS:
        if not (folder / "bundle.json").is_file():
            parse_manifest(folder)  # says what is missing
        to = backend if backend in ENGINES else "onnx"
        raise GenPropError(
            f"{model} is a bundle, and backend {backend!r} runs export folders",
            f"first: genprop export {model} --to {to} --out DIR",
        )
    from genprop.runtime.backends.torch import open_torch

    return open_torch(model, compiled=backend == "compile", precision=precision, light=light)


def _open_export(folder: Path, backend: str, *, light: bool) -> Stages:
    """An export, by the backend that was named."""
    if backend in ENGINES:
        from genprop.runtime.backends.tensorrt import open_tensorrt

        return open_tensorrt(folder, backend=backend, light=light)
    from genprop.runtime.backends.onnxruntime import open_onnxruntime

    return open_onnxruntime(
        folder, provider="tensorrt" if backend == "onnxruntime-tensorrt" else None, light=light
    )


def _open_fastest(folder: Path, manifest: Manifest, *, strict: bool, light: bool) -> Stages:
    """An export, by the fastest backend that runs it here."""
    passed_over = []
    for backend in ENGINES:
        if any(engine.backend == backend for engine in manifest.engines.values()):
            try:
                return _open_export(folder, backend, light=light)
            except GenPropError as error:
                passed_over.append(f"its engines of {backend} were passed over: {error.message}")
    stages = None if strict and passed_over else _open_export(folder, "onnxruntime", light=light)
    if stages is not None and stages.device.type == "cpu" and cuda.is_available():
        passed_over.append("the GPU was passed over: this ONNX Runtime has no CUDA provider")
    if strict and passed_over:
        raise GenPropError(
            f"{folder}: {'; '.join(passed_over)}", "leave out --strict, or name another --backend"
        )
    assert stages is not None
    return replace(stages, why="; ".join([stages.why, *passed_over]))
