"""Student from teacher, and any bundle to a network.

A student is a `GenPropNet` with its own copy of everything: backbone, content encoder, injections and
mask decoder. On the backbone it trains a LoRA (`student.lora`), or all weights; content encoder, injections
and mask decoder train in full.
"""

from __future__ import annotations

import copy
from pathlib import Path
from shutil import copytree

import torch
from torch import Tensor

from genprop.bundle import Bundle, check_base, read_bundle, with_decoder, write_bundle
from genprop.distill_settings import AdapterConfig
from genprop.errors import GenPropError
from genprop.student.lora import add_lora, load_lora, merge_lora
from genprop.teacher.base import Base, load_base
from genprop.teacher.net import GenPropNet


def clone(teacher: GenPropNet, *, adapter: AdapterConfig) -> GenPropNet:
    """A student with the teacher's weights, and its trainable parameters set.

    Args:
        adapter: what trains of the backbone: a LoRA of its rank on its targets, or with rank 0 all of it.

    Raises:
        GenPropError: a target that matches nothing.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    if adapter.rank:
        student.backbone.requires_grad_(False)
        add_lora(student, adapter=adapter)
    return student


def trained_tensors(net: GenPropNet, *, backbone: bool) -> dict[str, Tensor]:
    """What a bundle stores beside a LoRA: content encoder and mask decoder, and the backbone if asked."""
    state = net.state_dict()
    return state if backbone else {k: v for k, v in state.items() if not k.startswith("backbone.")}


def load_model(
    name: str | Path, *, merge: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Bundle, GenPropNet, Base]:
    """A bundle's network and its base, in eval mode.

    Args:
        merge: fold the LoRA into the weights, for inference.
        dtype: of network and image encoder. A LoRA is folded in in float32 first; without one, nothing is
            ever held in more than `dtype`.

    Raises:
        GenPropError: a bundle that is broken, or whose base is another.
    """
    bundle = read_bundle(name)
    check_base(bundle)
    folds = bundle.lora is not None and merge
    base = load_base(bundle.base, bundle.card.config.base, dtype=torch.float32 if folds else dtype)
    net = GenPropNet(base.backbone, bundle.card.config.net, bundle.card.config.sce)
    missing, unexpected = net.load_state_dict(bundle.tensors(), strict=False)
    assert not unexpected and all(key.startswith("backbone.") for key in missing), (missing, unexpected)
    if bundle.lora is not None:
        load_lora(net, bundle.lora)
        if merge:
            merge_lora(net)
    base.image_encoder.clip.to(dtype)  # type: ignore[call-arg]
    return bundle, net.to(dtype).requires_grad_(False).eval(), base


def merge_bundle(student: str | Path, out: Path, *, dtype: torch.dtype = torch.float32) -> Bundle:
    """Write a student with a LoRA as one without: its backbone whole, the LoRA folded in.

    It says and does the same as `student`, and needs no peft.

    Args:
        dtype: of the stored tensors; float16 halves the file and rounds what was folded in.

    Raises:
        GenPropError: a broken bundle, one without a LoRA, or `out` holds something else.
    """
    bundle, net, _ = load_model(student)
    if bundle.lora is None:
        raise GenPropError(f"{student} has no LoRA, expected a student with one", "it can be used as it is")
    merged = write_bundle(
        out,
        kind=bundle.card.kind,
        config=bundle.card.config,
        base=bundle.base,
        tensors=trained_tensors(net, backbone=True),
        sigmas=bundle.card.sigmas,
        eta=bundle.card.eta,
        dtype=dtype,
    )
    light = bundle.decoder
    if light is None:
        return merged
    return with_decoder(merged, lambda folder: copytree(light, folder), out=out)
