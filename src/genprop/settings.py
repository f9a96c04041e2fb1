"""The tables of a configuration: frozen models, in which an unknown key is an error.

What a table's keys mean stands in its docstring; `config.Config` is all of them together, and
`distill_settings` has those of the distillation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Model(BaseModel):
    """A frozen table; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainConfig(Model):
    """One training run: what `loop.fit` reads. `batch_size` is that of one micro-batch on one process.

    `checkpointing` recomputes activations in the backward pass; `adamw8bit` keeps AdamW's moments in 8 bits
    (bitsandbytes, CUDA).
    """

    steps: int = Field(ge=1)
    batch_size: int = Field(default=4, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    min_learning_rate_ratio: float = Field(default=0.05, ge=0, le=1)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    log_every: int = Field(default=20, ge=1)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    checkpointing: bool = False
    tracker: Literal["tensorboard", "wandb"] = "tensorboard"
    validate_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)


class ClipConfig(Model):
    """What a clip is to the model, and SVD's micro-conditioning."""

    frames: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    fps: int = 7
    motion_bucket: int = 127
    noise_aug: float = 0.02


class BaseConfig(Model):
    """The frozen base: where it is, or how to build one that is to be trained (upstream's own arguments).

    `variant` is which of the base's weights are read: fp16, or the plain ones where there are any. `chunk` is
    how many frames the autoencoder is given at a time, `overlap` how many of them its decoder is given again
    in the next window: a temporal decoder mixes frames only inside one (`chunks.cut`). With `slice`, so many
    numbers of an activation are computed at a time (`sliced.py`): memory hardly grows with the window, and a
    single one, exact for a temporal decoder, can be had (with `chunk` the frames of the clip).
    `store` is the precision of every file that training writes; what is trained next reads the rounded
    numbers, so nothing shifts when a model is shipped.
    """

    path: str | None = None
    variant: Literal["fp16"] | None = None
    store: Literal["fp32", "fp16"] = "fp32"
    chunk: int = Field(default=8, ge=1)
    overlap: int = Field(default=0, ge=0)
    slice: int | None = Field(default=None, ge=1)
    unet: dict[str, Any] | None = None
    vae: dict[str, Any] | None = None
    image_encoder: dict[str, Any] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.store == "fp16" else torch.float32


class SceConfig(Model):
    """The content encoder and how it enters the backbone (GenProp 3.2), with the report's variants.

    Attributes:
        kind: "copy" of the backbone's encoder (GenProp); "ctrl-adapter" (frozen ControlNet features through
            trained adapters); "conv-adapter" (convolutions alone, added to the stem); "unet3d" (no frozen
            backbone: a small 3D U-Net of its own).
        blocks: down blocks that are copied.
        fusion: whether the backbone's stem features enter the copy.
        injection: one residual for each skip connection, or one for each block.
        norm: a group norm before each injection's convolution.
        once: the encoder is told timestep 0 and sees no noise, so that it runs once for a clip rather than in
            every step. Not with `fusion`, which is noise, nor with "unet3d", which denoises itself.
        zero: what starts at zero in an injection: its convolution; or "both", convolution and norm, which
            never learns (the report's, kept to show what it costs).
        scale: alpha, what residuals are multiplied by, in training and after.
        source: what the encoder reads: the original, or the original blurred inside the mask, which then has
            to be known.
        controlnet: folder of the ControlNet (diffusers' layout) of "ctrl-adapter"; without one, the
            backbone's own frozen encoder takes its place.
    """

    kind: Literal["copy", "ctrl-adapter", "conv-adapter", "unet3d"] = "copy"
    blocks: int = Field(default=2, ge=1, le=4)
    fusion: Literal["bidirectional", "none"] = "bidirectional"
    injection: Literal["skips", "blocks"] = "skips"
    norm: bool = False
    once: bool = False
    zero: Literal["conv", "both"] = "conv"
    scale: float = Field(default=1.0, ge=0)
    source: Literal["original", "blurred"] = "original"
    controlnet: str | None = None

    @model_validator(mode="after")
    def _both_needs_a_norm(self) -> Self:
        if self.zero == "both" and not self.norm:
            raise ValueError("zero is 'both', but norm is off: expected norm = true")
        return self

    @model_validator(mode="after")
    def _once_sees_no_noise(self) -> Self:
        if self.once and (self.kind == "unet3d" or (self.kind == "copy" and self.fusion != "none")):
            raise ValueError(
                f"once is on, but kind {self.kind!r} with fusion {self.fusion!r} reads noise: "
                "expected fusion = 'none', and not 'unet3d'"
            )
        return self


