"""The region-aware loss: closed forms."""

import math

import pytest
import torch

from genprop.draws import Draws
from genprop.settings import LossConfig
from genprop.teacher.losses import (
    blur_inside,
    gradient_loss,
    latent_mask,
    mask_iou,
    mask_loss,
    region_terms,
    temporal_loss,
    texture_error,
)


@pytest.mark.parametrize("kind", ["nearest", "gaussian"])
def test_a_uniform_mask_stays_what_it_is(kind):
    for value in (False, True):
        mask = torch.full((2, 3, 32, 48), value)
        torch.testing.assert_close(
            latent_mask(mask, (4, 6), kind=kind), torch.full((2, 3, 1, 4, 6), float(value))
        )


def test_gaussian_keeps_the_area_and_nearest_keeps_it_hard(rng):
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 20:41, 12:30] = True
    soft, hard = (latent_mask(mask, (8, 8), kind=kind) for kind in ("gaussian", "nearest"))
    assert float(soft.mean()) == pytest.approx(float(mask.float().mean()), rel=1e-3)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert ((soft > 0) & (soft < 1)).any()


def test_regions_add_up_to_the_plain_mean_at_weight_one(rng):
    error = torch.randn(2, 3, 4, 5, 5, generator=rng)
    mask = (torch.rand(2, 3, 1, 5, 5, generator=rng) > 0.6).float()
    terms = region_terms(error, mask, LossConfig(mask=1.0))
    torch.testing.assert_close(terms["region"], error.square().mean())
    inside = error.square()[mask.expand_as(error) > 0]
    torch.testing.assert_close(terms["hole"], inside.mean())


def test_the_mask_counts_twice(rng):
    error = torch.randn(1, 2, 4, 3, 3, generator=rng)
    everywhere = torch.ones(1, 2, 1, 3, 3)
    torch.testing.assert_close(
        region_terms(error, everywhere, LossConfig())["region"], 2 * error.square().mean()
    )


def test_gradient_loss_of_a_linear_map_is_its_squared_slope_inside_the_mask():
    """Features a * source: the finite difference along n is a * n * m, whatever the step."""
    source = torch.zeros(4, 4, 8, 16, 16)
    mask = torch.zeros(4, 4, 1, 16, 16)
    mask[..., :8, :] = 1
    for step in (0.1, 1.0):
        value = gradient_loss(lambda s: (3 * s,), source, mask, step=step, draws=Draws.of(0, 4))
        assert float(value) == pytest.approx(9 * 0.5, rel=0.05)


def test_gradient_loss_ignores_what_is_outside_the_mask():
    source, mask = torch.zeros(1, 1, 2, 4, 4), torch.zeros(1, 1, 1, 4, 4)
    assert gradient_loss(lambda s: (s,), source, mask, step=0.1, draws=Draws.of(0, 1)) == 0


def test_gradient_loss_reaches_both_branches():
    slope = torch.tensor(2.0, requires_grad=True)
    source = torch.ones(1, 1, 1, 2, 2)
    mask = torch.ones(1, 1, 1, 2, 2)
    reached = []

    def features(s):
        out = slope * s
        out.register_hook(lambda g: reached.append(float(g.abs().sum())))
        return (out,)

    gradient_loss(features, source, mask, step=0.5, draws=Draws.of(0, 1)).backward()
    assert len(reached) == 2 and all(value > 0 for value in reached)


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_mask_loss_is_least_at_the_truth(kind):
    mask = torch.tensor([[1.0, 0.0]]).view(1, 1, 1, 1, 2)
    right, wrong = torch.tensor([[20.0, -20.0]]).view_as(mask), torch.tensor([[-20.0, 20.0]]).view_as(mask)
    assert mask_loss(right, mask, kind=kind) < 1e-6 < 0.5 < mask_loss(wrong, mask, kind=kind)


def test_mask_iou_counts_cells():
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert float(mask_iou(logits, torch.tensor([1.0, 0.0, 1.0, 0.0]))) == pytest.approx(1 / 3)
    assert float(mask_iou(-torch.ones(4), torch.zeros(4))) == 1


