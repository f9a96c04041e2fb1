"""The one training loop: `fit` runs any objective, over accelerate.

An objective is an `nn.Module` that holds its networks and maps `(batch, draws)` to a dict of scalar
tensors with a key `loss`. What trains is exactly its parameters that require a gradient.

Resuming is exact by construction: all that is random in a step is a function of the seed and of each
sample's place in the stream of data, and the order of the data is a function of (seed, epoch). A run
that was killed and resumed has the weights of one that never stopped, bit for bit. The dataset has its
part in this: `dataset[i]` must depend on `i` only.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from genprop.checkpoint import load_checkpoint, open_run, read_state, save_checkpoint
from genprop.config import TrainConfig
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.runlog import RunLog

logger = logging.getLogger(__name__)

Validate = Callable[[int], tuple[dict[str, float], np.ndarray | None]]
"""Of a step: scalars by name, and a picture (uint8 `[H, W, 3]`) or None."""


def process_state() -> PartialState:
    """The processes of this run, as `Accelerator` would find them.

    A bare `PartialState()` does not ask whether the launcher chose CPUs, and would see one process only.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main_process() -> bool:
    """Whether this process writes what a training made; the others only computed."""
    return process_state().is_main_process


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine down to `min_learning_rate_ratio`; `step` counts from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def ema_decay(step: int, config: TrainConfig) -> float:
    """The EMA's decay at `step`, from 0: short at first, so that the initial weights are forgotten."""
    return min(config.ema, (1 + step) / (10 + step))


def sample_seeds(config: TrainConfig, *, step: int, process: int, processes: int, micro: int) -> list[int]:
    """A seed for each sample of a micro-batch, by its place in the stream that `Batches` deals out."""
    first = ((step * config.accumulate + micro) * processes + process) * config.batch_size
    places = range(first, first + config.batch_size)
    return [int(np.random.SeedSequence([config.seed, i]).generate_state(1, np.uint64)[0]) for i in places]


class Batches(Sampler[list[int]]):
    """The indices of every micro-batch from step `start` on, without loading a skipped sample.

    One endless stream, a seeded permutation of the dataset per epoch, is dealt out in order: to the
    processes, then the micro-batches, then the steps. Accumulating 2 x 2 therefore sees what 4 sees.
    """

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


