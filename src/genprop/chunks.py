"""A clip in windows of one length: how the autoencoder is run, in torch and in graphs of a static shape.

The encoder sees each frame alone, so its windows need no overlap. A temporal decoder mixes the frames of a
window; near a cut it misses those beyond, so windows may overlap, and each frame is taken from the window
in which it lies farthest from a cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """`frames` of the clip go in; of what comes out, the frames `kept` (of the clip, too) are used."""

    frames: range
    kept: range


def even_size(total: int, limit: int) -> int:
    """The smallest window with which `total` frames need no more windows than with one of `limit`."""
    count = -(-total // min(limit, total))
    return -(-total // count)


def cut(total: int, size: int, *, overlap: int = 0) -> list[Window]:
    """Windows over `total` frames, all of `size` frames, or a single one of `total` if that is less.

    Neighbours share `overlap` frames; the last window is moved back to end with the clip and shares more.
    What is kept is a partition of the clip.

    Raises:
        ValueError: `overlap` is not in [0, size).
    """
    if not 0 <= overlap < size or total < 1:
        raise ValueError(f"expected 0 <= overlap < size, total >= 1: got {overlap}, {size}, {total}")
    size = min(size, total)
    starts = [*range(0, total - size, size - min(overlap, size - 1)), total - size]
    # Half-way through what two neighbours share, which may be nothing.
    edges = [0, *((a + size + b + 1) // 2 for a, b in itertools.pairwise(starts)), total]
    return [Window(range(s, s + size), range(edges[i], edges[i + 1])) for i, s in enumerate(starts)]


def by_windows(
    function: Callable[[Tensor], Tensor], x: Tensor, size: int, *, overlap: int = 0, pad: bool = False
) -> Tensor:
    """`function` over `x` `[B, T, ...]` window by window, what is kept of each put together again.

    Args:
        pad: give a clip shorter than `size` as one window of `size`, its last frame repeated.
    """
    total = x.shape[1]
    if pad and total < size:
        x = torch.cat([x, x[:, -1:].expand(-1, size - total, *x.shape[2:])], dim=1)
        return function(x)[:, :total]
    parts = []
    for frames, kept in cut(total, size, overlap=overlap):
        out = function(x[:, frames.start : frames.stop])
        parts.append(out[:, kept.start - frames.start : kept.stop - frames.start])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
