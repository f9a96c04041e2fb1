"""Videos as streams: a frame is decoded when asked for, written when given, and nothing half done is left."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from genprop import codec, frames
from genprop.errors import GenPropError
from genprop.video import open_frames, read_clip, read_image, write_clip, write_frames, write_image


def noise(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each frame that is decoded or read."""
    calls: list[int] = []

    def counting(function):
        def call(argument):
            calls.append(1)
            return function(argument)

        return call

    monkeypatch.setattr(codec, "upright_rgb", counting(codec.upright_rgb))
    monkeypatch.setattr(frames, "read_image", counting(frames.read_image))
    return calls


# Reading


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_is_known_at_opening_and_decoded_as_it_is_asked_for(
    tmp_path: Path, decoded: list[int], suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_clip(path, noise(60), fps=Fraction(30000, 1001))
    with open_frames(path) as reader:
        known = (reader.path, reader.height, reader.width, reader.fps, reader.expected)
        assert known == (path, 48, 64, Fraction(30000, 1001), 60)
        assert len(decoded) == 1
        first, second = next(reader), next(iter(reader))
        assert len(decoded) == 2
        rest = list(reader)
    assert list(reader) == []  # closed
    np.testing.assert_array_equal(np.stack([first, second, *rest]), read_clip(path).frames)
    assert first.flags.c_contiguous and first.dtype == np.uint8


def test_a_folder_is_read_as_it_is_asked_for(tmp_path: Path, decoded: list[int]) -> None:
    for index, image in enumerate(noise(11)):
        write_image(tmp_path / f"{index}.png", image)
    with open_frames(tmp_path, folder_fps=Fraction(24)) as reader:
        assert (reader.height, reader.width, reader.fps, reader.expected) == (48, 64, 24, 11)
        assert len(decoded) == 1
        np.testing.assert_array_equal(np.stack(list(reader)), noise(11))
    assert len(decoded) == 11


def test_a_turned_video_is_upright_and_contiguous(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", noise(3), fps=Fraction(16))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 44
    matrix = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4")
    data[at : at + 36] = matrix.tobytes()
    (tmp_path / "a.mp4").write_bytes(data)
    with open_frames(tmp_path / "a.mp4") as reader:
        assert (reader.height, reader.width) == (64, 48)
        assert all(frame.shape == (64, 48, 3) and frame.flags.c_contiguous for frame in reader)


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for index, image in enumerate(noise(2)):
        Image.fromarray(image).save(tmp_path / f"{index}.jpg", exif=exif)
    with open_frames(tmp_path) as reader:
        assert (reader.height, reader.width) == (64, 48) == read_image(tmp_path / "0.jpg").shape[:2]
        assert len(list(reader)) == 2


def test_a_stream_that_states_no_length(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.h264"), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in noise(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    with open_frames(tmp_path / "a.h264") as reader:
        assert reader.expected is None
        assert len(list(reader)) == 5


def test_what_is_wrong_with_a_folder_is_said_at_opening(tmp_path: Path, decoded: list[int]) -> None:
    with pytest.raises(GenPropError, match="holds no frames"):
        open_frames(tmp_path)
    write_image(tmp_path / "0.png", noise(1)[0])
    write_image(tmp_path / "1.png", noise(1, 48, 60)[0])
    with pytest.raises(GenPropError, match="frame 1 is 60x48, frame 0 is 64x48"):
        open_frames(tmp_path)
    (tmp_path / "1.png").write_bytes(b"hello")
    with pytest.raises(GenPropError, match=r"1\.png is not a picture"):
        open_frames(tmp_path)
    assert not decoded


def test_a_frame_of_another_size_is_named_where_it_comes(tmp_path: Path) -> None:
    # two raw streams, one after the other, as a broadcast that changes its format
    data = b""
    for size in ((48, 64), (48, 32)):
        with av.open(str(tmp_path / "part.h264"), "w", format="h264") as out:
            stream = out.add_stream("libx264", rate=16)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for image in noise(3, *size):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode(None))
        data += (tmp_path / "part.h264").read_bytes()
    (tmp_path / "a.h264").write_bytes(data)
    with open_frames(tmp_path / "a.h264") as reader:
        for _ in range(3):
            assert next(reader).shape == (48, 64, 3)
        with pytest.raises(GenPropError, match="frame 3 is 32x48, frame 0 is 64x48"):
            next(reader)


def test_a_cut_video_yields_what_is_whole_and_says_so_at_the_end(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", noise(24), fps=Fraction(16))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 2 // 5])
    with open_frames(tmp_path / "a.mkv") as reader:
        assert reader.expected == 24
        assert next(reader).shape == (48, 64, 3)
        with pytest.raises(GenPropError, match="cut short"):
            list(reader)
    assert len(read_clip(tmp_path / "a.mkv", max_frames=2).frames) == 2  # not met by who stops before


# Writing


@pytest.mark.parametrize(("name", "size"), [("a.mp4", (48, 64)), ("a.mkv", (48, 64)), ("a.mp4", (47, 63))])
def test_frame_by_frame_is_the_same_file_as_a_whole_clip(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    clip = noise(20, *size)
    write_clip(tmp_path / f"whole-{name}", clip, fps=Fraction(25))
    with write_frames(tmp_path / name, height=size[0], width=size[1], fps=Fraction(25)) as writer:
        for frame in clip:
            writer.write(frame)
        assert writer.frames == 20
        assert not (tmp_path / name).exists()  # until it is whole
    whole, streamed = read_clip(tmp_path / f"whole-{name}"), read_clip(tmp_path / name)
    assert streamed.frames.shape == whole.frames.shape and streamed.fps == whole.fps == 25
    if size[1] % 2:  # two encodings of one clip of an odd width differ now and then, streamed or not
        assert np.abs(streamed.frames.astype(int) - whole.frames).mean() < 2
        return
    np.testing.assert_array_equal(streamed.frames, whole.frames)
    if name == "a.mp4":  # Matroska draws a random identifier for each file
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    frame = noise(1)[0]
    write_clip(tmp_path / "a.mp4", np.ascontiguousarray(frame[None, :, ::-1]), fps=Fraction(25))
    with write_frames(tmp_path / "b.mp4", height=48, width=64, fps=Fraction(25)) as writer:
        writer.write(frame[:, ::-1])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError, GenPropError])
@pytest.mark.parametrize("written", [0, 1, 100])
def test_whatever_ends_it_early_passes_through_and_leaves_nothing(
    tmp_path: Path, error: type[BaseException], written: int
) -> None:
    (tmp_path / "old.mp4").write_text("precious")
    for name in ("new.mp4", "old.mp4"):
        with (
            pytest.raises(error, match=r"^stopped$"),
            write_frames(tmp_path / name, height=48, width=64, fps=Fraction(25)) as writer,
        ):
            for frame in noise(written):
                writer.write(frame)
            raise error("stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]
    assert (tmp_path / "old.mp4").read_text() == "precious"


@pytest.mark.parametrize("method", ["write", "close"])
def test_an_interrupt_inside_the_encoder_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(codec.Encoder, method, interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        write_frames(tmp_path / "a.mp4", height=48, width=64, fps=Fraction(25)) as writer,
    ):
        writer._encoder.frames = 1
        writer.write(noise(1)[0])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(codec.Encoder, "_mux", full)
    with (
        pytest.raises(GenPropError, match=r"a\.mp4 cannot be written: .*No space left") as error,
        write_frames(tmp_path / "a.mp4", height=48, width=64, fps=Fraction(25)) as writer,
    ):
        writer.write(noise(1)[0])
    assert error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with (
        pytest.raises(GenPropError, match="no frames were written, expected at least one"),
        write_frames(tmp_path / "a.mp4", height=48, width=64, fps=Fraction(25)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gif", "none/a.mp4", "folder.mp4"])
def test_targets_are_checked_before_a_frame_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(GenPropError) as error:
        write_frames(tmp_path / name, height=48, width=64, fps=Fraction(25))
    assert error.value.hint


def test_a_frame_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    with write_frames(tmp_path / "a.mp4", height=48, width=64, fps=Fraction(25)) as writer:
        writer.write(noise(1)[0])
        for frame in (noise(1, 64, 48)[0], noise(1)[0].astype(float), noise(1)[0, ..., 0]):
            with pytest.raises(AssertionError):
                writer.write(frame)
    assert len(read_clip(tmp_path / "a.mp4").frames) == 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    def resident() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    picture = cv2.resize(noise(1)[0], (640, 360))
    with write_frames(tmp_path / "a.mp4", height=360, width=640, fps=Fraction(25)) as writer:
        for index in range(400):
            writer.write(np.roll(picture, index, axis=1))
            if index == 100:
                before = resident()
        assert resident() - before < 40  # MB; 300 such frames are 200
    with open_frames(tmp_path / "a.mp4") as reader:
        for index, _ in enumerate(reader):
            if index == 100:
                before = resident()
        assert index == 399 and resident() - before < 40
