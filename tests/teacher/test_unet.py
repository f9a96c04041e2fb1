"""The backbone is upstream's, bit for bit, and residuals go where they are said to go.

The reference for residuals is upstream's own forward with hooks on its blocks: nothing of `body`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from genprop.teacher.unet import Backbone

CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"
CONFIGS: dict[str, dict[str, Any]] = {
    "attention below": {
        "block_out_channels": (32, 64),
        "down_block_types": (PLAIN_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, PLAIN_UP),
        "layers_per_block": 1,
        "num_attention_heads": (2, 4),
    },
    "two layers": {
        "block_out_channels": (32, 32),
        "down_block_types": (CROSS_DOWN, PLAIN_DOWN),
        "up_block_types": (PLAIN_UP, CROSS_UP),
        "layers_per_block": 2,
        "num_attention_heads": (2, 2),
    },
    "three blocks": {
        "block_out_channels": (32, 32, 64),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
        "layers_per_block": 1,
        "num_attention_heads": (2, 2, 4),
    },
}
SIZES = [(8, 8), (10, 6)]


def build(kind: type[UNetSpatioTemporalConditionModel], name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(
            in_channels=8,
            out_channels=4,
            cross_attention_dim=16,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            num_frames=3,
            **CONFIGS[name],
        ).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[UNetSpatioTemporalConditionModel, Backbone]:
    upstream, backbone = (
        build(UNetSpatioTemporalConditionModel, request.param),
        build(Backbone, request.param),
    )
    backbone.load_state_dict(upstream.state_dict(), strict=True)
    return upstream, backbone


def arguments(size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`sample` (with `first` in it), `timestep`, `image_embedding`, `added_time_ids`, for a batch of two."""
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 3, 8, *size, generator=rng),
        torch.tensor([-0.7, 1.3]),
        torch.randn(2, 1, 16, generator=rng),
        torch.tensor([[6.0, 127.0, 0.02], [9.0, 20.0, 0.3]]),
    )


def test_state_dict_keys_are_upstreams(pair: tuple[UNetSpatioTemporalConditionModel, Backbone]) -> None:
    assert list(pair[1].state_dict()) == list(pair[0].state_dict())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_without_residuals_it_is_upstream_bit_for_bit(
    pair: tuple[UNetSpatioTemporalConditionModel, Backbone], size: tuple[int, int]
) -> None:
    upstream, backbone = pair
    for inputs in (arguments(size), tuple(x[:1] for x in arguments(size, seed=1))):
        expected = upstream(*inputs).sample  # type: ignore[union-attr]
        assert expected.std() > 0.01
        assert torch.equal(backbone.body(backbone.stem(*inputs)).velocity_btchw, expected)
        assert torch.equal(backbone(*inputs).sample, expected)


@torch.no_grad()
def test_the_penultimate_features_are_what_the_last_up_block_reads(
    pair: tuple[UNetSpatioTemporalConditionModel, Backbone],
) -> None:
    upstream, backbone = pair
    seen: list[Tensor] = []
    handle = upstream.up_blocks[-1].register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    upstream(*arguments((8, 8)))
    handle.remove()
    assert torch.equal(backbone.body(backbone.stem(*arguments((8, 8)))).penultimate_nchw, seen[0])


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_a_skip_residual_reaches_its_skip_and_nothing_else(
    pair: tuple[UNetSpatioTemporalConditionModel, Backbone], size: tuple[int, int]
) -> None:
    upstream, backbone = pair
    stem = backbone.stem(*arguments(size))
    plain = backbone.body(stem)
    rng = torch.Generator().manual_seed(2)
    noise = [torch.randn(skip.shape, generator=rng) for skip in plain.targets_nchw]
    for k in range(len(noise)):
        residuals = [torch.zeros_like(n) if i != k else n for i, n in enumerate(noise[: k + 1])]
        got = backbone.body(stem, residuals)
        expected = with_skip_residual(upstream, arguments(size), k, noise[k])
        assert torch.equal(got.velocity_btchw, expected)
        assert not torch.allclose(got.velocity_btchw, plain.velocity_btchw, atol=1e-3)
        assert all(map(torch.equal, got.targets_nchw, plain.targets_nchw))  # the way down is untouched


@torch.no_grad()
def test_a_block_residual_changes_its_blocks_output(
    pair: tuple[UNetSpatioTemporalConditionModel, Backbone],
) -> None:
    upstream, backbone = pair
    inputs = arguments((8, 8))
    stem, rng = backbone.stem(*inputs), torch.Generator().manual_seed(3)
    outputs = block_outputs(upstream, inputs)
    noise = [torch.randn(output.shape, generator=rng) for output in outputs]
    got = backbone.body(stem, block_residuals=noise)
    assert torch.equal(got.targets_nchw[0], outputs[0]) and len(got.targets_nchw) == len(outputs)
    assert torch.equal(got.velocity_btchw, with_block_residuals(upstream, inputs, noise))
    first = backbone.body(stem, block_residuals=noise[:1])
    assert torch.equal(first.velocity_btchw, with_block_residuals(upstream, inputs, noise[:1]))
    assert not torch.allclose(first.velocity_btchw, got.velocity_btchw, atol=1e-3)


def resnets(block: nn.Module) -> int:
    """How many skips an up block takes."""
    return len(list(block.get_submodule("resnets").children()))


def with_skip_residual(
    unet: UNetSpatioTemporalConditionModel, inputs: tuple[Tensor, ...], k: int, residual: Tensor
) -> Tensor:
    """Upstream's forward with `residual` added to skip `k` as the up block that takes it is called."""
    handles, end = [], sum(resnets(block) for block in unet.up_blocks)
    for block in unet.up_blocks:
        begin = end - resnets(block)
        if begin <= k < end:

            def add(_module: nn.Module, args: Any, kwargs: dict[str, Any], at: int = k - begin) -> Any:
                taken = list(kwargs["res_hidden_states_tuple"])
                taken[at] = taken[at] + residual
                return args, {**kwargs, "res_hidden_states_tuple": tuple(taken)}

            handles.append(block.register_forward_pre_hook(add, with_kwargs=True))
        end = begin
    assert len(handles) == 1
    out = unet(*inputs).sample  # type: ignore[union-attr]
    handles[0].remove()
    return out


def block_outputs(unet: UNetSpatioTemporalConditionModel, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
        for block in unet.down_blocks
    ]
    unet(*inputs)
    for handle in handles:
        handle.remove()
    return outputs


def with_block_residuals(
    unet: UNetSpatioTemporalConditionModel, inputs: tuple[Tensor, ...], residuals: list[Tensor]
) -> Tensor:
    """Upstream's forward with a residual on the output (and so on the last skip) of the first down blocks."""
    handles = []
    for block, residual in zip(unet.down_blocks, residuals, strict=False):

        def add(_module: nn.Module, _args: Any, output: Any, residual: Tensor = residual) -> Any:
            hidden, skips = output
            return hidden + residual, (*skips[:-1], hidden + residual)

        handles.append(block.register_forward_hook(add))
    out = unet(*inputs).sample  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()
    return out
