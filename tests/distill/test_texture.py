"""The texture reward: 0 for the truth, less for what is blank, and of the hole alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genprop.distill.rewards.texture import TextureReward
from genprop.errors import GenPropError
from genprop.teacher.losses import texture_error


@pytest.fixture
def truth(rng) -> Tensor:
    return torch.rand(2, 3, 3, 16, 16, generator=rng)


@pytest.fixture
def mask() -> Tensor:
    """The left half of every frame."""
    mask = torch.zeros(2, 3, 1, 16, 16)
    mask[..., :8] = 1
    return mask


def test_the_truth_is_best_and_blank_is_worse(truth, mask):
    reward = TextureReward(cell=2)
    prepared = reward.prepare(truth, mask)
    assert torch.equal(reward(truth, prepared), torch.zeros(2))
    assert (reward(torch.full_like(truth, 0.5), prepared) < -0.1).all()


def test_it_is_minus_the_mean_error_of_the_hole_in_pixels_from_minus_one_to_one(truth, mask, rng):
    frames = torch.rand(truth.shape, generator=rng)
    error = texture_error(2 * frames[:, 0] - 1, 2 * truth[:, 0] - 1, cell=2)
    got = TextureReward(cell=2)(frames[:, :1], TextureReward(cell=2).prepare(truth[:, :1], mask[:, :1]))
    torch.testing.assert_close(got, -error[:, :, :4].mean(dim=(1, 2)))


def test_only_the_hole_counts_and_a_frame_without_one_scores_zero(truth, mask):
    reward = TextureReward(cell=2)
    frames = truth.clone()
    frames[..., 9:] = 0.5  # from a pixel beyond the mask on: slopes look one pixel ahead
    assert torch.equal(reward(frames, reward.prepare(truth, mask)), torch.zeros(2))
    empty = reward.prepare(truth, torch.zeros_like(mask))
    assert torch.equal(reward(torch.zeros_like(truth), empty), torch.zeros(2))


def test_a_clip_scores_the_mean_of_its_frames(truth, mask, rng):
    reward, frames = TextureReward(cell=2), torch.rand(truth.shape, generator=rng)
    whole = reward(frames, reward.prepare(truth, mask))
    single = [reward(frames[:, [t]], reward.prepare(truth[:, [t]], mask[:, [t]])) for t in range(3)]
    torch.testing.assert_close(whole, torch.stack(single).mean(0))


def test_its_gradient_goes_up(truth, mask):
    reward = TextureReward(cell=2)
    prepared = reward.prepare(truth, mask)
    frames = (0.5 * truth).requires_grad_()
    reward(frames, prepared).sum().backward()
    assert frames.grad is not None
    with torch.no_grad():
        assert reward(frames + 1e-2 * frames.grad, prepared).sum() > reward(frames, prepared).sum()


@pytest.mark.parametrize(
    ("reference", "got"), [(["a cat"], "captions"), (torch.zeros(1, 1, 3, 4, 4), "mask")]
)
def test_it_wants_frames_and_a_mask(reference, got):
    with pytest.raises(GenPropError, match=got) as caught:
        TextureReward(cell=2).prepare(reference)
    assert "texture.reference" in caught.value.hint
