"""The LoRA on a student's backbone, by peft (Hu et al. 2021): put on, saved, loaded, merged.

It is injected into the backbone in place, so that the network keeps its class and its calls. What is saved is
a standard adapter of peft: `PeftModel.from_pretrained(backbone, folder)` loads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from genprop.distill_settings import AdapterConfig
from genprop.errors import GenPropError
from genprop.teacher.net import GenPropNet

PREFIX = "base_model.model."
"""What peft puts before the names of a model that it wraps."""


def lora_targets(backbone: nn.Module, ends: Sequence[str] = ()) -> list[str]:
    """Names of the layers that get a LoRA: linear layers and 2d or 3d convolutions that can learn.

    The image embedding is one token, so a softmax over it is 1: queries and keys of the cross-attention
    have no effect, and get none.

    Args:
        ends: of their names, as peft takes them: "to_q" means every layer of that name; all layers if empty.

    Raises:
        GenPropError: one of `ends` is the end of no such name.
    """
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    without_effect = ("attn2.to_q", "attn2.to_k")
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, kinds) and not name.endswith(without_effect)
    ]
    for end in ends:
        if not any(_ends(name, end) for name in names):
            known = sorted({_last(name) for name in names})
            raise GenPropError(
                f"distill.adapter.targets names {end!r}, in which no layer that can learn ends",
                f"layers end in {', '.join(known)}",
            )
    return [name for name in names if not ends or any(_ends(name, end) for end in ends)]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _last(name: str) -> str:
    """The last part of a name, and the one before it if that is a number: "to_out.0"."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def add_lora(net: GenPropNet, *, adapter: AdapterConfig) -> None:
    """Put a trainable LoRA on the backbone, in place; it starts with no effect.

    Raises:
        GenPropError: a target that matches nothing.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora_targets(net.backbone, adapter.targets)
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=targets)
    inject_adapter_in_model(config, net.backbone)


def has_lora(net: GenPropNet) -> bool:
    """Whether the backbone carries a LoRA."""
    return bool(lora_layers(net.backbone))


def lora_layers(backbone: nn.Module) -> list[str]:
    """Names of the layers that carry a LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)]


def save_lora(net: GenPropNet, folder: Path, *, rank: int, dtype: torch.dtype = torch.float32) -> None:
    """The LoRA in peft's layout: `adapter_config.json` and `adapter_model.safetensors`."""
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = get_peft_model_state_dict(net.backbone)
    prefixed = {f"{PREFIX}{k}": v.detach().to(dtype).contiguous() for k, v in state.items()}
    save_file(prefixed, folder / "adapter_model.safetensors")
    layers = lora_layers(net.backbone)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, inference_mode=True)
    config.save_pretrained(str(folder))


def load_lora(net: GenPropNet, folder: Path) -> None:
    """Put the LoRA of `folder` on the backbone, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), net.backbone)
    set_lora(net, folder)


def set_lora(net: GenPropNet, folder: Path) -> None:
    """Give a backbone that has a LoRA already the weights of the one in `folder`, in place.

    Raises:
        GenPropError: that one is on other layers or of another rank.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    plain = {k.removeprefix(PREFIX): v.float() for k, v in state.items()}
    own = get_peft_model_state_dict(net.backbone)
    if differing := sorted(k for k in own.keys() | plain.keys() if _shape(own, k) != _shape(plain, k)):
        name = differing[0]
        raise GenPropError(
            f"the LoRA in {folder} has {name} of shape {_shape(plain, name)}, expected {_shape(own, name)}",
            "set distill.adapter.rank and distill.adapter.targets as they were for that one",
        )
    set_peft_model_state_dict(net.backbone, plain)


def _shape(state: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


def merge_lora(net: GenPropNet) -> None:
    """Fold the LoRA into the backbone's weights, in place; the network has upstream's layers again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(net.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(net.backbone.get_submodule(parent), leaf, module.get_base_layer())
