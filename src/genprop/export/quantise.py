"""The denoiser in 8 bits: which layers, with what scales, and how far its answers then are from float32.

    sample clips -> calibrate -> try each layer alone -> leave out the worst until the bar is met -> pairs

Layers are left out by what they cost: the squared error that a layer alone makes, for each multiply-add that
it saves (errors of different layers are nearly independent, so squares add up). What is left to quantise is
then about the most work that fits the bar. Both figures are measured on clips that nothing was calibrated on,
the error of the written graph on ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from genprop.errors import GenPropError
from genprop.export.calibrate import (
    Batch,
    Departure,
    FakeQuantised,
    calibration_batches,
    departure,
    worst_of,
)
from genprop.export.modules import Denoiser
from genprop.export.qdq import Kind, check_kind, insert_pairs, layers, save_in_place, size_of
from genprop.export.session import open_session
from genprop.manifest import GraphSpec
from genprop.settings import Model
from genprop.student.clone import load_model
from genprop.student.one_token import simplify
from genprop.teacher.net import GenPropNet

BAR = Departure(cosine=0.999, l2=0.045)
"""The cosine that any reduced precision has to reach, and the error that it allows one without bias,
sqrt(2 (1 - 0.999)): float16's 1e-2 is less than what 8 bits do to a single layer's output."""
MARGIN = 0.9
"""Layers are left out until the error is this much of the bar. A number between two steps is rounded up here
and down there, so that the written graph differs from what was tried out by some percent of the error."""

ENDS = "first and last layers see or make the answer itself, and are little work"
NUMBERS = "an embedding of numbers: no work, and every layer hears of its error"
ONE_TOKEN = "of one token a clip: no work"
SMALL = "decides where the edit is or what is carried into it: little work"
KEPT = {
    **dict.fromkeys(("conv_in", "conv_out"), ENDS),
    **dict.fromkeys(
        ("time_embedding", "add_embedding", "time_emb_proj", "time_pos_embed", "guidance", "tasks"), NUMBERS
    ),
    "attn2": ONE_TOKEN,
    **dict.fromkeys(("mpd", "gate", "carry", "fusion", "injections"), SMALL),
}
"""Parts of a layer's path that keep it out of all this, and why."""


class QuantReport(Model):
    """What was quantised and what it did.

    Attributes:
        kind: "fp8" or "int8".
        quantized: paths of the layers that run in 8 bits.
        left_out: path and reason of the layers that do not.
        sensitivity: by path, relative L2 error of the denoiser's worst output with this layer alone in 8
            bits; of candidates only.
        share: of the multiply-adds in convolutions and linear layers, what runs in 8 bits.
        cosine_all, l2_all: of the worst held-out batch with every candidate quantised.
        cosine, l2: of the worst held-out batch on ONNX Runtime, as written.
        bytes_before, bytes_after: of the graph and the data beside it.
    """

    kind: Kind
    quantized: tuple[str, ...]
    left_out: dict[str, str]
    sensitivity: dict[str, float]
    share: float
    cosine_all: float
    l2_all: float
    cosine: float
    l2: float
    bytes_before: int
    bytes_after: int


