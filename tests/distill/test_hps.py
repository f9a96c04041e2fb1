"""HPSv2.1: the checkpoint's format, the network it is of, how frames reach it, and what a score is."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from genprop.distill.rewards.hps import FILE, HpsReward, open_hps, preprocess
from genprop.distill.rewards.openclip import clip_config, from_open_clip
from genprop.errors import GenPropError

SIZE, PATCH, TOKENS, WORDS, JOINT = 16, 8, 7, 9, 24
HEADS = {"visual.": 2, "": 2}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def tower_shapes(prefix: str, *, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    parts = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    return {f"{prefix}transformer.resblocks.{i}.{n}": s for i in range(layers) for n, s in parts.items()}


def open_clip_shapes(
    *,
    size: int,
    patch: int,
    vision: tuple[int, int],
    text: tuple[int, int],
    tokens: int,
    words: int,
    joint: int,
) -> dict[str, tuple[int, ...]]:
    """As OpenCLIP names its CLIP of a vision transformer; `vision` and `text` are width and layers."""
    return {
        "positional_embedding": (tokens, text[0]),
        "text_projection": (text[0], joint),
        "logit_scale": (),
        "visual.class_embedding": (vision[0],),
        "visual.positional_embedding": ((size // patch) ** 2 + 1, vision[0]),
        "visual.proj": (vision[0], joint),
        "visual.conv1.weight": (vision[0], 3, patch, patch),
        **{
            f"visual.{ln}.{part}": (vision[0],) for ln in ("ln_pre", "ln_post") for part in ("weight", "bias")
        },
        **tower_shapes("visual.", width=vision[0], layers=vision[1]),
        **tower_shapes("", width=text[0], layers=text[1]),
        "token_embedding.weight": (words, text[0]),
        "ln_final.weight": (text[0],),
        "ln_final.bias": (text[0],),
    }


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights that make every layer matter, in fp16 as the official checkpoint is."""
    generator = torch.Generator().manual_seed(1)
    shapes = open_clip_shapes(
        size=SIZE, patch=PATCH, vision=(160, 2), text=(128, 3), tokens=TOKENS, words=WORDS, joint=JOINT
    )
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if "ln_" in name and name.endswith("weight"):
            tensor.mul_(0.3).add_(1)
        elif tensor.ndim > 1:
            tensor.mul_(0.2 if "proj" in name else 0.1)
    return {name: tensor.half() for name, tensor in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / FILE)
    return tmp_path


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """Seven words; start and end last, as in CLIP's vocabulary."""
    words = ("a</w>", "c", "t</w>", "at</w>", "cat</w>", "a", "!</w>", "<|startoftext|>", "<|endoftext|>")
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    return str(tmp_path)


@pytest.fixture
def reward(folder: Path, tokenizer: str) -> HpsReward:
    return open_hps(str(folder), tokenizer=tokenizer, device="cpu")


