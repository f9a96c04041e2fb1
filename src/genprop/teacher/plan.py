"""The memory plan of a training, made before anything is loaded; `fits` says what to do where it is too much.

The modules are built without contents and the training's own code runs on them (`trace`), so nothing here
repeats what a network looks like. Beside that peak stands what `loop.fit` holds: weights (all of the
objective in float32, the frozen backbone too), gradients, AdamW's moments and the EMA of what trains.

`plan` knows the stages of `genprop train`; `distill.plan` makes that of the student with `make_plan`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from genprop.config import Config
from genprop.settings import TrainConfig
from genprop.sharding import BLOCKS as SHARDED
from genprop.sharding import is_asked_for
from genprop.teacher.outline import How, Stage, Training, architecture, outline
from genprop.teacher.trace import (
    ACTIVATIONS,
    GRADIENTS,
    TEMPORARY,
    fake_tensors,
    nbytes,
    trace_call,
    trace_step,
)
from genprop.teacher.unet import checkpoint_blocks

STEP, OPTIMISER = "forward and backward", "optimiser"

NAMES = {
    "lora_": "LoRA",
    "sce.injections.": "injections",
    "sce.fusion.": "injections",
    "sce.": "content encoder",
    "mpd.": "mask decoder",
    "tasks.": "task embedding",
    "guidance.": "guidance embedding",
    "gate.": "gate",
    "carry.": "carry",
    "backbone.": "backbone",
    "image_encoder.": "image encoder",
    "autoencoder.": "autoencoder",
}
"""What parts are called, by what stands in a parameter's name; the first that does."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part, and how many of them train."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Use:
    """The bytes that one piece of a training needs at its peak, on one device.

    `temporary` is what the backward pass makes, recomputed activations included, and copies of weights.
    """

    name: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    ema: int = 0
    activations: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        parts = (self.weights, self.gradients, self.optimizer, self.ema, self.activations, self.temporary)
        return sum(parts)


@dataclass(frozen=True)
class Plan:
    """What a stage trains and what it needs; `build` makes the training anew of another configuration."""

    stage: str
    config: Config
    how: How
    parts: tuple[Part, ...]
    uses: tuple[Use, ...]
    settings: TrainConfig
    build: Callable[[Config, How], Training] = field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    @property
    def peak(self) -> Use:
        """The piece that needs most."""
        return max(self.uses, key=lambda use: use.total)

    def document(self) -> dict[str, Any]:
        """JSON's view: parameters and bytes as numbers."""
        return {
            "preset": self.config.name,
            "stage": self.stage,
            **asdict(self.how),
            "parameters": self.parameters,
            "trained": self.trained,
            "parts": [asdict(part) for part in self.parts],
            "memory": [{**asdict(use), "total": use.total} for use in self.uses],
            "peak": self.peak.total,
        }

    def tables(self) -> list[Table]:
        """Parameters by part, and gigabytes by piece, for a person."""
        parameters = Table("part", title=f"{self.config.name}: parameters", box=SIMPLE_HEAD)
        for name in ("parameters", "trained"):
            parameters.add_column(f"{name}, M", justify="right")
        for part in (*self.parts, Part("total", self.parameters, self.trained)):
            parameters.add_row(part.name, millions(part.parameters), millions(part.trained))
        parameters.caption = f"{self.trained / self.parameters:.1%} of the parameters train"
        clip = self.config.clip
        size = f"{clip.frames} frames of {clip.width}x{clip.height}"
        memory = Table("piece", title=f"{self.stage}: GB on one device, {size}", box=SIMPLE_HEAD)
        columns = ("weights", "gradients", "optimizer", "ema", "activations", "temporary", "total")
        for name in columns:
            memory.add_column(name, justify="right")
        for use in self.uses:
            style = "bold" if use is self.peak else None
            memory.add_row(use.name, *(f"{getattr(use, n) / 1e9:.2f}" for n in columns), style=style)
        return [parameters, memory]


def plan(
    config: Config, *, stage: Stage = "teacher", base: str | Path | None = None, how: How | None = None
) -> Plan:
    """The plan of a stage of `genprop train`.

    Args:
        base: the base that is given, else `base.path` of the configuration; see `outline.architecture`.
        how: it will run; on one CUDA device if None. `here()` is how this process runs.

    Raises:
        GenPropError: nothing says what the base is.
    """
    described = config.model_copy(update={"base": architecture(config, base)})
    return make_plan(described, stage, lambda config, how: outline(config, stage, how), how or How())


