"""`svd-xt` from end to end, on a folder in diffusers' layout: SVD-XT's architecture, reduced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from genprop.bundle import read_bundle
from genprop.data.procedural import make_sample
from genprop.hub import base_sha256
from genprop.video import read_clip

Genprop = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks a side as SVD-XT has them, at a tenth of its width."""
    folder = tmp_path_factory.mktemp("svd") / "base"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64, 64, 64),
            num_attention_heads=(2, 2, 2, 2),
            cross_attention_dim=32,
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=48,
            layers_per_block=1,
        ).save_pretrained(folder / "unet", variant="fp16")
        AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32, 32, 32),  # type: ignore[arg-type]
            down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
            layers_per_block=1,
        ).save_pretrained(folder / "vae", variant="fp16")
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=32,
                patch_size=16,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                projection_dim=32,
            )
        ).save_pretrained(folder / "image_encoder", variant="fp16")
    return folder


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four procedural clips in the layout of DAVIS 2017: jpg frames and palette masks."""
    folder = tmp_path_factory.mktemp("davis")
    for seed in range(4):
        sample = make_sample(seed, frames=5, height=72, width=96)
        for part in ("JPEGImages", "Annotations"):
            (folder / part / "480p" / f"clip-{seed}").mkdir(parents=True)
        for t, (frame, mask) in enumerate(zip(sample.source, sample.mask, strict=True)):
            image = folder / "JPEGImages" / "480p" / f"clip-{seed}" / f"{t:05d}.jpg"
            cv2.imwrite(str(image), frame[..., ::-1])
            palette = Image.fromarray(mask.astype(np.uint8), mode="P")
            palette.putpalette([0, 0, 0, 128, 0, 0])
            palette.save(folder / "Annotations" / "480p" / f"clip-{seed}" / f"{t:05d}.png")
    return folder


SMALL = [
    "clip.frames=3", "clip.height=64", "clip.width=64", "data.count=8", "data.validation=1",
    "teacher.steps=2", "teacher.accumulate=1", "teacher.warmup=1", "teacher.workers=0",
    "net.mpd_hidden=[32, 16]",
]  # fmt: skip
SETTINGS = [part for setting in SMALL for part in ("--set", setting)]


@pytest.fixture(scope="module")
def trained(genprop: Genprop, base: Path, davis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    outcome = genprop(
        "train", "--config", "svd-xt", "--base", base, "--data", davis, "--out", out, *SETTINGS, "--json"
    )
    assert outcome.document["steps"] == 2, outcome.err
    return out


def test_it_trains_validates_and_becomes_a_bundle_of_what_was_trained(trained: Path, base: Path) -> None:
    bundle = read_bundle(trained / "teacher")
    assert bundle.card.base_sha256 == base_sha256(base, variant="fp16")
    assert not any(name.startswith("backbone.") for name in bundle.tensors())
    assert {name.split(".")[0] for name in bundle.tensors()} == {"sce", "mpd", "tasks"}
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    validation = next(line for line in log if "val/hole_psnr" in line)
    for name in ("hole", "keep", "keep_psnr", "hole_ssim", "keep_ssim", "iou", "injection_ratio", "loss/mpd"):
        assert np.isfinite(validation[f"val/{name}"])
    assert (trained / "samples" / "step-00000002.png").is_file()
    video = read_clip(trained / "samples" / "step-00000002.mp4")
    assert video.frames.shape == (3, 64, 4 * 64 + 3 * 4, 3)


def test_it_goes_on(genprop: Genprop, trained: Path, base: Path, davis: Path) -> None:
    outcome = genprop(
        "train", "--config", "svd-xt", "--base", base, "--data", davis, "--out", trained, *SETTINGS,
        "--set", "teacher.steps=3", "--resume", "--json",
    )  # fmt: skip
    assert (outcome.document["resumed_from"], outcome.document["steps"]) == (2, 3)


def test_the_bundle_runs(genprop: Genprop, trained: Path, davis: Path, tmp_path: Path) -> None:
    clip = davis / "JPEGImages" / "480p" / "clip-0"
    mask = tmp_path / "mask.png"
    cv2.imwrite(str(mask), np.pad(np.full((20, 20), 255, np.uint8), ((10, 42), (10, 66))))
    outcome = genprop(
        "run", clip, "--no-guide", "--mask", mask, "--model", trained / "teacher", "--steps", 1, "--seed", 0,
        "--out", tmp_path / "out.mp4", "--json",
    )  # fmt: skip
    assert outcome.document["evaluations"] == 4  # two windows of three frames, two evaluations each
    assert read_clip(tmp_path / "out.mp4").frames.shape == (5, 72, 96, 3)


def test_without_weights_and_network_it_says_what_it_looked_for(
    genprop: Genprop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    narrow = ["unet.block_out_channels=[32, 32, 32, 32]", "unet.num_attention_heads=[1, 1, 1, 1]"]
    narrow += ["vae.block_out_channels=[32, 32, 32, 32]", "image_encoder.num_hidden_layers=1"]
    outline = [part for setting in narrow for part in ("--set", f"base.{setting}")]  # for the memory plan
    outcome = genprop("train", "--config", "svd-xt", "--out", tmp_path / "run", *SETTINGS, *outline)
    assert outcome.code == 1 and not (tmp_path / "run").exists()
    error, hint = outcome.err.splitlines()[-2:]
    assert "stabilityai/stable-video-diffusion-img2vid-xt is no folder here" in error
    assert "hf download" in hint and "unet/, vae/, image_encoder/" in hint
