"""Rewards of latents: the gradient of plain backward, in memory that does not grow with the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.nn import functional as F

from genprop.distill.rewards.base import RewardCard
from genprop.distill.rewards.decode import LatentReward
from genprop.latents import Autoencoder
from genprop.teacher.trace import Tracker

FRAMES = 7


class Likeness:
    """A reward that is nowhere linear; of a window, each frame's part depends on the frame before."""

    card = RewardCard("likeness", "a test", "none")

    def __init__(self, window: int) -> None:
        self.window = window

    @torch.no_grad()
    def prepare(self, reference: Tensor | Sequence[str], mask: Tensor | None = None) -> Tensor:
        assert isinstance(reference, Tensor)
        return reference if mask is None else reference * mask

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        assert frames.dtype == torch.float32 and frames.shape[1] % self.window == 0
        mixed = frames + 0.5 * frames.roll(1, dims=1)
        return F.cosine_similarity(mixed.flatten(1), prepared.flatten(1)) + mixed.square().flatten(1).mean(1)


def autoencoder(kind: type, *, channels: int = 32) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = {
            "block_out_channels": (channels, channels),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "latent_channels": 4,
            "scaling_factor": 0.5,
            "layers_per_block": 1,
        }
        if kind is AutoencoderKL:
            blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 16}
        return Autoencoder(kind(**blocks).eval().requires_grad_(False))


def video(rng: torch.Generator, items: int, window: int, *, size: int = 4) -> Tensor:
    return torch.randn(items, window, 4, size, size, generator=rng)


def plain(reward: LatentReward, latents: Tensor, prepared: Tensor) -> Tensor:
    """The same score with the whole graph."""
    frames = torch.cat([reward.decode(part) for part in latents.split(reward.chunk, dim=1)], dim=1)
    return reward.reward(frames, prepared)


@pytest.mark.parametrize("kind", [AutoencoderKL, AutoencoderKLTemporalDecoder])
@pytest.mark.parametrize("window", [1, FRAMES])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_gradient_is_that_of_plain_backward(rng, kind, window, chunk):
    reward = LatentReward(Likeness(window), autoencoder(kind), chunk=chunk)
    items = 2 * FRAMES // window  # two clips, as windows or as single frames
    prepared = reward.prepare(video(rng, items, window))
    latents = video(rng, items, window)
    weights = torch.randn(items, generator=rng)  # each item has its own share in the loss
    scores, gradients = [], []
    for score in (plain, lambda r, *inputs: r(*inputs)):
        leaf = latents.clone().requires_grad_()
        scores.append(score(reward, 3 * leaf, prepared))
        (weights * scores[-1]).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(scores[1], scores[0])
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(
        gradients[1], gradients[0], atol=1e-5 * float(gradients[0].abs().max()), rtol=1e-5
    )
    with torch.no_grad():
        torch.testing.assert_close(reward(3 * latents, prepared), scores[0].detach())


def test_a_temporal_decoder_mixes_a_chunk_and_nothing_beyond_it(rng):
    """So the frames of an item matter to each other within a chunk, and single frames to none."""
    latents = video(rng, 1, 4)
    moved = latents.clone()
    moved[:, 1] += 1

    def changed(window: int) -> list[bool]:
        reward = LatentReward(Likeness(window), autoencoder(AutoencoderKLTemporalDecoder), chunk=2)
        before, after = (reward._frames(v.view(-1, window, 4, 4, 4)) for v in (latents, moved))
        return (before - after).flatten(0, 1).flatten(1).any(1).tolist()

    assert changed(4) == [True, True, False, False]
    assert changed(1) == [False, True, False, False]


def peak(run: Callable[[], Tensor], *, bound: Sequence[Tensor]) -> int:
    """Bytes that the score and its backward pass take beside what is there already."""
    tracker = Tracker(cuda=False)
    tracker.ignore(bound)
    with tracker:
        run().sum().backward()
    return sum(tracker.peak().values())


@pytest.mark.parametrize("windowed", [False, True])
def test_memory_does_not_grow_with_the_frames(rng, windowed):
    decoder = autoencoder(AutoencoderKLTemporalDecoder)

    def bytes_of(frames: int, score: Callable[..., Tensor]) -> int:
        window = frames if windowed else 1
        reward = LatentReward(Likeness(window), decoder, chunk=1)
        latents = video(rng, frames // window, window, size=8).requires_grad_()
        prepared = reward.prepare(latents)
        bound = [latents, prepared, *decoder.parameters()]
        return peak(lambda: score(reward, latents, prepared), bound=bound)

    # frames of the window and small gradients of each add up, no graph of the decoder does
    assert bytes_of(12, lambda r, *inputs: r(*inputs)) < 1.15 * bytes_of(3, lambda r, *inputs: r(*inputs))
    assert bytes_of(12, plain) > 2.5 * bytes_of(3, plain)


def test_prepared_items_are_those_of_the_whole_and_masks_are_enlarged(rng):
    decoder = autoencoder(AutoencoderKL)
    reference, mask = video(rng, 5, 1), torch.rand(5, 1, 1, 4, 4, generator=rng).round()
    small, large = (LatentReward(Likeness(1), decoder, chunk=chunk) for chunk in (2, 8))
    got = small.prepare(reference, mask)
    torch.testing.assert_close(got, large.prepare(reference, mask))
    enlarged = F.interpolate(mask[:, 0], scale_factor=2, mode="nearest")
    torch.testing.assert_close(got[:, 0], large.prepare(reference)[:, 0] * enlarged)


def test_frames_are_what_a_file_has_in_float32_under_autocast(rng):
    reward = LatentReward(Likeness(1), autoencoder(AutoencoderKL), chunk=2)
    latents = 50 * video(rng, 3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frames = reward.decode(latents)
        score = reward(latents.requires_grad_(), reward.prepare(video(rng, 3, 1)))
    assert frames.dtype == score.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1
    expected = (reward.autoencoder.decode(latents) + 1) / 2
    torch.testing.assert_close(frames, expected.clamp(0, 1), atol=0.05, rtol=0)
    score.sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all() and latents.grad.any()


def test_a_second_derivative_is_refused(rng):
    reward = LatentReward(Likeness(1), autoencoder(AutoencoderKL), chunk=2)
    latents = video(rng, 2, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(
        reward(latents, reward.prepare(latents)).square().sum(), latents, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