class NetConfig(Model):
    """What stands beside the content encoder: mask decoder, embeddings, and what `tiny` needs.

    `tasks` adds a learned embedding of the kind of edit (GenProp S1); `guidance` one of the guidance scale,
    for a student (`distill.guidance = "embedded"` sets it); `gate` is `teacher.gate.MaskGate`;
    `carry` is the width of `teacher.carry.Carry`, 0 for none, whose answer goes through the gate.
    """

    tasks: bool = False
    guidance: bool = False
    gate: bool = False
    carry: int = Field(default=0, ge=0, multiple_of=8)
    mpd_hidden: tuple[
        Annotated[int, Field(gt=0, multiple_of=8)], Annotated[int, Field(gt=0, multiple_of=8)]
    ] = (256, 128)

    @property
    def columns(self) -> int:
        """How many columns of `added_time_ids` the network needs; see `types.Cond`."""
        return 5 if self.guidance else 4 if self.tasks else 3

    @model_validator(mode="after")
    def _carry_needs_the_gate(self) -> Self:
        if self.carry and not self.gate:
            raise ValueError(f"carry is {self.carry}, but gate is off: expected gate = true with a carry")
        return self


class NoiseConfig(Model):
    """Training noise (EDM 5) and how often the image condition is dropped, so that guidance has a branch."""

    mean: float = 0.7
    std: float = Field(default=1.6, gt=0)
    drop: float = Field(default=0.1, ge=0, lt=1)


class LossConfig(Model):
    """The region-aware loss (GenProp, section 3.3): L_nonmask + mask L_mask + gradient L_grad + mpd L_mpd.

    `carry` weighs the carry's own loss, where a network has one.

    Attributes:
        mpd_balance: weight of the mask's positives in L_mpd; above 1 keeps the mask from vanishing.
        normalise: L_nonmask and L_mask as means over all elements, or over each region's own.
        gradient_features: L_grad on the content encoder's last features, or on all that it injects.
        temporal: weight of the squared error of differences between neighbouring frames.
    """

    mask: float = Field(default=2.0, ge=0)
    gradient: float = Field(default=1.0, ge=0)
    mpd: float = Field(default=1.0, ge=0)
    carry: float = Field(default=1.0, ge=0)
    mpd_kind: Literal["bce", "mse"] = "bce"
    mpd_balance: float = Field(default=1.0, gt=0)
    normalise: Literal["elements", "region"] = "elements"
    gradient_features: Literal["last", "all"] = "last"
    temporal: float = Field(default=0.0, ge=0)
    downsample: Literal["nearest", "gaussian"] = "gaussian"
    gradient_step: float = Field(default=0.1, gt=0)


class SamplingConfig(Model):
    """The teacher's sampler: Karras sigmas and linear guidance."""

    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=700.0, gt=0)
    rho: float = 7.0
    steps: int = Field(default=25, gt=0)
    guidance_min: float = 1.0
    guidance_max: float = 3.0


class DataConfig(Model):
    """Which windows of which clips a training sees.

    Attributes:
        count: samples in all, drawn from the sources by their weights.
        validation: samples of clips that are held out.
        cache: encode all samples once, before training; else each in its step.
        stride: the largest step between the frames of a window; each window draws its own from 1 on.
        crop: where the window is cut out of a frame that is resized to cover it.
    """

    count: int = Field(default=4096, gt=0)
    validation: int = Field(default=8, gt=0)
    cache: bool = True
    seed: int = 0
    stride: int = Field(default=1, ge=1)
    crop: Literal["random", "centre"] = "centre"


class RolloutConfig(Model):
    """Which sequences the tracker is trained on, and how long it goes on from its own masks in them.

    Attributes:
        length: frames of a sequence.
        count: sequences in all.
        natural: share of those of clips with their own object, which have no clean truth.
        leave_out: patterns of clips that are kept for evaluation.
    """

    length: int = Field(default=7, ge=2)
    count: int = Field(default=100_000, gt=0)
    natural: float = Field(default=0.3, ge=0, le=1)
    leave_out: tuple[str, ...] = ()


class SynthesisConfig(Model):
    """How an edit is made of a clip with masks (GenProp, supplementary S1).

    The first four are the relative frequencies of the tasks.

    Attributes:
        second_colour: share of the colour fills that use a second colour.
        box_margin: pixels (at 256 lines) around the box whose mean fills the mask.
        telea: share of the mask-and-fills that are filled by Telea instead.
        blur: deviation of the masked blur, in frame heights.
        shadow: share of the pasted objects with a soft shadow.
    """

    copy_paste: float = Field(default=0.5, ge=0)
    mask_fill: float = Field(default=0.375, ge=0)
    colour_fill: float = Field(default=0.125, ge=0)
    masked_blur: float = Field(default=0.0, ge=0)
    second_colour: float = Field(default=0.3, ge=0, le=1)
    box_margin: int = Field(default=5, ge=0)
    telea: float = Field(default=1 / 3, ge=0, le=1)
    blur: float = Field(default=0.05, gt=0)
    shadow: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _some_task(self) -> Self:
        if not self.copy_paste + self.mask_fill + self.colour_fill + self.masked_blur:
            raise ValueError("every task has frequency 0: expected one above 0")
        return self
