"""The rewrites for ONNX Runtime are exact: in PyTorch where they can be run, else in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import SpatioTemporalResBlock
from torch import Tensor, nn

from genprop.export.onnx import export_graph
from genprop.export.optimise import ConvOverTime, Folded, Gated, conv_over_time, optimise
from genprop.manifest import GraphSpec, TensorSpec


@torch.no_grad()
def test_a_convolution_over_time_is_one_over_a_plane(rng: torch.Generator) -> None:
    conv = nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0))
    x = torch.randn(2, 4, 5, 3, 7, generator=rng)
    torch.testing.assert_close(ConvOverTime(conv)(x), conv(x))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1, 1), "padding": 1},
        {"kernel_size": (3, 1, 1), "stride": (2, 1, 1)},
        {"kernel_size": (3, 1, 1), "dilation": (2, 1, 1)},
        {"kernel_size": (3, 1, 1), "groups": 4},
    ],
)
def test_any_other_convolution_is_left_alone(options: dict[str, Any]) -> None:
    conv = nn.Conv3d(4, 4, **options)
    assert conv_over_time(conv) is conv


@torch.no_grad()
@pytest.mark.parametrize("temb", [None, 16])
@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("strategy", ["learned", "learned_with_images"])
def test_a_temporal_block_is_folded_whoever_mixes(
    temb: Any, switched: bool, strategy: str, rng: torch.Generator
) -> None:
    block = SpatioTemporalResBlock(
        32,
        64,
        temb,
        merge_factor=0.7,  # a share of 0.67
        merge_strategy=strategy,
        switch_spatial_to_temporal_mix=switched,
    ).eval()
    x = torch.randn(6, 32, 4, 5, generator=rng)
    told = None if temb is None else torch.randn(1, temb, generator=rng).expand(6, -1)
    images = torch.zeros(1, 6)
    expected = block(x, told, image_only_indicator=images)
    folded = Folded(block)
    assert isinstance(folded.conv1, ConvOverTime) and isinstance(folded.conv2, ConvOverTime)
    torch.testing.assert_close(folded(x, told, image_only_indicator=images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_gated_layer_is_two_products(rng: torch.Generator) -> None:
    gated = GEGLU(5, 7)
    x = torch.randn(2, 3, 5, generator=rng)
    torch.testing.assert_close(Gated(gated)(x), gated(x))


class Attentive(nn.Module):
    """A norm with weights of its own, an autoencoder's attention, a backbone's, and their precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.cells = Attention(
            16,
            heads=1,
            dim_head=16,
            norm_num_groups=4,
            residual_connection=True,
            rescale_output_factor=2.0,
            bias=True,
            _from_deprecated_attn_block=True,
        )
        self.tokens = Attention(16, heads=2, dim_head=8)
        self.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.cells(self.norm(x.to(self.dtype)))
        return self.tokens(x.flatten(2).transpose(1, 2)).float()


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_norms_and_attention_are_the_same_in_a_graph_of_few_operators(
    tmp_path: Path, dtype: torch.dtype, close: float, rng: torch.Generator
) -> None:
    import onnx
    import onnxruntime

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Attentive(torch.float32).eval()
    spec = GraphSpec(
        name="graph",
        inputs=(TensorSpec(name="x", shape=(2, 16, 4, 5)),),
        outputs=(TensorSpec(name="y", shape=(2, 20, 16)),),
    )
    x = 3 * torch.randn(2, 16, 4, 5, generator=rng) + 1
    expected = module(x)
    module.to(dtype)
    module.dtype = dtype
    optimise(module)
    export_graph(module, spec, tmp_path / "graph.onnx", opset=20)
    kinds = [node.op_type for node in onnx.load(tmp_path / "graph.onnx").graph.node]
    assert kinds.count("MultiHeadAttention") == 2 and not {"Softmax", "Sqrt"} & set(kinds)
    assert kinds.count("InstanceNormalization") == kinds.count("BatchNormalization") == 2
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(np.asarray(got), expected.numpy(), atol=close)
