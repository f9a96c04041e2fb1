"""Clips longer than the model, as windows that hand the edit on.

A window's last frame is the edited first frame of the next: neighbours share one frame. The last window
is moved back to end with the clip, so that every window has the model's static length; its edited first
frame is then one that an earlier window has made.
"""

from __future__ import annotations


def windows(total: int, length: int) -> list[range]:
    """The windows of a clip of `total` frames for a model of `length` frames, in the order to be made.

    Frame 0 of the first is given, and the first frame of every other lies in the one before it. All are
    `length` long, except that a clip shorter than the model is a single window of `total` frames.

    Raises:
        ValueError: `total` is below 1, or `length` below 2 (nothing could be handed on).
    """
    if total < 1 or length < 2:
        raise ValueError(f"expected at least 1 frame and a length of at least 2, got {total} and {length}")
    if total <= length:
        return [range(total)]
    last = total - length
    return [range(start, start + length) for start in (*range(0, last, length - 1), last)]
