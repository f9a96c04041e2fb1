"""Each way in which a video or a picture is broken or unusual, by name."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from genprop.data.footage import Labels, open_footage, read_labels
from genprop.data.probe import probe
from genprop.errors import GenPropError
from genprop.video import read_clip, write_clip, write_image

if TYPE_CHECKING:
    from conftest import Maker


def broken(path: Path) -> str:
    """The message; nothing is to be noted of what cannot be read at all."""
    with pytest.raises(GenPropError) as error:
        open_footage(path, pytest.fail)
    assert str(path) in error.value.message and error.value.hint
    return error.value.message


def test_any_frames_of_a_video_are_those_of_the_whole(make: Maker, tmp_path: Path) -> None:
    path = make.clip(tmp_path / "a.mp4", make.noise(12))
    whole = read_clip(path)
    footage = open_footage(path, pytest.fail)
    assert len(footage) == 12 and footage.fps == whole.fps == 8
    for indices in ([0], [3, 4, 5], [1, 6, 11], range(12)):
        np.testing.assert_array_equal(np.stack(list(footage.read(indices))), whole.frames[list(indices)])


def test_one_frame_is_a_video_and_a_frame_beyond_the_last_is_an_error(make: Maker, tmp_path: Path) -> None:
    footage = open_footage(make.clip(tmp_path / "a.mp4", make.noise(1)), pytest.fail)
    assert len(footage) == len(list(footage.read([0]))) == 1
    with pytest.raises(GenPropError, match="truncated, decoding ends after 1 frames"):
        list(footage.read([1]))


@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.webm", "a.avi", "a.ts"])
def test_frames_are_counted_as_they_are_decoded(make: Maker, tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = make.video(tmp_path / name, make.noise(11), codec=codec)
    footage = open_footage(path, pytest.fail)
    assert len(footage) == len(list(footage.read(range(11)))) == 11


def test_a_video_trimmed_by_its_edit_list_counts_what_is_shown(make: Maker, tmp_path: Path) -> None:
    path = make.clip(tmp_path / "a.mp4", make.noise(16))
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = (1000).to_bytes(4, "big")  # play one second of the two
    path.write_bytes(data)
    footage = open_footage(path, pytest.fail)
    assert len(footage) == len(read_clip(path).frames) < 16
    assert len(list(footage.read(range(len(footage))))) == len(footage)


@pytest.mark.parametrize("keep", [0.5, 0.7, 0.95])
def test_a_truncated_video(make: Maker, tmp_path: Path, keep: float) -> None:
    front = make.cut(make.clip(tmp_path / "front.mp4", make.noise(12)), keep)
    assert "truncated, " in broken(front) and "of about 12 frames are whole" in broken(front)
    back = make.cut(make.video(tmp_path / "back.mp4", make.noise(12)), keep)
    assert "truncated or damaged, its index cannot be read" in broken(back)


def test_a_truncated_mkv(make: Maker, tmp_path: Path) -> None:
    assert "truncated" in broken(make.cut(make.clip(tmp_path / "a.mkv", make.noise(12)), 0.5))
    assert "truncated" in broken(make.cut(tmp_path / "a.mkv", 0.01))


def test_zero_bytes(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert "zero bytes" in broken(tmp_path / "a.mp4")
    folder = make.folder(tmp_path / "a", make.frames(2))
    (folder / "00001.png").write_bytes(b"")
    footage = open_footage(folder, pytest.fail)
    with pytest.raises(GenPropError, match=r"00001\.png: zero bytes"):
        list(footage.read([0, 1]))


def test_a_codec_that_nothing_decodes(make: Maker, tmp_path: Path) -> None:
    path = make.clip(tmp_path / "a.mp4", make.frames(3))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec cannot be decoded" in broken(path)


def test_what_is_no_video(make: Maker, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello " * 500)
    assert "cannot be decoded as a video" in broken(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "b.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert "no pictures in it" in broken(tmp_path / "b.mp4")
    assert "cannot be read: No such file" in broken(tmp_path / "none.mp4")
    (tmp_path / "empty").mkdir()
    assert "holds no frames" in broken(tmp_path / "empty")


def test_damage_inside_is_found_where_it_is_read(make: Maker, tmp_path: Path) -> None:
    path = make.video(tmp_path / "a.avi", make.noise(12), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        at = [packet.pos for packet in container.demux(video=0)][8]
    assert at is not None
    data = bytearray(path.read_bytes())
    data[at + 8 : at + 700] = bytes(692)
    path.write_bytes(data)
    footage = open_footage(path, lambda _: None)
    assert len(list(footage.read([0, 7]))) == 2
    with pytest.raises(GenPropError, match="damaged after 8 frames"):
        list(footage.read([7, 9]))


def test_a_video_without_a_first_frame(make: Maker, tmp_path: Path) -> None:
    path = make.clip(tmp_path / "a.mp4", make.noise(3))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = b"\xff" * (len(data) - at)
    path.write_bytes(data)
    assert "damaged, h264 without a first frame" in broken(path)
    with av.open(str(tmp_path / "parts.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as out:
        stream = out.add_stream("mpeg4", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        out.mux(stream.encode(av.VideoFrame(32, 24, "yuv420p")))
        out.mux(stream.encode(None))
    data = (tmp_path / "parts.mp4").read_bytes()
    (tmp_path / "parts.mp4").write_bytes(data[: data.index(b"moof") - 4])
    assert "holds no frames" in broken(tmp_path / "parts.mp4")


def test_what_is_unusual_is_noted_and_read(make: Maker, tmp_path: Path, notes: list[str]) -> None:
    frames = make.frames(4)
    make.video(tmp_path / "ten.mp4", frames, pix_fmt="yuv420p10le")
    make.video(tmp_path / "variable.mp4", frames, times=[0, 1, 4, 5])
    make.video(tmp_path / "codec.avi", frames, codec="mjpeg", pix_fmt="yuvj420p")
    make.turned(make.clip(tmp_path / "turned.mp4", frames))
    expected = {
        "ten.mp4": "10 bit: reduced to 8",
        "variable.mp4": "variable frame rate: frames are taken as they come",
        "codec.avi": "codec mjpeg, expected one of h264, ",
        "turned.mp4": "rotated by -90 degrees: turned upright",
    }
    for name, start in expected.items():
        notes.clear()
        footage = open_footage(tmp_path / name, notes.append)
        assert len(notes) == 1 and notes[0].startswith(start)
        read = np.stack(list(footage.read(range(4))))
        assert read.shape == ((4, 32, 24, 3) if name == "turned.mp4" else (4, 24, 32, 3))
        assert np.abs(read[:, 0, 0, 0].astype(int) - [0, 10, 20, 30]).max() <= 4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001)])
def test_a_clock_that_rounds_is_no_variable_rate(
    make: Maker, tmp_path: Path, name: str, fps: Fraction
) -> None:
    if name.endswith("ts"):
        make.video(tmp_path / name, make.frames(9))
    else:
        write_clip(tmp_path / name, make.frames(9), fps=fps)
    assert not probe(tmp_path / name).variable


def test_a_palette_is_read_by_index_and_anything_else_by_brightness(make: Maker, tmp_path: Path) -> None:
    labels = np.zeros((1, 4, 6), np.uint8)
    labels[0, 0], labels[0, 1], labels[0, 2] = 1, 2, 3  # 1 has the colour of 0
    folder = make.labels(tmp_path / "p", labels)
    np.testing.assert_array_equal(read_labels(folder / "00000.png"), labels[0])
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    write_image(tmp_path / "grey.png", grey)
    write_image(tmp_path / "rgb.png", np.stack([grey, 0 * grey, 0 * grey], -1))
    for name in ("grey.png", "rgb.png"):
        np.testing.assert_array_equal(read_labels(tmp_path / name), [[0, 0, 255, 255]])
    for data in (b"", b"hello", (folder / "00000.png").read_bytes()[:60]):
        (tmp_path / "bad.png").write_bytes(data)
        with pytest.raises(GenPropError, match=r"bad\.png cannot be read as a mask"):
            read_labels(tmp_path / "bad.png")


def test_labels_of_a_mask_video_are_its_white(make: Maker, tmp_path: Path) -> None:
    path = make.clip(tmp_path / "m.mp4", make.half(3))
    labels = Labels(open_footage(path, pytest.fail))
    assert len(labels) == 3 and labels.path == path and labels.fps == 8
    np.testing.assert_array_equal(np.stack(list(labels.read([0, 2]))), make.half(2)[..., 0] // 255)
