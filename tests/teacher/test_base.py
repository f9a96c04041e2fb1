"""Training a base: the PCA start, the objectives, loading and saving."""

import json

import pytest
import torch
from torch.nn import functional as F

from genprop.config import load_config
from genprop.data.latents import render_frames
from genprop.data.procedural import ProceduralClips
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.pixels import to_pixels
from genprop.teacher.base import (
    AutoencoderObjective,
    BackboneObjective,
    drop_condition,
    load_base,
    new_base,
    save_base,
    start_from_pca,
)


def test_the_pca_start_is_the_pca_of_the_patches():
    base = new_base(load_config("tiny").base, seed=0)
    frames = render_frames(ProceduralClips(24, 3, frames=1, height=96, width=96), workers=0)
    start_from_pca(base.autoencoder, frames)
    pixels = to_pixels(frames)[None]
    with torch.no_grad():
        decoded = base.autoencoder.decode(base.autoencoder.encode_scaled(pixels))
    patches = F.pixel_unshuffle(pixels[0], 8).movedim(1, -1).flatten(0, 2)
    mean = patches.mean(0)
    _, _, basis = torch.linalg.svd(patches - mean, full_matrices=False)
    projected = (patches - mean) @ basis[:16].T @ basis[:16] + mean
    ours, exact = F.mse_loss(decoded, pixels), F.mse_loss(projected, patches)
    assert float(ours / exact) == pytest.approx(1, abs=0.1)


def test_the_autoencoder_objective_learns_from_random_weights():
    base = new_base(load_config("tiny").base, seed=0)
    frames = render_frames(ProceduralClips(4, 3, frames=1, height=96, width=96), workers=0)
    objective = AutoencoderObjective(base.autoencoder)
    optimizer = torch.optim.Adam(base.autoencoder.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        terms = objective(frames, Draws.of(0, len(frames)))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < 0.9 * losses[0]


def test_dropped_conditions_are_zero_and_others_untouched():
    first, embedding = torch.ones(400, 1, 1, 1, 1), torch.ones(400, 1, 2)
    dropped_first, dropped_embedding = drop_condition(first, embedding, 0.25, Draws.of(0, 400))
    kept = dropped_first.flatten()
    assert set(kept.tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.07)
    assert torch.equal(dropped_embedding[:, 0, 0], kept)


def test_a_base_survives_the_disk(tmp_path, small_base):
    save_base(small_base, tmp_path)
    again = load_base(tmp_path)
    for mine, theirs in zip(small_base, again, strict=True):
        for (name, a), (_, b) in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    card = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert card["_class_name"] == "UNetSpatioTemporalConditionModel"


def test_float16_on_disk_is_float32_in_memory(tmp_path, small_base):
    save_base(small_base, tmp_path, dtype=torch.float16)
    again = load_base(tmp_path)
    assert {p.dtype for p in again.backbone.parameters()} == {torch.float32}
    assert {p.dtype for p in small_base.backbone.parameters()} == {torch.float32}


def test_a_folder_that_is_no_base_is_named(tmp_path, small_base):
    with pytest.raises(GenPropError, match=r"lacks unet/config\.json, vae/config\.json"):
        load_base(tmp_path)
    save_base(small_base, tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(GenPropError, match="VQModel"):
        load_base(tmp_path)


def test_the_backbone_objective_reaches_backbone_and_image_encoder(rng):
    config = load_config("tiny")
    base = new_base(config.base, seed=0)
    objective = BackboneObjective(base.backbone, base.image_encoder, config)
    batch = {
        "source": torch.randn(1, 2, 16, 4, 4, generator=rng),
        "target": torch.randn(1, 2, 16, 4, 4, generator=rng),
        "first": torch.randn(1, 16, 4, 4, generator=rng),
        "source_first": torch.randn(1, 16, 4, 4, generator=rng),
        "image": torch.randn(1, 3, 32, 32, generator=rng),
        "source_image": torch.randn(1, 3, 32, 32, generator=rng),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }
    objective(batch, Draws.of(0, 1))["loss"].backward()
    assert base.backbone.conv_in.weight.grad is not None
    assert any(float(p.grad.abs().sum()) > 0 for p in base.image_encoder.parameters() if p.grad is not None)


def test_a_base_without_a_tensor_is_refused(tmp_path, small_base):
    from safetensors.torch import load_file, save_file

    save_base(small_base, tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(GenPropError, match=r"lacks 1 tensors.*conv_in\.weight"):
        load_base(tmp_path)


def test_arguments_that_upstream_does_not_take_are_named():
    config = load_config("tiny", ["base.unet.nonsense=1"])
    with pytest.raises(GenPropError, match="nonsense"):
        new_base(config.base, seed=0)
