"""The floor under a stage's time: its work, at the best that this machine was seen to do.

A roofline (Williams et al. 2009): no stage is faster than its FLOP at the rate of the best matrix product
measured here, nor than its weights, inputs and outputs at the measured bandwidth of a copy.
"""

from __future__ import annotations

from collections.abc import Mapping

from genprop.evaluate.bench.document import Floor, Machine, Percentiles, Stage
from genprop.evaluate.bench.work import ModelWork
from genprop.manifest import DTYPES, Precision


def floors(
    work: ModelWork,
    machine: Machine,
    *,
    precisions: Mapping[str, Precision],
    evaluations: int,
    seconds: Mapping[Stage, Percentiles],
    light: bool = False,
) -> dict[Stage, Floor]:
    """The floor of each stage, and of all together.

    Args:
        precisions: of each graph, by its name.
        seconds: what was measured.
        light: whether the light decoder decoded.
    """
    found: dict[Stage, Floor] = {}
    stages: tuple[Stage, ...] = ("encode", "denoise", "decode")
    for stage in stages:
        flops = size = slowest = 0.0
        for name, calls in work.calls(stage, evaluations, light=light).items():
            graph, precision = work.graphs[name], precisions[name]
            its_flops = float(calls * graph.flops)
            its_bytes = float(calls * (graph.weights * DTYPES[precision].itemsize + 4 * graph.tensors))
            slowest += max(its_flops / rate(machine, precision), its_bytes / machine.bandwidth)
            flops, size = flops + its_flops, size + its_bytes
        found[stage] = Floor(flops=flops, bytes=size, seconds=slowest, ratio=seconds[stage].p50 / slowest)
    summed = sum(floor.seconds for floor in found.values())
    found["total"] = Floor(
        flops=sum(floor.flops for floor in found.values()),
        bytes=sum(floor.bytes for floor in found.values()),
        seconds=summed,
        ratio=seconds["total"].p50 / summed,
    )
    return found


def rate(machine: Machine, precision: Precision) -> float:
    """FLOP/s that a graph could reach: a CPU without float16 arithmetic computes in float32 instead."""
    return max(machine.flops[precision], machine.flops["fp32"])
