"""Students beside their teacher on unseen clips: the rows of docs/experiments.md.

    python scripts/students.py tiny runs/rewards/student --seeds 0 1 --clips 16 --out students.json

Every student is measured at its own schedules for 1, 2, 4 and 8 evaluations, the teacher at 2, 4, 8 and all
of its own, on the clips of `genprop demo` with those seeds. Prints one table in Markdown, means over the
seeds, and writes every row as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean

import torch
from torch.utils.data import default_collate

from genprop.data.latents import Batch, PixelSamples, encode_sample
from genprop.data.procedural import ProceduralClips
from genprop.distill.quality import Case, measure_quality
from genprop.distill.report.records import QualityRow, quality_document
from genprop.distill.rewards.terms import open_rewards
from genprop.distill_settings import FullReferenceConfig, RewardsConfig
from genprop.draws import Draws
from genprop.edm import Guided, NetDenoiser
from genprop.evaluate.protocol import DEMO_SEED
from genprop.student.clone import load_model
from genprop.teacher.base import Base
from genprop.teacher.objective import TeacherObjective

COLUMNS = ("hole_psnr", "keep_psnr", "mask_iou", "sharpness", "motion", "endpoint_db")


def unseen(seed: int, count: int, *, base: Base, teacher: TeacherObjective) -> Batch:
    """The demo's clips of a seed, encoded."""
    clip = teacher.config.clip
    clips = ProceduralClips(count, DEMO_SEED + seed, frames=clip.frames, height=clip.height, width=clip.width)
    pixels = PixelSamples(clips, seed=DEMO_SEED + seed)
    return default_collate(
        [encode_sample(pixels[i], base.autoencoder, base.image_encoder, clip) for i in range(count)]
    )


def measured(student: str, teacher: str, *, seed: int, clips: int) -> list[QualityRow]:
    """A student and its teacher on one seed's clips, with the score of the base's image encoder."""
    bundle, net, _ = load_model(student)
    _, guide, base = load_model(teacher)
    objective = TeacherObjective(guide, base.image_encoder, bundle.card.config)
    sampling = objective.config.sampling
    batch = unseen(seed, clips, base=base, teacher=objective)
    rewards = open_rewards(
        RewardsConfig(encoder=FullReferenceConfig(weight=1, frames=64, hinge=False)),
        base.autoencoder,
        base.image_encoder,
        base_name=bundle.base,
        frames=objective.config.clip.frames,
    )
    assert rewards is not None

    def score(x0: torch.Tensor, case: Case) -> dict[str, torch.Tensor]:
        truth, mask = case.inputs.target, case.inputs.mask
        draws = Draws.of(case.index, 1)
        return rewards(x0, truth=truth, teacher=case.endpoint, mask=mask, draws=draws).scores

    return measure_quality(
        NetDenoiser(net),
        Guided(NetDenoiser(guide), sampling.guidance_min, sampling.guidance_max),
        batch,
        objective=objective,
        autoencoder=base.autoencoder,
        sigmas=bundle.card.sigmas,
        eta=bundle.card.eta or None,
        score=score,
        seed=seed,
    )


def mean(rows: list[QualityRow], column: str) -> float:
    values = [row.rewards["reward_encoder"] if column == "reward" else getattr(row, column) for row in rows]
    return fmean(values)


def cell(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("students", nargs="+")
    parser.add_argument("--teacher", default="tiny-teacher")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    found: dict[str, dict[int, list[QualityRow]]] = {}
    for student in arguments.students:
        found[student] = {
            seed: measured(student, arguments.teacher, seed=seed, clips=arguments.clips)
            for seed in arguments.seeds
        }
        if arguments.out:
            document = {
                name: {seed: quality_document(rows)["rows"] for seed, rows in seeds.items()}
                for name, seeds in found.items()
            }
            arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"| | evaluations | {' | '.join(COLUMNS)} | reward |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for index, (student, seeds) in enumerate(found.items()):
        for same in zip(*seeds.values(), strict=True):
            row = same[0]
            if row.name != "student" and index:
                continue
            name = f"{student}, {row.steps}" if row.name == "student" else f"{row.name}, {row.steps}"
            cells = [cell(mean(list(same), column)) for column in (*COLUMNS, "reward")]
            print(f"| {name} | {row.evaluations} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
