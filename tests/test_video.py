"""The border to the disk: what is written comes back, and what is broken is named."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from genprop.errors import GenPropError
from genprop.types import Clip
from genprop.video import (
    check_edited,
    check_edited_size,
    check_output,
    fill_first_frame,
    read_clip,
    read_image,
    read_mask,
    read_mask_clip,
    write_clip,
    write_frames,
    write_image,
)

CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"


def smooth(frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Colour ramps that drift: every channel, every axis and every frame differs."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    red = 40 + 150 * x / width + 3 * t
    green = 60 + 120 * y / height + 2 * t
    blue = 200 - 100 * x / width - 3 * t
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def add_sound(source: Path, target: Path, *, seconds: float, delay: Fraction = Fraction(0)) -> None:
    """Rewrites a video with an AAC tone beside it; `delay` moves the pictures and the sound alike."""
    with av.open(str(source)) as read, av.open(str(target), "w") as out:
        video = out.add_stream_from_template(read.streams.video[0])
        audio = out.add_stream("aac", rate=48000, layout="mono")
        for packet in read.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts += round(delay / packet.time_base)
                packet.dts += round(delay / packet.time_base)
                packet.stream = video
                out.mux(packet)
        for start in range(0, round(seconds * 48000), 1024):
            tone = np.sin((start + np.arange(1024)) * 0.05).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            frame.pts = start + round(delay * 48000)
            out.mux(audio.encode(frame))
        out.mux(audio.encode(None))


def sound(path: Path) -> list[tuple[Fraction, bytes]]:
    """(time relative to the first picture, bytes) of every sound packet."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        start = (video.start_time or 0) * (video.time_base or 0)
        packets = [p for p in container.demux(audio=0) if p.pts is not None]
        return [(p.pts * p.time_base - start, bytes(p)) for p in packets if p.pts is not None]


# Writing and reading back


@pytest.mark.parametrize("fps", [Fraction(16), Fraction(25), Fraction(30000, 1001), Fraction(15, 2)])
def test_count_rate_and_size_survive(tmp_path: Path, fps: Fraction) -> None:
    write_clip(tmp_path / "a.mp4", smooth(), fps=fps)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.fps == fps
    assert clip.frames.shape == (12, 48, 64, 3)
    assert clip.path == tmp_path / "a.mp4"
    assert psnr(clip.frames, smooth()) > 38


@pytest.mark.parametrize("suffix", [".mov", ".m4v", ".mkv", ".MP4"])
def test_other_containers(tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / f"a{suffix}", smooth(), fps=Fraction(24))
    clip = read_clip(tmp_path / f"a{suffix}")
    assert clip.fps == 24
    assert psnr(clip.frames, smooth()) > 38


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = smooth(4, *size)
    write_clip(tmp_path / "a.mp4", frames, fps=Fraction(16))
    assert psnr(read_clip(tmp_path / "a.mp4").frames, frames) > 38


@pytest.mark.parametrize(("height", "tag"), [(64, 6), (720, 1)])
def test_colours_are_exact_and_their_matrix_is_stated(tmp_path: Path, height: int, tag: int) -> None:
    colours = np.array([[255, 0, 0], [20, 200, 90], [0, 0, 255], [255, 255, 255], [0, 0, 0]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, height, 64, 3))
    write_clip(tmp_path / "a.mp4", frames, fps=Fraction(5), crf=1)
    assert np.abs(read_clip(tmp_path / "a.mp4").frames.astype(int) - frames).max() <= 1
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == tag


@pytest.mark.parametrize(("height", "matrix"), [(64, "ITU601"), (720, "ITU709")])
def test_untagged_colours_are_taken_as_players_take_them(tmp_path: Path, height: int, matrix: str) -> None:
    green = av.VideoFrame.from_ndarray(np.full((height, 64, 3), (20, 200, 90), np.uint8), format="rgb24")
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv444p"
        frame = green.reformat(format="yuv444p", dst_colorspace=matrix)
        frame.colorspace, frame.pts = 2, 0  # AVCOL_SPC_UNSPECIFIED
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].codec_context.colorspace == 2
    frames = read_clip(tmp_path / "a.mkv").frames
    assert np.abs(frames.astype(int) - (20, 200, 90)).max() <= 1


