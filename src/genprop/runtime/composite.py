"""Back at the video's own size: the generated pixels go where the predicted mask is, and nowhere else.

A model sees the video small and through an autoencoder, which nothing of the kept region should have to
show. So the mask is grown a little, the generated pixels are laid over the source inside it, softly
towards its edge, and every pixel beyond it is the source's, bit for bit.

Shapes: T frames, H W pixels of the video, h w latent cells.
"""

from __future__ import annotations

from math import ceil

import cv2
import numpy as np
from torch import Tensor
from torch.nn import functional as F

LARGEST_LOGIT = 50.0
"""Its sigmoid is 1 in float32. An infinite logit would be nan after interpolation."""


def resize(frames: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]` to `[T, height, width, 3]`: averaged where a side shrinks, bicubic where it grows.

    The two sides are resized one after the other, since a video may shrink in one and grow in the other.
    """
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    across = cv2.INTER_AREA if width <= frames.shape[2] else cv2.INTER_CUBIC
    down = cv2.INTER_AREA if height <= frames.shape[1] else cv2.INTER_CUBIC
    for target, frame in zip(resized, frames, strict=True):
        frame = cv2.resize(frame, (width, frame.shape[0]), interpolation=across)
        target[:] = cv2.resize(frame, (width, height), interpolation=down)
    return resized


def upsample_mask(mask_logits: Tensor, *, height: int, width: int) -> np.ndarray:
    """The probability of the mask at the video's size. `[1, T, 1, h, w]` to float32 `[T, height, width]`.

    Logits are interpolated, linearly, and not probabilities: the edge, where they are 0, then lies
    between two cells as their confidence has it.
    """
    logits = mask_logits[0].float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    large = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    return large[:, 0].sigmoid().cpu().numpy()


def composite(
    source: np.ndarray,
    generated: np.ndarray,
    mask: np.ndarray,
    *,
    threshold: float = 0.5,
    dilate: float = 0.015,
    feather: float = 0.5,
) -> np.ndarray:
    """Lay the generated pixels over the source, inside the mask.

    The mask is thresholded and grown by an ellipse; a Gaussian fades it out within that growth. With a
    `feather` of at most a half, what the mask itself covers is wholly the generated pixels'.
    The generated pixels are first moved, frame by frame and channel by channel, to the source's colours
    around the hole, as an autoencoder shifts colours a little.

    Args:
        source: uint8 `[T, H, W, 3]`.
        generated: uint8, or float in [0, 255], `[T, H, W, 3]`.
        mask: probability that a pixel belongs to the edit, `[T, H, W]`.
        threshold: the mask is where its probability is above this.
        dilate: how far the mask is grown, relative to the height.
        feather: half the width of the fade, as a part of that growth, 0 (a hard cut) to 1.

    Returns:
        uint8 `[T, H, W, 3]`, equal to `source` beyond the grown mask.
    """
    assert source.shape == generated.shape == (*mask.shape, 3)
    radius = ceil(dilate * mask.shape[1])
    soft = int(feather * radius)
    result = source.copy()
    for target, new, probability in zip(result, generated, mask, strict=True):
        inside = (probability > threshold).astype(np.uint8)
        hole = _grow(inside, radius)
        alpha = _grow(inside, radius - soft).astype(np.float32)
        if soft:
            alpha = cv2.GaussianBlur(alpha, (2 * soft + 1, 2 * soft + 1), soft / 2)
        at = hole > 0
        old, new = target[at].astype(np.float32), new.astype(np.float32)
        new = new[at] + colour_offset(target, new, hole, width=max(3, 2 * radius))
        target[at] = (old + alpha[at][:, None] * (new - old)).round().clip(0, 255).astype(np.uint8)
    return result


def colour_offset(source: np.ndarray, generated: np.ndarray, hole: np.ndarray, *, width: int) -> np.ndarray:
    """What to add to generated colours so that they meet the source's around a hole.

    It is the median difference over a ring of `width` pixels around the hole: a mean would follow the
    bit of the object, or of its shadow, that a mask has missed. Returns float32 `[3]`, zeros where there
    is no ring.

    Args:
        source: `[H, W, 3]`.
        generated: `[H, W, 3]`, on the same scale.
        hole: uint8 `[H, W]`, 1 inside.
    """
    ring = (_grow(hole, width) - hole) > 0
    if not ring.any():
        return np.zeros(3, np.float32)
    return np.median(source[ring].astype(np.float32) - generated[ring], axis=0).astype(np.float32)


def _grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """A uint8 mask `[H, W]`, dilated by a disc."""
    size = 2 * radius + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
