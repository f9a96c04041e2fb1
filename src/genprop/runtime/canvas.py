"""The video that is being made: windows of latents are decoded onto it, frame by frame as they are needed.

Shapes: T frames, H W pixels of the video; frames of a window are counted from its start.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genprop.chunks import Window, cut
from genprop.pixels import to_uint8
from genprop.runtime.backends import Stages
from genprop.runtime.composite import composite as lay_over
from genprop.runtime.composite import resize, upsample_mask
from genprop.runtime.sample import Clock, Denoised


class Canvas:
    """What `Model.propagate` fills.

    Args:
        source: the video, uint8 `[T, H, W, 3]`.
        first: the edited first frame, uint8 `[H, W, 3]`: given, never generated.
        composite: whether pixels beyond the predicted mask are the video's own.

    Attributes:
        frames: uint8 `[T, H, W, 3]`.
        mask: float32 `[T, H, W]` in [0, 1].
        clock: the time of decoding.
    """

    def __init__(self, stages: Stages, source: np.ndarray, first: np.ndarray, *, composite: bool) -> None:
        self._stages, self._source, self._composite = stages, source, composite
        self.frames = np.empty_like(source)
        self.frames[0] = first
        self.mask: np.ndarray = np.empty(source.shape[:3], np.float32)
        self.clock = Clock(stages.device)

    def begin(self, span: range, made: Denoised, *, needed: int | None) -> Callable[[], None]:
        """Make the frame that the next window starts from; the others, when what is returned is called.

        The frame that two windows share stays as the first of them made it, and so does its mask. All others
        are this window's, those that the last one makes a second time included: they follow from the frame
        it was given, where a cut to it in the middle would be seen.

        Args:
            span: the frames of the video that the window has; what it has beyond them is padding.
            needed: the frame, counted from the start of the video; None if no window follows.
        """
        if span.start == 0:
            self.mask[0] = self._probability(made, [0])[0]
        parts = cut(made.latents.shape[1], self._stages.chunk, overlap=self._stages.overlap)
        left = {part: [i for i in part.kept if 0 < i < len(span)] for part in parts}
        left = {part: indices for part, indices in left.items() if indices}  # else it is not decoded
        index = None if needed is None else needed - span.start
        decoded = {}
        for part, indices in left.items():
            if index in indices or not self._stages.concurrent:
                decoded[part] = self._decode(made, part)
            if index is not None and index in indices:
                self._lay(span, made, decoded[part][[index - part.kept.start]], [index])
                indices.remove(index)

        def rest() -> None:
            for part, indices in left.items():
                if not indices:
                    continue
                pixels = decoded[part] if part in decoded else self._decode(made, part)
                self._lay(span, made, pixels[[i - part.kept.start for i in indices]], indices)

        return rest

    def _decode(self, made: Denoised, part: Window) -> np.ndarray:
        """What is kept of a window of the decoder, uint8 `[t, h, w, 3]` at the model's size."""
        with self.clock.stage("decode"):
            decoded = self._stages.decode_window(made.latents[:, part.frames.start : part.frames.stop])
        kept = decoded[0, part.kept.start - part.frames.start : part.kept.stop - part.frames.start]
        return to_uint8(kept).cpu().numpy()

    def _lay(self, span: range, made: Denoised, pixels: np.ndarray, indices: list[int]) -> None:
        """Bring frames of a window, by their `indices` in it, to the video's size and in their place."""
        height, width = self.mask.shape[1:]
        pixels = resize(pixels, height=height, width=width)
        at = np.array(indices) + span.start
        probability = self._probability(made, indices)
        self.frames[at] = lay_over(self._source[at], pixels, probability) if self._composite else pixels
        self.mask[at] = probability

    def _probability(self, made: Denoised, indices: list[int]) -> np.ndarray:
        """Of the mask, float32 `[t, H, W]`."""
        height, width = self.mask.shape[1:]
        return upsample_mask(made.mask_logits[:, indices], height=height, width=width)
