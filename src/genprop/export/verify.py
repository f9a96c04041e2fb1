"""The gates: no export without proof that its graphs do what PyTorch does.

Every graph runs on ONNX Runtime beside the bundle's own modules in float32, loaded anew and not rewritten,
so that the rewrites of an export are proven, too: a conditioner against what the network prepares, and
together with its denoiser, at every sigma of the student, against the network in one. Inputs are others than
those of the export. Then the chain, from noise to frames.

ONNX Runtime's CPU provider rounds less than a GPU does (`session`). A reduced precision is therefore measured
a second time: the modules in it, in PyTorch, every operation rounded, so that what overflows is seen here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genprop.errors import GenPropError
from genprop.export.bisect import (
    Departure,
    GraphInside,
    Inside,
    ModuleInside,
    first_departure,
    relative_l2,
)
from genprop.export.chain import Chain, chain_of, psnr, sample_frames, schedules
from genprop.export.inputs import Trial, trials
from genprop.export.modules import flatten, stage_modules
from genprop.export.rounding import Rounded, RoundedStage
from genprop.export.session import OpenedGraph
from genprop.graphnet import Graph, GraphNet
from genprop.manifest import (
    CONDITIONER,
    DECODER,
    DENOISER,
    ENCODER,
    IMAGE_ENCODER,
    LIGHT_DECODER,
    Check,
    Manifest,
    Precision,
)
from genprop.student.clone import load_model
from genprop.student.light_decoder import LightDecoder, load_light_decoder
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet

ERROR = 1e-4
"""The largest absolute error of a graph in float32."""
COSINE, L2 = 0.999, 1e-2
"""The least cosine similarity and the largest relative L2 error in a reduced precision, of each output."""
PSNR, QUANTISED_PSNR = 40.0, 35.0
"""The least of decoded frames, in dB. Error power adds up: at 35 dB, frames that are 25 dB from the truth
lose 0.4 dB by it, frames at 30 dB 1.2 dB."""
LAYER_L2: dict[Precision, float] = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 3e-2}
"""Relative L2 from which a layer departs. The embedded student's largest are 1.6e-6, 1.7e-3 and 1.2e-2."""
HINTS: dict[Precision, str] = {
    "fp32": "the exporter or ONNX Runtime is at fault: try another opset, or the versions in constraints.txt",
    "fp16": "export in bf16, which does not overflow, or in fp32",
    "bf16": "export in fp16, which rounds less, or in fp32",
}

Runner = Literal["onnxruntime", "torch"]


@torch.no_grad()
def run_gates(bundle: str | Path, folder: Path, manifest: Manifest) -> tuple[Check, ...]:
    """Measure every graph in `folder`, and the chain of them.

    Raises:
        GenPropError: a gate is missed; names the graph, the sigma, the figure and its bar, and the layer that
            first departs.
    """
    model, net, base = load_model(bundle)
    base.autoencoder.chunk, base.autoencoder.overlap = manifest.chunk, manifest.overlap
    light = load_light_decoder(model, base.autoencoder) if model.decoder is not None else None
    modules = reduced_modules(net, base, manifest, light)
    graphs: dict[str, Graph] = {
        name: OpenedGraph(folder / spec.file, spec) for name, spec in manifest.graphs.items()
    }
    runners: dict[Runner, dict[str, Graph]] = {
        "onnxruntime": graphs,
        "torch": {name: RoundedStage(module) for name, module in modules.items()},
    }
    expected_of = references(net, base, light)
    checks: list[Check] = []
    for trial in trials(manifest):
        if trial.spec.quantized is not None:
            continue  # made for a clip's latents, not for noise: `quantise` has held it to a bar of its own
        expected = expected_of[trial.stage](*trial.inputs)
        for runner, stages in runners.items():
            if trial.stage not in stages:  # in float32 there is nothing to round
                continue
            whole = {**stages, DENOISER: GraphNet(manifest.graphs, stages)}
            got = whole[trial.stage](*trial.inputs)

            def explain(trial: Trial = trial, runner: Runner = runner) -> Departure | None:
                spec, inputs = manifest.graphs[trial.stage], inner_inputs(net, manifest, trial)
                inside = (
                    GraphInside(folder / spec.file, spec, inputs)
                    if runner == "onnxruntime"
                    else ModuleInside(modules[trial.stage], inputs)
                )
                plain = {k: v.model_copy(update={"precision": "fp32"}) for k, v in manifest.graphs.items()}
                reference = ModuleInside(stage_modules(net, base, plain, light=light)[trial.stage], inputs)
                return departure(reference, inside, precision=spec.precision)

            checks.append(gate(trial, got, expected, runner=runner, explain=explain))
    return (*checks, *measure_chain(net, base, graphs, manifest, so_far=checks))


