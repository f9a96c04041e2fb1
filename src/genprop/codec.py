"""FFmpeg, by way of PyAV: pictures out of a container, H.264 and a copied sound track into one.

`video` is the public side of it and decides where a file lands. Colours: a stream's own matrix is
honoured; where it states none (most do not), HD is BT.709 and anything smaller BT.601, as players take it.
What is written states its matrix, so it cannot shift.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import Colorspace, Interpolation

from .errors import GenPropError

# FFmpeg's default conversion is off by one or two levels; a frame nobody touched should not be.
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_UNTAGGED, _LIMITED = 2, 1  # AVCOL_SPC_UNSPECIFIED, AVCOL_RANGE_MPEG
AGAIN = "Give a complete video; `ffmpeg -i IN -c:v libx264 OUT.mp4` repairs or converts many."
"""The hint for a video that cannot be read."""


def decode(path: Path, *, max_frames: int | None = None) -> tuple[list[np.ndarray], Fraction]:
    """Decodes the first video stream of a file.

    Returns:
        Upright RGB frames, uint8 `[H, W, 3]` each, and the container's average rate.

    Raises:
        GenPropError: it is no video, or it ends before it should.
    """
    frames: list[np.ndarray] = []
    cut = False
    try:
        with av.open(str(path), "r") as container:
            if not container.streams.video:
                raise GenPropError(f"{path} has no pictures in it, expected a video", AGAIN)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = stream.average_rate or stream.guessed_rate or Fraction(25)
            for packet in container.demux(stream):
                cut |= packet.is_corrupt  # the demuxer got only a part of it
                for frame in packet.decode():
                    frames.append(upright_rgb(frame))
                    if len(frames) == max_frames:
                        return frames, fps
            stated = stated_frames(container)
    except FFmpegError as error:
        raise GenPropError(f"{path} cannot be decoded as a video: {error.strerror}", AGAIN) from error
    if cut or len(frames) < 0.9 * stated:
        raise GenPropError(
            f"{path} is cut short: {len(frames)} frames, expected about {round(stated)}", AGAIN
        )
    return frames, fps


def encode(path: Path, frames: np.ndarray, *, fps: Fraction, crf: int, audio_from: Path | None) -> None:
    """Writes uint8 RGB `[T, H, W, 3]` as H.264, beside the sound of `audio_from` if it has one.

    Raises:
        ValueError, OSError (FFmpegError is one or the other, or neither): it cannot be written.
    """
    # The index goes to the front of an mp4, so that it plays while it loads.
    options = {} if path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with av.open(str(path), "w", options=options) as out:
        video = _video_packets(out, frames, fps=fps, crf=crf)
        if audio_from is None or audio_from.is_dir():  # a folder of frames is silent
            _mux(out, video)
            return
        with av.open(str(audio_from), "r") as source:
            _mux(out, video, _audio_packets(out, source, seconds=len(frames) / fps))


def upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """RGB as players show it: by the stream's matrix, turned by its display matrix."""
    matrix = _default_matrix(frame.height) if frame.colorspace == _UNTAGGED else None
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=_EXACT).to_ndarray()
    return np.rot90(rgb, frame.rotation // 90)  # both count counterclockwise


def _default_matrix(height: int) -> Colorspace:
    return Colorspace.ITU709 if height >= 720 else Colorspace.ITU601


def stated_frames(container: InputContainer) -> float:
    """How many frames the container says it has; 0 where it cannot know.

    By duration, not by mp4's sample count: that one includes what an edit list trims away.
    """
    stream = container.streams.video[0]
    rate = stream.average_rate or 0
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base * rate)
    # Matroska states only the whole file's duration, and sound may outlast the pictures.
    return float((container.duration or 0) / 1_000_000 * rate / 2)


def _video_packets(out: OutputContainer, frames: np.ndarray, *, fps: Fraction, crf: int) -> Iterator[Packet]:
    """Adds the video stream to `out` now, and encodes while it is iterated over."""
    height, width = frames.shape[1:3]
    matrix = _default_matrix(height)
    stream = out.add_stream("libx264", rate=fps, options={"crf": str(crf)})
    context = stream.codec_context
    context.width, context.height, context.time_base = width, height, 1 / fps
    # 4:2:0 shares one colour among 2x2 pixels, so it has no odd sizes.
    context.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
    context.color_range = _LIMITED
    context.colorspace = 1 if matrix is Colorspace.ITU709 else 6  # AVCOL_SPC_SMPTE170M

    def packets() -> Iterator[Packet]:
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24").reformat(
                format=context.pix_fmt, dst_colorspace=matrix, dst_color_range=_LIMITED, interpolation=_EXACT
            )
            frame.pts, frame.time_base = index, 1 / fps
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()


def _audio_packets(out: OutputContainer, source: InputContainer, *, seconds: Fraction) -> Iterator[Packet]:
    """Adds a copy of the first sound stream to `out` now, and hands its packets on while iterated over.

    Time runs from the first picture, as it does in `out`; what starts after `seconds` is dropped.
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
            if packet.pts * packet.time_base - start >= seconds:
                return
            packet.pts -= round(start / packet.time_base)
            packet.dts -= round(start / packet.time_base)
            packet.stream = copy
            yield packet

    return packets()


def _mux(out: OutputContainer, *streams: Iterator[Packet]) -> None:
    """Interleaves by time, so that a player need not seek."""
    for packet in heapq.merge(*streams, key=lambda packet: (packet.dts or 0) * packet.time_base):
        out.mux(packet)
