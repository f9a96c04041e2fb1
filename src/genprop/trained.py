"""What trains: the weights with their optimiser and their EMA, whole on each process or in shards.

The loop calls `model` and `step`; checkpoint and validation come here, too, so that nobody else has to know
where a weight lies.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from genprop.adaptive import Adaptive
from genprop.checkpoint import load_checkpoint, read_state, save_checkpoint
from genprop.optimizer import adamw, by_owner, ema_decay, learning_rate
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
            start_alike(objective)
            self.model, self.parameters = accelerator.prepare(objective), self.whole
        trains = self.model if is_sharded() else objective
        self.adaptive = trains if isinstance(trains, Adaptive) else None
        self.own = self.adaptive.own_optimizers() if self.adaptive is not None else {}
        self.ema = {n: p.detach().to(torch.float32, copy=True) for n, p in self.parameters.items()}
        self.optimizer = adamw(self.parameters, config, own=self.own)
        self._stepper = accelerator.prepare_optimizer(self.optimizer)

    def begin(self, step: int) -> None:
        """Tell an objective that changes that the update `step`, from 0, begins."""
        if self.adaptive is not None:
            self.adaptive.before_step(step / self.config.steps)

    def clip(self) -> dict[str, Tensor]:
        """Clip the gradients of each optimiser; the norms before that, of all shards, as `grad_norm`."""
        self.accelerator.unscale_gradients()  # of all optimisers, and only once in a step
        norms = {}
        for prefix, parameters in by_owner(self.parameters, self.own).items():
            limit = self.own[prefix].clip if prefix else self.config.clip
            norms[f"{prefix}grad_norm"] = whole(nn.utils.clip_grad_norm_(parameters, limit), torch.Size())
        return norms

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update weights and EMA with the gradients of `step`, from 0, and drop the gradients.

        An objective that changes is told.
        """
        for group in self._stepper.param_groups:
            group["lr"] = learning_rate(step, self.config, peak=group["peak"])
        self._stepper.step()
        self._stepper.zero_grad()
        for name, parameter in self.parameters.items():
            local(self.ema[name]).lerp_(local(parameter).float(), 1 - ema_decay(step, self.config))
        if self.adaptive is not None:
            self.adaptive.after_step()

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
            checkpoint,
            self.parameters,
            ema=self.ema,
            optimizer=self.optimizer,
            shapes=self.shapes,
            memory=self._memory(),
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
            memory=self._memory(),
            state={"step": step, "config": run, "scaler": scaler.state_dict() if scaler else None},
            keep=self.config.keep_checkpoints,
            write=self.accelerator.is_main_process,
        )

    def _memory(self) -> dict[str, Tensor]:
        """What the objective itself wants kept."""
        return self.adaptive.memory() if self.adaptive is not None else {}

    def release(self) -> None:
        """Take the objective out of what accelerate has wrapped around it; training is over."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def finish(self) -> None:
        """Leave the EMA in the objective, whole and on the device, on every process."""
        _copy_whole(self.ema, self.whole)
        self.objective.to(self.accelerator.device)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far: of the device's memory, or of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


@torch.no_grad()
def start_alike(module: nn.Module) -> None:
    """Give every process the first one's buffers, in place; DDP sees to the parameters.

    From there on they stay alike by themselves (see `Adaptive.memory`): none has to be sent in every step.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            there = buffer.contiguous()
            dist.broadcast(there, src=0)
            buffer.copy_(there)


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
