"""HPSv2.1 against OpenCLIP and torchvision: preprocessing, tokens, both embeddings, and the gradient.

No official weights are needed: OpenCLIP's own network at random weights is saved in the official
checkpoint's format and read by the loader that reads the official one.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.distill.rewards.hps import FILE, HpsReward, open_hps, preprocess
from genprop.distill.rewards.tokens import tokenize

REASON = "needs open_clip_torch and torchvision, in an environment of its own: see tests/peers/README.md"
open_clip: Any = pytest.importorskip("open_clip", reason=REASON)
transforms: Any = pytest.importorskip("torchvision.transforms.functional", reason=REASON)
Image: Any = pytest.importorskip("PIL.Image", reason=REASON)

PHOTO = Path(__file__).parents[2] / "docs" / "demo.jpg"
CAPTIONS = (
    "a camel walks past a fence",
    "The cat's REFLECTION,  in 2 mirrors!! (it isn't real)",
    "Ein Café, übergroß — 猫 & 🐫",
    "kite " * 100,
)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A picture that is not square, uint8 values as floats in [0, 1]; `[3, H, W]`."""
    with Image.open(PHOTO) as image:
        return transforms.to_tensor(image.convert("RGB"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """OpenCLIP's own vocabulary and merges in the files that transformers reads."""
    theirs = open_clip.tokenizer.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(word, word): number for word, number in theirs.encoder.items()}
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in theirs.bpe_ranks), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return str(folder)


def padded(image: Any, *, size: int) -> Any:
    """HPSv2's resizing, step by step with torchvision's own functions, of a tensor or a picture."""
    width, height = (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size
    scale = size / float(max(height, width))
    new = [round(height * scale), round(width * scale)]
    image = transforms.resize(image, new, interpolation=transforms.InterpolationMode.BICUBIC)
    down, right = size - new[0], size - new[1]
    return transforms.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)


def reference(image: Tensor, *, size: int) -> Tensor:
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return transforms.normalize(padded(image, size=size), mean, std)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return (ours - theirs).abs().max().item()


def enliven(model: nn.Module) -> nn.Module:
    """Moves norms and biases off their constants, and rounds all to fp16, which the checkpoint holds."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.02 if parameter.ndim > 1 else 0.1).copy_(parameter.half())
    return model.eval().requires_grad_(False)


def save(model: nn.Module, folder: Path) -> str:
    torch.save({"state_dict": {n: t.half() for n, t in model.state_dict().items()}}, folder / FILE)
    return str(folder)


@pytest.fixture(scope="module")
def small() -> Any:
    """OpenCLIP's network of HPSv2.1 with fewer and narrower layers, whose heads are as wide."""
    vision = {"image_size": 56, "layers": 3, "width": 160, "head_width": 80, "patch_size": 14}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3}
    return enliven(open_clip.CLIP(embed_dim=96, vision_cfg=vision, text_cfg=text))


@pytest.fixture(scope="module")
def ours(small: Any, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> HpsReward:
    folder = save(small, tmp_path_factory.mktemp("small"))
    return open_hps(folder, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("turned", [False, True])
def test_preprocessing_is_hpsv2s(photo: Tensor, turned: bool) -> None:
    image = photo.transpose(1, 2) if turned else photo
    theirs, seen = reference(image, size=224), preprocess(image[None], size=224)[0]
    print(f"\npreprocessing, {tuple(image.shape)}: largest difference {distance(seen, theirs):.1e}")
    assert distance(seen, theirs) < 1e-5


def test_pils_resizing_differs_by_its_rounding_and_clipping_to_bytes(photo: Tensor) -> None:
    """HPSv2 resizes tensors, not pictures. Pillow goes to uint8 after each of two passes, width first."""
    picture = padded(transforms.to_pil_image(photo), size=224)
    pil = transforms.pil_to_tensor(picture).float()
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    plain = (preprocess(photo[None], size=224)[0] * std + mean) * 255
    height, width = photo.shape[1:]
    scale = 224 / max(height, width)
    bytewise = photo[None] * 255
    for shape in ((height, round(width * scale)), (round(height * scale), round(width * scale))):
        bytewise = F.interpolate(bytewise, shape, mode="bicubic", antialias=True).round().clamp(0, 255)
    top = (224 - bytewise.shape[-2]) // 2
    rows = pil[:, top : top + bytewise.shape[-2]]
    print(
        f"\nagainst PIL's uint8, in levels of 255: ours {(plain - pil).abs().max():.2f} at most, "
        f"{(plain - pil).abs().mean():.2f} on average; "
        f"by way of bytes {distance(bytewise[0], rows):.0f} at most"
    )
    assert distance(bytewise[0], rows) <= 1


def test_tokens_are_open_clips(tokenizer: str) -> None:
    theirs = open_clip.tokenizer.tokenize(list(CAPTIONS))
    assert torch.equal(tokenize(CAPTIONS, tokenizer=tokenizer), theirs)


def test_embeddings_and_score_are_open_clips(small: Any, ours: HpsReward, photo: Tensor) -> None:
    images = torch.stack([reference(photo, size=56), reference(photo.flip(2), size=56)])
    with torch.no_grad():
        image = small.encode_image(images, normalize=True)
        text = small.encode_text(open_clip.tokenizer.tokenize(list(CAPTIONS)), normalize=True)
    frames = torch.stack([photo, photo.flip(2)])[None]
    differences = {
        "image embedding": distance(ours.prepare(frames)[0], image),
        "text embedding": distance(ours.prepare(CAPTIONS)[:, 0], text),
        "score": distance(ours(frames, ours.prepare(CAPTIONS[:1])), (image @ text[0]).mean()[None]),
    }
    print("\nsmall:", {name: f"{value:.1e}" for name, value in differences.items()})
    assert distance(image[0], image[1]) > 1e-3 and distance(text[0], text[1]) > 1e-3
    assert max(differences.values()) < 1e-5


def test_the_gradient_in_the_pixels_is_open_clips(small: Any, ours: HpsReward, photo: Tensor) -> None:
    mine, theirs = (photo[:, ::4, ::4].clone().requires_grad_() for _ in range(2))
    prepared = ours.prepare(CAPTIONS[:1])
    ours(mine[None, None], prepared).sum().backward()
    embedding = small.encode_image(reference(theirs, size=56)[None], normalize=True)
    (embedding[0] @ prepared[0, 0]).backward()
    assert mine.grad is not None and theirs.grad is not None
    relative = ((mine.grad - theirs.grad).norm() / theirs.grad.norm()).item()
    print(f"\ngradient: relative difference {relative:.1e}")
    assert relative < 1e-4


@pytest.mark.slow
def test_at_full_size_the_embeddings_are_open_clips(tokenizer: str, photo: Tensor, tmp_path: Path) -> None:
    """986 million parameters: 6 GB of memory and 2 GB of disk at once."""
    model: Any = enliven(open_clip.create_model("ViT-H-14", pretrained=None))
    folder = save(model, tmp_path)
    ids = open_clip.tokenizer.tokenize(list(CAPTIONS[:2]))
    with torch.no_grad():
        image = model.encode_image(reference(photo, size=224)[None], normalize=True)
        text = model.encode_text(ids, normalize=True)
    del model
    gc.collect()
    reward = open_hps(folder, tokenizer=tokenizer, device="cpu")
    differences = {
        "image embedding": distance(reward.prepare(photo[None, None])[0], image),
        "text embedding": distance(reward.prepare(CAPTIONS[:2])[:, 0], text),
    }
    print("\nViT-H-14:", {name: f"{value:.1e}" for name, value in differences.items()})
    assert max(differences.values()) < 1e-4
