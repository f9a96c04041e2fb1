"""Contact sheets: clips as rows of frames, so that a person compares them at a glance.

Time runs to the right, one clip a row, the same frame numbers in a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_GAP = 4  # between frames, in pixels
_MARGIN = 12
_MAX_COLUMNS = 8
_INK = 0
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OVERSAMPLE = 4  # draw large, shrink by area: older cv2 fonts are strokes of whole pixels


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]],
    *,
    frames: Sequence[int] | None = None,
    height: int = 128,
    title: str = "",
) -> np.ndarray:
    """Lays clips out as labelled rows of frames on white.

    Args:
        rows: (label, clip) pairs; a clip is uint8 `[T, H, W, 3]` or a bool mask `[T, H, W]`. Where a
            clip has fewer frames than the longest, its cells stay blank.
        frames: which frames to show; None picks up to eight, evenly, first and last among them.
        height: of a frame on the sheet, in pixels. Widths follow from each clip's aspect.
        title: a headline; none if empty.

    Returns:
        The sheet, uint8 RGB `[H', W', 3]`.
    """
    assert rows and height > 0
    longest = max(len(clip) for _, clip in rows)
    if frames is None:
        frames = [round(i) for i in np.linspace(0, longest - 1, min(longest, _MAX_COLUMNS))]
    assert frames and all(0 <= index < longest for index in frames)

    size = max(12, min(20, height // 8))
    labels = [_text(label, size) for label, _ in rows]
    headers = [_text(str(index), size) for index in frames]
    headers[0] = _text(f"frame {frames[0]}", size)
    width = max(round(height * clip.shape[2] / clip.shape[1]) for _, clip in rows)
    width = max(width, *(header.shape[1] for header in headers))
    head = _text(title, round(1.4 * size)) if title else None

    left = _MARGIN + max(label.shape[1] for label in labels) + _MARGIN
    top = _MARGIN + (head.shape[0] + _MARGIN if head is not None else 0)
    first_row = top + headers[0].shape[0] + 2 * _GAP
    right = left + len(frames) * (width + _GAP) - _GAP
    if head is not None:
        right = max(right, _MARGIN + head.shape[1])
    bottom = first_row + len(rows) * (height + _GAP) - _GAP
    sheet = np.full((bottom + _MARGIN, right + _MARGIN, 3), 255, np.uint8)

    if head is not None:
        _paste(sheet, head, top=_MARGIN, left=_MARGIN)
    for column, header in enumerate(headers):
        middle = left + column * (width + _GAP) + (width - header.shape[1]) // 2
        _paste(sheet, header, top=top, left=middle)
    for row, (label, (_, clip)) in enumerate(zip(labels, rows, strict=True)):
        y = first_row + row * (height + _GAP)
        _paste(sheet, label, top=y + (height - label.shape[0]) // 2, left=_MARGIN)
        for column, index in enumerate(frames):
            if index < len(clip):
                cell = _resize(clip[index], height)
                x = left + column * (width + _GAP) + (width - cell.shape[1]) // 2
                _paste(sheet, cell, top=y, left=x)
    return sheet


def _resize(image: np.ndarray, height: int) -> np.ndarray:
    """Averages when shrinking; whole multiples keep their square pixels, the rest is smoothed."""
    if image.dtype == bool:
        image = np.repeat(image[..., None].astype(np.uint8) * 255, 3, axis=-1)
    old_height, old_width = image.shape[:2]
    width = max(1, round(height * old_width / old_height))
    if height < old_height:
        how = cv2.INTER_AREA
    else:
        how = cv2.INTER_NEAREST if height % old_height == 0 else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=how)


def _text(text: str, size: int) -> np.ndarray:
    """One line of black text on white about `size` pixels high, uint8 `[h, w, 3]`."""
    text = text or " "
    scale = cv2.getFontScaleFromHeight(_FONT, round(0.72 * size) * _OVERSAMPLE, _OVERSAMPLE)
    (width, above), below = cv2.getTextSize(text, _FONT, scale, _OVERSAMPLE)
    canvas = np.full((above + below, max(width, 1), 3), 255, np.uint8)
    cv2.putText(canvas, text, (0, above), _FONT, scale, (_INK,) * 3, _OVERSAMPLE, cv2.LINE_AA)
    h, w = (max(1, round(side / _OVERSAMPLE)) for side in canvas.shape[:2])
    return cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA)


def _paste(sheet: np.ndarray, patch: np.ndarray, *, top: int, left: int) -> None:
    sheet[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
