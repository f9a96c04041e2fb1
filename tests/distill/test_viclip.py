"""The ViCLIP reward, on a small random checkpoint in the official layout; its full size without contents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genprop.distill.rewards.base import Reward
from genprop.distill.rewards.viclip import OFFICIAL, ViclipReward, open_viclip
from genprop.distill.rewards.viclip_net import Viclip
from genprop.errors import GenPropError

END = 99  # the highest token id of the small vocabulary


def layout(
    *,
    width: int = 64,
    patch: int = 14,
    patches: int = 4,
    frames: int = 8,
    layers: int = 2,
    text_width: int = 64,
    vocabulary: int = 100,
    length: int = 9,
    text_layers: int = 2,
    out: int = 32,
) -> dict[str, tuple[int, ...]]:
    """Every name and shape of the official file, at any size."""
    shapes: dict[str, tuple[int, ...]] = {
        "temp": (),
        "vision_encoder.conv1.weight": (width, 3, 1, patch, patch),
        "vision_encoder.class_embedding": (width,),
        "vision_encoder.positional_embedding": (1 + patches, width),
        "vision_encoder.temporal_positional_embedding": (1, frames, width),
        "vision_encoder.proj": (width, out),
        "text_encoder.token_embedding.weight": (vocabulary, text_width),
        "text_encoder.positional_embedding": (length, text_width),
        "text_encoder.text_projection": (text_width, out),
    }
    for norm, w in (
        ("vision_encoder.ln_pre", width),
        ("vision_encoder.ln_post", width),
        ("text_encoder.ln_final", text_width),
    ):
        shapes |= {f"{norm}.weight": (w,), f"{norm}.bias": (w,)}
    for tower, w, count in (("vision_encoder", width, layers), ("text_encoder", text_width, text_layers)):
        for i in range(count):
            block = f"{tower}.transformer.resblocks.{i}"
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * w, w),
                f"{block}.attn.in_proj_bias": (3 * w,),
                f"{block}.attn.out_proj.weight": (w, w),
                f"{block}.attn.out_proj.bias": (w,),
                f"{block}.ln_1.weight": (w,),
                f"{block}.ln_1.bias": (w,),
                f"{block}.mlp.c_fc.weight": (4 * w, w),
                f"{block}.mlp.c_fc.bias": (4 * w,),
                f"{block}.mlp.c_proj.weight": (w, 4 * w),
                f"{block}.mlp.c_proj.bias": (w,),
                f"{block}.ln_2.weight": (w,),
                f"{block}.ln_2.bias": (w,),
            }
    return shapes


def random_weights(rng: torch.Generator, **sizes: int) -> dict[str, Tensor]:
    """Random, and with live attention: norms keep their scale."""
    weights = {k: 0.2 * torch.randn(shape, generator=rng) for k, shape in layout(**sizes).items()}
    for name in weights:
        if ".ln_" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


@pytest.fixture
def folder(tmp_path: Path, rng: torch.Generator) -> Path:
    save_file(random_weights(rng), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def reward(folder: Path) -> ViclipReward:
    return open_viclip(str(folder), tokenizer="unused")


def clips(rng: torch.Generator, size: int = 40) -> Tensor:
    """Two clips of noise that grows brighter, the second one in red."""
    frames = torch.rand(2, 8, 3, size, size + 6, generator=rng)
    frames = frames * torch.linspace(0.1, 1, 8)[:, None, None, None]
    frames[1, :, 1:] *= 0.2
    return frames


def test_a_folder_and_a_file_open_alike_frozen_and_for_eight_frames(folder, reward, rng):
    same: Reward = open_viclip(str(folder / "model.safetensors"), tokenizer="unused")
    frames = clips(rng)
    assert torch.equal(same.prepare(frames), reward.prepare(frames))
    assert reward.window == 8 and not reward.network.training
    assert not any(p.requires_grad for p in reward.network.parameters())
    assert reward.card.source == str(folder) and "MIT" in reward.card.licence
    assert reward.to("cpu") is reward


def test_at_the_size_of_l14_it_has_the_parameters_that_the_hub_counts():
    shapes = layout(
        width=1024,
        patches=256,
        layers=24,
        text_width=768,
        vocabulary=49408,
        length=32,
        text_layers=12,
        out=768,
    )
    with torch.device("meta"):
        network = Viclip(shapes)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == shapes
    assert network.vision_encoder.size == 224
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == 428


def test_a_clip_is_most_like_itself_and_order_counts(reward, rng):
    frames = clips(rng)
    prepared = reward.prepare(frames)
    assert prepared.shape == (2, 32) and not prepared.requires_grad
    assert torch.allclose(prepared.norm(dim=1), torch.ones(2))
    assert torch.allclose(reward(frames, prepared), torch.ones(2), atol=1e-6)
    for other in (frames.flip(1), 1 - frames, frames.roll(1, dims=0)):
        assert (reward(other, prepared) < 1 - 1e-5).all()


def test_the_gradient_reaches_the_frames_alone_and_goes_up(reward, rng):
    frames, prepared = clips(rng).requires_grad_(), reward.prepare(clips(rng))
    score = reward(frames, prepared)
    score.sum().backward()
    assert frames.grad is not None and frames.grad.flatten(2).any(dim=2).all()
    assert all(p.grad is None for p in reward.network.parameters())
    with torch.no_grad():
        assert (reward(frames + 1e-2 * frames.grad / frames.grad.norm(), prepared) > score).all()


def test_the_gradient_is_that_of_the_blocks_computed_once(reward, rng, monkeypatch):
    frames, prepared = clips(rng).requires_grad_(), reward.prepare(clips(rng))
    (twice,) = torch.autograd.grad(reward(frames, prepared).sum(), frames)
    monkeypatch.setattr(
        "genprop.distill.rewards.viclip_net.checkpoint", lambda block, x, use_reentrant: block(x)
    )
    (once,) = torch.autograd.grad(reward(frames, prepared).sum(), frames)
    assert torch.allclose(twice, once, rtol=1e-5, atol=1e-9)


def test_every_pixel_of_a_large_frame_is_looked_at(reward, rng):
    frames = clips(rng, size=100).requires_grad_()
    reward(frames, reward.prepare(clips(rng))).sum().backward()
    assert frames.grad is not None and (frames.grad != 0).all()


def test_frames_of_the_right_size_are_only_normalised(reward, rng):
    frames = torch.rand(2, 8, 3, 28, 28, generator=rng)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # ImageNet's, not CLIP's
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(reward.preprocess(frames), (frames - mean) / std, atol=1e-6)
    grey = reward.preprocess(torch.full((1, 8, 3, 50, 90), 0.5))
    assert torch.allclose(grey, ((0.5 - mean) / std).expand_as(grey), atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 16])
def test_other_than_eight_frames_are_refused(reward, rng, count):
    frames = torch.rand(1, count, 3, 28, 28, generator=rng)
    with pytest.raises(GenPropError, match=rf"a clip of {count} frames, expected exactly 8"):
        reward.prepare(frames)


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    """A CLIP tokenizer of two letters, whose end token has the highest id, as CLIP's has."""
    words = {"a</w>": 3, "b</w>": 4, "<|startoftext|>": 98, "<|endoftext|>": END}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return str(tmp_path)


