"""A model folder: what a bundle holds, how it is written, and how it is checked when it is read.

    bundle.json         kind, configuration, base and its hash, few-step sigmas and eta, hash of every file
    net.safetensors     what was trained: content encoder, mask decoder (and a student's full backbone)
    lora/               a student's LoRA on the backbone, in peft's own layout
    decoder/            a light decoder, an AutoencoderTiny in diffusers' layout, where one was trained

The base (backbone, autoencoder, image encoder) stays where it is: a folder in diffusers' layout or a hub
id, named in `bundle.json` with the SHA-256 of its weights. A relative path is relative to the bundle; the
embedded base goes by its name, so that a bundle over it can be moved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genprop.config import Config
from genprop.errors import GenPropError
from genprop.folders import whole_folder
from genprop.hub import EMBEDDED, base_sha256, locate, locate_base, sha256
from genprop.settings import Model


class Card(Model):
    """`bundle.json`.

    Attributes:
        sigmas: few-step noise levels by number of steps, without the final 0.
        eta: share of fresh noise in few-step sampling, by number of steps; 1 where none is named.
    """

    format: Literal[1] = 1
    kind: Literal["teacher", "student"]
    config: Config
    base: str
    base_sha256: str
    sigmas: dict[int, tuple[float, ...]] = Field(default_factory=dict)
    eta: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: the card, and the folder it was read from."""

    folder: Path
    card: Card

    @property
    def base(self) -> str:
        """The base's folder, or its hub id."""
        if self.card.base in EMBEDDED:
            return str(locate(self.card.base))
        local = self.folder / self.card.base
        return str(local.resolve()) if local.is_dir() else self.card.base

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors, float32."""
        return {k: v.float() for k, v in load_file(self.folder / "net.safetensors").items()}

    @property
    def lora(self) -> Path | None:
        """The folder of the student's LoRA, if it has one."""
        return self._listed("lora")

    @property
    def decoder(self) -> Path | None:
        """The folder of its light decoder, if it has one."""
        return self._listed("decoder")

    def _listed(self, part: str) -> Path | None:
        return self.folder / part if any(name.startswith(f"{part}/") for name in self.card.files) else None


def read_bundle(name: str | Path) -> Bundle:
    """Read a bundle and check the hash of each of its files.

    Raises:
        GenPropError: no such folder, no or a wrong `bundle.json`, a file missing or of another hash.
    """
    folder = locate(name)
    card_file = folder / "bundle.json"
    if not card_file.is_file():
        raise GenPropError(
            f"{folder} is not a bundle: it has no bundle.json", "train or distil one, or use tiny"
        )
    try:
        card = Card.model_validate_json(card_file.read_bytes())
    except ValidationError as error:
        raise GenPropError(
            f"{card_file} cannot be read: {error.errors()[0]['msg']}", "copy the bundle again"
        ) from error
    for name, expected in card.files.items():
        file = folder / name
        if not file.is_file():
            raise GenPropError(f"{folder} lacks {name}, which its bundle.json lists", "copy the bundle again")
        if (got := sha256(file)) != expected:
            raise GenPropError(
                f"{file} has SHA-256 {got[:16]}…, expected {expected[:16]}…",
                "the file was changed or is damaged: copy the bundle again",
            )
    return Bundle(folder, card)


