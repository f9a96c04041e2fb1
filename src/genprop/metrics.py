"""What is measured of a propagated edit, each figure pooled over all clips.

"hole" is inside the true mask, "keep" outside it, both on pixels in [0, 1] and without frame 0, which is
given. Every metric is an accumulator: `add` a clip at a time, then read the figure. Sums are pooled and
the ratio or logarithm is taken once, at the end: the mean of per-clip PSNRs is infinite as soon as one
clip is exact (a static clip with a still camera is, for a frozen first frame), and a clip with a small
mask would count as much as one with a large mask.

Frames are uint8 `[T, H, W, 3]`, what a person gets to see; masks are bool `[T, H, W]`; latents are
`[1, T, C, h, w]`. A figure with nothing to be measured on is nan, a PSNR without any error infinite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log10, nan

import cv2
import numpy as np
from torch import Tensor


@dataclass
class SquaredError:
    """A pool of squared errors."""

    total: float = 0.0
    count: int = 0

    def add(self, got: np.ndarray, expected: np.ndarray) -> None:
        self.total += float(np.square(got - expected).sum())
        self.count += expected.size

    def psnr(self, peak: float = 1.0) -> float:
        """In dB, for signals that span `peak`."""
        if not self.count or not peak:
            return nan
        return 10 * log10(peak**2 * self.count / self.total) if self.total else inf


@dataclass
class RegionPsnr:
    """PSNR inside (`hole`) and outside (`keep`) of the true mask."""

    _hole: SquaredError = field(default_factory=SquaredError)
    _keep: SquaredError = field(default_factory=SquaredError)

    def add(self, frames: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One clip: `frames` against `truth`, uint8 `[T, H, W, 3]`, under the true `mask`."""
        assert frames.shape == truth.shape == (*mask.shape, 3)
        got, expected, inside = _unit(frames[1:]), _unit(truth[1:]), mask[1:]
        self._hole.add(got[inside], expected[inside])
        self._keep.add(got[~inside], expected[~inside])

    @property
    def hole(self) -> float:
        return self._hole.psnr()

    @property
    def keep(self) -> float:
        return self._keep.psnr()


@dataclass
class RegionSsim:
    """Structural similarity (Wang et al. 2004, eq. 13) inside and outside of the true mask.

    The mean of the SSIM map over each region's pixels and all channels; Gaussian window of 11 pixels,
    deviation 1.5, mirrored at the border.
    """

    _hole: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _keep: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, frames: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One clip: `frames` against `truth`, uint8 `[T, H, W, 3]`, under the true `mask`."""
        assert frames.shape == truth.shape == (*mask.shape, 3)
        for got, expected, inside in zip(_unit(frames[1:]), _unit(truth[1:]), mask[1:], strict=True):
            similarity = ssim_map(got, expected)
            for pool, region in ((self._hole, inside), (self._keep, ~inside)):
                pool[0] += float(similarity[region].sum())
                pool[1] += similarity[region].size

    @property
    def hole(self) -> float:
        return self._hole[0] / self._hole[1] if self._hole[1] else nan

    @property
    def keep(self) -> float:
        return self._keep[0] / self._keep[1] if self._keep[1] else nan


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM of two pictures in [0, 1], `[H, W, 3]` to `[H, W, 3]` (Wang et al. 2004, eq. 13)."""

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variances + c2)
    )


@dataclass
class MaskIoU:
    """Intersection over union of the predicted and the true mask, both pooled over frames 1 and on."""

    _intersection: int = 0
    _union: int = 0

    def add(self, predicted: np.ndarray, mask: np.ndarray) -> None:
        """One clip: bool `[T, H, W]` both."""
        assert predicted.shape == mask.shape and predicted.dtype == mask.dtype == bool
        self._intersection += int(np.count_nonzero(predicted[1:] & mask[1:]))
        self._union += int(np.count_nonzero(predicted[1:] | mask[1:]))

    @property
    def value(self) -> float:
        return self._intersection / self._union if self._union else nan


@dataclass
class Sharpness:
    """Mean absolute image gradient in the hole over the truth's: 1 is right, below is blur, above is noise.

    Forward differences along both axes, of pixel pairs that lie wholly in the hole, so that neither the
    seam nor the kept surroundings count.
    """

    _got: float = 0.0
    _expected: float = 0.0

    def add(self, frames: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One clip: `frames` against `truth`, uint8 `[T, H, W, 3]`, under the true `mask`."""
        assert frames.shape == truth.shape == (*mask.shape, 3)
        self._got += _gradient(frames[1:], mask[1:])
        self._expected += _gradient(truth[1:], mask[1:])  # over as many pairs: the counts cancel

    @property
    def value(self) -> float:
        return self._got / self._expected if self._expected else nan


@dataclass
class Motion:
    """Mean absolute change from frame to frame in the hole over the truth's: 1 is right, below is still,
    above flickers.

    Of pixels that lie in the hole of both frames, so that what moves is the filling and not its outline.
    """

    _got: float = 0.0
    _expected: float = 0.0

    def add(self, frames: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> None:
        """One clip: `frames` against `truth`, uint8 `[T, H, W, 3]`, under the true `mask`."""
        assert frames.shape == truth.shape == (*mask.shape, 3)
        self._got += _change(frames[1:], mask[1:])
        self._expected += _change(truth[1:], mask[1:])  # over as many pairs: the counts cancel

    @property
    def value(self) -> float:
        return self._got / self._expected if self._expected else nan


@dataclass
class EndpointPsnr:
    """PSNR, in latents, of deterministic samples against the teacher's endpoints from the same noise.

    What distillation is asked for, and what the truth cannot show: PSNR against the truth favours a
    blurred mean. The peak is the dynamic range of the endpoints, `max - min` over all clips.
    """

    _error: SquaredError = field(default_factory=SquaredError)
    _low: float = inf
    _high: float = -inf

    def add(self, latents: Tensor, endpoint: Tensor) -> None:
        """One clip: a sample's latents and the teacher's, `[1, T, C, h, w]` both."""
        assert latents.shape == endpoint.shape and latents.ndim == 5
        got, expected = (x[:, 1:].double().cpu().numpy() for x in (latents, endpoint))
        self._error.add(got, expected)
        self._low = min(self._low, float(expected.min()))
        self._high = max(self._high, float(expected.max()))

    @property
    def value(self) -> float:
        return self._error.psnr(self._high - self._low)


def _unit(frames: np.ndarray) -> np.ndarray:
    assert frames.dtype == np.uint8
    return frames.astype(np.float64) / 255


def _gradient(frames: np.ndarray, mask: np.ndarray) -> float:
    """The sum of absolute forward differences between neighbours in `mask`, over all channels."""
    image = _unit(frames)
    down = np.abs(np.diff(image, axis=1))[mask[:, 1:] & mask[:, :-1]]
    right = np.abs(np.diff(image, axis=2))[mask[:, :, 1:] & mask[:, :, :-1]]
    return float(down.sum() + right.sum())


def _change(frames: np.ndarray, mask: np.ndarray) -> float:
    """The sum of absolute differences between neighbouring frames in both their masks, over all channels."""
    return float(np.abs(np.diff(_unit(frames), axis=0))[mask[1:] & mask[:-1]].sum())
