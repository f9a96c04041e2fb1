"""A video file before its pictures: whole or broken, how long, and unusual in what.

A window is chosen before anything is decoded, so each file is read through first: its packets, and its
first frame, which costs little beside decoding and tells a broken file from a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from genprop.codec import AGAIN, stated_frames, upright_rgb
from genprop.errors import GenPropError


@dataclass(frozen=True)
class Probe:
    """What a video is, by its packets and its first frame.

    Attributes:
        frames: how many a decoder delivers.
        fps: the container's average rate.
        codec: FFmpeg's name of it.
        bits: of a sample.
        rotation: degrees counterclockwise by which players turn it.
        variable: frames do not last equally long.
    """

    frames: int
    fps: Fraction
    codec: str
    bits: int
    rotation: int
    variable: bool


def probe(path: Path) -> Probe:
    """Reads a video through, decoding no more than its first frame.

    Raises:
        GenPropError: zero bytes, no video, an unknown codec, or truncated: the message says which.
    """
    times: list[int | None] = []
    first: av.VideoFrame | None = None
    codec, cut = "", False
    try:
        if not path.stat().st_size:
            raise GenPropError(f"{path}: zero bytes, expected a video", AGAIN)
        with av.open(str(path), "r") as container:
            if not container.streams.video:
                raise GenPropError(f"{path} has no pictures in it, expected a video", AGAIN)
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:  # PyAV's type has it always there
                raise GenPropError(f"{path}: its codec cannot be decoded, FFmpeg knows none for it", AGAIN)
            context.thread_count, codec = 1, context.name
            fps, stated = stream.average_rate or stream.guessed_rate or Fraction(25), stated_frames(container)
            for packet in container.demux(stream):
                cut |= packet.is_corrupt  # the demuxer got only a part of it
                if first is None and not cut:
                    first = next(iter(packet.decode()), None)
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
    except FFmpegError as error:
        damaged = f": damaged, {codec} without a first frame ({error.strerror})"
        raise GenPropError(f"{path}{damaged if codec else _no_video(path, error)}", AGAIN) from error
    except OSError as error:
        raise GenPropError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    if cut or len(times) < 0.9 * stated:
        got = len(times) - cut
        raise GenPropError(f"{path}: truncated, {got} of about {round(stated)} frames are whole", AGAIN)
    if first is None:
        raise GenPropError(f"{path} holds no frames, expected at least one", AGAIN)
    bits = max(component.bits for component in first.format.components)
    return Probe(len(times), fps, codec, bits, first.rotation, _is_variable(times))


def decode_at(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The upright RGB frames at `indices` (rising), uint8 `[H, W, 3]` each; decodes up to the last of them.

    On one thread: whoever reads many clips does so in many processes, and an error comes at its frame.

    Raises:
        GenPropError: a frame on the way is damaged or missing.
    """
    wanted, number = set(indices), 0
    try:
        with av.open(str(path), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if number in wanted:
                    yield upright_rgb(frame)
                number += 1
                if number > max(wanted):
                    return
    except FFmpegError as error:
        raise GenPropError(f"{path}: damaged after {number} frames: {error.strerror}", AGAIN) from error
    raise GenPropError(f"{path}: truncated, decoding ends after {number} frames", AGAIN)


def _no_video(path: Path, error: FFmpegError) -> str:
    """Why a file that is not empty cannot be opened: a known container without its index was cut off."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":  # mp4 and its kin; Matroska
        return f": truncated or damaged, its index cannot be read ({error.strerror})"
    return f" cannot be decoded as a video: {error.strerror}"


def _is_variable(times: list[int | None]) -> bool:
    """Whether frames last differently, beyond what a container's clock rounds (Matroska's to 1 ms)."""
    steps = np.diff(sorted(time for time in times if time is not None))
    return bool(len(steps) and np.ptp(steps) > max(2, 0.25 * np.median(steps)))
