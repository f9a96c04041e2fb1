"""The training of the guide's tracker: rolled out on its own masks and its own cleaned frames.

From the second frame on, the network reads what it made of the frames before, as it will in use; a network
that is shown true masks alone has never seen its own errors, and drifts. Gradients stay within a frame.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.config import Config
from genprop.data.corpus import open_corpus
from genprop.data.removals import Removals, Sequence
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.guide.network import Memory, TrackerNet
from genprop.guide.tracker import load_tracker, save_tracker, to_unit
from genprop.guide.tracking import State, advance, begin, crop_of, inputs, probability_of
from genprop.loop import Validation, fit, is_main_process
from genprop.sheet import contact_sheet
from genprop.teacher.samples import VALIDATION_SEED

HELD_OUT = 24


class TrackerObjective(nn.Module):
    """Cross entropy and Dice of every frame of a sequence, and of the confidence in it.

    Args:
        forget: how often the colour map is left out, so that the network does not lean on it alone.
    """

    def __init__(self, net: TrackerNet, *, forget: float = 0.1) -> None:
        super().__init__()
        self.net, self.forget = net, forget

    def forward(self, batch: Items[Sequence], draws: Draws) -> dict[str, Tensor]:
        """Sequences of one length; see `fit`."""
        states = [begin(item.frames[0], item.edited, item.masks[0]) for item in batch]
        terms: list[dict[str, Tensor]] = []
        self.masks = [[item.masks[0]] for item in batch]
        for k in range(1, len(batch[0].frames)):
            given = [
                inputs(s, item.frames[k], item.flows[k - 1]) for s, item in zip(states, batch, strict=True)
            ]
            crops = to_unit(np.stack([one.crop for one in given]))
            dropped = (draws.rand() < self.forget).view(-1, 1, 1) & self.training
            crops[:, -1] = torch.where(dropped, 0.5, crops[:, -1])
            logits, sure = self.net(crops, *self._recall(states))
            truth = np.stack(
                [
                    crop_of(one.region.cut(item.masks[k].astype(np.uint8) * 255))
                    for one, item in zip(given, batch, strict=True)
                ]
            )
            terms.append(_terms(logits.float(), sure.float(), to_unit(truth[..., None])))
            shown, confidence = logits.detach().float().numpy(), sure.detach().sigmoid().tolist()
            for i, item in enumerate(batch):
                size = item.masks.shape[1:]
                probability = probability_of(shown[i, 0], given[i].region, size)
                states[i] = advance(states[i], item.frames[k], given[i], probability, confidence[i])
                self.masks[i].append(probability > 0.5)
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}

    def _recall(self, states: Items[State]) -> Memory:
        """The memories of all sequences, side by side."""
        crops = to_unit(np.stack([crop for state in states for crop in state.remembered]))
        keys, values = self.net.remember(crops)
        return Memory(*(x.unflatten(0, (len(states), -1)).flatten(1, 2) for x in (keys, values)))


def _terms(logits: Tensor, sure: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Of one frame of each sequence: `[B, 1, S, S]`, `[B]`, `[B, 1, S, S]`."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth)
    both, either = (probability * truth).sum((1, 2, 3)), (probability + truth).sum((1, 2, 3))
    dice = (1 - (2 * both + 10) / (either + 10)).mean()
    hard, true = (logits.detach() > 0), truth > 0.5
    overlap = ((hard & true).sum((1, 2, 3)) + 5) / ((hard | true).sum((1, 2, 3)) + 5)
    confidence = F.binary_cross_entropy_with_logits(sure, overlap)
    loss = 2 * entropy + dice + 0.1 * confidence
    return {"loss": loss, "entropy": entropy, "dice": dice, "confidence": confidence, "iou": overlap.mean()}


def train_tracker(
    config: Config, *, data: Items[str], out: Path, start: str | Path | None, resume: bool
) -> dict[str, Any]:
    """Train it on removals over real material; `out/tracker.safetensors` is what it made.

    Args:
        data: one `photos=DIR,cutouts=DIR,clips=DIR`.
        start: weights to go on from.

    Raises:
        GenPropError: data of another kind.
    """
    if len(data) != 1:
        raise GenPropError(
            f"--stage tracker takes one --data, got {len(data)}",
            "Write it as photos=DIR,cutouts=DIR,clips=DIR.",
        )
    rollout, settings = config.rollout, config.tracker
    corpus = open_corpus(data[0], leave_out=rollout.leave_out)
    like = {"length": rollout.length, "natural": rollout.natural}
    training = Removals(corpus, count=rollout.count, seed=settings.seed, **like)
    held_out = Removals(corpus, count=HELD_OUT, seed=settings.seed + VALIDATION_SEED, **like)
    torch.manual_seed(settings.seed)
    net = TrackerNet() if start is None else load_tracker(Path(start))
    objective = TrackerObjective(net.train())

    def validate(step: int) -> Validation:
        objective.eval()
        batches = [[held_out[i] for i in range(j, min(j + 8, HELD_OUT))] for j in range(0, HELD_OUT, 8)]
        terms = [objective(batch, Draws.of(0, len(batch))) for batch in batches]
        means = {name: float(np.mean([float(term[name]) for term in terms])) for name in terms[0]}
        rows = [
            (name, clip)
            for item, masks in list(zip(batches[-1], objective.masks, strict=True))[:4]
            for name, clip in (("frames", item.frames), ("mask", np.stack(masks)))
        ]
        objective.train()
        return Validation(means, picture=contact_sheet(rows))

    summary = fit(objective, training, settings, out, collate=list, validate=validate, resume=resume)
    if is_main_process():
        save_tracker(net, out / "tracker.safetensors")
    return summary
