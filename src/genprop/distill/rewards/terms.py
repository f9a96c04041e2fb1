"""The rewards of a distillation together: which frames they see, what they compare, and what they weigh.

    J = sum over rewards of weight * mean over samples of min(J_student, J_teacher)

The hinge is there because rewards can be had by doing wrong: an image reward alone calms motion and grows
patterns. A student is asked for no more than what the teacher's own frames score, sample by sample.

Every process takes the same weights and the mean over its own samples, and what is drawn belongs to a
sample; so the average over processes, which DDP makes, is the loss of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genprop.distill.rewards.base import Reward
from genprop.distill.rewards.choice import choose_frames, pick
from genprop.distill.rewards.decode import LatentReward
from genprop.distill.rewards.encoder import EncoderReward
from genprop.distill.rewards.texture import TextureReward
from genprop.distill_settings import RewardConfig, RewardsConfig
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.hub import EMBEDDED, locate
from genprop.latents import Autoencoder, ImageEncoder

REFERENCES = {
    "hps": ("first", "truth", "teacher", "text"),
    "viclip": ("truth", "teacher", "text"),  # one frame is no video
    "encoder": ("first", "truth", "teacher"),
    "texture": ("truth", "teacher"),  # compared place by place
}
"""What each reward can be compared with."""


class RewardScores(NamedTuple):
    """What the rewards give for a batch.

    Attributes:
        total: weighted, hinged; subtracted from the loss.
        scores: for the log, without gradient: `reward_<name>`, the student's mean; with a hinge
            `reward_<name>_teacher`, the teacher's, and `reward_<name>_hinged`, what the loss has.
    """

    total: Tensor
    scores: dict[str, Tensor]


class RewardTerms:
    """Rewards of the student's x0, as the objective calls them.

    Not a module: what is in it is frozen, on its device, and nobody's to train, shard or save.

    Args:
        rewards: those that are switched on, with their settings, by name.
        autoencoder: frozen, in eval mode.
        chunk: frames that are decoded at a time.
        frames: of a clip.

    Raises:
        GenPropError: a clip is shorter than what a reward sees.
    """

    def __init__(
        self,
        rewards: Mapping[str, tuple[RewardConfig, Reward]],
        autoencoder: Autoencoder,
        *,
        chunk: int,
        frames: int,
    ) -> None:
        for name, (_, reward) in rewards.items():
            if frames < reward.window:
                raise GenPropError(
                    f"the {name} reward sees {reward.window} frames, and clips have {frames}: "
                    f"expected at least {reward.window}",
                    f"raise clip.frames, or switch it off with distill.rewards.{name}.weight=0",
                )
        self.rewards = {
            name: (config, LatentReward(reward, autoencoder, chunk=chunk))
            for name, (config, reward) in rewards.items()
        }

    @property
    def needs_captions(self) -> bool:
        """Whether `__call__` wants captions."""
        return any(config.reference == "text" for config, _ in self.rewards.values())

    def cards(self) -> list[dict[str, Any]]:
        """What a run notes of its rewards: where each is from, its licence, and how it is used."""
        return [
            {
                "reward": name,
                **reward.reward.card._asdict(),
                "weight": config.weight,
                "reference": config.reference,
                "frames": reward.reward.window if reward.reward.window > 1 else config.frames,
                "hinge": _hinged(config),
            }
            for name, (config, reward) in self.rewards.items()
        ]

    def __call__(
        self,
        x0: Tensor,
        *,
        truth: Tensor,
        teacher: Tensor,
        mask: Tensor,
        draws: Draws,
        captions: Tensor | None = None,
    ) -> RewardScores:
        """The rewards of x0; frame 0 is given and not looked at.

        Args:
            x0: the student's, scaled latents `[B, T, C, h, w]`.
            truth: of the same shape; its frame 0 is the edited first frame.
            teacher: of the same shape: its answer, without gradient.
            mask: where the edit is, on the latent grid, `[B, T, 1, h, w]`.
            draws: which frames are looked at.
            captions: UTF-8, padded with zeros, uint8 `[B, L]`, where `needs_captions`.

        Raises:
            GenPropError: a caption is wanted and missing.
        """
        total, scores = torch.zeros((), device=x0.device), {}
        for name, (config, reward) in self.rewards.items():
            chosen = choose_frames(draws, total=x0.shape[1], window=reward.reward.window, count=config.frames)
            if config.reference == "text":
                each = reward.prepare(read_captions(captions, name=name))
            elif config.reference == "first":
                each = reward.prepare(truth[:, :1])
            else:
                video = truth if config.reference == "truth" else teacher
                each = reward.prepare(pick(video, chosen), pick(mask, chosen))
            looks = chosen.shape[:2]  # B, n; one caption or first frame stands for all n
            prepared = each.repeat_interleave(looks.numel() // len(each), dim=0)
            score = reward(pick(x0, chosen), prepared).unflatten(0, looks).mean(1)
            scores[f"reward_{name}"] = score.detach().mean()
            if _hinged(config):
                with torch.no_grad():
                    of_teacher = reward(pick(teacher, chosen), prepared)
                ceiling = of_teacher.unflatten(0, looks).mean(1)
                score = torch.where(score < ceiling, score, ceiling)
                scores[f"reward_{name}_teacher"] = ceiling.mean()
                scores[f"reward_{name}_hinged"] = score.detach().mean()
            total = total + config.weight * score.mean()
        return RewardScores(total, scores)


def open_rewards(
    config: RewardsConfig,
    autoencoder: Autoencoder,
    image_encoder: ImageEncoder,
    *,
    base_name: str,
    frames: int,
) -> RewardTerms | None:
    """The rewards whose weight is above 0, on the autoencoder's device; None if there is none.

    Args:
        autoencoder, image_encoder: the base's, frozen, in eval mode, on their device.
        base_name: what the base goes by: an embedded name, a hub id or a folder.
        frames: of a clip.

    Raises:
        GenPropError: a reward cannot be had, cannot be compared with its reference, or sees more frames than
            a clip has; names how to get it and how to do without.
    """
    device = next(autoencoder.parameters()).device

    def hps() -> Reward:
        from genprop.distill.rewards.hps import open_hps

        return open_hps(config.hps.path, tokenizer=config.hps.tokenizer, device=device)

    def viclip() -> Reward:
        from genprop.distill.rewards.viclip import open_viclip

        return open_viclip(config.viclip.path, tokenizer=config.viclip.tokenizer).to(device)

    def encoder() -> Reward:
        return EncoderReward(image_encoder, source=base_name, licence=_licence(base_name))

    def texture() -> Reward:
        return TextureReward(autoencoder.downsampling)

    table: dict[str, tuple[RewardConfig, Callable[[], Reward]]] = {
        "hps": (config.hps, hps),
        "viclip": (config.viclip, viclip),
        "encoder": (config.encoder, encoder),
        "texture": (config.texture, texture),
    }
    wanted = {key: entry for key, entry in table.items() if entry[0].weight}
    for key, (settings, _) in wanted.items():  # before anything is downloaded
        if settings.reference not in REFERENCES[key]:
            raise GenPropError(
                f"distill.rewards.{key}.reference is {settings.reference!r}, "
                f"expected one of {', '.join(REFERENCES[key])}",
                f"set it, or switch the reward off with distill.rewards.{key}.weight=0",
            )
    opened = {}
    for key, (settings, open_it) in wanted.items():
        try:
            opened[key] = (settings, open_it())
        except GenPropError as error:
            if f"distill.rewards.{key}.weight" in error.hint:
                raise
            off = f"or switch it off with distill.rewards.{key}.weight=0"
            raise GenPropError(error.message, f"{error.hint}; {off}".lstrip("; ")) from error
    return RewardTerms(opened, autoencoder, chunk=config.chunk, frames=frames) if opened else None


def read_captions(captions: Tensor | None, *, name: str) -> list[str]:
    """Text of UTF-8 bytes `[B, L]`; a character that the end of the row cuts is dropped.

    Raises:
        GenPropError: there are none, or one is empty.
    """
    rows = [] if captions is None else captions.tolist()
    texts = [bytes(row).rstrip(b"\0").decode("utf-8", errors="ignore") for row in rows]
    if not texts or not all(texts):
        got = "a sample whose caption is empty" if texts else "samples without captions"
        raise GenPropError(
            f"the {name} reward was given {got}, expected one caption for each sample",
            f"give data that has captions, or set distill.rewards.{name}.reference to truth",
        )
    return texts


def _hinged(config: RewardConfig) -> bool:
    """Against the teacher's own frames nothing scores more than they do, so there a hinge changes nothing."""
    return config.hinge and config.reference != "teacher"


def _licence(base: str) -> str:
    """Of a base: the package's for the embedded one, else what its card says."""
    embedded = base in EMBEDDED or Path(base) == locate("tiny-base")
    return "Apache-2.0" if embedded else "the base's own, see its model card"
