"""What the training loop asks of an objective that changes while it is trained.

Most objectives are plain modules and need none of this. A distillation may have more: a schedule over the
run, a target network that follows the weights, or a discriminator with an optimiser of its own.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class OwnOptimizer(NamedTuple):
    """AdamW for a part of the parameters: no weight decay, and gradients clipped to `clip` on their own.

    The learning rate is its peak; warm-up and cosine are the run's.
    """

    learning_rate: float
    betas: tuple[float, float]
    clip: float


@runtime_checkable
class Adaptive(Protocol):
    """An objective that changes while it is trained.

    Under FSDP it is the sharded copy that is told of the steps.
    """

    def before_step(self, progress: float) -> None:
        """An update begins; `progress` is the share of the updates that are done, from 0."""

    def after_step(self) -> None:
        """The optimisers have moved the weights."""

    def memory(self) -> dict[str, Tensor]:
        """What else a checkpoint keeps: buffers of the objective, restored in place; may be empty.

        They change in `after_step` only, and by the same rule on every process.
        """
        ...

    def own_optimizers(self) -> dict[str, OwnOptimizer]:
        """By prefix of the names of parameters (`"discriminator."`); may be empty.

        One backward pass serves all: the objective sees to it that gradients do not cross.
        """
        ...
