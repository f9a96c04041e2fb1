"""OpenCLIP's checkpoints in transformers' `CLIPModel`: the same two transformers under other names.

So neither OpenCLIP nor torchvision has to be there. The checkpoint is a pickle, of which nothing but tensors
is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from genprop.errors import GenPropError

HEAD_WIDTH = {"vision": 80, "text": 64}
"""Of ViT-H-14's attention: all that the shapes of its tensors do not say."""

# OpenCLIP's names, and transformers' for the same.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")  # OpenCLIP multiplies from the right
_LAYER = re.compile(
    rf"(visual\.)?transformer\.resblocks\.(\d+)\.({'|'.join(_BLOCK)}|attn.in_proj)[._](weight|bias)"
)


def load_clip(file: Path, *, device: torch.device | str, dtype: torch.dtype, hint: str) -> CLIPModel:
    """The network of a checkpoint `{"state_dict": OpenCLIP's tensors}`, on `device` in `dtype`.

    Args:
        hint: of the error.

    Raises:
        GenPropError: the file is no such checkpoint, or lacks or has tensors that the network does not.
    """
    state = _read(file, hint=hint)
    try:
        config, converted = clip_config(state), from_open_clip(state)
        with torch.device("meta"):
            model: Any = CLIPModel(config)
        model.load_state_dict(converted, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise GenPropError(f"{file} is no CLIP of OpenCLIP's: {problem}", hint) from error
    for tower in (model.vision_model, model.text_model):  # the one tensor that no checkpoint has
        tower.embeddings.position_ids = torch.arange(tower.embeddings.position_ids.shape[-1])[None]
    return model.to(device=device, dtype=dtype)


def clip_config(state: Mapping[str, Tensor]) -> CLIPConfig:
    """The network that OpenCLIP's tensors are of, by their shapes; heads are as wide as ViT-H-14's.

    Raises:
        KeyError: a tensor that every such network has is missing.
    """
    patch = state["visual.conv1.weight"]
    positions = len(state["visual.positional_embedding"]) - 1  # the first is the class token's
    words = len(state["token_embedding.weight"])
    vision = {"image_size": patch.shape[-1] * round(positions**0.5), "patch_size": patch.shape[-1]}
    # OpenCLIP takes a caption's embedding at its highest id: the last of the vocabulary, the end token.
    text = {
        "vocab_size": words,
        "max_position_embeddings": len(state["positional_embedding"]),
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }
    width = state["text_projection"].shape[1]
    return CLIPConfig(
        vision_config=vision | _tower(state, "vision", prefix="visual.") | {"projection_dim": width},
        text_config=text | _tower(state, "text", prefix="") | {"projection_dim": width},
        projection_dim=width,
    )


def _tower(state: Mapping[str, Tensor], kind: str, *, prefix: str) -> dict[str, object]:
    block = f"{prefix}transformer.resblocks."
    inner, width = state[f"{block}0.mlp.c_fc.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": sum(n.startswith(block) and n.endswith(".mlp.c_fc.weight") for n in state),
        "num_attention_heads": width // HEAD_WIDTH[kind],
        "hidden_act": "gelu",
    }


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's tensors under transformers' names; queries, keys and values apart, projections transposed.

    Raises:
        ValueError: a tensor that a CLIP of vision transformer and causal text transformer does not have.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _WHOLE:
            converted[_WHOLE[name]] = tensor.t() if name in _TRANSPOSED else tensor
            continue
        found = _LAYER.fullmatch(name)
        if found is None:
            raise ValueError(f"unknown tensor {name}")
        visual, number, part, kind = found.groups()
        layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
        if part == "attn.in_proj":
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{layer}.self_attn.{letter}_proj.{kind}"] = rows
        else:
            converted[f"{layer}.{_BLOCK[part]}.{kind}"] = tensor
    return converted


def _read(file: Path, *, hint: str) -> Mapping[str, Tensor]:
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        problem = (str(error) or type(error).__name__).splitlines()[0]
        raise GenPropError(f"{file} cannot be read as a checkpoint: {problem}", hint) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise GenPropError(f"{file} is no checkpoint of OpenCLIP's: expected a key state_dict", hint)
    return checkpoint["state_dict"]
