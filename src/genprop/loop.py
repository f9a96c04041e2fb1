"""The one training loop: `fit` runs any objective, on one process or many, over accelerate.

An objective is an `nn.Module` that holds its networks and maps `(batch, draws)` to a dict of scalar
tensors with a key `loss`. What trains is exactly its parameters that require a gradient. One that changes
on the way, or has a discriminator, says so by being an `Adaptive` (`adaptive.py`).

Resuming is exact by construction: all that is random in a step is a function of the seed and of each
sample's place in the stream of data (`stream.py`). A run that was killed and resumed has the weights of
one that never stopped, bit for bit. The dataset has its part in this: `dataset[i]` must depend on `i`
only. For the same reason two processes with batch 1 train as one with batch 2 does, be it with the whole
model on each (DDP) or with shards of it (FSDP2, `sharding.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    parse_flag_from_env,
    patch_environment,
    send_to_device,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from genprop.checkpoint import check_folder, checkpoint_to_resume, open_run
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.optimizer import bitsandbytes, learning_rate
from genprop.runlog import RunLog, wandb
from genprop.settings import TrainConfig
from genprop.sharding import check_sharding, is_asked_for
from genprop.stream import Batches, sample_seeds
from genprop.trained import Trained, peak_memory, trainable


class Validation(NamedTuple):
    """What a validation found: scalars by name, a picture (uint8 `[H, W, 3]`), a clip (`[T, H, W, 3]`)."""

    scalars: dict[str, float]
    picture: np.ndarray | None = None
    clip: np.ndarray | None = None
    fps: int = 7


Validate = Callable[[int], Validation]
"""Of the number of steps done."""


def process_state() -> PartialState:
    """The processes of this run, as `Accelerator` would find them.

    A bare `PartialState()` does not ask whether the launcher chose CPUs, and would see one process only.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """Whether this process writes what a training made; the others only computed."""
    return process_state().is_main_process


def check_run(config: TrainConfig, out: Path, *, resume: bool = False) -> Path | None:
    """What is cheap to refuse, before data is encoded for hours; `fit` asks again.

    Returns:
        The checkpoint to go on from, or None for a new run.

    Raises:
        GenPropError: fp16, 8-bit AdamW or a tracker without what they need; a way to shard that is not
            supported; an `out` that cannot be written or holds a run that this one cannot go on with.
    """
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise GenPropError("precision fp16 needs a CUDA device, got none", "use precision bf16 or no")
    if is_asked_for():
        check_sharding(config)
    if config.optimizer == "adamw8bit":
        bitsandbytes()
    if config.tracker == "wandb":
        wandb()
    check_folder(out)
    return checkpoint_to_resume(out, _run_of(config), resume=resume)


