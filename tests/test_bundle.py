"""Bundles: what is written is read back, and nothing damaged or half-written passes for one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from genprop.bundle import Bundle, check_base, read_bundle, reschedule, write_bundle
from genprop.config import Config
from genprop.errors import GenPropError
from genprop.hub import base_sha256, locate, sha256

SIGMAS = {1: (80.0,), 2: (80.0, 1.0)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Something with weights in it: a bundle only hashes its base."""
    folder = tmp_path / "base"
    (folder / "unet").mkdir(parents=True)
    save_file({"w": torch.ones(3)}, folder / "unet" / "model.safetensors")
    return folder


@pytest.fixture
def tensors(rng: torch.Generator) -> dict[str, Tensor]:
    return {"sce.w": torch.randn(4, 3, generator=rng), "mpd.b": torch.randn(2, 5, generator=rng).t()}


@pytest.fixture
def bundle(tmp_path: Path, base: Path, tensors: dict[str, Tensor], small_config: Config) -> Bundle:
    return write(tmp_path / "student", base, tensors, small_config)


def write(folder: Path, base: Path, tensors: dict[str, Tensor], config: Config) -> Bundle:
    def save_lora(lora: Path) -> None:
        lora.mkdir()
        (lora / "adapter_config.json").write_text("{}")

    return write_bundle(
        folder, kind="student", config=config, base=base, tensors=tensors, sigmas=SIGMAS, save_lora=save_lora
    )


def test_round_trip(bundle: Bundle, base: Path, tensors: dict[str, Tensor], small_config: Config) -> None:
    read = read_bundle(bundle.folder)
    assert read.card == bundle.card
    assert (read.card.kind, read.card.config, read.card.sigmas) == ("student", small_config, SIGMAS)
    assert read.card.base == "../base" and Path(read.base) == base.resolve()
    assert read.lora == bundle.folder / "lora"
    assert set(read.card.files) == {"net.safetensors", "lora/adapter_config.json"}
    got = read.tensors()
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) for k in tensors)
    check_base(read)


def test_a_bundle_and_its_base_may_be_moved_together(bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("student", "base"):
        os.replace(tmp_path / name, moved / name)
    check_base(read_bundle(moved / "student"))


def test_tensors_are_stored_in_the_precision_asked_for(
    tmp_path: Path, base: Path, tensors: dict[str, Tensor], small_config: Config
) -> None:
    made = write_bundle(
        tmp_path / "half",
        kind="teacher",
        config=small_config,
        base=base,
        tensors=tensors,
        dtype=torch.float16,
    )
    got = made.tensors()
    assert all(
        torch.equal(got[k], v.half().float()) and got[k].dtype == torch.float32 for k, v in tensors.items()
    )


def test_a_flipped_byte_is_found_and_both_hashes_named(bundle: Bundle) -> None:
    file = bundle.folder / "net.safetensors"
    expected, content = sha256(file), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(GenPropError) as caught:
        read_bundle(bundle.folder)
    assert "net.safetensors" in caught.value.message
    assert expected[:16] in caught.value.message and sha256(file)[:16] in caught.value.message


@pytest.mark.parametrize("name", ["net.safetensors", "lora/adapter_config.json"])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    with pytest.raises(GenPropError, match=f"lacks {name}"):
        read_bundle(bundle.folder)


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match=r"has no bundle\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"format": 2}'])
def test_an_unreadable_card_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.folder / "bundle.json").write_bytes(content)
    with pytest.raises(GenPropError, match=r"bundle\.json cannot be read"):
        read_bundle(bundle.folder)


def test_another_base_is_refused(bundle: Bundle, base: Path) -> None:
    before = base_sha256(base)
    save_file({"w": torch.zeros(3)}, base / "unet" / "model.safetensors")
    with pytest.raises(GenPropError) as caught:
        check_base(read_bundle(bundle.folder))
    assert before[:16] in caught.value.message and base_sha256(base)[:16] in caught.value.message


def test_the_base_hash_knows_names_as_well_as_contents(base: Path) -> None:
    before = base_sha256(base)
    os.replace(base / "unet", base / "vae")
    assert base_sha256(base) != before


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(GenPropError, match=r"no model named 'absent'.*tiny, tiny-teacher"):
        read_bundle("absent")


def test_embedded_names_are_folders_of_the_package() -> None:
    assert [locate(n).name for n in ("tiny", "tiny-teacher", "tiny-base")] == ["student", "teacher", "base"]


def test_a_failure_leaves_the_old_bundle_and_nothing_else(
    bundle: Bundle, tmp_path: Path, base: Path, tensors: dict[str, Tensor], small_config: Config
) -> None:
    def broken(lora: Path) -> None:
        lora.mkdir()
        (lora / "adapter_config.json").write_text("half")
        raise OSError("no space left on device")

    def fail(folder: Path) -> None:
        with pytest.raises(OSError, match="no space"):
            write_bundle(
                folder, kind="teacher", config=small_config, base=base, tensors=tensors, save_lora=broken
            )

    fail(bundle.folder)
    fail(tmp_path / "new")
    assert read_bundle(bundle.folder).card == bundle.card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "student"]


