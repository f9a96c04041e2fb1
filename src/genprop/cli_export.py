"""`genprop export`: a bundle as verified graphs and engines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from genprop.console import AsJson, print_json, say
from genprop.errors import GenPropError

GIGABYTE = 1 << 30


class Target(StrEnum):
    """What `genprop export` writes."""

    onnx = "onnx"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Inside(StrEnum):
    """The precision of a graph."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class Below(StrEnum):
    """What a denoiser may be quantised to."""

    fp8 = "fp8"
    int8 = "int8"


def export(
    bundle: Annotated[str, typer.Argument(help="tiny, tiny-teacher, or a bundle.")],
    to: Annotated[Target, typer.Option(help="Graphs alone, or graphs and engines.")] = Target.onnx,
    out: Annotated[Path, typer.Option(help="Folder of the graphs, engines and their manifest.")] = Path(
        "export"
    ),
    precision: Annotated[
        Inside | None, typer.Option(help="Inside the graphs; fp32 for onnx, fp16 for engines if not given.")
    ] = None,
    quantise: Annotated[
        Below | None, typer.Option(help="The denoiser's products below that, calibrated on its own sigmas.")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="20 for onnx, 23 for engines if not given.", min=18, max=25)
    ] = None,
    min_size: Annotated[
        str | None, typer.Option(help="Smallest HEIGHTxWIDTH, for graphs of varying size.")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest HEIGHTxWIDTH.")] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Frames the decoder is given at a time.")] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="Frames that its neighbouring windows share.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability of the GPU to build for, as 8.9; may be repeated."),
    ] = None,
    level: Annotated[int | None, typer.Option(min=0, max=5, help="Of the engine builder's effort.")] = None,
    workspace: Annotated[float | None, typer.Option(help="GB that the builder may use.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Where classic TensorRT keeps the timings of its layers.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Measure against PyTorch; the runtime refuses what was not.")
    ] = True,
    cache: Annotated[Path | None, typer.Option(help="Folder of the engine cache.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Only say what would be made anew.")] = False,
    triton: Annotated[
        Path | None, typer.Option(help="Write an NVIDIA Triton model repository of the export, too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a bundle as graphs and engines, each checked against PyTorch."""
    from genprop.export.bundle import explain_export, export_bundle
    from genprop.export.options import ExportOptions

    options = ExportOptions(
        to=to.value,
        precision=precision.value if precision else None,
        quantise=quantise.value if quantise else None,
        opset=opset,
        min_size=size_of(min_size, "--min-size"),
        max_size=size_of(max_size, "--max-size"),
        chunk=chunk,
        overlap=overlap,
        compute_capabilities=tuple(target or ()),
        level=level,
        workspace=None if workspace is None else int(workspace * GIGABYTE),
        timing_cache=timing_cache,
        verify=verify,
    )
    if explain:
        lines = explain_export(bundle, out, options, cache=cache)
        for line in lines:
            say(line)
        return print_json({"out": str(out), "explain": lines}) if as_json else None
    if triton is not None:
        from genprop.export.triton import check_repository, write_repository

        check_repository(triton)  # before the minutes that an export takes
        if not verify:
            raise GenPropError(
                "--triton serves what was verified, got --no-verify", "leave out one of the two"
            )
    manifest = export_bundle(bundle, out, options, cache=cache, say=say)
    checks = f"{len(manifest.checks)} checks against PyTorch passed" if manifest.verified else "not verified"
    say(f"{out}: {len(manifest.graphs)} graphs, {len(manifest.engines)} engines, {checks}")
    document: dict[str, Any] = manifest.model_dump(mode="json")
    if triton is not None:
        document["triton"] = str(write_repository(out, triton))
        say(f"{triton}: a Triton model repository")
    if as_json:
        print_json(document)


def size_of(text: str | None, option: str) -> tuple[int, int] | None:
    """`HEIGHTxWIDTH` as two numbers.

    Raises:
        GenPropError: it is not of that form.
    """
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise GenPropError(f"{option} is {text!r}, expected HEIGHTxWIDTH in pixels", "for example 576x1024")
    return int(height), int(width)