def test_captions_are_read_to_their_end_and_no_further(folder, vocabulary, rng):
    reward = open_viclip(str(folder), tokenizer=vocabulary)
    prepared = reward.prepare(["a b", "b a", "a " * 50])
    assert prepared.shape == (3, 32) and torch.allclose(prepared.norm(dim=1), torch.ones(3))
    assert not torch.allclose(prepared[0], prepared[1], atol=1e-3)
    padded_otherwise = torch.tensor([[98, 3, 4, END, 5, 6, 7, 8, 9]])
    embedded = reward.network.text_encoder(padded_otherwise)
    assert torch.allclose(embedded / embedded.norm(), prepared[:1], atol=1e-6)
    assert (reward(clips(rng), prepared[:2]).abs() <= 1).all()


def clip_names(weights: dict[str, Tensor], tower: str, prefix: str) -> dict[str, Tensor]:
    """The blocks of a tower by the names that transformers' CLIP has for them."""
    renamed = {}
    for name, value in weights.items():
        if not name.startswith(f"{tower}.transformer.resblocks."):
            continue
        i, part = name.removeprefix(f"{tower}.transformer.resblocks.").split(".", 1)
        layer = f"{prefix}.encoder.layers.{i}"
        if part.startswith("attn.in_proj"):
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{part.removeprefix('attn.in_proj_')}"] = third
            continue
        for ours, theirs in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            part = part.replace(ours, theirs)
        renamed[f"{layer}.{part}"] = value
    return renamed


def opened(weights: dict[str, Tensor], folder: Path) -> Viclip:
    save_file(weights, folder / "model.safetensors")
    return open_viclip(str(folder), tokenizer="unused").network


