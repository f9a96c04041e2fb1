"""SVD's cross-attention without the attention: an exact rewrite for inference.

SVD's image context is a single token. The softmax over one key is 1 whatever the query, so that attention
is the token's value through the output projection, the same for every cell and every frame of a clip: the
queries, their norm and the keys need not be computed at all. That is two of ten matrix products of a
transformer block, weighted by their width.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from genprop.teacher.net import GenPropNet


class OneToken(nn.Module):
    """`Attention` to a context of one token, of a batch of one clip.

    `[N, 1, D]`, all rows alike, to `[1, 1, C]`, which broadcasts over the `[N, tokens, C]` it is added to.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        assert attention.is_cross_attention and not attention.residual_connection
        assert attention.rescale_output_factor == 1 and attention.norm_cross is None
        layers: Any = attention  # upstream's, of types that may be None
        self.to_v, self.to_out = layers.to_v, layers.to_out[0]

    def forward(self, hidden: Tensor, encoder_hidden_states: Tensor, attention_mask: Any = None) -> Tensor:
        assert encoder_hidden_states.shape[1] == 1 and attention_mask is None
        return self.to_out(self.to_v(encoder_hidden_states[:1]))


def simplify(net: GenPropNet) -> GenPropNet:
    """Replace every cross-attention of `net`, in place. From then on it takes a batch of one.

    A LoRA has to be merged before.
    """
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, Attention) and child.is_cross_attention:
                setattr(module, name, OneToken(child))
    return net
