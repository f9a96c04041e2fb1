"""The baselines do what their names say, and nothing outside of the mask."""

from __future__ import annotations

import numpy as np
import pytest

from genprop.data.procedural import make_sample
from genprop.evaluate.baselines import BASELINES, frozen_first_frame, identity, telea
from genprop.metrics import RegionPsnr
from genprop.types import EditSample


@pytest.fixture(scope="module")
def sample() -> EditSample:
    return make_sample(1, frames=3, height=32, width=40)


def test_identity_is_the_source(sample: EditSample) -> None:
    assert np.array_equal(identity(sample), sample.source)


def test_frozen_is_the_edited_frame_throughout(sample: EditSample) -> None:
    frames = frozen_first_frame(sample)
    assert frames.shape == sample.source.shape
    assert all(np.array_equal(frame, sample.target[0]) for frame in frames)


def test_telea_fills_the_mask_only() -> None:
    source = np.full((2, 16, 16, 3), 90, np.uint8)
    mask = np.zeros((2, 16, 16), bool)
    mask[0, 5:9, 5:9] = True
    mask[1, 2:6, 8:12] = True
    source[mask] = 255
    filled = telea(EditSample(source, np.full_like(source, 90), mask))
    assert np.abs(filled.astype(int) - 90).max() <= 3
    assert (source[mask] == 255).all()  # the sample is left as it was


def test_telea_keeps_the_rest_exactly(sample: EditSample) -> None:
    filled = telea(sample)
    assert np.array_equal(filled[~sample.mask], sample.source[~sample.mask])
    assert not np.array_equal(filled[sample.mask], sample.source[sample.mask])


@pytest.mark.parametrize("name", BASELINES)
def test_all_can_be_measured(name: str, sample: EditSample) -> None:
    quality = RegionPsnr()
    quality.add(BASELINES[name](sample), sample.target, sample.mask)
    assert 0 < quality.hole < 60
