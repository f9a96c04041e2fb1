"""Training with every weight split among the processes: FSDP2 (torch's `fully_shard`).

The launcher asks for it (`accelerate launch --use_fsdp --fsdp_version 2`). accelerate itself shards on
accelerators only, and takes the same settings for DDP on a CPU; `shard` is one path for both.

What is sharded is a *copy* of the objective, made of DTensors; the objective itself stays whole on the
CPU. So whoever samples with its networks, or writes them, never meets a shard: the EMA is gathered into
it for the while. `whole` and `shard_like` go from shards to full tensors and back.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from genprop.adaptive import Adaptive
from genprop.errors import GenPropError
from genprop.settings import TrainConfig

BLOCKS = frozenset(
    {
        "CLIPEncoderLayer",
        "Downsample2D",
        "RecomputedTransformer",
        "ResnetBlock2D",
        "TemporalResnetBlock",
        "Transformer2DModel",
        "TransformerSpatioTemporalModel",
        "Upsample2D",
    }
)
"""Upstream's classes that are gathered one at a time; everything else is gathered for the whole step.

A block's weights are there only while its `forward` runs, so only what is always called can be one. What it
returns must not be a view (torch warns), which is why the halves of a `SpatioTemporalResBlock` are here.
"""


def is_asked_for() -> bool:
    """Whether the launcher chose FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def is_sharded() -> bool:
    """Whether this run is sharded: the launcher chose it, and there are processes to share with."""
    return is_asked_for() and dist.is_initialized()


def check_sharding(config: TrainConfig) -> None:
    """Refuse what sharded training cannot do.

    Raises:
        GenPropError: FSDP of version 1, weights kept on the CPU, or an optimiser that knows no shards.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise GenPropError(
            f"the launcher asks for FSDP version {version}, expected 2", "accelerate launch --fsdp_version 2"
        )
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise GenPropError(
            "the launcher asks for FSDP with parameters on the CPU, expected them on the devices",
            "accelerate launch --fsdp_offload_params false",
        )
    if config.optimizer != "adamw":
        raise GenPropError(
            f"optimizer {config.optimizer} cannot be sharded, expected adamw with FSDP",
            'set optimizer = "adamw", or launch without --use_fsdp',
        )


def shard(objective: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `objective` on `device`, its parameters split among all processes.

    `objective` itself gets the first process's weights: others may have drawn other ones, or, where the
    launcher saves memory, have read none. A scalar parameter becomes a vector of one in the copy, since
    FSDP2 has no shard of a scalar. Weights are gathered and gradients reduced in the precision that they
    are stored in; a run's own precision is autocast's affair, as without shards.

    Raises:
        GenPropError: an objective with an optimiser of its own, or with more to keep than parameters.
    """
    if isinstance(objective, Adaptive) and (asked := [*objective.own_optimizers(), *objective.memory()]):
        raise GenPropError(
            f"the objective cannot be sharded: got an optimiser or tensors of its own ({asked[0]!r}, "
            f"{len(asked)} in all), expected none with FSDP",
            "launch without --use_fsdp, or train without a discriminator and a target network",
        )
    for tensor in (*objective.parameters(), *objective.buffers()):
        there = tensor.detach().to(device).contiguous()
        dist.broadcast(there, src=0)
        tensor.data.copy_(there)
    model = copy.deepcopy(objective)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                vector = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
                setattr(module, name, vector)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("shard",))
    reshard = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True)
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules of the classes `BLOCKS`."""
    for child in module.children():
        if type(child).__name__ in BLOCKS:
            yield child
        else:
            yield from _blocks(child)


def whole(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The full tensor of a shard, on every process, which all must ask for it; any other as it is.

    Args:
        shape: that it has outside of `shard`'s copy, where a scalar is a vector.
    """
    return tensor.full_tensor().reshape(shape) if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part, with the same storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """A full tensor split as `like` is, without communication; as it is where `like` is whole."""
    if not isinstance(like, DTensor):
        return full
    full = full.reshape(like.shape)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