def make_plan(
    config: Config,
    stage: str,
    build: Callable[[Config, How], Training],
    how: How,
    *,
    only: str | None = None,
) -> Plan:
    """Build a training without contents and find what its pieces need.

    Args:
        only: the one piece to look at; all of them if None.
    """
    with torch.device("meta"):
        made = build(config, how)
    modules = nn.ModuleDict({"objective": made.objective, **made.others})
    if made.settings.checkpointing:
        checkpoint_blocks(made.objective)
    with fake_tensors(cuda=how.cuda):
        modules.to_empty(device="cpu")
        held = [*modules.parameters(), *modules.buffers()]
        uses = tuple(pieces(made, modules, held, how, only=only))
    return Plan(stage, config, how, parts(modules), uses, made.settings, build)


def pieces(
    made: Training, modules: nn.Module, held: list[Tensor], how: How, *, only: str | None
) -> Iterable[Use]:
    """What each piece needs: what `fit` holds, and the peak of what runs."""
    trained = [p for p in made.objective.parameters() if p.requires_grad]
    shards = how.devices if how.sharded else 1
    copies = 2 if how.devices > 1 and not how.sharded else 1  # DDP's buckets
    size = sum(map(nbytes, trained))
    everything = sum(map(nbytes, held))
    weights = Use("", weights=everything // shards)
    moments = sum(map(nbytes, trained)) * 2
    if made.settings.optimizer == "adamw8bit":  # small tensors keep theirs in 32 bits; a scale for 256 values
        moments = sum(p.numel() * 8 if p.numel() < 4096 else p.numel() * (2 + 8 / 256) for p in trained)
    states = replace(
        weights, gradients=(copies - 1) * size, optimizer=int(moments) // shards, ema=size // shards
    )
    for name, call in made.calls.items():
        if only not in (None, name):
            continue
        showing = call.when == "validation"
        precision = made.settings.precision if showing else "no"
        peak = trace_call(call.run, held=held, precision=precision, cuda=how.cuda)
        state = weights if call.when == "before" else states
        if how.sharded and call.when != "step":  # done with the whole objective, beside the shards
            state = replace(state, weights=everything + (state.weights if showing else 0))
        # validation keeps the weights that the EMA stands in for
        yield replace(state, name=name, activations=peak, temporary=size if showing else 0)
    if how.sharded:
        states = replace(states, temporary=gathered(made.objective))
    if only in (None, STEP):
        peak = trace_step(made.loss, trained, held=held, settings=made.settings, cuda=how.cuda)
        yield replace(
            states,
            name=STEP,
            gradients=states.gradients + peak[GRADIENTS] // shards,
            activations=peak[ACTIVATIONS],
            temporary=states.temporary + peak[TEMPORARY],
        )
    if only in (None, OPTIMISER):
        yield replace(states, name=OPTIMISER, gradients=states.gradients + size // shards)


def gathered(objective: nn.Module) -> int:
    """Bytes of the weights that are whole in a sharded step (see `sharding`).

    These are the block that runs and the one that is fetched, and what lies outside of blocks, all the time.
    """
    blocks = [m for m in objective.modules() if type(m).__name__ in SHARDED]
    sizes = [sum(map(nbytes, block.parameters())) for block in blocks]
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = sum(nbytes(p) for p in objective.parameters() if id(p) not in inside)
    return outside + 2 * max(sizes, default=0)


def parts(modules: nn.Module) -> tuple[Part, ...]:
    """The parameters by part, in the order of their appearance."""
    every: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in modules.named_parameters():
        label = next((NAMES[key] for key in NAMES if key in name), "other")
        label = "the teacher" if name.startswith("teacher.") else label
        every[label] += parameter.numel()
        trained[label] += parameter.numel() * parameter.requires_grad
    return tuple(Part(label, count, trained[label]) for label, count in every.items())


def here() -> How:
    """How this process runs: the launcher's number of processes, sharded or not, on CUDA or a CPU."""
    return How(
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        sharded=is_asked_for() and "WORLD_SIZE" in os.environ,
        cuda=torch.cuda.is_available(),
    )


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f}"
