"""The tables of a distillation: consistency, adapters, rewards, the adversarial option, the light decoder."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from genprop.settings import Model


class AdapterConfig(Model):
    """What trains of the student's backbone; its content encoder and mask decoder always train whole.

    Attributes:
        rank: of the LoRA; 0 trains the whole backbone instead.
        targets: layers that get one, by the ends of their names, as peft takes them ("to_q", "proj_in");
            none named means every linear layer and convolution that can learn.
    """

    rank: int = Field(default=64, ge=0)
    targets: tuple[str, ...] = ()


Reference = Literal["first", "truth", "teacher", "text"]


class RewardConfig(Model):
    """One reward, on decoded frames of the student's x0.

    Attributes:
        weight: J is subtracted so many times from the loss; 0 switches the reward off.
        reference: what the frames are compared with: the edited first frame, the true frames or the
            teacher's (full reference), or the clip's caption.
        frames: how many are looked at in a step; a video reward has its own number.
        hinge: no more is asked for than what the teacher's own frames score.
        path: hub id, folder or file of the weights; the official ones if None.
        tokenizer: hub id or folder of a CLIP tokenizer, for captions.
    """

    weight: float = Field(default=0.0, ge=0)
    reference: Reference = "first"
    frames: int = Field(default=5, ge=1)
    hinge: bool = True
    path: str | None = None
    tokenizer: str = "openai/clip-vit-large-patch14"


class FullReferenceConfig(RewardConfig):
    """A reward that is compared with the true frames, where a table names nothing else."""

    reference: Reference = "truth"


class TextureConfig(FullReferenceConfig):
    """The texture reward: at the truth it is 0 and never more, so a hinge is not needed."""

    hinge: bool = False


class RewardsConfig(Model):
    """The rewards: HPSv2.1 and ViCLIP, the base's own image encoder, and texture, which need no download.

    Attributes:
        chunk: frames that are decoded at a time, forwards and backwards; bounds the memory.
    """

    hps: RewardConfig = RewardConfig()
    viclip: FullReferenceConfig = FullReferenceConfig()
    encoder: FullReferenceConfig = FullReferenceConfig()
    texture: TextureConfig = TextureConfig()
    chunk: int = Field(default=4, ge=1)


class AdversarialConfig(Model):
    """The latent adversarial option: the frozen backbone's encoder with trained heads as discriminator.

    Attributes:
        weight: of the student's adversarial loss; 0 switches it off.
        start: share of the updates before it sets in; the heads learn from the first.
        learning_rate, betas: of the heads' own AdamW.
        r1: weight of the gradient penalty on the features of true latents.
        mean, std: of ln sigma, at which true and generated latents are noised again.
        hole: how many times a cell of the hole counts as much as one outside.
        width: channels of the heads.
    """

    weight: float = Field(default=0.0, ge=0)
    start: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.0, 0.99)
    r1: float = Field(default=1e-2, ge=0)
    mean: float = -1.0
    std: float = Field(default=1.0, gt=0)
    hole: float = Field(default=4.0, gt=0)
    width: int = Field(default=64, ge=8, multiple_of=8)


class LightDecoderConfig(Model):
    """The light decoder (`genprop distill --stage decoder`): the decoder of diffusers' `AutoencoderTiny`.

    Every stage but the last doubles the resolution; what is then missing to pixels, the last layer gives as
    patches.

    Attributes:
        channels, blocks: of each stage, and its residual blocks.
        path: folder of an `AutoencoderTiny` to start from, of any shape; TAESD's reads SVD's latents.
        scale: latents are divided by it, so that the class's clamp at 3 leaves their tails.
        sampled: share of the samples whose latents are the student's own, of one step, not encoded ones.
        crop: latent cells a side of what is learned from in a step; a whole frame's if that is less.
        gradient, texture: weights of the errors of slopes and of texture, beside L1.
    """

    channels: tuple[int, ...] = Field(default=(64, 64, 64, 64), min_length=1)
    blocks: tuple[int, ...] = (3, 3, 3, 1)
    path: str | None = None
    scale: float = Field(default=1.0, gt=0)
    sampled: float = Field(default=0.5, ge=0, le=1)
    crop: int = Field(default=32, ge=1)
    gradient: float = Field(default=0.2, ge=0)
    texture: float = Field(default=5.0, ge=0)

    @model_validator(mode="after")
    def _blocks_for_each_stage(self) -> Self:
        if len(self.blocks) != len(self.channels):
            raise ValueError(
                f"blocks has {len(self.blocks)} stages, expected {len(self.channels)}, as channels"
            )
        return self


class DistillConfig(Model):
    """Consistency distillation in sigma space (design: "Distillation").

    A student's target at a node of the teacher's trajectory is the trajectory's end at first, and later
    the student's own answer k nodes on.

    Attributes:
        nodes: of the grid that trajectories have and consistency is asked for on.
        solver: how the teacher goes from node to node.
        teacher_steps: k, the teacher's steps from a node to its target; 0 goes to the end.
        trajectory: share of the updates, from the start, whose target is the trajectory's end.
        blend: share of the updates after those in which it passes, sample by sample, to k steps.
        precompute: whether the teacher's trajectories are made once and kept, so that training needs no
            teacher; else data is noised and the teacher steps in every update.
        trajectories: how many are kept.
        target_ema: decay of the network that gives targets; 0 is the student itself, without gradient.
        phases: parts of the grid, each with an end of its own (phased consistency); 1 goes to sigma 0.
        guidance: baked in (`sampling`'s scales), or drawn for each sample from `guidance_range` (the scale
            of the last frame) and embedded, so that it can be chosen at inference.
        top_share: share of the samples that are moved to node 0, where a one-step student works.
        huber: c of the pseudo-Huber distance.
        weighting: "gap" is `(s_i - s_target)^weight_exponent`; "snr" `1 / s_i^2 + 1`, cut at 5.
        region: weight of the region-aware loss, mask loss included.
    """

    adapter: AdapterConfig = AdapterConfig()
    nodes: int = Field(default=40, gt=1)
    solver: Literal["euler", "heun"] = "euler"
    teacher_steps: int = Field(default=1, ge=0)
    trajectory: float = Field(default=1.0, ge=0, le=1)
    blend: float = Field(default=0.0, ge=0, le=1)
    precompute: bool = True
    trajectories: int = Field(default=512, gt=0)
    target_ema: float = Field(default=0.0, ge=0, lt=1)
    phases: int = Field(default=1, ge=1)
    guidance: Literal["baked", "embedded"] = "baked"
    guidance_range: tuple[float, float] = (1.0, 4.0)
    top_share: float = Field(default=0.25, ge=0, le=1)
    huber: float = Field(default=1e-3, gt=0)
    weighting: Literal["gap", "uniform", "snr"] = "gap"
    weight_exponent: float = -0.1
    region: float = Field(default=0.1, ge=0)
    rewards: RewardsConfig = RewardsConfig()
    adversarial: AdversarialConfig = AdversarialConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.phases > self.nodes:
            raise ValueError(f"phases is {self.phases}, expected at most the {self.nodes} nodes")
        low, high = self.guidance_range
        if not 0 <= low <= high:
            raise ValueError(
                f"guidance_range is {low} to {high}, expected 0 or more, and no more than its end"
            )
        return self
