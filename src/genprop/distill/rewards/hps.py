"""HPSv2.1, what people prefer of pictures (Wu et al. 2023, arXiv:2306.09341), as a reward of single frames.

The network is OpenCLIP's ViT-H-14, fine-tuned on comparisons. A student has no prompt: by default its frames
are compared with other frames, by the cosine of the image tower's embeddings; where there are captions, the
score is HPSv2's own, the cosine of picture and text (its factor of 100 is in the logits of its training).

Shapes: B batch, n frames, D width of an embedding (1024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from genprop.distill.rewards.base import RewardCard
from genprop.distill.rewards.openclip import load_clip
from genprop.distill.rewards.tokens import tokenize
from genprop.errors import GenPropError
from genprop.hub import locate_file

SOURCE = "xswu/HPSv2"
FILE = "HPS_v2.1_compressed.pt"
HINT = (
    f"where there is a network, `hf download {SOURCE} {FILE} --local-dir DIR`, then set "
    "distill.rewards.hps.path to DIR; or switch the reward off with distill.rewards.hps.weight = 0"
)


class HpsReward:
    """A `Reward`: the mean over frames of the cosine with a reference, in [-1, 1].

    Args:
        model: frozen and put in eval mode here, so that gradient reaches the frames alone.
        tokenizer: hub id or folder of CLIP's; read when the first captions are prepared.
    """

    card = RewardCard(name="HPSv2.1", source=f"{SOURCE}/{FILE}", licence="Apache-2.0")
    window = 1

    def __init__(self, model: CLIPModel, *, tokenizer: str) -> None:
        self.model: Any = model.eval().requires_grad_(False)  # upstream's methods are typed too widely
        self.tokenizer = tokenizer

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """Embeddings of norm 1: of frames `[B, n, D]`, of captions `[B, 1, D]`. The mask is not looked at.

        Raises:
            GenPropError: there is no tokenizer, or not that of the network.
        """
        if isinstance(reference, Tensor):
            return self._embed(reference)
        text = self.model.config.text_config
        ids = tokenize(reference, tokenizer=self.tokenizer, length=text.max_position_embeddings)
        if not (ids == text.eos_token_id).any(1).all():
            raise GenPropError(
                f"the tokenizer {self.tokenizer} is not that of HPSv2.1: expected every caption to end with "
                f"token {text.eos_token_id}",
                "set distill.rewards.hps.tokenizer to openai/clip-vit-large-patch14, or a folder that has it",
            )
        features = self.model.get_text_features(ids.to(self.model.device)).pooler_output
        return F.normalize(features.float(), dim=-1)[:, None]

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[B]`. `prepared` holds an embedding for each frame, or one for all of a sample's."""
        assert prepared.shape[1] in (1, frames.shape[1]), (prepared.shape, frames.shape)
        return (self._embed(frames) * prepared).sum(-1).mean(1)

    def _embed(self, frames: Tensor) -> Tensor:
        pixels = preprocess(frames.flatten(0, 1), size=self.model.config.vision_config.image_size)
        features = self.model.get_image_features(pixels.to(self.model.dtype)).pooler_output
        return F.normalize(features.float(), dim=-1).unflatten(0, frames.shape[:2])


def preprocess(frames: Tensor, *, size: int) -> Tensor:
    """What the image tower sees: the whole frame, made `size` pixels long, on a black square; differentiable.

    As HPSv2 does it, bicubic with antialiasing on float pixels, which are not clipped, then padding, then
    CLIP's mean and deviation. (HPSv2 pads nothing where the longer side has the size already; a frame that is
    not square would not fit its network.)

    Args:
        frames: `[N, 3, H, W]` in [0, 1].

    Returns:
        `[N, 3, size, size]`, float32.
    """
    height, width = frames.shape[-2:]
    scale = size / max(height, width)
    resized = frames.float()
    if scale != 1:
        shape = (round(height * scale), round(width * scale))
        resized = F.interpolate(resized, shape, mode="bicubic", align_corners=False, antialias=True)
    down, right = size - resized.shape[-2], size - resized.shape[-1]
    padded = F.pad(resized, (right // 2, right - right // 2, down // 2, down - down // 2))
    mean, std = frames.new_tensor([OPENAI_CLIP_MEAN, OPENAI_CLIP_STD], dtype=torch.float32)[:, :, None, None]
    return (padded - mean) / std


def open_hps(
    path: str | None,
    *,
    tokenizer: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> HpsReward:
    """HPSv2.1 from its official checkpoint.

    Args:
        path: the checkpoint, a folder or hub repository that has `FILE`; the official one if None.
        tokenizer: hub id or folder of CLIP's, for captions.
        dtype: of the network. The checkpoint is in fp16.

    Raises:
        GenPropError: the checkpoint is not there, or is none.
    """
    file = locate_file(SOURCE if path is None else path, FILE, what="HPSv2.1", hint=HINT)
    model = load_clip(file, device=device, dtype=dtype, hint=HINT)
    return HpsReward(model, tokenizer=tokenizer)
