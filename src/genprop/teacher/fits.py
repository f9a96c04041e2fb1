"""Whether a planned training fits into the memory there is, and what to turn where it does not.

Each knob is planned anew, so the hint says what it would bring and not what it usually does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hardware import free_memory
from genprop.teacher.outline import DECODE, ENCODE, SAMPLE, How
from genprop.teacher.plan import STEP, Plan, make_plan

MARGIN = 1.05
"""What the allocator's gaps cost beside what it gave out."""


def check_fits(plan: Plan, available: int) -> None:
    """Refuse what does not fit into `available` bytes, before anything is loaded.

    Raises:
        GenPropError: names the piece, what it needs, and what would help, the most helpful first.
    """
    worst = plan.peak
    if worst.total * MARGIN <= available:
        return
    helpful = [(total, knob) for knob, total in knobs(plan) if total < 0.99 * worst.total]
    clip = plan.config.clip
    raise GenPropError(
        f"{plan.stage} does not fit: {worst.name} needs {gigabytes(worst.total * MARGIN)} for {clip.frames} "
        f"frames of {clip.width}x{clip.height}, expected at most {gigabytes(available)}",
        "; ".join(f"{knob} (to {gigabytes(total * MARGIN)})" for total, knob in sorted(helpful))
        or "take a smaller network or a larger device",
    )


def knobs(plan: Plan) -> Iterator[tuple[str, int]]:
    """What can be turned, in words, and the bytes that the plan's worst piece would need then."""
    name, config, how = plan.peak.name, plan.config, plan.how
    settings, clip, stage = plan.settings, config.clip, plan.stage

    def need(config: Config, how: How = how) -> int:
        return make_plan(config, stage, plan.build, how, only=name).peak.total

    def trained(**changes: Any) -> int:
        return need(config.model_copy(update={stage: settings.model_copy(update=changes)}))

    def clipped(**changes: Any) -> int:
        return need(config.model_copy(update={"clip": clip.model_copy(update=changes)}))

    if name == STEP and not settings.checkpointing:
        yield f"--set {stage}.checkpointing=true", trained(checkpointing=True)
    if name == STEP and settings.batch_size > 1:
        accumulate = settings.batch_size * settings.accumulate
        changes = {"batch_size": 1, "accumulate": accumulate}
        yield f"--set {stage}.batch_size=1 --set {stage}.accumulate={accumulate}", trained(**changes)
    if name == SAMPLE and config.data.validation > 1:
        data = config.data.model_copy(update={"validation": 1})
        yield "--set data.validation=1", need(config.model_copy(update={"data": data}))
    if name in (ENCODE, DECODE) and config.base.chunk > 1:
        base = config.base.model_copy(update={"chunk": 1})
        yield "--set base.chunk=1", need(config.model_copy(update={"base": base}))
    if name == ENCODE and not config.data.cache:
        data = config.data.model_copy(update={"cache": True})
        yield "--set data.cache=true", need(config.model_copy(update={"data": data}))
    if clip.frames > 1:
        half = (clip.frames + 1) // 2
        yield f"--set clip.frames={half}", clipped(frames=half)
    height, width = (max(64, side * 3 // 4 // 64 * 64) for side in (clip.height, clip.width))
    if height * width < clip.height * clip.width:
        smaller = f"--set clip.height={height} --set clip.width={width}"
        yield smaller, clipped(height=height, width=width)
    if settings.optimizer == "adamw" and how.cuda and not how.sharded:
        yield f"--set {stage}.optimizer=adamw8bit", trained(optimizer="adamw8bit")
    if how.devices > 1 and not how.sharded:
        yield "weights sharded among the devices (FSDP)", need(config, replace(how, sharded=True))


def available_memory() -> int:
    """Bytes that are free: of the CUDA device, else of the machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.4g} GB"
