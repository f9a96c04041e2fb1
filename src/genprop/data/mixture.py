"""Training samples out of several sources at once, by weight, with broken clips left out and named.

Item `i` depends on `(seed, i)` and the sources only, not on which worker reads it or what was read before:
that is what a resumed run goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from torch.utils.data import Dataset

from genprop.config import Config
from genprop.data.check import READING_ERRORS, describe, unique
from genprop.data.faults import FaultLog
from genprop.data.recordings import Source
from genprop.data.synthesis import draw_edit
from genprop.data.window import View
from genprop.errors import GenPropError
from genprop.types import EditSample, MaskedClip

DONOR_TRIES = 100


class EditClips(Dataset[EditSample]):
    """`count` samples from `(source, weight)` pairs.

    The source of each is drawn by weight; within a source, clips come in a new order each pass, so each is
    visited once in a pass. A `MaskedClip` becomes an `EditSample` by synthesis. A clip that cannot be
    read goes to `faults`, and the next one of the pass takes its place.

    Raises:
        GenPropError: no sources, or a weight that is not above 0; on reading, if every clip is broken.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, float]],
        config: Config,
        *,
        count: int,
        seed: int,
        faults: FaultLog | None = None,
    ) -> None:
        if not sources or any(weight <= 0 for _, weight in sources):
            raise GenPropError(
                f"the weights of the sources are {[w for _, w in sources]}, expected some, all above 0",
                "Leave out a source that is not wanted.",
            )
        self.sources = [source for source, _ in sources]
        self.view, self.synthesis = View.of(config), config.synthesis
        self.count, self.seed = count, seed
        self.faults = faults or FaultLog()
        weights = np.array([weight for _, weight in sources], dtype=float)
        self.weights = weights / weights.sum()
        # Drawn at once: the place in a pass depends on the draws before. A longer dataset starts the same.
        draws = Generator(PCG64(SeedSequence(seed))).random(count)
        self.drawn = np.searchsorted(self.weights.cumsum()[:-1], draws, side="right")
        self.turns = np.zeros(count, dtype=int)
        for index in range(len(self.sources)):
            chosen = self.drawn == index
            self.turns[chosen] = np.arange(chosen.sum())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> EditSample:
        if not 0 <= item < self.count:
            raise IndexError(f"item {item} of {self.count}")
        wrong: list[str] = []
        for attempt, (source, clip) in enumerate(self._candidates(item)):
            # The first attempt's key is what `ProceduralClips` has, so that its items are the same here.
            key = (item, attempt) if attempt else (item,)
            rng = Generator(PCG64(SeedSequence(self.seed, spawn_key=key)))
            try:
                found = self._read(source, clip, rng)
                return found if isinstance(found, EditSample) else self._edit(found, source, clip, rng)
            except READING_ERRORS as error:
                wrong.append(f"{self.sources[source].names[clip]}: {describe(error)}")
                self._report(source, clip, [describe(error)], skipped=True)  # unless `_read` has
        raise GenPropError(
            f"none of the {len(wrong)} clips can be read; the first is {wrong[0]}",
            "See the log of faults, or `genprop data check`.",
        )

    def _candidates(self, item: int) -> Iterator[tuple[int, int]]:
        """(source, clip) of an item, then what stands in for it: the rest of its pass, the other sources."""
        drawn = int(self.drawn[item])
        for source in [drawn, *(s for s in range(len(self.sources)) if s != drawn)]:
            names = self.sources[source].names
            done, start = divmod(int(self.turns[item]), len(names))
            # Three numbers: no item's key, nor an attempt's.
            key = (source, done, 0)
            order = Generator(PCG64(SeedSequence(self.seed, spawn_key=key))).permutation(len(names))
            yield from ((source, int(clip)) for clip in np.roll(order, -start))

    def _read(self, source: int, clip: int, rng: Generator) -> MaskedClip | EditSample:
        """Reads, and reports what it meets, good or bad."""
        origin, notes = self.sources[source], []
        try:
            found = origin.read(clip, rng, self.view, note=notes.append)
        except READING_ERRORS as error:
            self._report(source, clip, [*notes, describe(error)], skipped=True)
            raise
        if notes:
            self._report(source, clip, notes, skipped=False)
        return found

    def _report(self, source: int, clip: int, faults: list[str], *, skipped: bool) -> None:
        origin = self.sources[source]
        self.faults.report(
            origin.names[clip],
            source=origin.where,
            fault="; ".join(unique(faults)),
            action="skipped" if skipped else "read",
        )

    def _edit(self, found: MaskedClip, source: int, clip: int, rng: Generator) -> EditSample:
        masked = [i for i, origin in enumerate(self.sources) if not origin.pairs]
        share = self.weights[masked] / self.weights[masked].sum()
        alone = sum(len(self.sources[i].names) for i in masked) == 1

        def donor() -> MaskedClip:
            """A window of another clip, or of the same where it is the only one."""
            for _ in range(DONOR_TRIES):
                other = masked[int(rng.choice(len(masked), p=share))]
                index = int(rng.integers(len(self.sources[other].names)))
                if (other, index) == (source, clip) and not alone:
                    continue
                try:
                    given = self._read(other, index, rng)
                except READING_ERRORS:
                    continue
                assert isinstance(given, MaskedClip)
                return given
            return found  # nothing else can be read: better its own object than none

        return draw_edit(found, donor=donor, rng=rng, config=self.synthesis)
