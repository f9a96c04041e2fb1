"""Student from teacher, and any bundle to a network.

A student is a `GenPropNet` with its own copy of everything: backbone, content encoder, injections and
mask decoder. On the backbone it trains a LoRA (peft) on attention, projections and convolutions, or all
weights; content encoder, injections and mask decoder train in full.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from genprop.bundle import Bundle, check_base, read_bundle
from genprop.teacher.base import Base, load_base
from genprop.teacher.net import GenPropNet


def clone(teacher: GenPropNet, *, rank: int) -> GenPropNet:
    """A student with the teacher's weights, and its trainable parameters set.

    Args:
        rank: of the LoRA on the backbone; 0 trains the whole backbone.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    if rank:
        student.backbone.requires_grad_(False)
        add_lora(student, rank=rank)
    return student


def lora_targets(backbone: nn.Module) -> list[str]:
    """Names of the layers that get a LoRA: every linear layer and 2d or 3d convolution that can learn.

    The image embedding is one token, so a softmax over it is 1: queries and keys of the cross-attention
    have no effect.
    """
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    without_effect = ("attn2.to_q", "attn2.to_k")
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, kinds) and not name.endswith(without_effect)
    ]


def add_lora(net: GenPropNet, *, rank: int) -> None:
    """Put a trainable LoRA of `rank` on the backbone, in place; it starts with no effect."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_targets(net.backbone))
    inject_adapter_in_model(config, net.backbone)


def has_lora(net: GenPropNet) -> bool:
    """Whether the backbone carries a LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in net.backbone.modules())


def save_lora(net: GenPropNet, folder: Path, *, rank: int, dtype: torch.dtype = torch.float32) -> None:
    """The LoRA in peft's layout: `adapter_config.json` and `adapter_model.safetensors`."""
    from peft import LoraConfig, get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(net.backbone)
    prefixed = {f"base_model.model.{k}": v.detach().to(dtype).contiguous() for k, v in state.items()}
    save_file(prefixed, folder / "adapter_model.safetensors")
    layers = [n for n, m in net.backbone.named_modules() if isinstance(m, BaseTunerLayer)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, inference_mode=True)
    config.save_pretrained(str(folder))


def load_lora(net: GenPropNet, folder: Path) -> None:
    """Put the LoRA of `folder` on the backbone, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), net.backbone)
    set_lora(net, folder)


def set_lora(net: GenPropNet, folder: Path) -> None:
    """Give a backbone that has a LoRA already the weights of the one in `folder`, in place."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    plain = {k.removeprefix("base_model.model."): v.float() for k, v in state.items()}
    set_peft_model_state_dict(net.backbone, plain)


def merge_lora(net: GenPropNet) -> None:
    """Fold the LoRA into the backbone's weights, in place; the network has upstream's layers again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(net.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(net.backbone.get_submodule(parent), leaf, module.get_base_layer())


def trained_tensors(net: GenPropNet, *, backbone: bool) -> dict[str, Tensor]:
    """What a bundle stores beside a LoRA: content encoder and mask decoder, and the backbone if asked."""
    state = net.state_dict()
    return state if backbone else {k: v for k, v in state.items() if not k.startswith("backbone.")}


def load_model(name: str | Path, *, merge: bool = True) -> tuple[Bundle, GenPropNet, Base]:
    """A bundle's network and its base, in eval mode, float32.

    Args:
        merge: fold the LoRA into the weights, for inference.

    Raises:
        GenPropError: a bundle that is broken, or whose base is another.
    """
    bundle = read_bundle(name)
    check_base(bundle)
    base = load_base(bundle.base, bundle.card.config.base)
    net = GenPropNet(base.backbone, bundle.card.config.net, bundle.card.config.sce)
    missing, unexpected = net.load_state_dict(bundle.tensors(), strict=False)
    assert not unexpected and all(key.startswith("backbone.") for key in missing), (missing, unexpected)
    if bundle.lora is not None:
        load_lora(net, bundle.lora)
        if merge:
            merge_lora(net)
    return bundle, net.requires_grad_(False).eval(), base