def test_one_frame(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(1), fps=Fraction(16))
    assert len(read_clip(tmp_path / "a.mp4").frames) == 1


def test_max_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(), fps=Fraction(16))
    whole = read_clip(tmp_path / "a.mp4").frames
    np.testing.assert_array_equal(read_clip(tmp_path / "a.mp4", max_frames=5).frames, whole[:5])
    assert len(read_clip(tmp_path / "a.mp4", max_frames=99).frames) == 12
    with pytest.raises(GenPropError, match="at least 1"):
        read_clip(tmp_path / "a.mp4", max_frames=0)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["90", "180", "270"],
)
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    write_clip(tmp_path / "a.mp4", smooth(), fps=Fraction(16))
    upright = read_clip(tmp_path / "a.mp4").frames
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (65536 * v for v in matrix)  # the track header's matrix, 16.16 fixed point
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = read_clip(tmp_path / "turned.mp4").frames
    np.testing.assert_array_equal(turned, np.rot90(upright, turns, axes=(1, 2)))


def test_trimmed_by_an_edit_list_is_not_truncated(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(32), fps=Fraction(16))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = struct.pack(">I", 1000)  # play one second of the two
    (tmp_path / "a.mp4").write_bytes(data)
    assert 16 <= len(read_clip(tmp_path / "a.mp4").frames) <= 17


# Folders


def test_folder_in_natural_order(tmp_path: Path) -> None:
    frames = smooth(11)
    for index, frame in enumerate(frames):
        write_image(tmp_path / f"frame{index}.png", frame)
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_text("nor is this")
    clip = read_clip(tmp_path)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.fps == 16
    assert read_clip(tmp_path, folder_fps=Fraction(24)).fps == 24
    np.testing.assert_array_equal(read_clip(tmp_path, max_frames=3).frames, frames[:3])


def test_folder_of_several_sizes(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", smooth(1)[0])
    write_image(tmp_path / "1.png", smooth(1, 48, 60)[0])
    with pytest.raises(GenPropError, match="frame 1 is 60x48, frame 0 is 64x48"):
        read_clip(tmp_path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="no frames"):
        read_clip(tmp_path)


# Broken videos


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="does not exist") as error:
        read_clip(tmp_path / "none.mp4")
    assert error.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"hello " * 500, bytes(range(256)) * 40], ids=["empty", "text", "bytes"]
)
def test_not_a_video(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(GenPropError, match="cannot be decoded") as error:
        read_clip(tmp_path / "a.mp4")
    assert error.value.hint


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", smooth(1)[0])
    with pytest.raises(GenPropError, match="is a picture"):
        read_clip(tmp_path / "a.png")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(GenPropError, match="no pictures"):
        read_clip(tmp_path / "a.m4a")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("index", ["front", "back"])
def test_truncated_mp4(tmp_path: Path, keep: float, index: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "front.mp4", noise, fps=Fraction(16))
    with av.open(str(tmp_path / "front.mp4")) as read, av.open(str(tmp_path / "back.mp4"), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / f"{index}.mp4").read_bytes()
    assert (data.index(b"moov") < data.index(b"mdat")) == (index == "front")
    assert len(read_clip(tmp_path / f"{index}.mp4").frames) == 24
    (tmp_path / "cut.mp4").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(GenPropError, match=r"cut short|cannot be decoded") as error:
        read_clip(tmp_path / "cut.mp4")
    assert error.value.hint


def test_mp4_without_its_last_bytes(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", smooth(64), fps=Fraction(16))
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-5])
    # on one core FFmpeg raises at the broken frame, with several its threads deliver the ones before
    message = r"cut short: 6\d frames, expected about 64|cannot be decoded"
    with pytest.raises(GenPropError, match=message):
        read_clip(tmp_path / "a.mp4")