def test_a_failure_of_the_last_rename_leaves_the_old_bundle(
    bundle: Bundle,
    tmp_path: Path,
    base: Path,
    tensors: dict[str, Tensor],
    small_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rename = os.replace

    def fail_into_place(source: str | Path, target: str | Path) -> None:
        if (Path(source) / "bundle.json").exists() and not (Path(source) / "lora").exists():
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_into_place)
    with pytest.raises(OSError, match="no space"):
        write_bundle(bundle.folder, kind="teacher", config=small_config, base=base, tensors=tensors)
    assert read_bundle(bundle.folder).card == bundle.card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "student"]


def test_a_new_bundle_replaces_the_whole_of_the_old_one(
    bundle: Bundle, base: Path, tensors: dict[str, Tensor], small_config: Config, tmp_path: Path
) -> None:
    made = write_bundle(bundle.folder, kind="teacher", config=small_config, base=base, tensors=tensors)
    assert (made.card.kind, made.lora) == ("teacher", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "student"]


def test_a_folder_of_something_else_is_never_replaced(
    tmp_path: Path, base: Path, tensors: dict[str, Tensor], small_config: Config
) -> None:
    precious = tmp_path / "holiday"
    precious.mkdir()
    (precious / "photo.png").write_bytes(b"x")
    with pytest.raises(GenPropError, match="holiday holds something that is not a bundle"):
        write_bundle(precious, kind="teacher", config=small_config, base=base, tensors=tensors)
    assert [p.name for p in precious.iterdir()] == ["photo.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "holiday"]


NEW = {1: (80.0,), 2: (80.0, 0.4)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_schedule_changes_the_card_and_nothing_else(bundle: Bundle) -> None:
    before = contents(bundle.folder)
    made = reschedule(bundle, sigmas=NEW, eta={2: 0.5})
    assert (made.card.sigmas, made.card.eta) == (NEW, {2: 0.5})
    assert made.card == bundle.card.model_copy(update={"sigmas": NEW, "eta": {2: 0.5}})
    after = contents(bundle.folder)
    assert before.pop("bundle.json") != after.pop("bundle.json") and before == after


def test_a_copy_with_a_new_schedule_finds_its_base_and_leaves_the_bundle_alone(
    bundle: Bundle, tmp_path: Path
) -> None:
    before = contents(bundle.folder)
    made = reschedule(bundle, sigmas=NEW, eta={}, out=tmp_path / "deep" / "copy")
    assert contents(bundle.folder) == before
    assert made.card.sigmas == NEW and made.card.base == "../../base" and made.lora is not None
    check_base(made)
    again = reschedule(bundle, sigmas=NEW, eta={2: 0.25}, out=made.folder)  # an older bundle is replaced
    assert again.card.eta == {2: 0.25}


@pytest.mark.parametrize("copy", [True, False])
def test_a_schedule_that_cannot_be_written_leaves_everything_as_it_was(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    before = contents(tmp_path)

    def full(source: str | Path, target: str | Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        reschedule(bundle, sigmas=NEW, eta={}, out=tmp_path / "copy" if copy else None)
    assert contents(tmp_path) == before and not (tmp_path / "copy").exists()


def test_an_embedded_bundle_is_rescheduled_only_into_a_folder(tmp_path: Path) -> None:
    tiny = read_bundle("tiny")
    before = contents(tiny.folder)
    with pytest.raises(GenPropError, match="tiny is part of the package"):
        reschedule(tiny, sigmas=NEW, eta={})
    made = reschedule(tiny, sigmas=NEW, eta={2: 0.5}, out=tmp_path / "mine")
    assert contents(tiny.folder) == before
    assert made.card.base == "tiny-base" and made.card.files == tiny.card.files
    with pytest.raises(GenPropError, match="not a bundle"):
        reschedule(tiny, sigmas=NEW, eta={}, out=tmp_path)


def test_bundles_from_before_eta_draw_fresh_noise_as_they_did(bundle: Bundle) -> None:
    file = bundle.folder / "bundle.json"
    card = json.loads(file.read_text())
    assert card.pop("eta") == {}
    file.write_text(json.dumps(card))
    assert read_bundle(bundle.folder).card.eta == {}


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_that_is_no_share_is_refused(bundle: Bundle, eta: float) -> None:
    file = bundle.folder / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eta": {"2": eta}}))
    with pytest.raises(GenPropError, match=r"bundle\.json cannot be read"):
        read_bundle(bundle.folder)
