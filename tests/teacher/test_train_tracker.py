"""The tracker's training: it learns, in a few steps, on its own masks."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from genprop.config import load_config
from genprop.data.removals import Sequence
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.guide.motion import flow, grey
from genprop.guide.network import TrackerNet
from genprop.guide.tracker import load_tracker
from genprop.teacher.train_tracker import TrackerObjective, train_tracker
from genprop.video import write_image


def sequence(seed: int, frames: int = 3) -> Sequence:
    """A square over smooth noise."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(
        rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC
    )
    shots, masks = np.repeat(ground[None], frames, axis=0), np.zeros((frames, 96, 128), bool)
    for t in range(frames):
        masks[t, 30:60, 40 + 4 * t : 75 + 4 * t] = True
        shots[t][masks[t]] = (200, 30, 40)
    greys = [grey(frame) for frame in shots]
    flows = np.stack([flow(b, a) for a, b in itertools.pairwise(greys)])
    return Sequence(shots, masks, ground, flows)


def test_the_loss_falls_and_the_masks_are_its_own() -> None:
    torch.manual_seed(0)
    objective = TrackerObjective(TrackerNet().train(), forget=0.0)
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-3)
    batch = [sequence(0), sequence(1)]
    losses = []
    for step in range(8):
        terms = objective(batch, Draws.of(step, 2))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert losses[-1] < 0.6 * losses[0] and set(terms) == {"loss", "entropy", "dice", "confidence", "iou"}
    assert np.array_equal(objective.masks[0][0], batch[0].masks[0]) and len(objective.masks[0]) == 3
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_a_training_writes_weights_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, channels in (("photos", 3), ("cutouts", 4)):
        (tmp_path / kind).mkdir()
        picture = np.random.default_rng(0).integers(0, 255, (200, 260, channels), dtype=np.uint8)
        if channels == 4:
            picture[..., 3] = 255
            cv2.imwrite(str(tmp_path / kind / "a.png"), picture)
        else:
            write_image(tmp_path / kind / "a.png", picture)
    monkeypatch.setattr("genprop.teacher.train_tracker.HELD_OUT", 1)
    config = load_config(
        "tiny",
        [
            "tracker.steps=1",
            "tracker.batch_size=1",
            "tracker.workers=0",
            "rollout.length=2",
            "rollout.count=4",
        ],
    )
    data = f"photos={tmp_path / 'photos'},cutouts={tmp_path / 'cutouts'}"
    summary = train_tracker(config, data=[data], out=tmp_path / "run", start=None, resume=False)
    assert summary["steps"] == 1 and {"loss", "iou"} <= set(summary["validation"])
    load_tracker(tmp_path / "run" / "tracker.safetensors")
    with pytest.raises(GenPropError, match="takes one --data"):
        train_tracker(config, data=[data, data], out=tmp_path / "run", start=None, resume=False)
