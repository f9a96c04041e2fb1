"""Clips of every kind on disk, tiny, so that a whole dataset is made in a moment; and noise, encoded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from genprop.data import encode as data_encode
from genprop.data.encode import encode_dataset
from genprop.data.shards import LatentFolder
from genprop.settings import ClipConfig
from genprop.teacher.base import Base
from genprop.types import EditSample
from genprop.video import write_clip


class Maker:
    """Writes clips whose frame `i` has the grey level `10 * i`, and masks of the left half."""

    def frames(self, count: int, *, height: int = 24, width: int = 32) -> np.ndarray:
        level = 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]
        return np.broadcast_to(level, (count, height, width, 3)).copy()

    def half(self, count: int, *, height: int = 24, width: int = 32) -> np.ndarray:
        masks = np.zeros((count, height, width, 3), np.uint8)
        masks[:, :, : width // 2] = 255
        return masks

    def video(
        self,
        path: Path,
        frames: np.ndarray,
        *,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        times: Sequence[int] | None = None,
    ) -> Path:
        """One video of 8 frames a second; `times` of the frames, in eighths of a second."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=8)
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.codec_context.time_base = pix_fmt, Fraction(1, 8)
            for time, image in zip(times or range(len(frames)), frames, strict=True):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = time, Fraction(1, 8)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path

    def clip(self, path: Path, frames: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, frames, fps=Fraction(8))
        return path

    def folder(self, path: Path, frames: np.ndarray, *, suffix: str = "png", every: int = 1) -> Path:
        path.mkdir(parents=True)
        for i, frame in enumerate(frames):
            assert cv2.imwrite(
                str(path / f"{every * i:05d}.{suffix}"), np.ascontiguousarray(frame[..., ::-1])
            )
        return path

    def labels(self, path: Path, labels: np.ndarray, *, every: int = 1) -> Path:
        """Palette PNGs `[T, H, W]` under colours that say nothing: instance 1 is black, too."""
        path.mkdir(parents=True)
        for i, frame in enumerate(labels):
            image = Image.fromarray(frame.astype(np.uint8))
            image.putpalette([0, 0, 0, 0, 0, 0, 200, 30, 30, 30, 200, 30] + [7] * 756)
            image.save(path / f"{every * i:05d}.png")
        return path

    def turned(self, path: Path) -> Path:
        """Rewrites an mp4's display matrix, so that it is shown turned by 90 degrees."""
        data = bytearray(path.read_bytes())
        a, b, c, d = (65536 * value for value in (0, 1, -1, 0))
        at = data.index(b"tkhd") + 44
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(data)
        return path

    def cut(self, path: Path, keep: float = 0.6) -> Path:
        data = path.read_bytes()
        path.write_bytes(data[: int(keep * len(data))])
        return path

    def noise(self, count: int, *, height: int = 24, width: int = 32) -> np.ndarray:
        """Frames that do not compress, so that a cut file has lost frames, not only its end."""
        return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)


@pytest.fixture(scope="session")
def make() -> Maker:
    return Maker()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def triplet(make: Maker) -> Callable[..., None]:
    """A triplet of frame folders: edited is 5 brighter, the mask is the left half."""

    def write(root: Path, name: str, *, counts: tuple[int, int, int] = (12, 12, 12), width: int = 40) -> None:
        source, target = (make.frames(c, width=width) for c in counts[:2])
        make.folder(root / "original_videos" / name, source)
        make.folder(root / "edited_videos" / name, target + 5)
        make.folder(root / "masks" / name, make.half(counts[2], width=width))

    return write


FRAMES, SIZE, COUNT = 3, 16, 5


class Noise(Dataset[EditSample]):
    """Random clips; sample `i` is a function of `i`. Counts how often it is asked."""

    def __init__(self, *, broken: int | None = None) -> None:
        self.asked: list[int] = []
        self.broken = broken

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> EditSample:
        self.asked.append(index)
        if index >= COUNT:
            raise IndexError(index)
        if index == self.broken:
            raise RuntimeError("no such clip")
        rng = np.random.default_rng(index)
        source, target = rng.integers(0, 256, (2, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
        mask = rng.random((FRAMES, SIZE, SIZE)) < 0.5
        task = "insert" if index == 1 else "remove"
        return EditSample(source, target, mask, task=task, caption="Grüße." if index == 2 else "")


@pytest.fixture
def noise() -> type[Noise]:
    return Noise


@pytest.fixture
def encoded(small_base: Base, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LatentFolder]:
    """`encoded(folder, clip, ...)`: `encode_dataset` of noise, or of another dataset, in shards of two."""
    monkeypatch.setattr(data_encode, "SHARD", 2)

    def encode(
        folder: Path,
        clip: ClipConfig,
        *,
        base: Base = small_base,
        dataset: Dataset[EditSample] | None = None,
        **options: object,
    ) -> LatentFolder:
        data = Noise() if dataset is None else dataset
        return encode_dataset(data, folder, base.autoencoder, base.image_encoder, clip, **options)  # type: ignore[arg-type]

    return encode
