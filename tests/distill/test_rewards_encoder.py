"""The base's image encoder as a reward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from genprop.distill.rewards.encoder import EncoderReward
from genprop.errors import GenPropError


@pytest.fixture
def reward(small_base) -> EncoderReward:
    small_base.image_encoder.requires_grad_(False)
    return EncoderReward(small_base.image_encoder, source="a base", licence="a licence")


def test_it_is_the_mean_cosine_of_the_towers_own_embeddings_seen_from_grey(reward, rng):
    frames, truth = torch.rand(2, 2, 3, 3, 32, 32, generator=rng)
    tower = reward.image_encoder
    grey = tower(torch.zeros(1, 3, 32, 32))[:, 0]
    expected = [
        F.cosine_similarity(tower(2 * frames[:, t] - 1)[:, 0] - grey, tower(2 * truth[:, t] - 1)[:, 0] - grey)
        for t in range(3)
    ]
    got = reward(frames, reward.prepare(truth))
    torch.testing.assert_close(got, torch.stack(expected).mean(0))
    assert (got < 0.999).all()


def test_the_reference_itself_scores_one_and_one_frame_stands_for_all(reward, rng):
    truth = torch.rand(2, 1, 3, 32, 32, generator=rng)
    torch.testing.assert_close(reward(truth.expand(-1, 4, -1, -1, -1), reward.prepare(truth)), torch.ones(2))


def test_its_gradient_goes_up(reward, rng):
    frames, truth = torch.rand(2, 2, 1, 3, 32, 32, generator=rng)
    prepared = reward.prepare(truth)
    frames.requires_grad_()
    reward(frames, prepared).sum().backward()
    assert frames.grad is not None and not prepared.requires_grad
    with torch.no_grad():
        assert reward(frames + 0.1 * frames.grad, prepared).sum() > reward(frames, prepared).sum()


def test_scores_are_float32_and_near_the_same_under_autocast(reward, rng):
    frames, truth = torch.rand(2, 2, 1, 3, 32, 32, generator=rng)
    exact = reward(frames, reward.prepare(truth))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = reward(frames, reward.prepare(truth))
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0)


def test_it_reads_no_captions_and_names_its_base(reward):
    with pytest.raises(GenPropError, match="captions") as caught:
        reward.prepare(["a cat"])
    assert "encoder.reference" in caught.value.hint
    assert reward.card == ("encoder", "a base", "a licence")