@contextmanager
@torch.no_grad()
def swapped(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> Iterator[None]:
    """Within it, `parameters` hold `weights`; after it, what they held before, whatever happens."""
    trained = {name: parameter.clone() for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])


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

    Args:
        objective: `(batch, draws) -> {"loss": ..., term: ...}`, scalar tensors, the same keys at
            every call. `draws` is for the samples of the batch. Train or eval mode is left as it is.
        dataset: map-style and sized; `dataset[i]` depends on `i` only.
        out: the folder for `checkpoints/`, `log.jsonl`, `tensorboard/` and `samples/`.
        collate: samples to a batch; PyTorch's default if None.
        validate: called with the number of steps done, without gradients, while the parameters hold
            their EMA; on the main process only.
        resume: go on from the newest checkpoint in `out`; from scratch if there is none.

    Returns:
        `steps`, `resumed_from` (a step), `seconds`, `loss` (the last logged mean; None if no step was
        left to do), `validation` (its last scalars), `checkpoint` (a path).

    Raises:
        GenPropError: nothing to train, no data, a run already in `out`, a resumed run that is another
            run, or a loss that is not finite (the last checkpoint stays).
    """
    started = time.perf_counter()
    samples = len(dataset)  # type: ignore[arg-type]
    parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    if samples == 0 or not parameters:
        what = "the dataset is empty" if samples == 0 else "no parameter of the objective requires a gradient"
        raise GenPropError(f"nothing to train: {what}, expected at least one")
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise GenPropError("precision fp16 needs a CUDA device, got none", "use precision bf16 or no")

    # accelerate keeps the precision for the life of the process; this run may want another
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.precision)
    process, processes = accelerator.process_index, accelerator.num_processes
    checkpoint = open_run(out, {**config.model_dump(), "processes": processes}, resume=resume)
    accelerator.wait_for_everyone()

    prepared = accelerator.prepare(objective)
    optimizer = _adamw(parameters, config)
    ema = {name: p.detach().to(torch.float32, copy=True) for name, p in parameters.items()}
    start = 0
    if checkpoint:
        state = read_state(checkpoint)
        start = state["step"]
        load_checkpoint(checkpoint, parameters, ema=ema, optimizer=optimizer)
        if accelerator.scaler and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    stepper = accelerator.prepare(optimizer)

    loader = DataLoader(
        dataset,
        batch_sampler=Batches(samples, config, start=start, process=process, processes=processes),
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=accelerator.device.type == "cuda",
        generator=torch.Generator(),  # else the loader draws from the caller's global generator
    )
    summary: dict[str, Any] = {"steps": max(start, config.steps), "resumed_from": start, "loss": None}
    sums: dict[str, float] = {}
    since = start
    with ExitStack() as stack:
        log = stack.enter_context(RunLog(out, start=start, steps=config.steps)) if process == 0 else None
        # whatever happens, `objective` gets its own forward back, without the autocast
        stack.callback(accelerator.unwrap_model, prepared, keep_fp32_wrapper=False)
        batches = iter(loader)
        for step in range(start, config.steps):
            began = time.perf_counter()
            for group in stepper.param_groups:
                group["lr"] = learning_rate(step, config)
            terms = _accumulated_gradients(accelerator, prepared, batches, config=config, step=step)
            norm = accelerator.clip_grad_norm_(parameters.values(), config.clip)
            values = _finite(accelerator, {**terms, "grad_norm": norm}, step=step)
            stepper.step()
            stepper.zero_grad()
            with torch.no_grad():
                for name, parameter in parameters.items():
                    ema[name].lerp_(parameter.float(), 1 - ema_decay(step, config))

            done, last = step + 1, step + 1 == config.steps
            for name, value in {**values, "seconds": time.perf_counter() - began}.items():
                sums[name] = sums.get(name, 0.0) + value
            if log is not None:
                log.advance(done)
            if done % config.log_every == 0 or last:
                means = {name: value / (done - since) for name, value in sums.items()}
                means["steps_per_second"] = 1 / means.pop("seconds")
                summary["loss"] = means["loss"]
                if log is not None:
                    log.scalars(done, {**means, "lr": learning_rate(step, config)})
                sums, since = {}, done
            if validate is not None and log is not None and (done % config.validate_every == 0 or last):
                with swapped(parameters, ema), torch.no_grad():
                    scalars, image = validate(done)
                summary["validation"] = scalars
                log.scalars(done, {f"val/{name}": float(value) for name, value in scalars.items()})
                if image is not None:
                    log.picture(done, image)
            if process == 0 and (done % config.checkpoint_every == 0 or last):
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                run = {**config.model_dump(), "processes": processes}
                state = {"step": done, "config": run, "scaler": scaler}
                checkpoint = save_checkpoint(
                    out, parameters, ema=ema, optimizer=optimizer, state=state, keep=config.keep_checkpoints
                )
            accelerator.wait_for_everyone()

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ema[name])
    return {**summary, "seconds": time.perf_counter() - started, "checkpoint": checkpoint}


def _adamw(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors do not decay."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def _accumulated_gradients(
    accelerator: Accelerator,
    prepared: nn.Module,
    batches: Iterator[Any],
    *,
    config: TrainConfig,
    step: int,
) -> dict[str, Tensor]:
    """Run the micro-batches of one step backwards; the means of the objective's terms."""
    device = accelerator.device
    totals: dict[str, Tensor] = {}
    for micro in range(config.accumulate):
        batch = send_to_device(next(batches), device)
        seeds = sample_seeds(
            config,
            step=step,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            micro=micro,
        )
        draws = Draws(seeds, device=device)
        last = micro == config.accumulate - 1
        # dropout can only draw from the global generator: seed that, too, for this micro-batch alone
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            nullcontext() if last else accelerator.no_sync(prepared),
        ):
            torch.manual_seed(seeds[0])
            terms = prepared(batch, draws)
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
        bad.pop("grad_norm", None)
    if bad:
        named = ", ".join(f"{name} = {value}" for name, value in values.items())
        raise GenPropError(
            f"training diverged at step {step + 1}: got {named}, expected finite values",
            "resume from the last checkpoint with a smaller learning rate or a smaller clip",
        )
    return values
