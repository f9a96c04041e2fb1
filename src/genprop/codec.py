"""FFmpeg, by way of PyAV: pictures out of a container, H.264 and a copied sound track into one.

Frame by frame, so that a long video needs no more memory than a short one. `frames` is the public side of
it and decides where a file lands. Colours: a stream's own matrix is honoured; where it states none (most
do not), HD is BT.709 and anything smaller BT.601, as players take it. What is written states its matrix,
so it cannot shift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import Colorspace, Interpolation
from av.video.stream import VideoStream

from .errors import GenPropError

# FFmpeg's default conversion is off by one or two levels; a frame nobody touched should not be.
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNTAGGED, _LIMITED = 2, 1  # AVCOL_SPC_UNSPECIFIED, AVCOL_RANGE_MPEG
AGAIN = "Give a complete video; `ffmpeg -i IN -c:v libx264 OUT.mp4` repairs or converts many."
"""The hint for a video that cannot be read."""


class Decoder:
    """Decodes the first video stream of a file, one frame at a time, as it is iterated over (once).

    Attributes:
        fps: the container's average rate.
        expected: how many frames the container states, or None where it does not say. An edit list or a
            variable rate makes it wrong by a few.

    Raises:
        GenPropError: it is no video. While iterating: it is damaged there, or it ends before it should.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _decoding(path):
            self._container = av.open(str(path), "r")
        if not self._container.streams.video:
            self.close()
            raise GenPropError(f"{path} has no pictures in it, expected a video", AGAIN)
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.expected: int | None = round(_by_duration(self._container)) or None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Upright RGB frames, uint8 `[H, W, 3]`, contiguous."""
        count, cut = 0, False
        with _decoding(self.path):
            for packet in self._container.demux(self._stream):
                cut |= packet.is_corrupt  # the demuxer got only a part of it
                for frame in packet.decode():
                    count += 1
                    yield np.ascontiguousarray(upright_rgb(frame))
        stated = stated_frames(self._container)
        if cut or count < 0.9 * stated:
            raise GenPropError(
                f"{self.path} is cut short: {count} frames, expected about {round(stated)}", AGAIN
            )

    def close(self) -> None:
        self._container.close()


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise GenPropError(f"{path} cannot be decoded as a video: {error.strerror}", AGAIN) from error


def count_packets(path: Path) -> int:
    """How many frames a video file holds, without decoding them.

    It is exact for nearly all files. A few codecs have packets that show nothing (VP8) or that share a
    frame, so a number that differs from the one hoped for is to be checked by decoding.
    """
    with _decoding(path), av.open(str(path), "r") as container:
        packets = container.demux(container.streams.video[0])
        return sum(packet.size > 0 and not packet.is_discard for packet in packets)


class Encoder:
    """Encodes H.264 frame by frame, beside the copied sound of `audio_from` if it has one.

    The sound is read along with the pictures, so neither is ever held beyond x264's look-ahead. The file
    is whole after `close`, with which a `with` block ends; an exception ends it with `abort`.

    Raises:
        ValueError, OSError (FFmpegError is one or the other, or neither): it cannot be written.
    """

    def __init__(
        self, path: Path, *, height: int, width: int, fps: Fraction, crf: int, audio_from: Path | None
    ) -> None:
        self.frames = 0
        self._fps, self._matrix = fps, _default_matrix(height)
        # The index goes to the front of an mp4, so that it plays while it loads.
        options = {} if path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        with ExitStack() as stack:
            self._out = stack.enter_context(av.open(str(path), "w", options=options))
            self._video = _add_video(self._out, height, width, fps=fps, crf=crf, matrix=self._matrix)
            self._sound: Iterator[Packet] = iter(())
            if audio_from is not None and not audio_from.is_dir():  # a folder of frames is silent
                source = stack.enter_context(av.open(str(audio_from), "r"))
                self._sound = _copied_sound(self._out, source)
            self._next_sound = next(self._sound, None)
            self._out.start_encoding()  # writes the header: a sound that does not fit is refused here
            self._containers = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, rgb: np.ndarray) -> None:
        """Encodes one uint8 RGB frame `[H, W, 3]`."""
        context = self._video.codec_context
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24").reformat(
            format=context.pix_fmt,
            dst_colorspace=self._matrix,
            dst_color_range=_LIMITED,
            interpolation=_EXACT,
        )
        frame.pts, frame.time_base = self.frames, 1 / self._fps
        self.frames += 1
        self._mux(self._video.encode(frame))

    def close(self) -> None:
        """Writes what is still held, the sound up to the end of the last frame, and the file's index."""
        with self._containers:
            self._mux(self._video.encode(None))
            self._mux_sound(before=self.frames / self._fps)

    def abort(self) -> None:
        """Lets go of the files; the one that was written is of no use."""
        with suppress(FFmpegError, OSError, ValueError):
            self._containers.close()

    def _mux(self, packets: Sequence[Packet]) -> None:
        """Writes video packets with the sound in between, by time, so that a player need not seek."""
        for packet in packets:
            self._mux_sound(before=(packet.dts or 0) * packet.time_base)
            self._out.mux(packet)

    def _mux_sound(self, *, before: Fraction) -> None:
        while (packet := self._next_sound) is not None and (packet.pts or 0) * packet.time_base < before:
            self._out.mux(packet)
            self._next_sound = next(self._sound, None)


def upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """RGB as players show it: by the stream's matrix, turned by its display matrix."""
    matrix = _default_matrix(frame.height) if frame.colorspace == _UNTAGGED else None
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=_EXACT).to_ndarray()
    return np.rot90(rgb, frame.rotation // 90)  # both count counterclockwise


def _default_matrix(height: int) -> Colorspace:
    return Colorspace.ITU709 if height >= 720 else Colorspace.ITU601


def stated_frames(container: InputContainer) -> float:
    """How many frames the container says it has, at the least; 0 where it cannot know."""
    # Matroska states only the whole file's duration, and sound may outlast the pictures.
    return _by_duration(container) / (1 if container.streams.video[0].duration else 2)


def _by_duration(container: InputContainer) -> float:
    """Frames by duration and rate, not by mp4's sample count: that one has what an edit list trims away."""
    stream = container.streams.video[0]
    rate = stream.average_rate or 0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base * rate)
    return float((container.duration or 0) / 1_000_000 * rate)


def _add_video(
    out: OutputContainer, height: int, width: int, *, fps: Fraction, crf: int, matrix: Colorspace
) -> VideoStream:
    stream = out.add_stream("libx264", rate=fps, options={"crf": str(crf)})
    context = stream.codec_context
    context.width, context.height, context.time_base = width, height, 1 / fps
    # 4:2:0 shares one colour among 2x2 pixels, so it has no odd sizes.
    context.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
    context.color_range = _LIMITED
    context.colorspace = 1 if matrix is Colorspace.ITU709 else 6  # AVCOL_SPC_SMPTE170M
    return stream


def _copied_sound(out: OutputContainer, source: InputContainer) -> Iterator[Packet]:
    """Adds a copy of the first sound stream to `out` now, and hands its packets on while iterated over.

    Time runs from the first picture, as it does in `out`.
    """
    if not source.streams.audio:
        return iter(())
    audio = source.streams.audio[0]
    copy = out.add_stream_from_template(audio)
    video = source.streams.video[0] if source.streams.video else None
    start = (video.start_time or 0) * (video.time_base or 0) if video else Fraction(0)

    def packets() -> Iterator[Packet]:
        for packet in source.demux(audio):
            if packet.pts is None or packet.dts is None:  # the demuxer's end marker
                continue
            packet.pts -= round(start / packet.time_base)
            packet.dts -= round(start / packet.time_base)
            packet.stream = copy
            yield packet

    return packets()