@pytest.fixture
def frames(rng: torch.Generator) -> Tensor:
    """Two samples of three frames, wider than high and larger than what the network sees."""
    return torch.rand(2, 3, 3, 20, 36, generator=rng)


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def transformer(state: dict[str, Tensor], prefix: str, x: Tensor, *, causal: bool = False) -> Tensor:
    """The published pre-norm transformer, on OpenCLIP's own tensors. `[N, L, width]`."""
    length, width = x.shape[1:]
    mask = torch.full((length, length), -torch.inf).triu(1) if causal else None
    attend: Any = F.multi_head_attention_forward
    layers = sum(name.startswith(f"{prefix}transformer") for name in state) // 12
    for i in range(layers):
        block = f"{prefix}transformer.resblocks.{i}"
        y = norm(state, f"{block}.ln_1", x).transpose(0, 1)
        weights = [state[f"{block}.attn.{n}"] for n in ("in_proj_weight", "in_proj_bias")]
        out = [state[f"{block}.attn.out_proj.{n}"] for n in ("weight", "bias")]
        y, _ = attend(y, y, y, width, HEADS[prefix], *weights, None, None, False, 0.0, *out, attn_mask=mask)
        x = x + y.transpose(0, 1)
        y = norm(state, f"{block}.ln_2", x)
        y = F.gelu(F.linear(y, state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"]))
        x = x + F.linear(y, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
    return x


def embed_image(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + state["visual.positional_embedding"]
    x = transformer(state, "visual.", norm(state, "visual.ln_pre", x))
    return F.normalize(norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"], dim=-1)


def embed_text(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = F.embedding(ids, state["token_embedding.weight"]) + state["positional_embedding"]
    x = norm(state, "ln_final", transformer(state, "", x, causal=True))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"], dim=-1)


def test_every_tensor_is_used_and_none_is_missing(state):
    converted = from_open_clip(state)
    expected = CLIPModel(clip_config(state)).state_dict()
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in expected.items()}
    assert sum(t.numel() for t in converted.values()) == sum(t.numel() for t in state.values())
    # Each number once: sums would differ if one tensor stood in for another of its shape.
    total = [sum(t.double().sum() for t in tensors.values()) for tensors in (converted, state)]
    torch.testing.assert_close(*total)


def test_the_official_network_is_vit_h_14():
    shapes = open_clip_shapes(
        size=224, patch=14, vision=(1280, 32), text=(1024, 24), tokens=77, words=49408, joint=1024
    )
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = clip_config(state)
    vision, text = config.to_dict()["vision_config"], config.to_dict()["text_config"]
    for tower, expected in ((vision, (1280, 5120, 32, 16)), (text, (1024, 4096, 24, 16))):
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert tuple(tower[key] for key in keys) == expected
        assert (tower["hidden_act"], tower["layer_norm_eps"]) == ("gelu", 1e-5)
    assert (vision["image_size"], vision["patch_size"], config.projection_dim) == (224, 14, 1024)
    assert (text["vocab_size"], text["max_position_embeddings"], text["eos_token_id"]) == (49408, 77, 49407)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert sum(p.numel() for p in model.parameters()) == 986_109_441
    assert {n: t.shape for n, t in from_open_clip(state).items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


def test_embeddings_are_those_of_the_published_network(reward, state, frames):
    state = {name: tensor.float() for name, tensor in state.items()}
    expected = embed_image(state, preprocess(frames.flatten(0, 1), size=SIZE)).unflatten(0, (2, 3))
    torch.testing.assert_close(reward.prepare(frames), expected, rtol=0, atol=2e-6)
    # "a cat" and "a", between start (7) and end (8).
    ids = torch.tensor([[7, 0, 4, 8, 0, 0, 0], [7, 0, 8, 0, 0, 0, 0]])
    text = reward.prepare(["a cat", "A"])
    torch.testing.assert_close(text, embed_text(state, ids)[:, None], rtol=0, atol=2e-6)
    assert (text[0] - text[1]).norm() > 0.01, "captions that read alike test nothing"
    torch.testing.assert_close(reward(frames, text), (expected * text).sum(-1).mean(1))


def test_a_frame_is_most_like_itself(reward, frames):
    torch.testing.assert_close(reward(frames, reward.prepare(frames)), torch.ones(2))
    assert (reward(1 - frames, reward.prepare(frames)) < 0.999).all()


def test_one_reference_stands_for_all_frames_and_samples_do_not_mix(reward, frames):
    first = reward.prepare(frames[:, :1])
    assert first.shape == (2, 1, JOINT)
    whole = reward(frames, first)
    assert whole.shape == (2,)
    alone = torch.stack([reward(frames[:, i : i + 1], first) for i in range(3)]).mean(0)
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(reward(frames[1:], first[1:]), whole[1:])
    with pytest.raises(AssertionError):
        reward(frames, reward.prepare(frames[:, :2]))


def test_gradient_reaches_the_frames_alone_and_points_up(reward, frames):
    assert not any(p.requires_grad for p in reward.model.parameters()) and not reward.model.training
    prepared = reward.prepare((1 - frames).requires_grad_())
    assert not prepared.requires_grad
    moving = frames.clone().requires_grad_()
    before = reward(moving, prepared)
    before.sum().backward()
    assert moving.grad is not None and moving.grad.flatten(2).any(-1).all()
    with torch.no_grad():
        direction = moving.grad / moving.grad.norm()
        after = reward(frames + 1e-2 * direction, prepared)
        slope = (after - before).sum() / 1e-2
        assert slope > 0
        torch.testing.assert_close(slope, moving.grad.norm(), rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", [(8, 21), (21, 8), (16, 5), (6, 3)])
def test_the_whole_frame_lies_on_black_the_odd_line_below_or_right(shape):
    seen = preprocess(torch.ones(1, 3, *shape), size=SIZE) * STD[:, None, None] + MEAN[:, None, None]
    height, width = (round(side * SIZE / max(shape)) for side in shape)
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    expected = torch.zeros(1, 3, SIZE, SIZE)
    expected[..., top : top + height, left : left + width] = 1
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)


def test_a_frame_of_the_right_size_is_only_normalised(rng):
    frames = torch.rand(1, 3, SIZE, SIZE, generator=rng)
    expected = (frames - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(preprocess(frames, size=SIZE), expected)


def test_fine_stripes_become_grey_and_no_alias():
    stripes = torch.zeros(1, 3, 160, 160)
    stripes[..., ::4] = stripes[..., 1::4] = 1
    seen = preprocess(stripes, size=SIZE)[..., 2:-2] * STD[:, None, None] + MEAN[:, None, None]
    torch.testing.assert_close(seen, torch.full_like(seen, 0.5), rtol=0, atol=0.02)


def test_file_folder_and_hub_are_one_reward(folder, reward, frames, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--xswu--HPSv2"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_bytes((folder / FILE).read_bytes())
    expected = reward.prepare(frames)
    for path in (None, "xswu/HPSv2", str(folder / FILE)):
        opened = open_hps(path, tokenizer="", device="cpu")
        assert torch.equal(opened.prepare(frames), expected)
    assert reward.card == ("HPSv2.1", f"xswu/HPSv2/{FILE}", "Apache-2.0") and reward.window == 1


def test_in_reduced_precision_the_score_stays_float32(folder, reward, frames):
    half = open_hps(str(folder), tokenizer="", device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    scores = half(frames, reward.prepare(frames[:, :1]))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, reward(frames, reward.prepare(frames[:, :1])), rtol=0, atol=0.02)


def test_a_tokenizer_of_another_network_is_refused(reward, tokenizer):
    vocabulary = json.loads((Path(tokenizer) / "vocab.json").read_text())
    vocabulary["<|endoftext|>"], vocabulary["a"] = vocabulary["a"], vocabulary["<|endoftext|>"]
    other = Path(tokenizer) / "other"
    other.mkdir()
    (other / "vocab.json").write_text(json.dumps(vocabulary))
    (other / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(GenPropError, match="expected every caption to end with token 8"):
        HpsReward(reward.model, tokenizer=str(other)).prepare(["t t"])


class Opens:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_is_missing_or_broken_is_an_error_that_says_what_to_do(state, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"state_dict": {}}))
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": {"visual.proj": torch.zeros(1)}}, tmp_path / "other.pt")
    torch.save({"state_dict": state | {"visual.attn_pool": torch.zeros(1)}}, tmp_path / "more.pt")
    torch.save({"state_dict": {n: t for n, t in state.items() if n != "ln_final.bias"}}, tmp_path / "less.pt")
    torch.save({"state_dict": state | {"visual.ln_pre.bias": torch.zeros(3)}}, tmp_path / "shape.pt")
    torch.save({"state_dict": state, "args": Opens(tmp_path / "ran")}, tmp_path / "code.pt")
    for path, words in {
        None: "the hub did not give xswu/HPSv2",
        "acme/rewards": "the hub did not give acme/rewards",
        "/no/such/file.pt": "expected a file, a folder or a hub id",
        str(tmp_path / "empty"): f"expected {FILE}",
        str(tmp_path / "text.pt"): "cannot be read as a checkpoint",
        str(tmp_path / "pickle.pt"): "cannot be read as a checkpoint",
        str(tmp_path / "bare.pt"): "expected a key state_dict",
        str(tmp_path / "other.pt"): "visual.conv1.weight",
        str(tmp_path / "more.pt"): "unknown tensor visual.attn_pool",
        str(tmp_path / "less.pt"): "final_layer_norm.bias",
        str(tmp_path / "shape.pt"): "size mismatch for vision_model.pre_layrnorm.bias",
        str(tmp_path / "code.pt"): "cannot be read as a checkpoint",
    }.items():
        with pytest.raises(GenPropError, match=words) as caught:
            open_hps(path, tokenizer="", device="cpu")
        assert "hf download xswu/HPSv2" in caught.value.hint
        assert "distill.rewards.hps.weight = 0" in caught.value.hint
    assert not (tmp_path / "ran").exists()
