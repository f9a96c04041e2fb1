"""The carry: a copy at the start, its kernels against a plain loop, and a pan that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genprop.config import parse_config
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.teacher.base import Base
from genprop.teacher.carry import Carry
from genprop.teacher.losses import carry_loss
from genprop.teacher.net import GenPropNet
from genprop.teacher.objective import CarryObjective, TeacherObjective
from genprop.teacher.train import train


@pytest.fixture
def carry() -> Carry:
    torch.manual_seed(0)
    return Carry(4, 16, heads=3, window=3, matches=2)


def pan(rng: torch.Generator, *, shift: int, size: int = 8, count: int = 4) -> Tensor:
    """Clips of 3 frames whose picture moves left by `shift` cells a frame, `[B, 3, 4, size, size]`."""
    wide = torch.randn(count, 4, size, size + 2 * abs(shift), generator=rng)
    offset = 2 * abs(shift) if shift < 0 else 0
    return torch.stack([wide[..., offset + t * shift :][..., :size] for t in range(3)], dim=1)


@torch.no_grad()
def test_it_starts_as_the_frozen_first_frame(carry, rng):
    source, first = torch.randn(2, 2, 3, 4, 7, 6, generator=rng)
    first = first[:, :1].expand_as(source)
    carried = carry(source, first)
    assert (carried.latents_btchw - first).square().mean() < 0.1 * first.square().mean()
    torch.testing.assert_close(carried.trust_bt1hw, torch.full((2, 3, 1, 7, 6), 2.0).sigmoid())
    assert torch.equal(carried.handover_bt1hw, torch.ones(2, 3, 1, 7, 6))


@torch.no_grad()
def test_windows_are_the_cells_around_and_the_nearest_beyond_the_border(carry, rng):
    image = torch.randn(2, 6, 4, 5, generator=rng)
    got = carry._windows(image, 3).unflatten(2, (4, 5))
    for y in range(4):
        for x in range(5):
            around = [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            inside = [(min(max(i, 0), 3), min(max(j, 0), 4)) for i, j in around]
            expected = torch.stack([image[..., i, j] for i, j in inside], 1).unflatten(2, (3, 2))
            assert torch.equal(got[:, :, y, x], expected.transpose(1, 2))


@torch.no_grad()
def test_a_frame_matches_the_first_where_they_are_alike(carry, rng):
    """With the identity for a projection, the score is the inner product of the two cells."""
    carry.project.weight.copy_(torch.eye(4).repeat(2, 1)[..., None, None])
    carry.project.bias.zero_()
    source = pan(rng, shift=1, count=1)
    score = carry._match(source).view(3, 2, 9, 8, 8)
    same = source[0].square().sum(1) / 2
    torch.testing.assert_close(score[0, 0, 4], same[0])  # frame 0 with itself, in the middle
    torch.testing.assert_close(score[1, 1, 5, :, :-1], same[1, :, :-1])  # frame 1: one cell to the right


def test_it_learns_a_pan_that_the_clip_shows(carry, rng):
    """One network for a pan to the left and one to the right: the clip has to be read."""
    optimizer = torch.optim.AdamW(carry.parameters(), lr=3e-3)
    mask = torch.ones(8, 3, 1, 8, 8)
    mask[..., :2], mask[..., -2:] = 0, 0  # what comes in at the border is nowhere in frame 0

    def error(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        clip = torch.cat([pan(generator, shift=shift) for shift in (-1, 1)])
        clip[:, 2] = clip[:, 1]  # at most the one cell that a 3x3 window reaches
        first = clip[:, :1].expand_as(clip)
        return carry_loss(carry(clip, first).latents_btchw, clip, mask), carry_loss(first, clip, mask)

    for _ in range(150):
        optimizer.zero_grad()
        error(rng)[0].backward()
        optimizer.step()
    with torch.no_grad():
        carried, frozen = error(torch.Generator().manual_seed(1))
    assert carried < 0.4 * frozen


def test_every_parameter_learns(carry, rng, enliven):
    enliven(carry)
    source, first = torch.randn(2, 2, 3, 4, 6, 6, generator=rng)
    torch.stack([part.square().sum() for part in carry(source, first)]).sum().backward()
    without = [n for n, p in carry.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_the_loss_is_of_the_hole_and_a_tenth_of_the_rest():
    error = torch.zeros(1, 2, 3, 2, 2)
    mask = torch.zeros(1, 2, 1, 2, 2)
    mask[..., 0, 0] = 1
    error[:, 0] = 9  # frame 0 is given
    error[:, 1, :, 0, 0], error[:, 1, :, 1, 1] = 2, 3
    expected = (1.1 * 4 + 0.1 * 9) / (1.1 + 3 * 0.1)
    torch.testing.assert_close(carry_loss(error, torch.zeros_like(error), mask), torch.tensor(expected))


def test_a_network_with_a_carry_takes_no_noise_into_it(small_config, small_base: Base, net_inputs):
    table = small_config.model_dump()
    table["net"] |= {"gate": True, "carry": 16}
    config = parse_config(table)
    net = GenPropNet(small_base.backbone, config.net, config.sce).eval()
    sample, timestep, *rest = net_inputs
    with torch.no_grad():
        one, other = net.parts(sample, timestep, *rest), net.parts(sample + 1, timestep - 1, *rest)
    assert one.carried is not None and other.carried is not None
    assert all(torch.equal(a, b) for a, b in zip(one.carried, other.carried, strict=True))
    assert torch.equal(one.seen.reference_btchw, one.carried.latents_btchw)
    assert not torch.equal(one.out.velocity, other.out.velocity)


def test_a_carry_without_the_gate_is_refused(small_config):
    table = small_config.model_dump()
    table["net"]["carry"] = 16
    with pytest.raises(GenPropError, match=r"net: .*carry is 16, but gate is off: expected gate = true"):
        parse_config(table)


def test_nothing_to_train_is_refused(small_config, tmp_path):
    with pytest.raises(GenPropError, match=r"net\.carry is 0"):
        train("carry", small_config, data=["procedural"], base="x", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("drop", "counts"), [(0.0, True), (0.999999, False)])
def test_a_dropped_first_frame_is_not_asked_to_be_carried(small_config, small_base: Base, rng, drop, counts):
    table = small_config.model_dump()
    table["net"] |= {"gate": True, "carry": 16}
    table["noise"]["drop"] = drop
    config = parse_config(table)
    objective = TeacherObjective(
        GenPropNet(small_base.backbone, config.net, config.sce), small_base.image_encoder, config
    )
    batch = {name: torch.randn(2, 3, 4, 8, 8, generator=rng) for name in ("source", "target")}
    batch["first"] = batch["target"][:, 0]
    batch["image"] = torch.randn(2, 3, 16, 16, generator=rng)
    batch["mask"] = torch.rand(2, 3, 16, 16, generator=rng) < 0.5
    batch["added_time_ids"] = torch.tensor([[6.0, 127.0, 0.02]]).expand(2, 3)
    terms = objective(batch, Draws.of(0, 2))
    assert (terms["carry"] > 0) == counts
    carry = CarryObjective(objective)(batch, Draws.of(0, 2))
    assert carry["loss"] > 0 and carry["frozen_hole"] > 0