def _run_of(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint remembers of the run it is of."""
    return {**config.model_dump(), "processes": process_state().num_processes}


def fit(
    objective: nn.Module,
    dataset: Dataset[Any],
    config: TrainConfig,
    out: Path,
    *,
    collate: Callable[[list[Any]], Any] | None = None,
    validate: Validate | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the parameters of `objective` that require a gradient; they hold their EMA afterwards.

    Under several processes all of them call this, with the same arguments; `out` is on storage that all
    of them see, and only the main one writes.

    Args:
        objective: `(batch, draws) -> {"loss": ..., term: ...}`, scalar tensors, the same keys at
            every call. `draws` is for the samples of the batch. Train or eval mode is left as it is.
        dataset: map-style and sized; `dataset[i]` depends on `i` only.
        out: the folder for `checkpoints/`, `log.jsonl`, `samples/` and the tracker's files.
        collate: samples to a batch; PyTorch's default if None.
        validate: called with the number of steps done, without gradients and in the run's precision,
            while the parameters hold their EMA; on every process, and the main one logs what it says.
        resume: go on from the newest checkpoint in `out`; from scratch if there is none.

    Returns:
        `steps`, `resumed_from` (a step), `seconds`, `loss` (the last logged mean; None if no step was
        left to do), `validation` (its last scalars), `checkpoint` (a path).

    Raises:
        GenPropError: nothing to train, no data, whatever `check_run` refuses, a checkpoint of another
            model, or a loss that is not finite (the last checkpoint stays).
    """
    started = time.perf_counter()
    samples = len(dataset)  # type: ignore[arg-type]
    if samples == 0 or not trainable(objective):
        what = "the dataset is empty" if samples == 0 else "no parameter of the objective requires a gradient"
        raise GenPropError(f"nothing to train: {what}, expected at least one")
    checkpoint = check_run(config, out, resume=resume)

    # accelerate keeps the precision for the life of the process; this run may want another
    AcceleratorState._reset_state()
    with patch_environment(accelerate_use_fsdp="false"):  # `sharding` does it, on any device
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)  # see `trained.start_alike`
        accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[ddp])
    device, main = accelerator.device, accelerator.is_main_process
    process, processes = accelerator.process_index, accelerator.num_processes
    if main:
        open_run(out)
    accelerator.wait_for_everyone()

    trained = Trained(objective, config, accelerator)
    start = trained.load(checkpoint) if checkpoint else 0
    loader = DataLoader(
        dataset,
        batch_sampler=Batches(samples, config, start=start, process=process, processes=processes),
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else the loader draws from the caller's global generator
    )
    summary: dict[str, Any] = {"steps": max(start, config.steps), "resumed_from": start, "loss": None}
    sums: dict[str, float] = {}
    since = start
    with ExitStack() as stack:
        log = stack.enter_context(RunLog(out, config, start=start)) if main else None
        # whatever happens, `objective` gets its own forward back, without the autocast
        stack.callback(trained.release)
        batches = iter(loader)
        for step in range(start, config.steps):
            began = time.perf_counter()
            trained.begin(step)
            terms = _accumulated_gradients(trained, batches, config=config, step=step)
            values = _finite(accelerator, {**terms, **trained.clip()}, step=step)
            trained.step(step)

            done, last = step + 1, step + 1 == config.steps
            for name, value in {**values, "seconds": time.perf_counter() - began}.items():
                sums[name] = sums.get(name, 0.0) + value
            if log is not None:
                log.advance(done)
            if done % config.log_every == 0 or last:
                means = {name: value / (done - since) for name, value in sums.items()}
                means["steps_per_second"] = 1 / means.pop("seconds")
                means["memory_gb"] = peak_memory(device) / 1e9
                summary["loss"] = means["loss"]
                if log is not None:
                    log.scalars(done, {**means, "lr": learning_rate(step, config)})
                sums, since = {}, done
            if validate is not None and (done % config.validate_every == 0 or last):
                with trained.showing_ema():
                    found = validate(done)
                summary["validation"] = found.scalars
                if log is not None:
                    log.scalars(done, {f"val/{n}": float(value) for n, value in found.scalars.items()})
                    if found.picture is not None:
                        log.picture(done, found.picture)
                    if found.clip is not None:
                        log.video(done, found.clip, found.fps)
            if done % config.checkpoint_every == 0 or last:
                checkpoint = trained.save(out, step=done, run=_run_of(config))
            accelerator.wait_for_everyone()

    trained.finish()
    return {**summary, "seconds": time.perf_counter() - started, "checkpoint": checkpoint}


def _accumulated_gradients(
    trained: Trained, batches: Iterator[Any], *, config: TrainConfig, step: int
) -> dict[str, Tensor]:
    """Run the micro-batches of one step backwards; the means of the objective's terms."""
    accelerator = trained.accelerator
    device = accelerator.device
    place = {"process": accelerator.process_index, "processes": accelerator.num_processes}
    totals: dict[str, Tensor] = {}
    for micro in range(config.accumulate):
        batch = send_to_device(next(batches), device)
        seeds = sample_seeds(config, step=step, micro=micro, **place)
        last = micro == config.accumulate - 1
        # dropout can only draw from the global generator: seed that, too, for this micro-batch alone
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            # DDP reduces gradients once a step; shards every time, which keeps no whole gradient
            nullcontext() if last else accelerator.no_sync(trained.model),
        ):
            torch.manual_seed(seeds[0])
            with accelerator.autocast():
                terms = trained.model(batch, Draws(seeds, device=device))
            accelerator.backward(terms["loss"] / config.accumulate)
        for name, value in terms.items():
            total = value.detach().float() / config.accumulate
            totals[name] = totals[name] + total if name in totals else total
    return totals


def _finite(accelerator: Accelerator, terms: dict[str, Any], *, step: int) -> dict[str, float]:
    """The terms as numbers, their mean over the processes; one synchronisation with the device."""
    stacked = torch.stack([torch.as_tensor(value, device=accelerator.device) for value in terms.values()])
    mean = accelerator.reduce(stacked, "mean")
    assert isinstance(mean, Tensor)
    values = dict(zip(terms, mean.tolist(), strict=True))
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if accelerator.scaler:  # it skips steps whose gradients overflow: its way to find the scale
        bad = {name: value for name, value in bad.items() if not name.endswith("grad_norm")}
    if bad:
        named = ", ".join(f"{name} = {value}" for name, value in values.items())
        raise GenPropError(
            f"training diverged at step {step + 1}: got {named}, expected finite values",
            "resume from the last checkpoint with a smaller learning rate or a smaller clip",
        )
    return values
