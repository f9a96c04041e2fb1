"""What a student is worth, in networks whose answers are known in closed form."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, isnan, log10

import pytest
import torch
from torch import Tensor, nn

from genprop.config import Config, load_config
from genprop.distill.quality import Case, measure_quality
from genprop.distill.report.records import QualityRow, quality_document, row_of, write_quality
from genprop.edm import Guided
from genprop.teacher.objective import TeacherObjective

CLIPS, FRAMES, CELL = 2, 4, 4
FULL = 6
SIGMAS = {1: (20.0,), 2: (20.0, 1.0)}


class Blocks(nn.Module):
    """An autoencoder whose latents are the pixels of each 4x4 block."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(CELL, -1).repeat_interleave(CELL, -2)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Truth:
    """Answers the target of the clip that `cond` is of, and `off` more; counts its evaluations."""

    def __init__(self, batch: dict[str, Tensor], off: float = 0.0) -> None:
        self.batch, self.off, self.count = batch, off, 0

    def __call__(self, x, sigma, cond):
        assert len(x) == 1, "clips go one at a time"
        self.count += 1
        index = int(cond.added_time_ids[0, 0])
        logits = torch.where(self.batch["cells"][index : index + 1], 9.0, -9.0)
        return self.batch["target"][index : index + 1] + self.off, logits


@pytest.fixture
def config() -> Config:
    return load_config("tiny", [f"sampling.steps={FULL}", "sampling.sigma_max=20", "sampling.sigma_min=0.01"])


@pytest.fixture
def held_out() -> dict[str, Tensor]:
    """The left half is the hole, where the original is black."""
    generator = torch.Generator().manual_seed(3)
    target = 0.5 * torch.rand(CLIPS, FRAMES, 3, 4, 4, generator=generator) - 0.25
    cells = torch.zeros(CLIPS, FRAMES, 1, 4, 4, dtype=torch.bool)
    cells[..., :2] = True
    ids = torch.zeros(CLIPS, 3)
    ids[:, 0] = torch.arange(CLIPS)
    return {
        "target": target,
        "source": torch.where(cells, -1.0, target),
        "first": target[:, 0],
        "embedding": torch.zeros(CLIPS, 1, 4),
        "mask": cells[:, :, 0].repeat_interleave(CELL, -1).repeat_interleave(CELL, -2),
        "cells": cells,
        "added_time_ids": ids,
    }


def measured(student, teacher, held_out, config, **options) -> dict[tuple[str, int], QualityRow]:
    objective = TeacherObjective(Nothing(), Nothing(), config)  # type: ignore[arg-type]
    rows = measure_quality(
        student,
        teacher,
        held_out,
        objective=objective,
        autoencoder=Blocks(),  # type: ignore[arg-type]
        **{"sigmas": SIGMAS, **options},
    )
    return {(row.name, row.evaluations): row for row in rows}


def contraction(x, sigma, cond):
    """Data of deviation 1/2: what it makes depends on the noise."""
    s = sigma.view(-1, 1, 1, 1, 1)
    return x * 0.25 / (0.25 + s**2), torch.zeros_like(x[:, :, :1])


def test_rows_are_there_at_the_evaluations_that_they_say(held_out, config) -> None:
    network, branch = Truth(held_out), Truth(held_out)
    rows = measured(network, Guided(branch), held_out, config)
    baselines = [("identity", 0), ("frozen first frame", 0)]
    teachers = [("teacher", 2 * n) for n in (1, 2, 4, FULL)]
    assert list(rows) == [("student", 1), ("student", 2), *teachers, *baselines]
    assert branch.count == CLIPS * sum(2 * n for n in (1, 2, 4, FULL))
    assert network.count == CLIPS * (1 + 2 + 2)  # two steps once more, without fresh noise


def test_the_truth_has_no_error(held_out, config) -> None:
    row = measured(Truth(held_out), Guided(Truth(held_out)), held_out, config)["student", 1]
    assert row.hole_psnr == row.keep_psnr == inf and row.endpoint_db > 150  # the last step rounds
    assert row.sharpness == row.motion == row.mask_iou == 1
    assert row.seconds > 0


