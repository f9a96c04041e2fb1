"""The memory plan of a distillation."""

from __future__ import annotations

from typing import Any

import pytest

from genprop.config import Config
from genprop.distill.plan import TRAJECTORIES, plan_student
from genprop.distill_settings import (
    AdapterConfig,
    AdversarialConfig,
    DistillConfig,
    RewardsConfig,
    TextureConfig,
)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_the_students_plan_has_both_networks_and_the_trajectories(small_config: Config, rank: int) -> None:
    adapter, texture = AdapterConfig(rank=rank), TextureConfig(weight=0.1)
    distill = DistillConfig(adapter=adapter, rewards=RewardsConfig(texture=texture))
    made = plan_student(small_config.model_copy(update={"distill": distill}))
    parts = {part.name: part for part in made.parts}
    assert parts["the teacher"].trained == 0 and parts["content encoder"].trained > 0
    assert (parts["backbone"].trained > 0) == (rank == 0)
    assert ("LoRA" in parts) == (rank > 0)
    assert TRAJECTORIES in {use.name for use in made.uses}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"precompute": False}, {"guidance": "embedded"}, {"adversarial": AdversarialConfig(weight=0.1)}],
)
def test_every_way_of_distilling_can_be_planned(small_config: Config, change: dict[str, Any]) -> None:
    distill = DistillConfig(adapter=AdapterConfig(rank=2), **change)
    made = plan_student(small_config.model_copy(update={"distill": distill}))
    assert made.peak.total > 0
