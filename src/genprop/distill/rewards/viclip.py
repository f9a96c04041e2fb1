"""The video reward: how near ViCLIP finds the student's 8 frames to others, or to a caption.

InternVid (Wang et al., ICLR 2024, arXiv 2307.06942), section 4; as a reward, T2V-Turbo (Li et al., 2024). The
network is in `viclip_net.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genprop.distill.rewards.base import RewardCard
from genprop.distill.rewards.tokens import tokenize
from genprop.distill.rewards.viclip_net import Viclip
from genprop.errors import GenPropError
from genprop.hub import locate_file

OFFICIAL = "OpenGVLab/ViCLIP-L-14-hf"
FILE = "model.safetensors"
# The card of that repository names no licence, and calls itself the Hugging Face form of ViCLIP, whose own
# card says MIT, behind a promise to do no harm to human subjects.
LICENCE = "MIT, as OpenGVLab/ViCLIP has it (ViCLIP-L-14-hf states none); its code: Apache-2.0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, and not CLIP's
OFF = "or do without this reward: distill.rewards.viclip.weight = 0"
HINT = (
    f"where there is a network, `hf download {OFFICIAL} {FILE} --local-dir DIR`, then set "
    f"distill.rewards.viclip.path to DIR; {OFF}"
)


class ViclipReward:
    """Cosine of a clip's embedding with that of other frames, or of a caption: in [-1, 1].

    Frames are stretched to the network's square, as the authors do. Their example shrinks with cv2's bilinear
    interpolation, which looks at 4 pixels for each of its own; here it is bicubic (as in their evaluation)
    behind a low-pass filter, so that every pixel has a gradient and nothing can hide from the reward between
    the pixels that it looks at.

    Args:
        network: frozen.
        tokenizer: hub id or folder of a CLIP tokenizer; read when there are captions.
        source: where the weights come from.
    """

    def __init__(self, network: Viclip, *, tokenizer: str, source: str) -> None:
        self.network, self.tokenizer = network.requires_grad_(False).eval(), tokenizer
        self.card = RewardCard("ViCLIP", source, LICENCE)
        self.window: int = network.vision_encoder.temporal_positional_embedding.shape[1]

    def to(self, device: torch.device | str) -> ViclipReward:
        """Moves the network; frames and what is prepared have to be there too."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        """The embedding, of length 1, `[B, D]`, of frames `[B, 8, 3, H, W]` in [0, 1] or of B captions.

        Whole frames are looked at, whatever the mask.

        Raises:
            GenPropError: there are not as many frames as `window`, or there is no tokenizer for captions.
        """
        if isinstance(reference, Tensor):
            return self.embed(reference)
        positions = self.network.text_encoder.positional_embedding
        ids = tokenize(reference, tokenizer=self.tokenizer, pad=0, length=len(positions))  # 32, not CLIP's 77
        return F.normalize(self.network.text_encoder(ids.to(positions.device)).float(), dim=-1)

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        """Scores `[B]` of frames `[B, 8, 3, H, W]` in [0, 1].

        Raises:
            GenPropError: there are not as many frames as `window`.
        """
        return (self.embed(frames) * prepared).sum(dim=-1)

    def embed(self, frames: Tensor) -> Tensor:
        """Frames `[B, 8, 3, H, W]` in [0, 1] to embeddings of length 1, `[B, D]`, in float32."""
        if frames.shape[1] != self.window:
            raise GenPropError(
                f"ViCLIP got a clip of {frames.shape[1]} frames, expected exactly {self.window}",
                f"give it {self.window} neighbouring frames (distill.rewards.viclip.frames), {OFF}",
            )
        return F.normalize(self.network.vision_encoder(self.preprocess(frames)).float(), dim=-1)

    def preprocess(self, frames: Tensor) -> Tensor:
        """`[B, T, 3, H, W]` in [0, 1] to the network's size and range, differentiably."""
        size = self.network.vision_encoder.size
        flat = frames.flatten(0, 1).float()
        square = F.interpolate(flat, (size, size), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (square.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        return ((square - mean) / std).unflatten(0, frames.shape[:2])


def open_viclip(path: str | None, *, tokenizer: str) -> ViclipReward:
    """The reward with the weights at `path`, frozen and on the CPU, in float32.

    Args:
        path: a file, a folder with `model.safetensors`, or a hub id; `OpenGVLab/ViCLIP-L-14-hf` if None.
        tokenizer: hub id or folder of a CLIP tokenizer, for captions.

    Raises:
        GenPropError: the weights are not there, cannot be fetched, or are not ViCLIP's.
    """
    name = path or OFFICIAL
    file = locate_file(name, FILE, what="ViCLIP", hint=HINT)
    try:
        tensors = {key: value.float() for key, value in load_file(file).items()}
        with torch.device("meta"):
            network = Viclip({key: value.shape for key, value in tensors.items()})
        network.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise GenPropError(
            f"{file} does not hold ViCLIP as {OFFICIAL} does: {_line(error)}",
            f"expected that repository's {FILE}, {OFF}",
        ) from error
    return ViclipReward(network, tokenizer=tokenizer, source=name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
