"""Random numbers of a batch, one generator a sample.

What a sample is given depends on its own seed only: not on who else is in its batch, on which process it
lies, or on the device. So two processes with batch 1 train as one process with batch 2 does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Draws for a batch of `len(seeds)` samples, on `device`; every call goes on in each sample's stream.

    Numbers are drawn on the CPU, so that they are the same everywhere.
    """

    def __init__(self, seeds: Sequence[int], *, device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = torch.device(device)

    @classmethod
    def of(cls, seed: int, count: int, *, device: torch.device | str = "cpu") -> Draws:
        """For `count` samples, all of it named by one seed."""
        seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
        return cls([int(s) for s in seeds], device=device)

    def __len__(self) -> int:
        return len(self.generators)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, `[B, *shape]`."""
        return self._each(lambda generator: torch.randn(shape, generator=generator))

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), `[B, *shape]`."""
        return self._each(lambda generator: torch.rand(shape, generator=generator))

    def randint(self, high: int) -> Tensor:
        """Whole numbers below `high`, `[B]`."""
        return self._each(lambda generator: torch.randint(high, (), generator=generator))

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)
