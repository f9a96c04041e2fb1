"""`bench.json`: its schema.

A lane is a model that was opened on a backend; its rows are numbers of steps. What was asked for and cannot
run here stands in `skipped`, with the reason: nothing is left out in silence. Times are seconds, memory and
traffic bytes; a figure is null where there is none.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from genprop.evaluate.report import Figure, Hardware
from genprop.manifest import Precision
from genprop.settings import Model

Role = Literal["student", "teacher", "peer"]
Stage = Literal["encode", "denoise", "decode", "total"]
STAGES: tuple[Stage, ...] = ("encode", "denoise", "decode", "total")


class Percentiles(Model):
    """Of one stage over the repetitions, linearly interpolated between them."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: list[float]) -> Percentiles:
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        return cls(p50=float(p50), p90=float(p90), p99=float(p99))


class Floor(Model):
    """What one stage cannot be faster than here (a roofline).

    Attributes:
        flops: of matrix products, convolutions and attention, a multiply-add as two.
        bytes: weights once for each call of a graph, and its inputs and outputs.
        seconds: the larger of flops over the measured peak and bytes over the measured bandwidth.
        ratio: the measured median over it.
    """

    flops: float
    bytes: float
    seconds: float
    ratio: float


class Row(Model):
    """One number of steps.

    Attributes:
        seconds: by stage; "total" is end to end, with resizing and compositing, and so more than the sum.
        totals: "total" of each repetition, in order: repetition i of all rows ran side by side.
        fps: frames of the clip over the median total.
        psnr_eager: of decoded frames in dB, against the same model and noise in torch eager; null for itself.
        hole_psnr, keep_psnr: against the truth of procedural clips; null where quality was not measured.
        floor: by stage; empty for a peer, and for an export whose bundle is not at hand.
    """

    steps: int
    evaluations: int
    seconds: dict[Stage, Percentiles]
    totals: tuple[float, ...]
    fps: float
    psnr_eager: Figure = None
    hole_psnr: Figure = None
    keep_psnr: Figure = None
    floor: dict[Stage, Floor] = Field(default_factory=dict)


class Opened(Model):
    """What it takes to get a lane ready, measured in a process of its own.

    Attributes:
        load: to open the model, the libraries that its backend alone needs included.
        first_run: of the clip at the lane's fewest steps, whatever is compiled or tuned at first included.
        host_memory: the largest resident set of the process, all libraries included.
        libraries: the resident set before the model was opened.
        device_memory: `torch.cuda.max_memory_allocated`; null without a GPU.
        device_used: by how much the GPU's used memory grew, whoever allocated it: ONNX Runtime's and
            TensorRT's own allocations are only here.
    """

    load: float
    first_run: float
    host_memory: int
    libraries: int
    device_memory: int | None = None
    device_used: int | None = None


class Lane(Model):
    """A model on a backend.

    Attributes:
        name: unique: role, backend, and the model's folder where there are several.
        precision: of the denoiser.
        light: whether the light decoder decodes.
        weights: SHA-256 over the weights: lanes that share it are one model. Empty for a peer.
        build: seconds of the export, gates and engines included; null for a bundle, and for an export that
            was there already.
        size: bytes of the export's files, or of the bundle's and its base's; null for a peer.
        note: what else there is to know, for a person.
    """

    name: str
    role: Role
    model: str
    backend: str
    precision: Precision
    light: bool = False
    weights: str
    build: float | None = None
    size: int | None = None
    opened: Opened
    rows: tuple[Row, ...]
    note: str = ""

    def row(self, steps: int) -> Row | None:
        """Its row of so many steps, if there is one."""
        return next((row for row in self.rows if row.steps == steps), None)


class Skipped(Model):
    """What was asked for and did not run, and why."""

    role: Role
    model: str
    backend: str
    reason: str


class Ratio(Model):
    """How many times as fast `fast` is as `slow`, end to end.

    Attributes:
        value: of the medians. paired: the median over the repetitions of each one's own ratio.
        bar: what it has to reach, where the project has set one; `met` says whether `value` does.
    """

    name: str
    fast: str
    slow: str
    value: float
    paired: float
    bar: float | None = None
    met: bool | None = None


class Machine(Model):
    """What the floor is computed from, measured here.

    Attributes:
        flops: the best rate of a square matrix product, FLOP/s by precision.
        bandwidth: of a copy, bytes read and written a second.
    """

    flops: dict[Precision, float]
    bandwidth: float


class Bench(Model):
    """The document.

    Attributes:
        environment: the variables that decide how many threads there are and how they wait.
        load_average: how many processes wanted a core in the minute before: above 0, others disturb.
        quality_clips: how many procedural clips hole_psnr and keep_psnr are over.
    """

    format: Literal[1] = 1
    frames: int
    height: int
    width: int
    seed: int
    repeats: int
    warmup: int
    quality_clips: int
    hardware: Hardware
    driver: str | None
    versions: dict[str, str]
    environment: dict[str, str]
    load_average: float | None
    machine: Machine
    lanes: tuple[Lane, ...]
    skipped: tuple[Skipped, ...]
    ratios: tuple[Ratio, ...]

    @property
    def title(self) -> str:
        """The clip and what it ran on."""
        hardware = self.hardware
        threads = "1 thread" if hardware.threads == 1 else f"{hardware.threads} threads"
        where = hardware.gpu or f"{hardware.cpu}, {threads}"
        return f"{self.frames} frames of {self.width}x{self.height} on {where}"

    def lane(self, role: Role, backend: str) -> Lane | None:
        """The first lane of that role on that backend."""
        return next((lane for lane in self.lanes if (lane.role, lane.backend) == (role, backend)), None)
