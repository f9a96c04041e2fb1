"""What a person may ask of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from genprop.errors import GenPropError
from genprop.manifest import Precision, SizeRange
from genprop.settings import Model

Target = Literal["onnx", "tensorrt", "tensorrt-rtx"]

OPSETS: dict[Target, int] = {"onnx": 20, "tensorrt": 23, "tensorrt-rtx": 23}
"""20 is the first whose Gelu is an operator, and ONNX Runtime's CUDA provider knows it; TensorRT parses 23
fastest."""


BF16_OPSET, QUANTISED_OPSET = 22, 21
"""The first in which a convolution takes bfloat16; in which 8 bits survive ONNX Runtime's optimiser."""


class ExportOptions(Model):
    """How a bundle is exported.

    Attributes:
        to: graphs for ONNX Runtime, or graphs and engines.
        precision: inside the graphs; None is float32 for ONNX Runtime, float16 for TensorRT.
        quantise: of the denoiser's matrix products and convolutions, below its precision.
        opset: of the graphs; None is the target's own (`OPSETS`).
        min_size, max_size: height and width, between which the size of a frame may vary; None is the
            configuration's alone, which is faster.
        chunk, overlap: of the decoder's windows; None is the configuration's.
        compute_capabilities: that engines are built for, as "8.9"; none is this machine's GPU, or for
            TensorRT for RTX all that it knows.
        level: of the builder's optimisation, 0 to 5; workspace: bytes it may use; None is its own.
        timing_cache: file in which classic TensorRT keeps the timings of its layers.
        verify: run the gates; an export without is refused by the runtime unless it is told otherwise.
    """

    to: Target = "onnx"
    precision: Precision | None = None
    quantise: Literal["fp8", "int8"] | None = None
    opset: int | None = Field(default=None, ge=18, le=25)
    min_size: tuple[int, int] | None = None
    max_size: tuple[int, int] | None = None
    chunk: int | None = Field(default=None, ge=1)
    overlap: int | None = Field(default=None, ge=0)
    compute_capabilities: tuple[str, ...] = ()
    level: int | None = Field(default=None, ge=0, le=5)
    workspace: int | None = Field(default=None, gt=0)
    timing_cache: Path | None = None
    verify: bool = True

    @property
    def inside(self) -> Precision:
        """The precision, chosen or the target's own."""
        return self.precision or ("fp32" if self.to == "onnx" else "fp16")

    @property
    def graph_opset(self) -> int:
        """The opset, chosen or the target's own.

        Raises:
            GenPropError: one that does not have what was asked for.
        """
        least = BF16_OPSET if self.inside == "bf16" else QUANTISED_OPSET if self.quantise else 0
        if self.opset is not None and self.opset < least:
            what = "bf16" if self.inside == "bf16" else self.quantise
            raise GenPropError(
                f"the opset is {self.opset}, expected at least {least} for {what}", "leave --opset out"
            )
        return self.opset or max(OPSETS[self.to], least)

    def sizes(self, size: tuple[int, int], *, multiple: int, cells: int) -> SizeRange | None:
        """Between which sizes the graphs work; None if only in `size`, height and width.

        Raises:
            GenPropError: `size` is not in the range, or an end of it off the step.
        """
        if self.min_size is None and self.max_size is None:
            return None
        low, high = self.min_size or size, self.max_size or size
        found = SizeRange(
            min_height=low[0],
            min_width=low[1],
            max_height=high[0],
            max_width=high[1],
            multiple=multiple,
            cells=cells,
        )
        for end in (low, high, size):
            found.check(*end)
        if low == high:
            raise GenPropError(
                f"the range of sizes is {low[0]}x{low[1]} alone, expected a smallest and a larger one",
                "leave --min-size and --max-size out for graphs of one size",
            )
        return found
