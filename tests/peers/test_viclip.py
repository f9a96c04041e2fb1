"""ViCLIP against its authors' code, on random weights: small ones, and once at the size of L/14.

`GENPROP_VICLIP_REFERENCE` names a copy of the folder `Data/InternVid/viclip` of OpenGVLab/InternVideo, which
needs einops, ftfy and regex.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genprop.distill.rewards.viclip import ViclipReward, open_viclip

CAPTIONS = ["A dog runs over the grass, and back.", "two people; no car", "very " * 60]


def stand_in(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


@pytest.fixture(scope="module")
def authors() -> ModuleType:
    """The module `viclip` of the reference.

    What it asks of others without need has a stand-in: its package (whose own __init__ wants cv2), the
    registry and the dropped paths of timm (which in eval mode drop none), and `pkg_resources`, which is gone.
    """
    folder = Path(os.environ.get("GENPROP_VICLIP_REFERENCE", ""))
    if not (folder / "viclip_vision.py").is_file():
        pytest.skip("GENPROP_VICLIP_REFERENCE names no copy of InternVideo's Data/InternVid/viclip")
    for needed in ("einops", "ftfy", "regex"):
        pytest.importorskip(needed)
    import_module("packaging.version")
    sys.modules["viclip_reference"] = stand_in("viclip_reference", __path__=[str(folder)])
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            stand_in("pkg_resources", packaging=import_module("packaging")),
            stand_in("timm", __path__=[]),
            stand_in("timm.models", __path__=[]),
            stand_in("timm.models.layers", DropPath=lambda drop_prob: nn.Identity()),
            stand_in("timm.models.registry", register_model=lambda make: make),
        ):
            patch.setitem(sys.modules, module.__name__, module)
        return import_module("viclip_reference.viclip")


@pytest.fixture(params=["small", pytest.param("L/14", marks=pytest.mark.slow)])
def theirs(request: pytest.FixtureRequest, authors: ModuleType) -> Any:
    """The reference with random weights, norms about 1, so that attention and positions matter."""

    class Small(authors.ViCLIP):
        def build_vision_encoder(self) -> nn.Module:
            vision = import_module("viclip_reference.viclip_vision")
            return vision.VisionTransformer(28, 14, 128, 3, 2, 48, drop_path=0.1)

        def build_text_encoder(self) -> nn.Module:
            text = import_module("viclip_reference.viclip_text")
            return text.CLIP_TEXT(48, 32, 49408, 128, 2, 3, 0)

    with torch.random.fork_rng():
        model = (Small if request.param == "small" else authors.ViCLIP)(pretrain=None)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.2 if value.ndim < 2 else 2 * value.shape[-1] ** -0.5, generator=rng)
            if ".ln_" in name and name.endswith("weight"):
                value += 1
    model.vision_encoder.transformer.checkpoint_num = 0  # which warns, and changes no number
    return model.eval().requires_grad_(False)


@pytest.fixture
def ours(theirs: Any, tmp_path: Path) -> ViclipReward:
    """Its weights as the official file holds them, read by our loader; and its vocabulary as files."""
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    tokenizer = theirs.text_encoder._tokenizer
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.encoder))
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return open_viclip(str(tmp_path), tokenizer=str(tmp_path))


def normalised(frames: Tensor) -> Tensor:
    """As the reference's `frames2tensor` does to frames that already have the right size."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (frames - mean[:, None, None]) / std[:, None, None]


def compare(name: str, got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-4, where the embeddings of two inputs are at least 100 times as far apart."""
    error, apart = (got - expected).abs().max().item(), (expected[0] - expected[1]).abs().max().item()
    print(f"{name}: largest difference {error:.1e}, two inputs differ by {apart:.1e}")
    assert error < 1e-4 and apart > 1e-2


def test_the_embeddings_are_the_references(theirs: Any, ours: ViclipReward, rng: torch.Generator):
    size = ours.network.vision_encoder.size
    frames = torch.rand(2, 8, 3, size, size, generator=rng)
    frames[1] *= 0.3
    compare(f"video, {size} pixels", ours.prepare(frames), theirs.get_vid_features(normalised(frames)))
    texts = torch.cat([theirs.get_text_features(caption, None, {}) for caption in CAPTIONS])
    compare(f"text, {size} pixels", ours.prepare(CAPTIONS), texts)


@pytest.mark.parametrize("theirs", ["small"], indirect=True)
def test_the_gradient_is_the_references(theirs: Any, ours: ViclipReward, rng: torch.Generator):
    frames = torch.rand(2, 8, 3, 28, 28, generator=rng).requires_grad_()
    prepared = ours.prepare(1 - frames.detach())
    (got,) = torch.autograd.grad(ours(frames, prepared).sum(), frames)
    embedding = nn.functional.normalize(theirs.encode_vision(normalised(frames), test=True), dim=-1)
    (expected,) = torch.autograd.grad((embedding * prepared).sum(), frames)
    error = ((got - expected).norm() / expected.norm()).item()
    print(f"gradient: relative error {error:.1e}")
    assert error < 1e-4
