"""Where a base is: a folder, or the hub's cache on this disk; its weights and their hash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genprop.bundle import check_base, read_bundle, write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hub import base_sha256, check_layout, locate_base, weight_files
from genprop.settings import BaseConfig
from genprop.teacher.base import Base, load_base, save_base

HUB_ID = "acme/video-model"


def rename_to_fp16(folder: Path) -> None:
    """As the hub's fp16 variant is named: diffusion_pytorch_model.fp16.safetensors."""
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_base: Base) -> Path:
    """A cache of the hub that holds `HUB_ID` in fp16, without a network; the snapshot's folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    save_base(small_base, snapshot, dtype=torch.float16)
    rename_to_fp16(snapshot)
    return snapshot


def test_a_hub_id_is_its_snapshot_and_loads_in_fp16(hub: Path, small_base: Base) -> None:
    assert locate_base(HUB_ID, variant="fp16") == hub
    loaded = load_base(HUB_ID, BaseConfig(variant="fp16"))
    for name, value in small_base.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], value.half().float())
    assert not any(p.requires_grad for module in loaded for p in module.parameters())


def test_without_the_weights_the_layout_and_the_way_to_get_them_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(GenPropError, match="no folder here, and the hub did not give it") as caught:
        load_base("stabilityai/stable-video-diffusion-img2vid-xt", BaseConfig(variant="fp16"))
    for words in ("unet/, vae/, image_encoder/", "hf download stabilityai/", "licence", "safetensors"):
        assert words in caught.value.hint


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_plain_weights_are_read_where_there_are_both(
    tmp_path: Path, small_base: Base, variant: str | None
) -> None:
    save_base(small_base, tmp_path, dtype=torch.float16)
    rename_to_fp16(tmp_path)
    assert len(weight_files(tmp_path)) == 3 and all(".fp16" in file.name for file in weight_files(tmp_path))
    save_base(small_base, tmp_path)
    chosen = weight_files(tmp_path, variant=variant)
    assert [".fp16" in file.name for file in chosen] == [variant == "fp16"] * 3
    loaded = load_base(tmp_path, BaseConfig.model_validate({"variant": variant})).backbone.conv_in.weight
    expected = small_base.backbone.conv_in.weight
    assert torch.equal(loaded, expected if variant is None else expected.half().float())


def test_weights_that_are_not_read_do_not_count_in_the_hash(tmp_path: Path, small_base: Base) -> None:
    save_base(small_base, tmp_path)
    before = base_sha256(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / "all_in_one.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert base_sha256(tmp_path) == before != base_sha256(tmp_path, variant="fp16")


def test_pickles_are_never_read(tmp_path: Path, small_base: Base) -> None:
    save_base(small_base, tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(GenPropError, match=r"lacks unet/\*\.safetensors"):
        load_base(tmp_path)


def test_a_folder_lists_all_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(GenPropError) as caught:
        check_layout(tmp_path)
    for words in ("unet/config.json", "vae/config.json", "image_encoder/config.json", "vae/*.safetensors"):
        assert words in caught.value.message


def test_a_bundle_over_a_hub_base_knows_its_weights(hub: Path, tmp_path: Path, small_config: Config) -> None:
    config = small_config.model_copy(
        update={"base": small_config.base.model_copy(update={"variant": "fp16"})}
    )
    tensors: dict[str, Tensor] = {"sce.conv_in.weight": torch.zeros(2)}
    made = write_bundle(tmp_path / "t", kind="teacher", config=config, base=HUB_ID, tensors=tensors)
    assert made.base == HUB_ID and made.card.base_sha256 == base_sha256(hub, variant="fp16")
    check_base(read_bundle(tmp_path / "t"))
    save_file({"w": torch.zeros(3)}, hub / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(GenPropError, match="was trained on"):
        check_base(read_bundle(tmp_path / "t"))