def test_a_student_that_is_off_is_as_far_off_as_it_is(held_out, config) -> None:
    off = 25.5 / 127.5  # a tenth of the range of pixels, a whole number of levels but for rounding
    rows = measured(Truth(held_out, off), Guided(Truth(held_out)), held_out, config)
    row, target = rows["student", 2], held_out["target"][:, 1:]
    assert row.hole_psnr == pytest.approx(20, abs=0.02) and row.keep_psnr == pytest.approx(20, abs=0.02)
    assert row.endpoint_db == pytest.approx(20 * log10(float(target.max() - target.min()) / off), abs=1e-3)
    assert row.sharpness == pytest.approx(1, abs=0.01) and row.motion == pytest.approx(1, abs=0.01)
    assert rows["teacher", 2 * FULL].hole_psnr == inf


def test_the_baselines_are_the_original_and_the_frozen_first_frame(held_out, config) -> None:
    rows = measured(Truth(held_out), Guided(Truth(held_out)), held_out, config)
    identity, frozen = rows["identity", 0], rows["frozen first frame", 0]
    assert identity.keep_psnr == inf and identity.hole_psnr < 12 and identity.sharpness == 0
    assert frozen.motion == 0 and frozen.sharpness > 0.5 and frozen.keep_psnr < 30
    assert isnan(frozen.mask_iou) and isnan(identity.seconds)


def test_endpoints_are_compared_without_fresh_noise(held_out, config) -> None:
    """What fresh noise moves is no error of the student's: only its picture changes with eta."""
    still, fresh = (
        measured(contraction, Guided(contraction), held_out, config, eta={1: eta, 2: eta})["student", 2]
        for eta in (0.0, 1.0)
    )
    assert still.endpoint_db == fresh.endpoint_db < inf
    assert still.hole_psnr != fresh.hole_psnr
    assert (still.eta, fresh.eta) == (0, 1)


def test_more_steps_bring_the_teacher_nearer_to_its_own_endpoint(held_out, config) -> None:
    rows = measured(contraction, Guided(contraction), held_out, config)
    distances = [rows["teacher", 2 * n].endpoint_db for n in (1, 2, 4, FULL)]
    assert distances == sorted(distances) and distances[-1] == inf


def test_rewards_are_means_over_the_clips(held_out, config) -> None:
    seen: list[Case] = []

    def score(x0: Tensor, case: Case) -> dict[str, float]:
        seen.append(case)
        assert x0.shape == case.endpoint.shape == case.noise.shape
        return {"index": float(case.index), "distance": float((x0 - case.inputs.target).abs().max())}

    rows = measured(Truth(held_out, 0.125), Guided(Truth(held_out)), held_out, config, score=score)
    assert rows["student", 1].rewards == pytest.approx({"index": 0.5, "distance": 0.125}, abs=1e-6)
    assert rows["teacher", 4].rewards == pytest.approx({"index": 0.5, "distance": 0.0}, abs=1e-6)
    assert len(seen) == CLIPS * len(rows)


def test_a_seed_names_the_noise(held_out, config) -> None:
    first, again, other = (
        measured(contraction, Guided(contraction), held_out, config, seed=seed)["student", 2]
        for seed in (0, 0, 1)
    )
    assert replace(first, seconds=0) == replace(again, seconds=0) != replace(other, seconds=0)


def test_rows_come_back_from_json_with_what_is_not_finite_as_nan(tmp_path) -> None:
    row = QualityRow("student", 2, 2, 0.5, 21.5, inf, 0.9, 1.1, 30.0, 0.8, {"hps": 0.7}, 0.25)
    write_quality(tmp_path / "quality.json", [row, QualityRow("identity", 0)])
    document = json.loads((tmp_path / "quality.json").read_text())
    assert document == quality_document([row, QualityRow("identity", 0)])
    read, _ = (row_of(line) for line in document["rows"])
    assert isnan(read.keep_psnr) and replace(read, keep_psnr=inf) == row
    assert [p.name for p in tmp_path.iterdir()] == ["quality.json"]