def test_the_text_tower_is_clips(tmp_path: Path, rng: torch.Generator):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    weights = random_weights(rng, text_width=128)
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        hidden_act="quick_gelu",
        eos_token_id=END,
    )
    theirs = CLIPTextModelWithProjection(config).eval()
    names = clip_names(weights, "text_encoder", "text_model") | {
        "text_model.embeddings.token_embedding.weight": weights["text_encoder.token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["text_encoder.positional_embedding"],
        "text_model.final_layer_norm.weight": weights["text_encoder.ln_final.weight"],
        "text_model.final_layer_norm.bias": weights["text_encoder.ln_final.bias"],
        "text_projection.weight": weights["text_encoder.text_projection"].T,
    }
    theirs.load_state_dict(names)
    ids = torch.tensor([[98, 5, 17, END, 0, 0, 0, 0, 0], [98, 1, 2, 3, 4, 5, 6, 7, END]])
    with torch.no_grad():
        expected = theirs(input_ids=ids).text_embeds
        assert torch.allclose(opened(weights, tmp_path).text_encoder(ids), expected, rtol=1e-4, atol=1e-4)


def test_the_video_tower_on_one_frame_is_clips_picture_tower(tmp_path: Path, rng: torch.Generator):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    weights = random_weights(rng, width=128, frames=1)
    weights["vision_encoder.temporal_positional_embedding"].zero_()
    config = CLIPVisionConfig(
        image_size=28,
        patch_size=14,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="quick_gelu",
    )
    theirs = CLIPVisionModelWithProjection(config).eval()
    names = clip_names(weights, "vision_encoder", "vision_model") | {
        "vision_model.embeddings.class_embedding": weights["vision_encoder.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["vision_encoder.conv1.weight"][:, :, 0],
        "vision_model.embeddings.position_embedding.weight": weights["vision_encoder.positional_embedding"],
        "vision_model.pre_layrnorm.weight": weights["vision_encoder.ln_pre.weight"],
        "vision_model.pre_layrnorm.bias": weights["vision_encoder.ln_pre.bias"],
        "vision_model.post_layernorm.weight": weights["vision_encoder.ln_post.weight"],
        "vision_model.post_layernorm.bias": weights["vision_encoder.ln_post.bias"],
        "visual_projection.weight": weights["vision_encoder.proj"].T,
    }
    theirs.load_state_dict(names)
    picture = torch.randn(2, 1, 3, 28, 28, generator=rng)
    with torch.no_grad():
        expected = theirs(pixel_values=picture[:, 0]).image_embeds
        got = opened(weights, tmp_path).vision_encoder(picture)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_weights_in_half_precision_are_scored_in_single(folder: Path, rng: torch.Generator):
    save_file({k: v.half() for k, v in random_weights(rng).items()}, folder / "model.safetensors")
    reward = open_viclip(str(folder), tokenizer="unused")
    assert {p.dtype for p in reward.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda w: w.pop("vision_encoder.proj"), "vision_encoder.proj"),
        (lambda w: w.pop("temp"), "temp"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update({"vision_encoder.ln_pre.bias": torch.zeros(3)}), "ln_pre.bias"),
        (lambda w: w.update({"vision_encoder.positional_embedding": torch.zeros(6, 64)}), "5 patches"),
        (lambda w: w.update({"vision_encoder.conv1.weight": torch.zeros(8, 3, 1, 14, 14)}), "width of 8"),
        (lambda w: w.update({"text_encoder.positional_embedding": torch.zeros(())}), "index out of range"),
    ],
)
def test_what_is_not_viclips_is_named(tmp_path: Path, rng: torch.Generator, break_it, reason):
    weights = random_weights(rng)
    break_it(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(GenPropError, match="does not hold ViCLIP") as caught:
        open_viclip(str(tmp_path), tokenizer="unused")
    assert reason in caught.value.message and "rewards.viclip.weight = 0" in caught.value.hint


def test_a_cut_file_and_a_missing_one_are_errors_for_a_person(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(GenPropError, match="does not hold ViCLIP"):
        open_viclip(str(file), tokenizer="unused")
    file.unlink()
    for path in (folder, file, "no/such/file"):
        with pytest.raises(GenPropError, match=r"no ViCLIP (in|at)") as caught:
            open_viclip(str(path), tokenizer="unused")
        assert OFFICIAL in caught.value.hint


def test_without_a_network_the_ways_to_get_it_and_to_do_without_are_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(GenPropError, match=f"the hub did not give {OFFICIAL}") as caught:
        open_viclip(None, tokenizer="unused")
    for words in (f"hf download {OFFICIAL} model.safetensors", "viclip.path", "viclip.weight = 0"):
        assert words in caught.value.hint


def test_the_official_weights_are_read_from_the_hubs_cache(tmp_path: Path, monkeypatch, rng):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--{OFFICIAL.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    save_file(random_weights(rng), snapshot / "model.safetensors")
    assert open_viclip(None, tokenizer="unused").card.source == OFFICIAL
