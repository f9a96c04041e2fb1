"""What a reward is: the one protocol of all of them.

A reward sees decoded frames, as a person would. What it compares them with, the edited first frame, other
frames or a caption, is prepared once without gradient; the call is differentiable in the frames.

Shapes: B batch, n frames that are looked at, pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class RewardCard(NamedTuple):
    """What a run notes of a reward: its name, where its weights come from, and their licence."""

    name: str
    source: str
    licence: str


class Reward(Protocol):
    """A differentiable score of frames; higher is better.

    Attributes:
        card: noted in the run.
        window: how many neighbouring frames it sees as one clip; 1 where it scores each frame on its own.
    """

    card: RewardCard
    window: int

    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """What `__call__` compares with, without gradient.

        Args:
            reference: frames `[B, n, 3, H, W]` in [0, 1], or B captions.
            mask: where the edit is, `[B, n, 1, H, W]`, for a reward that looks only there.
        """
        ...

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[B]` of frames `[B, n, 3, H, W]` in [0, 1]; n is a multiple of `window`."""
        ...