def write_bundle(
    folder: Path,
    *,
    kind: Literal["teacher", "student"],
    config: Config,
    base: str | Path,
    tensors: Mapping[str, Tensor],
    sigmas: Mapping[int, tuple[float, ...]] | None = None,
    eta: Mapping[int, float] | None = None,
    save_lora: Callable[[Path], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Write a bundle whole or not at all; an older one in its place is replaced.

    Args:
        base: folder or hub id of the base; a folder is noted relative to `folder`.
        tensors: what was trained, by the names in `GenPropNet`.
        save_lora: writes a LoRA in peft's layout into the folder it is given.
        dtype: in which `tensors` are stored.

    Raises:
        GenPropError: `folder` holds something that is not a bundle.
    """
    _check_replaceable(folder)
    with whole_folder(folder) as staging:
        save_file(
            {k: v.detach().to(dtype).contiguous() for k, v in tensors.items()}, staging / "net.safetensors"
        )
        if save_lora is not None:
            save_lora(staging / "lora")
        variant = config.base.variant
        card = Card(
            kind=kind,
            config=config,
            base=_name_of_base(base, folder),
            base_sha256=base_sha256(locate_base(base, variant=variant), variant=variant),
            sigmas=dict(sigmas or {}),
            eta=dict(eta or {}),
            files=_hashes(staging),
        )
        _write_card(card, staging / "bundle.json")
    return read_bundle(folder)


def check_schedule_target(bundle: Bundle, out: Path | None) -> None:
    """Refuse what `reschedule` would refuse, before anything is measured.

    Raises:
        GenPropError: `bundle` is one of the package's and `out` is None, or `out` is something else.
    """
    inside = {locate(name).resolve(): name for name in EMBEDDED}
    if out is not None:
        _check_replaceable(out)
    elif name := inside.get(bundle.folder.resolve()):
        raise GenPropError(
            f"{name} is part of the package, and would be overwritten", "name another folder with --out"
        )


def reschedule(
    bundle: Bundle,
    *,
    sigmas: Mapping[int, tuple[float, ...]],
    eta: Mapping[int, float],
    out: Path | None = None,
) -> Bundle:
    """A bundle with other few-step sigmas and eta, and the same weights; whole or not at all.

    Args:
        out: a folder for a copy; None replaces the card of the bundle itself.

    Raises:
        GenPropError: as `check_schedule_target`.
    """
    check_schedule_target(bundle, out)
    card = bundle.card.model_copy(update={"sigmas": dict(sigmas), "eta": dict(eta)})
    if out is None or out.resolve() == bundle.folder.resolve():
        beside = bundle.folder / ".bundle.json"
        try:
            _write_card(card, beside)
            os.replace(beside, bundle.folder / "bundle.json")
        finally:
            beside.unlink(missing_ok=True)
        return read_bundle(bundle.folder)
    return _copy(bundle, out, card)


def with_decoder(
    bundle: Bundle, save: Callable[[Path], object], *, out: Path, config: Config | None = None
) -> Bundle:
    """A copy of a bundle with a light decoder in the place of any it had; whole or not at all.

    Args:
        save: writes the decoder into the folder it is given.
        config: what the card is to say; the bundle's own if None.

    Raises:
        GenPropError: `out` holds something that is not a bundle.
    """
    files = {name: hash for name, hash in bundle.card.files.items() if not name.startswith("decoder/")}
    card = bundle.card.model_copy(update={"files": files, "config": config or bundle.card.config})
    return _copy(bundle, out, card, add=lambda staging: save(staging / "decoder"))


def _copy(
    bundle: Bundle, out: Path, card: Card, *, add: Callable[[Path], object] = lambda staging: None
) -> Bundle:
    """The files that `card` lists, and what `add` puts beside them, as a bundle in `out`."""
    _check_replaceable(out)
    with whole_folder(out) as staging:
        for name in card.files:
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.folder / name, staging / name)
        add(staging)
        base = _name_of_base(bundle.base, out)
        _write_card(
            card.model_copy(update={"base": base, "files": _hashes(staging)}), staging / "bundle.json"
        )
    return read_bundle(out)


def _hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _write_card(card: Card, file: Path) -> None:
    file.write_text(json.dumps(card.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / "bundle.json").is_file() and not _is_empty(folder):
        raise GenPropError(f"{folder} holds something that is not a bundle", "give a new or an empty folder")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _name_of_base(base: str | Path, folder: Path) -> str:
    """How a bundle in `folder` names its base: an embedded name, a relative path, or a hub id."""
    for name in EMBEDDED:
        if Path(base).resolve() == locate(name).resolve():
            return name
    return os.path.relpath(base, folder) if Path(base).is_dir() else str(base)


def check_base(bundle: Bundle, base: str | Path | None = None) -> None:
    """Refuse a base (the bundle's own by default) whose weights are not the ones it was trained on.

    Raises:
        GenPropError: the hashes differ.
    """
    expected, base = bundle.card.base_sha256, base or bundle.base
    variant = bundle.card.config.base.variant
    if (got := base_sha256(locate_base(base, variant=variant), variant=variant)) != expected:
        raise GenPropError(
            f"the base {base} has SHA-256 {got[:16]}…, but {bundle.folder} was trained on {expected[:16]}…",
            "use the base that the bundle names",
        )
