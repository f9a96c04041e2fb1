"""The checkpoints of a training run: written whole or not at all, resumed exactly.

All randomness of a step is a function of the seed and the step (see `loop.py`), so a checkpoint needs
only the trainable weights, their EMA, AdamW's moments, the step and the fp16 scaler's numbers. No
state of a random generator, no position of a data loader, no pickle.

    out/checkpoints/step-00000500/weights.safetensors     by name in the objective
                                  ema.safetensors         the same names
                                  optimizer.safetensors   "exp_avg/<name>", "exp_avg_sq/<name>", "step/<name>"
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


def open_run(out: Path, config: dict[str, Any], *, resume: bool) -> Path | None:
    """Make the folder `out` ready; the checkpoint to go on from, or None for a new run.

    Raises:
        GenPropError: `out` cannot be written; it holds a run that is not to be resumed; or what fixes
            the order of the data and the noise (`FIXED`) is not what the run was started with.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for folder in (out / "checkpoints").glob(PARTIAL + "*"):  # a killed run was at it
            shutil.rmtree(folder)
    except OSError as error:
        raise GenPropError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error
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


def save_checkpoint(
    out: Path,
    parameters: dict[str, nn.Parameter],
    *,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `out/checkpoints/step-<state["step"]>`, then delete all but the newest `keep`.

    The folder is filled under another name and renamed, so that a kill at any moment leaves the
    previous checkpoint, the new one, or both; never half of one.
    """
    final = out / "checkpoints" / f"step-{state['step']:08d}"
    partial = final.with_name(PARTIAL + final.name)
    partial.mkdir(parents=True)
    moments = {
        f"{key}/{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    for file, tensors in (("weights", parameters), ("ema", ema), ("optimizer", moments)):
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial / f"{file}.safetensors")
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
) -> None:
    """Fill `parameters`, `ema` and `optimizer` in place from a checkpoint.

    Raises:
        GenPropError: the checkpoint's parameters are not the model's, by name or by shape.
    """
    for file, tensors in (("weights", parameters), ("ema", ema)):
        stored = load_file(checkpoint / f"{file}.safetensors")
        got = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if got != expected:
            name = sorted(n for n in got | expected if got.get(n) != expected.get(n))[0]
            raise GenPropError(
                f"checkpoint {checkpoint} is of another model: {name} got {got.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}",
                "resume with the configuration the run was started with, or choose another --out",
            )
        for name, tensor in tensors.items():
            tensor.copy_(stored[name])

    moments: dict[str, dict[str, Tensor]] = {}
    for entry, value in load_file(checkpoint / "optimizer.safetensors").items():
        key, name = entry.split("/", 1)
        moments.setdefault(name, {})[key] = value
    # an optimizer's state_dict numbers parameters in the order of its groups
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    name_of = {id(parameter): name for name, parameter in parameters.items()}
    state = {i: moments[name_of[id(p)]] for i, p in enumerate(ordered) if name_of[id(p)] in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
