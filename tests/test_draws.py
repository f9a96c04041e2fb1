"""Random numbers by sample: the same whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch

from genprop.draws import Draws


def test_a_sample_s_numbers_do_not_depend_on_its_batch() -> None:
    def numbers(draws: Draws) -> list[torch.Tensor]:
        return [draws.randn(2, 3), draws.rand(), draws.randint(1000), draws.randn()]

    together, apart = numbers(Draws([5, 6, 7])), [numbers(Draws([seed])) for seed in (5, 6, 7)]
    for i, batch in enumerate(together):
        assert torch.equal(batch, torch.cat([alone[i] for alone in apart]))


def test_shapes_and_streams() -> None:
    draws = Draws.of(0, 4)
    first, second = draws.randn(2, 3), draws.randn(2, 3)
    assert len(draws) == 4 and first.shape == (4, 2, 3) and draws.rand().shape == (4,)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert torch.equal(first, Draws.of(0, 4).randn(2, 3)) and not torch.equal(
        first, Draws.of(1, 4).randn(2, 3)
    )


def test_the_distributions() -> None:
    draws = Draws.of(0, 2)
    normal, uniform = draws.randn(20_000), draws.rand(20_000)
    assert float(normal.mean()) == pytest.approx(0, abs=0.02) and float(normal.std()) == pytest.approx(
        1, abs=0.02
    )
    assert (
        float(uniform.mean()) == pytest.approx(0.5, abs=0.01)
        and 0 <= float(uniform.min()) < float(uniform.max()) < 1
    )
    assert {int(i) for _ in range(40) for i in draws.randint(3)} == {0, 1, 2}