def test_truncated_mkv(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "a.mkv", noise, fps=Fraction(16))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 2 // 5])
    with pytest.raises(GenPropError, match="cut short"):
        read_clip(tmp_path / "a.mkv")


# Pictures, masks and the edited frame


def test_png_is_exact_and_jpg_is_close(tmp_path: Path) -> None:
    image = smooth(1)[0]
    write_image(tmp_path / "a.png", image)
    write_image(tmp_path / "a.jpg", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert psnr(read_image(tmp_path / "a.jpg"), image) > 35
    write_image(tmp_path / "grey.png", image[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(image[..., :1], 3, axis=-1))


@pytest.mark.parametrize("data", [None, b"", b"hello"], ids=["missing", "empty", "text"])
def test_not_a_picture(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(GenPropError, match=r"cannot be read|not a picture"):
        read_image(tmp_path / "a.png")


def test_mask_is_thresholded_at_127(tmp_path: Path) -> None:
    image = np.zeros((48, 64), np.uint8)
    image[:, 10:20], image[:, 20:30], image[:, 30:40] = 127, 128, 255
    write_image(tmp_path / "m.png", image)
    mask = read_mask(tmp_path / "m.png", size=(48, 64))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, image > 127)


def test_mask_of_another_size_or_empty(tmp_path: Path) -> None:
    write_image(tmp_path / "m.png", np.full((48, 64), 1, np.uint8))
    with pytest.raises(GenPropError, match="64x48, the video is 48x64"):
        read_mask(tmp_path / "m.png", size=(64, 48))
    with pytest.raises(GenPropError, match="empty: its brightest pixel is 1,"):
        read_mask(tmp_path / "m.png", size=(48, 64))
    with pytest.raises(GenPropError, match="cannot be read"):
        read_mask(tmp_path / "none.mp4", size=(48, 64))


def test_mask_clip(tmp_path: Path) -> None:
    masks = np.zeros((6, 48, 64), bool)
    for index in range(5):  # the object is gone in the last frame
        masks[index, 8:24, 8 * index : 8 * index + 16] = True
    frames = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    write_clip(tmp_path / "m.mp4", frames, fps=Fraction(16))
    like = Clip(smooth(6), Fraction(16))
    np.testing.assert_array_equal(read_mask_clip(tmp_path / "m.mp4", like=like), masks)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.mp4", size=(48, 64)), masks[0])
    for other in (smooth(7), smooth(6, 48, 62)):
        with pytest.raises(GenPropError, match="has 6 frames of 64x48"):
            read_mask_clip(tmp_path / "m.mp4", like=Clip(other, Fraction(16)))


def test_edited_frame_must_fit() -> None:
    clip = Clip(smooth(), Fraction(16))
    check_edited(clip.frames[0], clip)
    with pytest.raises(GenPropError, match="32x24, the video is 64x48: another size"):
        check_edited(np.zeros((24, 32, 3), np.uint8), clip)
    for shape in [(64, 48, 3), (48, 60, 3)]:
        with pytest.raises(GenPropError, match="another aspect"):
            check_edited(np.zeros(shape, np.uint8), clip)
        with pytest.raises(GenPropError, match="another aspect"):
            check_edited_size(np.zeros(shape, np.uint8), height=48, width=64)


def test_fill_restores_a_smooth_background_and_nothing_else() -> None:
    truth = smooth(1, 96, 128)[0]
    mask = np.zeros((96, 128), bool)
    mask[40:60, 50:75] = True
    frame = truth.copy()
    frame[39:61, 49:76] = (250, 10, 10)  # the object is one pixel larger than its mask
    filled = fill_first_frame(frame, mask)
    assert np.abs(filled[39:61, 49:76].astype(int) - truth[39:61, 49:76]).max() < 25
    far = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) == 0
    np.testing.assert_array_equal(filled[far], frame[far])
    with pytest.raises(GenPropError, match="whole frame"):
        fill_first_frame(frame, np.ones_like(mask))


# Sound


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_copied(tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / "silent.mp4", smooth(16), fps=Fraction(16))
    add_sound(tmp_path / "silent.mp4", tmp_path / "source.mp4", seconds=1)
    out = tmp_path / f"out{suffix}"
    write_clip(out, smooth(16), fps=Fraction(16), audio_from=tmp_path / "source.mp4")
    before, after = sound(tmp_path / "source.mp4"), sound(out)
    before = [packet for packet in before if packet[0] < 1]
    assert len(after) == len(before) > 40
    assert [data for _, data in after] == [data for _, data in before]
    # Matroska counts in milliseconds and cannot start before zero (AAC's priming does).
    shift = after[1][0] - before[1][0]
    assert all(abs(a - b - shift) <= Fraction(1, 900) for (a, _), (b, _) in zip(after, before, strict=True))
    assert shift == 0 or suffix == ".mkv"
    clip = read_clip(out)
    assert clip.frames.shape == (16, 48, 64, 3)
    assert clip.fps == 16


def test_sound_starts_with_the_first_picture_and_ends_with_the_last(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", smooth(16), fps=Fraction(16))
    add_sound(tmp_path / "silent.mp4", tmp_path / "late.ts", seconds=2, delay=Fraction(3))
    source = sound(tmp_path / "late.ts")
    write_clip(tmp_path / "out.mkv", smooth(8), fps=Fraction(16), audio_from=tmp_path / "late.ts")
    copied = sound(tmp_path / "out.mkv")
    assert 20 < len(copied) < 28  # half a second in packets of 21 ms
    assert abs(copied[5][0] - source[5][0]) < 0.03
    assert copied[-1][0] <= 0.53


def test_sound_lies_beside_its_pictures_and_is_read_with_them(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", smooth(16), fps=Fraction(16))
    add_sound(tmp_path / "silent.mp4", tmp_path / "source.mp4", seconds=30)
    clip = np.random.default_rng(0).integers(0, 255, (320, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "whole.mp4", clip, fps=Fraction(16), audio_from=tmp_path / "source.mp4")
    with write_frames(
        tmp_path / "a.mp4", height=48, width=64, fps=Fraction(16), audio_from=tmp_path / "source.mp4"
    ) as writer:
        for frame in clip:
            writer.write(frame)
        written = next(tmp_path.glob(".genprop-*")) / "a.mp4"
        assert written.stat().st_size > 250 * 48 * 64  # not held back until the end
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    source, copied = sound(tmp_path / "source.mp4"), sound(tmp_path / "a.mp4")
    assert copied == [packet for packet in source if packet[0] < 20]
    ahead, times = Fraction(0), [Fraction(0), Fraction(0)]  # of the pictures, and of the sound
    with av.open(str(tmp_path / "a.mp4")) as container:
        for packet in container.demux():
            if packet.dts is not None:
                times[packet.stream.type == "audio"] = packet.dts * packet.time_base
                ahead = max(ahead, abs(times[0] - times[1]))
    assert ahead < Fraction(1, 4)


def test_sound_that_does_not_fit_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no sound here")
    writer = write_frames(
        tmp_path / "a.mp4", height=48, width=64, fps=Fraction(16), audio_from=tmp_path / "bad.mp4"
    )
    with pytest.raises(GenPropError, match=r"a\.mp4 cannot be written with the sound of"), writer:
        pytest.fail("it was opened")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mp4"]


def test_silent_sources(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", smooth(), fps=Fraction(16))
    (tmp_path / "folder").mkdir()
    for source in ("silent.mp4", "folder"):
        write_clip(tmp_path / "out.mp4", smooth(), fps=Fraction(16), audio_from=tmp_path / source)
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert not container.streams.audio
    with pytest.raises(GenPropError, match=r"none\.mp4 does not exist"):
        write_clip(tmp_path / "out.mp4", smooth(), fps=Fraction(16), audio_from=tmp_path / "none.mp4")


def test_sound_that_does_not_fit_is_known_beforehand(tmp_path: Path) -> None:
    opus = tmp_path / "opus.webm"  # QuickTime has no place for it
    with av.open(str(opus), "w") as out:
        stream = out.add_stream("libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(GenPropError, match=r"with the sound of .*opus\.webm") as error:
        check_output(tmp_path / "a.mov", audio_from=opus)
    assert ".mkv" in error.value.hint
    check_output(tmp_path / "a.mkv", audio_from=opus)
    write_clip(tmp_path / "a.mkv", smooth(2), fps=Fraction(16), audio_from=opus)
    assert len(sound(tmp_path / "a.mkv")) >= 5  # packets of 20 ms
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "opus.webm"]


# Whole or not at all


def test_a_failure_leaves_nothing_new_and_nothing_lost(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no sound here")
    (tmp_path / "old.mp4").write_text("precious")
    before = sorted(tmp_path.iterdir())
    for name in ("new.mp4", "old.mp4"):
        with pytest.raises(GenPropError, match="cannot be written"):
            write_clip(tmp_path / name, smooth(), fps=Fraction(16), audio_from=tmp_path / "bad.mp4")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old.mp4").read_text() == "precious"


def test_success_leaves_one_file_that_others_may_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("to be replaced")
    write_clip(tmp_path / "a.mp4", smooth(), fps=Fraction(16))
    write_image(tmp_path / "a.png", smooth(1)[0])
    (tmp_path / "plain").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "a.png", "plain"]
    assert len({p.stat().st_mode for p in tmp_path.iterdir()}) == 1  # as the umask has it


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif", "a.wav", "none/a.mp4", "folder.mp4", "file/a.mp4"])
def test_unwritable_targets(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GenPropError) as error:
        write_clip(tmp_path / name, smooth(), fps=Fraction(16))
    assert name.split("/")[0] in error.value.message
    assert error.value.hint
    with pytest.raises(GenPropError):
        check_output(tmp_path / name)
    with pytest.raises(GenPropError):
        write_image((tmp_path / name).with_suffix(".png" if "/" in name else ".tga"), smooth(1)[0])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(GenPropError, match="cannot be written"):
        check_output(tmp_path / "a.mp4")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses even root")
def test_file_system_that_refuses() -> None:
    with pytest.raises(GenPropError, match="cannot be written"):
        write_clip(Path("/proc/self/a.mp4"), smooth(), fps=Fraction(16))
    with pytest.raises(GenPropError, match="cannot be written"):
        write_image(Path("/proc/self/a.png"), smooth(1)[0])
    with pytest.raises(GenPropError, match="cannot be written"):
        check_output(Path("/proc/self/a.mp4"))


# A real clip


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not on this machine")
def test_real_clip_through_the_codec(tmp_path: Path) -> None:
    folder = CLIPS / "boys-beach"
    clip = read_clip(folder / "video.mp4")
    assert clip.frames.shape == (85, 384, 640, 3)
    assert clip.fps == 16
    masks = read_mask_clip(folder / "mask-0.mp4", like=clip)
    assert 0.001 < masks[0].mean() < 0.2
    assert not np.array_equal(fill_first_frame(clip.frames[0], masks[0]), clip.frames[0])
    write_clip(tmp_path / "out.mp4", clip.frames[:16], fps=clip.fps, audio_from=folder / "video.mp4")
    assert psnr(read_clip(tmp_path / "out.mp4").frames, clip.frames[:16]) > 40
