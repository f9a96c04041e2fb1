"""The command line as a person calls it: arguments in, exit code, stdout and stderr out."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genprop.cli import main
from genprop.video import write_clip

# One block in each part: what a forward costs here is the number of its modules. The autoencoder reads
# 4x4 patches, with the channels that its start from a PCA needs.
SMALL = """
name = "small"

[clip]
frames = 3
height = 16
width = 16

[base.unet]
sample_size = 4
in_channels = 8
out_channels = 4
block_out_channels = [32]
down_block_types = ["CrossAttnDownBlockSpatioTemporal"]
up_block_types = ["UpBlockSpatioTemporal"]
layers_per_block = 1
num_attention_heads = [2]
cross_attention_dim = 16
addition_time_embed_dim = 8
projection_class_embeddings_input_dim = 24
num_frames = 3

[base.vae]
in_channels = 48
out_channels = 48
block_out_channels = [12]
down_block_types = ["DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 4
norm_num_groups = 1
mid_block_add_attention = false
use_quant_conv = false
use_post_quant_conv = false

[base.image_encoder]
image_size = 16
patch_size = 8
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
projection_dim = 16

[sce]
blocks = 1

[net]
gate = true
carry = 8
mpd_hidden = [32, 16]

[sampling]
sigma_max = 80.0
steps = 2

[distill]
adapter.rank = 2
trajectories = 4
nodes = 2

[data]
count = 18
validation = 2
"""


@dataclass(frozen=True)
class Outcome:
    """What a call left: its exit code and what it printed."""

    code: int | str | None
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that is all of stdout."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture(scope="session")
def genprop() -> Callable[..., Outcome]:
    """`genprop(*arguments)`. Whatever is raised but not meant for a user comes out as it is."""

    def call(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as stopped,
        ):
            patch.setattr(sys, "argv", ["genprop", *map(str, arguments)])
            main()
        return Outcome(stopped.value.code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def refused(
    genprop: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`refused(*arguments, naming=[...])`, called in `tmp_path`: two lines, exit 1, and no file is touched.

    `naming` is what the error, or else its hint, has to say: what was got and what is expected.
    """
    monkeypatch.chdir(tmp_path)

    def files() -> dict[str, tuple[int, int]]:
        paths = [tmp_path, *tmp_path.rglob("*")]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.is_file()}

    def folders() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_dir()}

    def check(*arguments: object, naming: list[str]) -> None:
        before = files(), folders()
        outcome = genprop(*arguments, "--json")
        assert outcome.code == 1
        assert outcome.out == "" and "Traceback" not in outcome.err
        error, hint = outcome.err.splitlines()[-2:]
        assert error.startswith("error: ") and hint.startswith("hint: ") and len(hint) > len("hint: ")
        for words in naming:
            assert words in f"{error} {hint}"
        assert (files(), folders()) == before

    return check


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset for `--config`: 3 frames of 16x16 pixels, latents of 4 channels at a quarter of that."""
    path = tmp_path_factory.mktemp("preset") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def students(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of random weights that predict a mask which is nowhere, and one which is everywhere."""
    from genprop.bundle import write_bundle
    from genprop.config import load_config
    from genprop.student.clone import trained_tensors
    from genprop.teacher.base import new_base, save_base
    from genprop.teacher.net import GenPropNet

    config = load_config(preset)
    folder = tmp_path_factory.mktemp("students")
    base = new_base(config.base, seed=0)
    save_base(base, folder / "base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = GenPropNet(base.backbone, config.net, config.sce)
    tensors = trained_tensors(net, backbone=False)
    for name, logit in (("nowhere", -30.0), ("everywhere", 30.0)):
        tensors["mpd.layers.6.bias"] = torch.full((1,), logit)
        write_bundle(
            folder / name,
            kind="student",
            config=config,
            base=folder / "base",
            tensors=tensors,
            sigmas={1: (80.0,), 2: (80.0, 1.0), 4: (80.0, 8.0, 2.0, 0.5)},
        )
    return {name: folder / name for name in ("nowhere", "everywhere")}


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    """A gradient that moves, uint8 `[T, H, W, 3]`: x264 at its default loses little of it."""
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = [100 * np.sin((2 * x + 3 * y + 5 * t) / 20 + phase / 5) for phase in range(3)]
    return np.stack([128 + wave for wave in waves], axis=-1).astype(np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., np.ndarray]:
    """`clip(frames, height, width, fps=24)` writes `clip.mp4` into `tmp_path` and returns its frames."""

    def make(frames: int = 4, height: int = 32, width: int = 48, *, fps: object = 24) -> np.ndarray:
        pixels = smooth(frames, height, width)
        write_clip(tmp_path / "clip.mp4", pixels, fps=Fraction(str(fps)))
        return pixels

    return make