@torch.no_grad()
def quantise_denoiser(
    net: GenPropNet,
    spec: GraphSpec,
    file: Path,
    *,
    kind: Kind,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    bar: Departure = BAR,
    probes: int = 3,
) -> QuantReport:
    """Quantise the denoiser's graph in `file`, in place.

    Args:
        net: the network that the graph was exported from, simplified, in float32; changed in place, for good.
        spec: of the graph, in whatever precision.
        kind: fp8 needs compute capability 8.9; int8 runs on all.
        batches: what layers are calibrated on, see `calibration_batches`.
        held_out: what errors are measured on.
        bar: what the written graph has to reach.
        probes: how many of `held_out`, from the noisiest to the least noisy, each layer is tried out on.

    Raises:
        GenPropError: an unknown kind, nvidia-modelopt is missing, no batches, nothing can be quantised within
            the bar.
    """
    import onnx_ir as ir

    check_kind(kind)
    if not batches or not held_out:
        raise GenPropError(f"got {len(batches)} batches and {len(held_out)} held out, expected some of each")
    graph, before = ir.load(file), size_of(file)
    found = layers(graph)
    kept = {path: reason for path in found if (reason := why_kept(path))}
    candidates = [path for path in found if path not in kept]
    denoiser = Denoiser(net, spec).eval()
    expected = [denoiser(*batch) for batch in held_out]
    fake = FakeQuantised(denoiser, found, kind=kind, batches=batches)
    dead = [path for path in candidates if not fake.amax[path]]
    candidates = [path for path in candidates if path not in dead]

    def measure(on: Sequence[str], some: Sequence[int]) -> list[Departure]:
        return fake.departures(on, [held_out[i] for i in some], [expected[i] for i in some])

    every = range(len(held_out))
    tried = spread(held_out, spec, probes)
    sensitivity = {
        path: sum(d.l2**2 for d in measure([path], tried)) ** 0.5 / len(tried) ** 0.5 for path in candidates
    }
    order = sorted(candidates, key=lambda path: sensitivity[path] ** 2 / fake.work[path], reverse=True)
    without = cache(lambda n: worst_of(measure(order[n:], every)))  # the n worst
    goal = Departure(1 - MARGIN**2 * (1 - bar.cosine), MARGIN * bar.l2)
    count = fewest(len(order), lambda n: without(n).reaches(goal))
    chosen = [path for path in candidates if path in order[count:]]
    if not chosen:
        raise GenPropError(
            f"no layer can be quantised to {kind} with cosine {bar.cosine} and relative L2 error {bar.l2}",
            "calibrate on more clips, or export without quantisation",
        )
    insert_pairs(graph, {path: fake.amax[path] for path in chosen}, kind)
    save_in_place(graph, file)
    got = worst_of([departure(y, e) for y, e in zip(run_graph(file, spec, held_out), expected, strict=True)])
    if not got.reaches(bar):
        raise GenPropError(
            f"the denoiser in {kind} has cosine {got.cosine:.5f} and relative L2 error {got.l2:.4f}, "
            f"expected {bar.cosine} and {bar.l2} at most",
            "calibrate on more clips, or export without quantisation",
        )
    left_out = {
        **kept,
        **dict.fromkeys(dead, "its input was zero in calibration"),
        **{path: f"error {sensitivity[path]:.1e} of its own" for path in order[:count]},
    }
    return QuantReport(
        kind=kind,
        quantized=tuple(chosen),
        left_out=left_out,
        sensitivity=sensitivity,
        share=sum(fake.work[path] for path in chosen) / sum(fake.work.values()),
        cosine_all=without(0).cosine,
        l2_all=without(0).l2,
        cosine=got.cosine,
        l2=got.l2,
        bytes_before=before,
        bytes_after=size_of(file),
    )


def quantise_bundle(
    bundle: str | Path,
    spec: GraphSpec,
    file: Path,
    *,
    kind: Kind,
    data: Sequence[str] = ("procedural",),
    clips: int = 4,
    seed: int = 0,
) -> QuantReport:
    """`quantise_denoiser` of a student: calibrated on `clips` clips, measured on half as many others.

    The model is loaded again: an export's own is in the precision of its graphs by then.

    Args:
        spec, file: the denoiser's graph as it was exported.
        data: as for training; of what it holds out.
    """
    check_kind(kind)
    model, net, base = load_model(bundle)
    simplify(net)
    held = max(1, clips // 2)
    sampled = calibration_batches(model, net, base, spec, data=data, count=clips + held, seed=seed)
    return quantise_denoiser(
        net,
        spec,
        file,
        kind=kind,
        batches=[batch for clip in sampled[:-held] for batch in clip],
        held_out=[batch for clip in sampled[-held:] for batch in clip],
    )


def why_kept(path: str) -> str | None:
    """Why a layer is not even tried, if it is not."""
    return next((KEPT[part] for part in path.split(".") if part in KEPT), None)


def fewest(count: int, passes: Callable[[int], bool]) -> int:
    """The smallest n of `0..count` that passes, if whatever passes at n does beyond; `count` is not tried."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2 if low else 0  # all of them, first: often there is nothing to leave out
        low, high = (low, middle) if passes(middle) else (middle + 1, high)
    return high


def spread(batches: Sequence[Batch], spec: GraphSpec, count: int) -> list[int]:
    """Indices of some batches, evenly from the noisiest to the least noisy."""
    time = [tensor.name for tensor in spec.inputs].index("timestep")
    order = sorted(range(len(batches)), key=lambda i: -float(batches[i][time]))
    picked = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return [order[i] for i in picked.tolist()]


def run_graph(file: Path, spec: GraphSpec, batches: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    """The outputs of a graph on ONNX Runtime, on the CPU, its pairs computed as they are written."""
    session, names = open_session(file, as_written=True), [tensor.name for tensor in spec.outputs]

    def run(batch: Batch) -> tuple[Tensor, ...]:
        feed = {tensor.name: x.cpu().numpy() for tensor, x in zip(spec.inputs, batch, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(names, feed))

    return [run(batch) for batch in batches]
