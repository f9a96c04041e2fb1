"""What a denoiser's layers see, and how much each of them suffers from 8 bits.

Calibrated on the student's own sampling: clips are denoised in each of its numbers of steps at its own
sigmas, and every call of the network is one batch. nvidia-modelopt observes the largest magnitude of each
layer's input and rounds inputs and weights in place (fake quantisation), so that layers can be tried out one
at a time before anything is written.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genprop.bundle import Bundle
from genprop.draws import Draws
from genprop.edm import NetDenoiser
from genprop.errors import GenPropError
from genprop.export.modules import Denoiser, flatten
from genprop.export.qdq import Kind
from genprop.manifest import GraphSpec
from genprop.sampling import consistency
from genprop.teacher.base import Base
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import TeacherObjective
from genprop.teacher.samples import held_out_clips
from genprop.types import NetOut

Batch = tuple[Tensor, ...]
"""A denoiser's inputs, in the order of its spec."""

FORMATS: dict[Kind, int | tuple[int, int]] = {"int8": 8, "fp8": (4, 3)}
"""modelopt's names: bits, or bits of exponent and mantissa."""


class Departure(NamedTuple):
    """How far outputs are from the expected ones: cosine similarity and relative L2 error."""

    cosine: float
    l2: float

    def reaches(self, bar: Departure) -> bool:
        return self.cosine >= bar.cosine and self.l2 <= bar.l2


def worst_of(departures: Sequence[Departure]) -> Departure:
    """The lowest cosine and the largest error, be they of one call or of two."""
    return Departure(min(d.cosine for d in departures), max(d.l2 for d in departures))


def departure(got: Sequence[Tensor], expected: Sequence[Tensor]) -> Departure:
    """Of the worst output of one call."""

    def of(a: Tensor, b: Tensor) -> Departure:
        a, b = a.to(b.device).double().flatten(), b.double().flatten()
        return Departure(float(torch.cosine_similarity(a, b, 0)), float((a - b).norm() / b.norm()))

    return worst_of([of(a, b) for a, b in zip(got, expected, strict=True)])


class Recorder:
    """`types.Net` of one clip: what the denoiser's graph is given at each call is kept."""

    def __init__(self, net: GenPropNet, spec: GraphSpec) -> None:
        self.net, self.denoiser = net, Denoiser(net, spec)
        self.batches: list[Batch] = []
        self._prepared: tuple[Tensor, ...] | None = None  # once for a clip, as conditioner and runtime do

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        if self._prepared is None:
            self._prepared = flatten(self.net.prepare(first, source, image_embedding, added_time_ids))
        named = {
            "sample": sample,
            "timestep": timestep,
            "first": first,
            "source": source,
            "image_embedding": image_embedding,
            "added_time_ids": added_time_ids,
        }
        rest = [name for name in self.denoiser.names if name not in named]
        named |= dict(zip(rest, self._prepared, strict=True))
        self.batches.append(tuple(named[name] for name in self.denoiser.names))
        return NetOut(*self.denoiser(*self.batches[-1]))


@torch.no_grad()
def calibration_batches(
    model: Bundle,
    net: GenPropNet,
    base: Base,
    spec: GraphSpec,
    *,
    data: Sequence[str] = ("procedural",),
    count: int = 4,
    seed: int = 0,
) -> list[list[Batch]]:
    """The denoiser's inputs while `net` samples clips, in each of the student's numbers of steps.

    Args:
        net: the student's, simplified, in float32.
        spec: of the denoiser's graph.
        data: as for training; of what it holds out.
        count: clips. seed: of the clips and of all noise.

    Returns:
        For each clip, as many batches as all of the student's schedules have steps.

    Raises:
        GenPropError: a teacher, which has no sigmas of its own; data that cannot be read.
    """
    card = model.card
    if not card.sigmas:
        raise GenPropError(
            f"the model is a {card.kind} without few-step sigmas, expected a student to calibrate",
            "distil it first: genprop distill",
        )
    seeded = card.config.data.model_copy(update={"seed": card.config.data.seed + seed})
    config = card.config.model_copy(update={"data": seeded})
    encoded = held_out_clips(data, config, base, count)
    objective = TeacherObjective(net, base.image_encoder, config)
    device = net.backbone.conv_in.weight.device
    clips = []
    for i in range(len(encoded["target"])):
        cond = objective.inputs({k: v[i : i + 1].to(device) for k, v in encoded.items()}, None).cond
        # A graph has the columns that the network reads; encoded samples have the task's, too.
        cond = replace(cond, added_time_ids=cond.added_time_ids[:, : config.net.columns])
        recorder, draws = Recorder(net, spec), Draws.of(seed * 1_000_003 + i, 1, device=device)
        for steps, sigmas in sorted(card.sigmas.items()):
            noise, levels = draws.randn(*cond.source.shape[1:]), torch.tensor([*sigmas, 0.0])
            fresh, eta = torch.Generator().manual_seed(seed + i), card.eta.get(steps, 1.0)
            consistency(NetDenoiser(recorder), noise, levels, cond, generator=fresh, eta=eta)
        clips.append(recorder.batches)
    return clips


class FakeQuantised:
    """A denoiser whose layers are rounded to 8 bits, each of them as long as it is switched on.

    Args:
        module: the denoiser in float32; changed in place, for good.
        layers: paths of the modules that are candidates.
        batches: what they are calibrated on.

    Raises:
        GenPropError: nvidia-modelopt is missing.
    """

    def __init__(
        self, module: nn.Module, layers: Collection[str], *, kind: Kind, batches: Sequence[Batch]
    ) -> None:
        quantisation = _modelopt()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*batches[0])
        counted, prefix = counter.get_flop_counts(), f"{type(module).__name__}."
        self.work = {name: sum(counted[prefix + name].values()) // 2 for name in layers}
        """Multiply-adds of each layer."""
        self.module, self.layers = module, tuple(layers)

        def observe(module: nn.Module) -> None:
            for batch in batches:
                module(*batch)

        bits = FORMATS[kind]
        rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for name in layers:
            rules += [
                {"quantizer_name": f"{name}.input_quantizer", "cfg": {"num_bits": bits, "axis": None}},
                {"quantizer_name": f"{name}.weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            ]
        # It says on stdout, where a command's JSON goes, how many layers it has wrapped.
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            quantisation.quantize(module, {"quant_cfg": rules, "algorithm": "max"}, observe)
        self.amax = {name: float(self._layer(name).input_quantizer.amax) for name in self.layers}
        """Largest magnitude of each layer's input."""

    def switch(self, on: Collection[str]) -> None:
        """Round these layers, and no others."""
        for name in self.layers:
            layer = self._layer(name)
            for quantiser in (layer.input_quantizer, layer.weight_quantizer):
                if name in on:
                    quantiser.enable()
                else:
                    quantiser.disable()

    @torch.no_grad()
    def departures(
        self, on: Collection[str], batches: Sequence[Batch], expected: Sequence[Sequence[Tensor]]
    ) -> list[Departure]:
        """Of each batch, with these layers rounded."""
        self.switch(on)
        return [departure(self.module(*x), y) for x, y in zip(batches, expected, strict=True)]

    def _layer(self, name: str) -> Any:
        return self.module.get_submodule(name)  # modelopt's, of a class made on the fly


def _modelopt() -> Any:
    """`modelopt.torch.quantization`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions of transformers, of which nothing is used here
            import modelopt.torch.quantization as quantisation  # type: ignore[import-not-found]
    except ImportError as error:
        raise GenPropError(
            "quantisation needs nvidia-modelopt, which is not installed", "pip install 'genprop[quantise]'"
        ) from error
    return quantisation
