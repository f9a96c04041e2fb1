"""The order of the data and the seeds of the samples, as functions of the seed and the place in the stream.

One endless stream of samples, a seeded permutation of the dataset per epoch, is dealt out in order: to the
processes, then the micro-batches, then the steps. So two processes with batch 1, one that accumulates
2 x 1 and one with batch 2 see the same samples with the same random numbers, and a resumed run starts at
any step without loading what it skips.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from genprop.settings import TrainConfig


def sample_seeds(config: TrainConfig, *, step: int, process: int, processes: int, micro: int) -> list[int]:
    """A seed for each sample of a micro-batch, by its place in the stream that `Batches` deals out."""
    first = ((step * config.accumulate + micro) * processes + process) * config.batch_size
    places = range(first, first + config.batch_size)
    return [int(np.random.SeedSequence([config.seed, i]).generate_state(1, np.uint64)[0]) for i in places]


class Batches(Sampler[list[int]]):
    """The indices of every micro-batch of one process, from step `start` on."""

    def __init__(
        self, samples: int, config: TrainConfig, *, start: int = 0, process: int = 0, processes: int = 1
    ) -> None:
        self.samples, self.config, self.start = samples, config, start
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return (self.config.steps - self.start) * self.config.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        size, everyone = self.config.batch_size, self.config.batch_size * self.processes
        stream = self._stream(self.start * self.config.accumulate * everyone)
        for _ in range(len(self)):
            yield list(itertools.islice(stream, everyone))[self.process * size : (self.process + 1) * size]

    def _stream(self, position: int) -> Iterator[int]:
        epoch, offset = divmod(position, self.samples)
        while True:
            order = np.random.default_rng([self.config.seed, epoch]).permutation(self.samples)
            yield from map(int, order[offset:])
            epoch, offset = epoch + 1, 0
