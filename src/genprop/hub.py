"""Where models are: inside the package, in a folder, or on the hub; and the one hash over a base's weights.

A base is a folder in diffusers' layout. On the hub it is the repository of Stable Video Diffusion, of which
only the files of that layout are fetched: safetensors, never pickles.

    unet/config.json             unet/diffusion_pytorch_model[.fp16].safetensors
    vae/config.json              vae/diffusion_pytorch_model[.fp16].safetensors
    image_encoder/config.json    image_encoder/model[.fp16].safetensors
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path

from genprop.errors import GenPropError

EMBEDDED = {"tiny": "student", "tiny-teacher": "teacher", "tiny-base": "base"}
"""The models inside the package, by the names that stand for them everywhere."""

PARTS = ("unet", "vae", "image_encoder")
LAYOUT = (
    f"expected {', '.join(f'{part}/' for part in PARTS)}, each with config.json and its weights as "
    "safetensors (diffusion_pytorch_model.safetensors, model.safetensors for the image encoder, or .fp16. "
    "of both)"
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str | Path) -> Path:
    """The folder of a model: an embedded name, or a folder.

    Raises:
        GenPropError: there is no such folder.
    """
    if str(name) in EMBEDDED:
        return Path(str(files("genprop") / "assets" / "tiny" / EMBEDDED[str(name)]))
    folder = Path(name)
    if not folder.is_dir():
        raise GenPropError(
            f"no model named {str(name)!r}: expected a folder, or one of {', '.join(EMBEDDED)}",
            "a hub model has to be downloaded into a folder first",
        )
    return folder


def locate_base(name: str | Path, *, variant: str | None = None) -> Path:
    """The folder of a base: an embedded name, a folder, or a hub id, which is downloaded (once).

    Args:
        variant: of the weights to download, "fp16" or None for the plain ones.

    Raises:
        GenPropError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    if str(name) in EMBEDDED or Path(name).is_dir() or not HUB_ID.fullmatch(str(name)):
        return locate(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    weights = f"*.{variant}*.safetensors" if variant else "*.safetensors"
    try:
        fetched = snapshot_download(
            str(name),
            allow_patterns=[f"{part}/{file}" for part in PARTS for file in ("config.json", weights)],
            ignore_patterns=[] if variant else ["*.fp16*"],
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise GenPropError(
            f"the base {name} is no folder here, and the hub did not give it: {_first_line(error)}",
            f"where there is a network, `hf download {name} --local-dir DIR` (after agreeing to its licence "
            f"on its page), then give DIR; {LAYOUT}",
        ) from error
    return Path(fetched)


def locate_file(name: str, file: str, *, what: str, hint: str) -> Path:
    """One file of weights: `name` itself, or `file` in the folder or the hub's repository of that name.

    Args:
        what: it is, and `hint`, how to get it, for the error.

    Raises:
        GenPropError: it is not there, and the hub did not give it.
    """
    path = Path(name)
    if path.is_file() or (path / file).is_file():
        return path if path.is_file() else path / file
    if path.is_dir():
        raise GenPropError(f"no {what} in {name}: expected {file}", hint)
    if not HUB_ID.fullmatch(name):
        raise GenPropError(f"no {what} at {name}: expected a file, a folder or a hub id", hint)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = _first_line(error)
        raise GenPropError(f"{what} is not here, and the hub did not give {name}: {reason}", hint) from error


def check_layout(folder: Path) -> None:
    """Refuse a folder that is no base.

    Raises:
        GenPropError: names what is missing and the layout that is expected.
    """
    missing = [f"{part}/config.json" for part in PARTS if not (folder / part / "config.json").is_file()]
    missing += [f"{p}/*.safetensors" for p in PARTS if (folder / p).is_dir() and not _weights(folder / p)]
    if missing:
        raise GenPropError(
            f"{folder} is not a base in diffusers' layout: it lacks {', '.join(missing)}",
            f"{LAYOUT}, as stabilityai/stable-video-diffusion-img2vid-xt has it",
        )


def weight_files(folder: Path, *, variant: str | None = None) -> list[Path]:
    """The safetensors that a base is loaded from, sorted.

    Args:
        variant: "fp16", or None: the plain ones where there are any, else those of fp16.
    """
    found: list[Path] = []
    for part in PARTS:
        half = [file for file in _weights(folder / part) if ".fp16" in file.name]
        plain = [file for file in _weights(folder / part) if ".fp16" not in file.name]
        found += half if variant == "fp16" or not plain else plain
    return sorted(found)


def base_sha256(folder: str | Path, *, variant: str | None = None) -> str:
    """One hash over the weights of a base folder: of the sorted names and hashes of its safetensors."""
    digest = hashlib.sha256()
    for file in weight_files(Path(folder), variant=variant):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
