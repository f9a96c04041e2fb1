"""Repetitions of many lanes in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from genprop.evaluate.bench.jobs import Timed

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    runs: Mapping[Key, Callable[[], Timed]],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    after: Callable[[Key], None] = lambda key: None,
) -> dict[Key, list[Timed]]:
    """Run each `warmup` times, which do not count, then all of them `repeats` times in turn.

    The order is drawn anew for each repetition: none runs always behind the same neighbour, whose threads may
    still be waiting, or always on a chip that another has heated.

    Args:
        after: called after each run.
    """
    found: dict[Key, list[Timed]] = {key: [] for key in runs}
    for key, run in runs.items():
        for _ in range(warmup):
            run()
            after(key)
    generator, order = random.Random(seed), list(runs)
    for _ in range(repeats):
        generator.shuffle(order)
        for key in order:
            found[key].append(runs[key]())
            after(key)
    return found


def stage_times(runs: Sequence[Timed], stage: str) -> list[float]:
    """Seconds of a stage in each run."""
    return [run.seconds[stage] for run in runs]
