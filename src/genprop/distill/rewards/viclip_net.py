"""ViCLIP's network: a CLIP whose picture tower attends over all patches of 8 frames at once.

InternVid (Wang et al., ICLR 2024, arXiv 2307.06942), section 4. It is written out here because its public
code brings dependencies that cannot be this package's. Parameters have the checkpoint's own names and every
size is read from its shapes, so that a small random checkpoint of the same layout takes the same path.
Trained masking of tokens and dropped paths have no part in a score and are left out.

Shapes: B clips, T frames (8), P patches of a frame, N tokens, W width, D of the shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HEAD = 64  # channels of an attention head, in every CLIP transformer


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_bnw: Tensor, *, causal: bool) -> Tensor:
        qkv = F.linear(x_bnw, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, -1, HEAD))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, HEAD]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's approximation of GELU


class Block(nn.Module):
    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(width), Mlp(width)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.causal = causal

    def forward(self, x_bnw: Tensor) -> Tensor:
        x_bnw = x_bnw + self.attn(self.ln_1(x_bnw), causal=self.causal)
        return x_bnw + self.mlp(self.ln_2(x_bnw))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, *, causal: bool) -> None:
        super().__init__()
        if width % HEAD:
            raise ValueError(f"a width of {width}, expected a multiple of {HEAD}")
        self.resblocks = nn.ModuleList(Block(width, causal=causal) for _ in range(layers))

    def forward(self, x_bnw: Tensor) -> Tensor:
        for block in self.resblocks:
            # 2,049 tokens through 24 layers keep gigabytes for the gradient of one clip; computing the frozen
            # blocks twice instead is little beside the student.
            x_bnw = checkpoint(block, x_bnw, use_reentrant=False) if x_bnw.requires_grad else block(x_bnw)
        return x_bnw


class VideoTower(nn.Module):
    """Frames `[B, T, 3, S, S]`, normalised, to `[B, D]`: one class token among all patches of all frames."""

    def __init__(self, *, width: int, patch: int, patches: int, frames: int, layers: int, out: int) -> None:
        super().__init__()
        if isqrt(patches) ** 2 != patches:
            raise ValueError(f"{patches} patches of a frame, expected a square number")
        self.size = patch * isqrt(patches)
        kernel = (1, patch, patch)
        self.conv1 = nn.Conv3d(3, width, kernel, stride=kernel, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + patches, width))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(1, frames, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, causal=False)
        self.proj = nn.Parameter(torch.empty(width, out))

    def forward(self, frames: Tensor) -> Tensor:
        x_btpw = self.conv1(frames.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        when_tw = self.temporal_positional_embedding[0]
        x_btpw = x_btpw + self.positional_embedding[1:] + when_tw[:, None]
        first_w = self.class_embedding + self.positional_embedding[0]
        x_bnw = torch.cat([first_w.expand(len(frames), 1, -1), x_btpw.flatten(1, 2)], dim=1)
        x_bnw = self.transformer(self.ln_pre(x_bnw))
        return self.ln_post(x_bnw[:, 0]) @ self.proj


class TextTower(nn.Module):
    """Token ids `[B, N]` to `[B, D]`: CLIP's, read where the text ends, which is the highest of all ids."""

    def __init__(self, *, width: int, vocabulary: int, length: int, layers: int, out: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.transformer = Transformer(width, layers, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, out))

    def forward(self, ids: Tensor) -> Tensor:
        x_bnw = self.transformer(self.token_embedding(ids) + self.positional_embedding)
        end_bw = x_bnw[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        return self.ln_final(end_bw) @ self.text_projection


class Viclip(nn.Module):
    """Both towers, of the sizes that the shapes of a checkpoint's tensors (by name) give them.

    Raises:
        KeyError, IndexError, ValueError: the shapes are not those of a ViCLIP.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        width, _, _, patch, _ = shapes["vision_encoder.conv1.weight"]
        vocabulary, text_width = shapes["text_encoder.token_embedding.weight"]
        self.vision_encoder = VideoTower(
            width=width,
            patch=patch,
            patches=shapes["vision_encoder.positional_embedding"][0] - 1,
            frames=shapes["vision_encoder.temporal_positional_embedding"][1],
            layers=_layers(shapes, "vision_encoder"),
            out=shapes["vision_encoder.proj"][1],
        )
        self.text_encoder = TextTower(
            width=text_width,
            vocabulary=vocabulary,
            length=shapes["text_encoder.positional_embedding"][0],
            layers=_layers(shapes, "text_encoder"),
            out=shapes["text_encoder.text_projection"][1],
        )
        self.temp = nn.Parameter(torch.empty(()))  # of the contrastive loss; a score has no use for it


def _layers(shapes: Mapping[str, Sequence[int]], tower: str) -> int:
    return sum(name.startswith(tower) and name.endswith(".ln_1.weight") for name in shapes)
