"""What trains: the weights with their optimiser and their EMA, whole on each process or in shards.

The loop calls `model` and `step`; checkpoint and validation come here, too, so that nobody else has to know
where a weight lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genprop.checkpoint import load_checkpoint, read_state, save_checkpoint
from genprop.optimizer import adamw, ema_decay, learning_rate
from genprop.settings import TrainConfig
from genprop.sharding import is_sharded, local, shard, whole


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class Trained:
    """The parameters of `objective` that require a gradient, in training.

    Attributes:
        model: what to call: `objective` itself, under DDP if there are several processes, or a sharded copy.
    """

    def __init__(self, objective: nn.Module, config: TrainConfig, accelerator: Accelerator) -> None:
        self.objective, self.config, self.accelerator = objective, config, accelerator
        self.whole = trainable(objective)
        self.shapes = {name: parameter.shape for name, parameter in self.whole.items()}
        if is_sharded():
            self.model = shard(objective.to("cpu"), accelerator.device)
            self.parameters = trainable(self.model)
        else:
            self.model, self.parameters = accelerator.prepare(objective), self.whole
        self.ema = {n: p.detach().to(torch.float32, copy=True) for n, p in self.parameters.items()}
        self.optimizer = adamw(self.parameters, config)
        self._stepper = accelerator.prepare_optimizer(self.optimizer)

    def clip(self) -> Tensor:
        """Clip the gradients to `config.clip`; their norm before that, of all shards."""
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.config.clip)
        assert isinstance(norm, Tensor)
        return whole(norm, torch.Size())

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update weights and EMA with the gradients of `step`, from 0, and drop the gradients."""
        for group in self._stepper.param_groups:
            group["lr"] = learning_rate(step, self.config)
        self._stepper.step()
        self._stepper.zero_grad()
        for name, parameter in self.parameters.items():
            local(self.ema[name]).lerp_(local(parameter).float(), 1 - ema_decay(step, self.config))

    @contextmanager
    def showing_ema(self) -> Iterator[None]:
        """Within it, the objective is whole, on the device, and holds the EMA; there are no gradients.

        All processes must enter.
        """
        home = next(self.objective.parameters()).device
        self.objective.to(self.accelerator.device)
        try:
            with swapped(self.whole, self.ema), torch.no_grad(), self.accelerator.autocast():
                yield
        finally:
            self.objective.to(home)

    def load(self, checkpoint: Path) -> int:
        """Take everything from a checkpoint; the number of steps that it has seen."""
        load_checkpoint(
            checkpoint, self.parameters, ema=self.ema, optimizer=self.optimizer, shapes=self.shapes
        )
        state, scaler = read_state(checkpoint), self.accelerator.scaler
        if scaler and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        return state["step"]

    def save(self, out: Path, *, step: int, run: dict[str, Any]) -> Path:
        """Write a checkpoint of the first `step` steps of `run`; all processes must call this."""
        scaler = self.accelerator.scaler
        return save_checkpoint(
            out,
            self.parameters,
            ema=self.ema,
            optimizer=self.optimizer,
            shapes=self.shapes,
            state={"step": step, "config": run, "scaler": scaler.state_dict() if scaler else None},
            keep=self.config.keep_checkpoints,
            write=self.accelerator.is_main_process,
        )

    def release(self) -> None:
        """Take the objective out of what accelerate has wrapped around it; training is over."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def finish(self) -> None:
        """Leave the EMA in the objective, whole and on the device, on every process."""
        _copy_whole(self.ema, self.whole)
        self.objective.to(self.accelerator.device)


@contextmanager
@torch.no_grad()
def swapped(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> Iterator[None]:
    """Within it, `parameters` hold `weights`; after it, what they held before, whatever happens."""
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    try:
        _copy_whole(weights, parameters)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(before[name])


@torch.no_grad()
def _copy_whole(weights: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """Fill whole parameters with weights that may be shards."""
    for name, parameter in parameters.items():
        parameter.copy_(whole(weights[name], parameter.shape))
