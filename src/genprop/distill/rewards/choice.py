"""Which frames of a clip a reward looks at.

Shapes: B batch, T frames of a clip, n frames or windows that are looked at, k frames in a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genprop.draws import Draws


def choose_frames(draws: Draws, *, total: int, window: int, count: int) -> Tensor:
    """The frames of a clip of `total` that a reward looks at, `[B, n, window]`, drawn for each sample.

    For a window of 1, `count` different frames in order, or all there are; else one run of neighbours. Frame
    0, which is given, is left out wherever there are others enough.
    """
    given = int(total > window)
    if window == 1:
        order = draws.rand(total - given).argsort(dim=1, stable=True)
        return (order[:, :count].sort(dim=1).values + given).unsqueeze(2)
    start = draws.randint(total - given - window + 1) + given
    return start.view(-1, 1, 1) + torch.arange(window, device=start.device)


def pick(video: Tensor, chosen: Tensor) -> Tensor:
    """The chosen frames of each sample as items: `[B, T, ...]` by `[B, n, k]` to `[B n, k, ...]`."""
    rows = torch.arange(len(video), device=video.device).view(-1, 1, 1)
    return video.float()[rows, chosen].flatten(0, 1)
