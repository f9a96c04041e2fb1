"""The streams together: a video through them with its masks and its sound, stopped at any moment by Ctrl-C.

`test_frames` and `test_masks` take each stream alone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from genprop.errors import GenPropError
from genprop.video import open_frames, open_masks, read_clip, write_clip, write_frames, write_image

FPS = Fraction(25)


def noise(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)


def squares(count: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]`: masks with a white square that walks to the right."""
    masks = np.zeros((count, 48, 64, 3), np.uint8)
    for index in range(count):
        masks[index, 8:24, index : index + 16] = 255
    return masks


def with_sound(path: Path, *, frames: int, seconds: float, delay: Fraction) -> Path:
    """A video with an AAC tone; pictures and sound alike begin `delay` after zero."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=FPS)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = out.add_stream("aac", rate=48000, layout="mono")
        for index, image in enumerate(noise(frames)):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.time_base, picture.pts = 1 / FPS, index + round(delay * FPS)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        for start in range(0, round(seconds * 48000), 1024):
            tone = np.sin((start + np.arange(1024)) * 0.05).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            samples.sample_rate, samples.time_base = 48000, Fraction(1, 48000)
            samples.pts = start + round(delay * 48000)
            out.mux(audio.encode(samples))
        out.mux(audio.encode(None))
    return path


def sound(path: Path) -> list[tuple[Fraction, bytes]]:
    """(time since the first picture, bytes) of every sound packet."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        start = (video.start_time or 0) * (video.time_base or 0)
        return [
            (p.pts * p.time_base - start, bytes(p)) for p in container.demux(audio=0) if p.pts is not None
        ]


@pytest.mark.parametrize("masks_are", ["video", "folder"])
def test_a_video_with_masks_and_sound_frame_by_frame(tmp_path: Path, masks_are: str) -> None:
    source = with_sound(tmp_path / "in.mkv", frames=20, seconds=1, delay=Fraction(0))
    if masks_are == "video":
        masks_path = tmp_path / "masks.mp4"
        write_clip(masks_path, squares(20), fps=FPS)
    else:
        masks_path = tmp_path / "masks"
        masks_path.mkdir()
        for index in (0, 7, 19):
            write_image(masks_path / f"{index}.png", squares(20)[index])
    with (
        open_frames(source) as reader,
        open_masks(masks_path, height=reader.height, width=reader.width, frames=20) as masks,
        write_frames(
            tmp_path / "out.mkv", height=reader.height, width=reader.width, fps=reader.fps, audio_from=source
        ) as writer,
    ):
        masked = []
        for index, frame in enumerate(reader):
            mask = masks.get(index)
            if mask is not None:
                np.testing.assert_array_equal(mask, squares(20)[index, ..., 0] > 127)
                frame[mask] = 0
                masked.append(index)
            writer.write(frame)
        masks.finish(writer.frames)
    assert masked == (list(range(20)) if masks_are == "video" else [0, 7, 19])
    out = read_clip(tmp_path / "out.mkv")
    assert out.frames.shape == (20, 48, 64, 3) and out.fps == FPS
    assert out.frames[7, 12:20, 11:19].max() < 40 < out.frames[7, 30:].mean()
    assert len(sound(tmp_path / "out.mkv")) > 30


@pytest.mark.parametrize(
    ("source", "target"), [("mp4", "mp4"), ("mp4", "mkv"), ("mkv", "mp4"), ("mkv", "mov")]
)
@pytest.mark.parametrize("delay", [Fraction(0), Fraction(3)])
def test_sound_is_bit_equal_and_in_time(tmp_path: Path, source: str, target: str, delay: Fraction) -> None:
    given = with_sound(tmp_path / f"in.{source}", frames=50, seconds=3, delay=delay)
    with write_frames(tmp_path / f"out.{target}", height=48, width=64, fps=FPS, audio_from=given) as writer:
        for frame in noise(50):
            writer.write(frame)
    before, after = sound(given), sound(tmp_path / f"out.{target}")
    expected = [packet for packet in before if packet[0] < 2]  # 50 frames last two seconds
    assert 90 < len(expected) < len(before)
    assert [data for _, data in after] == [data for _, data in expected]
    # Matroska counts in milliseconds, and a first packet before zero (AAC's priming) may move to zero.
    late = [abs(a - b) for (a, _), (b, _) in zip(after[2:], expected[2:], strict=True)]
    assert max(late) < Fraction(1, 40)
    assert max(late) - min(late) <= Fraction(1, 500)  # it does not drift


def test_a_mask_video_that_is_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.mkv"
    write_clip(path, np.random.default_rng(0).integers(0, 2, (24, 48, 64, 3), np.uint8) * 255, fps=FPS)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 5])
    with pytest.raises(GenPropError, match=r"m\.mkv is cut short"):
        open_masks(path, height=48, width=64, frames=24)
    with open_masks(path, height=48, width=64, frames=None) as masks:
        assert masks.get(0) is not None
        with pytest.raises(GenPropError, match=r"m\.mkv is cut short") as error:
            masks.finish(24)
    assert error.value.hint


def test_a_mask_that_is_no_picture_is_named_at_opening(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", squares(1)[0])
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(GenPropError, match=r"1\.png is not a picture") as error:
        open_masks(tmp_path, height=48, width=64, frames=6)
    assert error.value.hint


# It writes forever and says so when it has begun; the test stops it as a person would.
WRITING = """
import os, signal, sys
from fractions import Fraction
import numpy as np
from genprop.video import write_frames

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have inherited "ignore"
frames = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), np.uint8)
with write_frames(sys.argv[1], height=48, width=64, fps=Fraction(25)) as writer:
    while True:
        writer.write(frames[writer.frames % 8])
        if writer.frames == int(sys.argv[2]):
            os.write(1, b".")
"""


@pytest.mark.parametrize("written", [1, 30, 300])
def test_ctrl_c_leaves_what_was_there_before(tmp_path: Path, written: int) -> None:
    (tmp_path / "a.mp4").write_text("precious")
    command = [sys.executable, "-c", WRITING, str(tmp_path / "a.mp4"), str(written)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            began = process.stdout.read(1)
            during = [path.name for path in tmp_path.iterdir()]
            process.send_signal(signal.SIGINT)
            errors = process.stderr.read().decode()
            process.wait(30)
        finally:
            process.kill()
    assert began == b".", errors
    assert len(during) == 2 and any(name.startswith(".genprop-") for name in during)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "precious"