def test_texture_counts_how_much_and_not_where():
    """Spots moved within their cell are as good as the truth; half as bright they are not, blank is worst."""
    spots = torch.zeros(1, 3, 16, 16)
    spots[..., 2::8, 2::8] = 1
    assert torch.equal(texture_error(spots.roll((2, -1), (-2, -1)), spots, cell=8), torch.zeros(1, 2, 2))
    # Each spot has two slopes of 1 along each of two axes, in a cell of 64 pixels.
    torch.testing.assert_close(texture_error(0.5 * spots, spots, cell=8), torch.full((1, 2, 2), 0.5 * 4 / 64))
    torch.testing.assert_close(texture_error(0 * spots, spots, cell=8), torch.full((1, 2, 2), 4 / 64))


def test_a_region_has_its_own_mean_however_small_it_is():
    """Squared error 4 in one cell of nine, 1 elsewhere: by elements 4 / 9 and 8 / 9, by region 4 and 1."""
    error = torch.ones(1, 1, 2, 3, 3)
    error[..., 0, 0] = 2
    mask = torch.zeros(1, 1, 1, 3, 3)
    mask[..., 0, 0] = 1
    by_elements = region_terms(error, mask, LossConfig())
    by_region = region_terms(error, mask, LossConfig(normalise="region"))
    assert float(by_elements["mask"]) == pytest.approx(4 / 9)
    assert float(by_elements["nonmask"]) == pytest.approx(8 / 9)
    assert (float(by_region["mask"]), float(by_region["nonmask"])) == pytest.approx((4, 1))
    assert float(by_region["region"]) == pytest.approx(2 * 4 + 1)


def test_a_sample_without_a_region_has_none_of_its_loss():
    error = torch.ones(2, 1, 1, 2, 2)
    mask = torch.zeros(2, 1, 1, 2, 2)
    mask[1] = 1
    terms = region_terms(error, mask, LossConfig(normalise="region"))
    assert (float(terms["mask"]), float(terms["nonmask"])) == (0.5, 0.5)


@pytest.mark.parametrize(("kind", "at_zero"), [("bce", math.log(2)), ("mse", 0.25)])
def test_balance_weighs_the_masks_cells(kind, at_zero):
    """Logits 0: every cell has the same loss, and one of the four is in the mask."""
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 2, 2)
    logits = torch.zeros_like(mask)
    assert float(mask_loss(logits, mask, kind=kind)) == pytest.approx(at_zero)
    assert float(mask_loss(logits, mask, kind=kind, balance=5.0)) == pytest.approx(at_zero * (5 + 3) / 4)


def test_an_error_that_stands_still_does_not_flicker():
    error = torch.randn(1, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).expand(2, 4, 2, 3, 3)
    assert temporal_loss(error) == 0
    ramp = error + 0.5 * torch.arange(4.0).view(1, 4, 1, 1, 1)
    assert float(temporal_loss(ramp)) == pytest.approx(0.25)
    assert temporal_loss(error[:, :1]) == 0


def test_gradient_loss_is_the_mean_over_its_features_own_means():
    """2 s in eight cells and 4 s in two: 4 and 16 times the direction's power, whatever their sizes."""
    source, mask = torch.zeros(1, 1, 1, 16, 16), torch.ones(1, 1, 1, 16, 16)
    arguments = {"step": 0.1, "draws": Draws.of(0, 1)}
    power = float(gradient_loss(lambda s: (s,), source, mask, step=0.1, draws=Draws.of(0, 1)))
    value = gradient_loss(lambda s: (2 * s, 4 * s.repeat(1, 3, 1, 1, 1)), source, mask, **arguments)
    assert float(value) == pytest.approx(10 * power, rel=1e-4)


def test_the_blur_hides_what_is_inside_and_moves_no_cell_outside():
    source = torch.zeros(1, 1, 1, 12, 12)
    source[..., 5:7, 5:7] = 1
    mask = torch.zeros_like(source)
    mask[..., 3:9, 3:9] = 1
    hidden = blur_inside(source, mask)
    assert float(hidden.max()) < 0.2 and torch.equal(hidden[mask == 0], source[mask == 0])
    level = torch.full_like(source, 0.7)
    torch.testing.assert_close(blur_inside(level, mask), level)


def test_blurs_are_in_float32_under_autocast():
    mask = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    mask[..., 3:9, 5:11] = True
    source = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = latent_mask(mask, (8, 8), kind="gaussian")
    hidden = blur_inside(source, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(latent_mask(mask, (8, 8), kind="gaussian"), plain)
        assert torch.equal(blur_inside(source, plain), hidden)
