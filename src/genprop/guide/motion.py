"""Motion between two neighbouring frames, and the ground's motion behind an object.

A global homography (corners followed forwards and backwards, RANSAC) takes the camera's part, dense optical
flow (DIS, Kroeger et al. 2016, arXiv:1603.03590) what it leaves: DIS alone loses a fast camera. Inside a hole
the flow is the object's, so the ground's is completed there from around it (`ground_flow`), as ProPainter's
flow completion does with a network (arXiv:2309.03897, section 3.2).

Frames are brought to at most `SIDE` pixels on their longer side first. A flow is float32 `[h, w, 2]`: for
each pixel of a frame, how far away it lies in the other, (x, y) in pixels of that size.
"""

from __future__ import annotations

import cv2
import numpy as np

from genprop.guide.fill import push_pull
from genprop.guide.geometry import grid, grow, sample

SIDE = 640
"""The longest side that motion is measured at: finer frames cost more and tell little more."""

CORNERS = 400
ENOUGH = 20
"""Corners that a homography needs; a frame with fewer has hardly any texture, and DIS is left to itself."""
STILL = 0.25
"""A camera that moves the frame's corners by less than this, in pixels, stands still."""


def small(frame: np.ndarray, *, side: int = SIDE) -> np.ndarray:
    """A frame at the size that motion is measured at, averaged; itself where it is no larger."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def grey(frame: np.ndarray) -> np.ndarray:
    """uint8 RGB `[h, w, 3]` to grey `[h, w]`."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def flow(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Where each pixel of one grey frame `[h, w]` lies in another, relative to itself."""
    height, width = here.shape
    if min(height, width) < 16:  # DIS works in patches of 8 pixels, on a pyramid
        return np.zeros((height, width, 2), np.float32)
    dis = _dis()
    matrix = camera(here, there)
    if matrix is None:
        return dis.calc(here, there, np.zeros((height, width, 2), np.float32))
    points = grid(height, width)
    moved = transform(points, matrix)
    rest = dis.calc(here, sample(there, moved), np.zeros_like(points))
    return transform(points + rest, matrix) - points


def _dis() -> cv2.DISOpticalFlow:
    """Dense flow down to single pixels.

    OpenCV's presets stop at half the size; along such a flow pixels land beside their place, which costs a
    hole 2.9 dB (docs/guide.md).
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setPatchSize(6)
    dis.setPatchStride(3)
    dis.setGradientDescentIterations(16)
    dis.setVariationalRefinementAlpha(10.0)
    dis.setVariationalRefinementIterations(3)
    return dis


def camera(here: np.ndarray, there: np.ndarray) -> np.ndarray | None:
    """The homography from one grey frame to another, float64 `[3, 3]`; None where too few corners agree."""
    corners = cv2.goodFeaturesToTrack(here, CORNERS, 0.005, 8)
    if corners is None or len(corners) < ENOUGH:
        return None
    forth, found, _ = cv2.calcOpticalFlowPyrLK(
        here, there, corners, corners.copy(), winSize=(21, 21), maxLevel=4
    )
    back, returned, _ = cv2.calcOpticalFlowPyrLK(
        there, here, forth, forth.copy(), winSize=(21, 21), maxLevel=4
    )
    ok = (found.ravel() == 1) & (returned.ravel() == 1)
    ok &= np.abs(back - corners).reshape(-1, 2).max(1) < 1
    if ok.sum() < ENOUGH:
        return None
    matrix, inliers = cv2.findHomography(corners[ok], forth[ok], cv2.RANSAC, 2.0, maxIters=500)
    if matrix is None or inliers.sum() < ENOUGH:
        return None
    height, width = here.shape
    edges = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float32)
    shift = np.abs(transform(edges[None], matrix)[0] - edges).max()
    if shift < STILL:
        return np.eye(3)
    return matrix if shift < max(height, width) else None


def _follow_corners(here: np.ndarray, there: np.ndarray, corners: np.ndarray) -> tuple:
    """Where corners of one grey frame are in another, whether each was found, its error (Lucas-Kanade)."""
    return cv2.calcOpticalFlowPyrLK(here, there, corners, corners.copy(), winSize=(21, 21), maxLevel=4)


def ground_flow(flow: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A flow whose values in a hole, bool `[h, w]`, are the ground's, continued from around it.

    A homography of the flow outside the hole, and what the flow differs from it around the hole, smoothly.
    """
    wide = grow(hole, 4)
    if not wide.any():
        return flow
    height, width = hole.shape
    points = grid(height, width)
    outside = np.zeros_like(wide)
    outside[::8, ::8] = True
    outside &= ~wide
    matrix = None
    if outside.sum() >= ENOUGH:
        at = points[outside]
        if np.median(np.abs(flow[outside]).max(-1)) < STILL / 2:
            matrix = np.eye(3)
        else:
            matrix, _ = cv2.findHomography(at, at + flow[outside], cv2.RANSAC, 1.5, maxIters=500)
    base = np.zeros_like(flow) if matrix is None else transform(points, matrix) - points
    rest = push_pull(flow - base, ~wide)
    rest[np.abs(rest) < 0.05] = 0  # a still ground is not sampled between its pixels
    return np.where(wide[..., None], base + rest, flow).astype(np.float32)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points `[h, w, 2]` through a homography, float32."""
    return cv2.perspectiveTransform(points.reshape(-1, 1, 2), matrix).reshape(points.shape).astype(np.float32)