def measure_chain(
    net: GenPropNet,
    base: Base,
    graphs: Mapping[str, Graph],
    manifest: Manifest,
    *,
    so_far: Sequence[Check],
) -> tuple[Check, ...]:
    """From noise to frames, in graphs and in PyTorch; see `chain_gate`."""
    ours = Chain(net, base.autoencoder.encode, base.image_encoder, base.autoencoder.decode)
    checks = []
    for sigmas in schedules(manifest):
        frames = sample_frames(chain_of(manifest, graphs), manifest, sigmas)
        expected = sample_frames(ours, manifest, sigmas)
        checks.append(
            chain_gate(
                frames,
                expected,
                len(sigmas) - 1,
                precision=manifest.precision,
                so_far=so_far,
                bar=PSNR if manifest.graphs[DENOISER].quantized is None else QUANTISED_PSNR,
            )
        )
    return tuple(checks)


def references(net: GenPropNet, base: Base, light: LightDecoder | None = None) -> dict[str, Graph]:
    """What each graph has to do, by name: the bundle's own modules; the denoiser's is the whole network."""

    def conditioner(first: Tensor, source: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        embedding, ids = rest or (first.new_zeros(1, 1, 1), first.new_zeros(1, 1))
        return flatten(net.prepare(first, source, embedding, ids))

    return {
        CONDITIONER: conditioner,
        DENOISER: lambda *tensors: net(*tensors),
        ENCODER: lambda *tensors: (base.autoencoder.encode(*tensors),),
        DECODER: lambda *tensors: (base.autoencoder.decode(*tensors),),
        IMAGE_ENCODER: lambda *tensors: (base.image_encoder(*tensors),),
        **({LIGHT_DECODER: lambda *tensors: (light.decode(*tensors),)} if light is not None else {}),
    }


def reduced_modules(
    net: GenPropNet, base: Base, manifest: Manifest, light: LightDecoder | None = None
) -> dict[str, nn.Module]:
    """Copies of the modules whose graphs are not in float32, in the precision of these, as exported."""
    reduced = [name for name, spec in manifest.graphs.items() if spec.precision != "fp32"]
    if not reduced:
        return {}
    copies = copy.deepcopy((net, base, light))
    modules = stage_modules(*copies[:2], manifest.graphs, light=copies[2])
    return {name: modules[name] for name in reduced}


def inner_inputs(net: GenPropNet, manifest: Manifest, trial: Trial) -> tuple[Tensor, ...]:
    """Inputs of the stage's own graph: a split denoiser is given what the network prepares in float32."""
    named = {tensor.name: x for tensor, x in zip(trial.spec.inputs, trial.inputs, strict=True)}
    if trial.stage == DENOISER and (conditioner := manifest.graphs.get(CONDITIONER)) is not None:
        names = ("first", "source", "image_embedding", "added_time_ids")
        prepared = flatten(net.prepare(*(named[name] for name in names)))
        named |= {tensor.name: x for tensor, x in zip(conditioner.outputs, prepared, strict=True)}
    return tuple(named[tensor.name] for tensor in manifest.graphs[trial.stage].inputs)


def gate(
    trial: Trial,
    got: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    *,
    runner: Runner,
    explain: Callable[[], Departure | None],
) -> Check:
    """Hold a stage's outputs to the bars of its precision.

    Args:
        explain: finds the layer that first departs, if a bar is missed.

    Raises:
        GenPropError: a bar is missed.
    """
    pairs = list(zip(got, expected, strict=True))
    error = _largest(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    alike = -_largest(-cosine(a, b) for a, b in pairs)
    l2 = _largest(relative_l2(a, b) for a, b in pairs)
    missed = bar_missed(trial.spec.precision, error=error, cosine=alike, l2=l2)
    if not missed:
        return Check(
            stage=trial.stage,
            runner=runner,
            precision=trial.spec.precision,
            sigma=trial.sigma,
            error=error,
            cosine=alike,
            l2=l2,
            passed=True,
        )
    by = "ONNX Runtime" if runner == "onnxruntime" else "PyTorch rounded to it"
    found = explain()
    where = (
        f"the first layer to depart is {found}"
        if found
        else "no layer departs alone: it adds up, or a rewrite of the export is at fault"
    )
    raise GenPropError(
        f"{trial} departs from PyTorch in float32 ({by}): {missed}; {where}",
        HINTS[trial.spec.precision],
    )


def bar_missed(precision: Precision, *, error: float, cosine: float, l2: float) -> str:
    """Which figure missed which bar, or ""; NaN misses every bar."""
    if math.isnan(error) or math.isnan(l2):
        return "it holds NaN or infinity"
    if precision == "fp32":
        return "" if error <= ERROR else f"largest error {error:.3g}, expected at most {ERROR:g}"
    if not l2 <= L2:
        return f"relative L2 error {l2:.3g}, expected at most {L2:g}"
    return "" if cosine >= COSINE else f"cosine similarity {cosine:.4f}, expected at least {COSINE:g}"


def departure(reference: ModuleInside, other: Inside, *, precision: Precision) -> Departure | None:
    """`first_departure` at the bar of a precision."""
    with torch.no_grad(), Rounded():  # which leaves float32 as it is
        return first_departure(reference, other, bar=LAYER_L2[precision])


def chain_gate(
    frames: Tensor,
    expected: Tensor,
    steps: int,
    *,
    precision: Precision,
    so_far: Sequence[Check],
    bar: float = PSNR,
) -> Check:
    """Hold decoded frames to their bar.

    Args:
        so_far: the stages' checks, of which the worst is named where the bar is missed.

    Raises:
        GenPropError: the bar is missed.
    """
    figure = psnr(frames, expected)
    if not figure >= bar:
        worst = max(so_far, key=lambda check: check.l2 or 0.0)
        at = "" if worst.sigma is None else f" at sigma {worst.sigma:g}"
        raise GenPropError(
            f"frames of {steps} steps in {precision} have {figure:.1f} dB to PyTorch in float32, expected at "
            f"least {bar:g}; each graph passes, the worst is {worst.stage}{at}: relative L2 {worst.l2:.3g}",
            HINTS[precision],
        )
    error = float((frames - expected).abs().max())
    return Check(
        stage="chain",
        runner="onnxruntime",
        precision=precision,
        steps=steps,
        error=error,
        psnr=figure,
        passed=True,
    )


def cosine(got: Tensor, expected: Tensor) -> float:
    """Cosine similarity of two outputs; 1 where they are equal, be it 0."""
    if torch.equal(got, expected):
        return 1.0
    return float(torch.cosine_similarity(got.double().flatten(), expected.double().flatten(), 0))


def _largest(figures: Iterable[float]) -> float:
    """The largest; NaN if one is."""
    values = torch.tensor([*figures], dtype=torch.float64)
    return float(values.max())
