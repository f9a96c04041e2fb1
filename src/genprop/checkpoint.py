"""The checkpoints of a training run: written whole or not at all, resumed exactly.

All randomness of a step is a function of the seed and the step (see `stream.py`), so a checkpoint needs
only the trainable weights, their EMA, AdamW's moments, the step, the fp16 scaler's numbers and what an
objective that changes (`adaptive.py`) wants kept. No state of a random generator, no position of a data
loader, no pickle. Where the weights are sharded they are gathered, and the main process writes them: `out`
is on storage that all processes see.

    out/checkpoints/step-00000500/weights.safetensors     by name in the objective
                                  ema.safetensors         the same names
                                  optimizer.safetensors   "exp_avg/<name>", "exp_avg_sq/<name>", "step/<name>"
                                  objective.safetensors   what the objective wants kept, if anything
                                  state.json              step, config, scaler
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genprop.errors import GenPropError
from genprop.sharding import shard_like, whole

logger = logging.getLogger(__name__)

PARTIAL = "partial-"
"""Prefix of a folder that is being written or deleted; what a kill leaves behind has this name."""
FIXED = ("seed", "batch_size", "accumulate", "processes")
"""What a resumed run must share with the one it goes on from; the number of steps, say, may grow."""


def list_checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step-[0-9]*"))


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made or written: before hours of work, not after.

    It tries, in `folder` or the nearest of its parents that exists, and leaves nothing behind.

    Raises:
        GenPropError: nothing can be written there.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix=".genprop-"):
            pass
    except OSError as error:
        raise GenPropError(
            f"cannot write to {folder}: {error.strerror}", "expected a folder; choose another --out"
        ) from error


def checkpoint_to_resume(out: Path, config: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None for a new run. Nothing is written.

    Raises:
        GenPropError: `out` holds a run that is not to be resumed; or what fixes the order of the data and
            the noise (`FIXED`) is not what the run was started with.
    """
    checkpoints = list_checkpoints(out)
    if not checkpoints:
        if resume:
            logger.info("no checkpoint in %s: starting from scratch", out)
        return None
    newest = checkpoints[-1]
    if not resume:
        raise GenPropError(
            f"{out} already holds a run (got {newest.name}, expected no checkpoint)",
            "pass --resume to go on with it, or choose another --out",
        )
    was = read_state(newest)["config"]
    for key in FIXED:
        if config[key] != was[key]:
            raise GenPropError(
                f"cannot resume {newest} with another {key}: got {config[key]}, expected {was[key]}",
                f"set {key} to {was[key]}, or start a new run with another --out",
            )
    return newest


def open_run(out: Path) -> None:
    """Make the folder of a run and drop what a killed one left half written; for the main process.

    Raises:
        GenPropError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for folder in (out / "checkpoints").glob(PARTIAL + "*"):
            shutil.rmtree(folder)
    except OSError as error:
        raise GenPropError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error


def save_checkpoint(
    out: Path,
    parameters: dict[str, nn.Parameter],
    *,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    shapes: dict[str, torch.Size],
    memory: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    write: bool = True,
) -> Path:
    """Write `out/checkpoints/step-<state["step"]>`, then delete all but the newest `keep`.

    The folder is filled under another name and renamed, so that a kill at any moment leaves the
    previous checkpoint, the new one, or both; never half of one.

    Args:
        parameters, ema, optimizer: shards or whole; all processes must call this.
        shapes: of the whole parameters, by name.
        memory: what the objective wants kept, whole.
        write: whether this is the process that writes; the others only give their shards.
    """
    final = out / "checkpoints" / f"step-{state['step']:08d}"
    partial = final.with_name(PARTIAL + final.name)
    if write:
        partial.mkdir(parents=True)
    moments = {
        f"{key}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    for file, tensors in (("weights", parameters), ("ema", ema), ("optimizer", moments)):
        gathered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach(), shapes[name.rpartition("/")[2]])
            if write:
                gathered[name] = full.cpu().contiguous()
        if write:
            save_file(gathered, partial / f"{file}.safetensors")
    if not write:
        return final
    if memory:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
        save_file(kept, partial / "objective.safetensors")
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    os.replace(partial, final)

    for old in list_checkpoints(out)[:-keep]:
        os.replace(old, partial)  # deleting takes time: a kill must not leave half of it under its name
        shutil.rmtree(partial)
    return final


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The numbers of a checkpoint: step, config, scaler."""
    return json.loads((checkpoint / "state.json").read_text())


@torch.no_grad()
def load_checkpoint(
    checkpoint: Path,
    parameters: dict[str, nn.Parameter],
    *,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    shapes: dict[str, torch.Size],
    memory: dict[str, Tensor],
) -> None:
    """Fill `parameters`, `ema` and `optimizer`, shards or whole, and `memory` in place from a checkpoint.

    Args:
        shapes: of the whole parameters, by name.
        memory: what the objective wants kept; a checkpoint without any has no file of it.

    Raises:
        GenPropError: the checkpoint's parameters are not the model's, by name or by shape, or what it kept
            for the objective is not what is asked for.
    """
    kept = {name: tensor.shape for name, tensor in memory.items()}
    for file, tensors, sizes in (
        ("weights", parameters, shapes),
        ("ema", ema, shapes),
        ("objective", memory, kept),
    ):
        path = checkpoint / f"{file}.safetensors"
        stored = load_file(path) if file != "objective" or path.exists() else {}
        got = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        expected = {name: tuple(shape) for name, shape in sizes.items()}
        if got != expected:
            name = sorted(n for n in got | expected if got.get(n) != expected.get(n))[0]
            raise GenPropError(
                f"checkpoint {checkpoint} is of another model: {name} got {got.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}",
                "resume with the configuration the run was started with, or choose another --out",
            )
        for name, tensor in tensors.items():
            tensor.copy_(shard_like(stored[name], tensor))

    moments: dict[str, dict[str, Any]] = {}
    for entry, value in load_file(checkpoint / "optimizer.safetensors").items():
        key, name = entry.split("/", 1)
        if key != "step":
            moments.setdefault(name, {})[key] = shard_like(value, parameters[name])
        else:  # torch counts steps in a float tensor, bitsandbytes in a Python number
            moments.setdefault(name, {})[key] = value if value.is_floating_point() else int(value)
    # an optimizer's state_dict numbers parameters in the order of its groups
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    state = {i: moments[name_of[id(p)]] for i, p in enumerate(ordered) if name_of[id(p)] in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
