"""The rewards together: frames looked at, references, hinge, weights, and batches that may be split."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from genprop.distill.rewards.base import RewardCard
from genprop.distill.rewards.choice import choose_frames, pick
from genprop.distill.rewards.terms import RewardTerms, open_rewards, read_captions
from genprop.distill_settings import RewardConfig, RewardsConfig
from genprop.draws import Draws
from genprop.errors import GenPropError
from genprop.teacher.base import Base
from genprop.teacher.outline import How, frozen_base
from genprop.teacher.trace import fake_tensors

FRAMES = 6


class Nearness:
    """Minus the squared distance to the reference; of captions, to a grey as light as they are long."""

    def __init__(self, window: int = 1) -> None:
        self.card = RewardCard("Nearness", "a test", "none")
        self.window = window

    @torch.no_grad()
    def prepare(self, reference, mask=None) -> Tensor:
        if isinstance(reference, Tensor):
            return reference
        return torch.tensor([len(text) / 10 for text in reference]).view(-1, 1, 1, 1, 1)

    def __call__(self, frames: Tensor, prepared: Tensor) -> Tensor:
        return -(frames - prepared).square().flatten(1).mean(1)


@pytest.fixture
def base(small_base: Base) -> Base:
    for module in small_base:
        module.requires_grad_(False)
    return small_base


@pytest.fixture
def batch(rng) -> dict[str, Any]:
    x0, truth, teacher = torch.randn(3, 4, FRAMES, 4, 8, 8, generator=rng)
    mask = (torch.rand(4, FRAMES, 1, 8, 8, generator=rng) > 0.5).float()
    return {"x0": x0, "truth": truth, "teacher": teacher, "mask": mask}


def one(base: Base, *, window: int = 1, **settings: Any) -> RewardTerms:
    config = RewardConfig(**{"weight": 1.0, "reference": "truth", "hinge": False, **settings})
    return RewardTerms({"near": (config, Nearness(window))}, base.autoencoder, chunk=2, frames=FRAMES)


def call(terms: RewardTerms, batch: dict[str, Any], *, seed: int = 0, **changed: Any):
    inputs = {**batch, **changed}
    return terms(inputs.pop("x0"), draws=Draws.of(seed, len(batch["x0"])), **inputs)


def likeness(base: Base, x: Tensor, truth: Tensor) -> Tensor:
    """What `Nearness` says of each frame, decoded singly, `[B, T]`."""
    ours, true = (
        ((torch.cat([base.autoencoder.decode(v[:, [t]]) for t in range(v.shape[1])], 1) + 1) / 2).clamp(0, 1)
        for v in (x, truth)
    )
    return -(ours - true).square().mean(dim=(2, 3, 4))


# --- which frames ---


def test_single_frames_are_different_ones_drawn_for_each_sample_and_never_the_given():
    chosen = choose_frames(Draws.of(0, 64), total=9, window=1, count=3)
    assert chosen.shape == (64, 3, 1)
    rows = [tuple(row) for row in chosen[..., 0].tolist()]
    assert all(len(set(row)) == 3 and list(row) == sorted(row) for row in rows)
    assert {frame for row in rows for frame in row} == set(range(1, 9)) and len(set(rows)) > 10


def test_no_more_frames_are_looked_at_than_there_are():
    assert choose_frames(Draws.of(0, 2), total=4, window=1, count=9)[..., 0].tolist() == [[1, 2, 3]] * 2
    assert choose_frames(Draws.of(0, 1), total=1, window=1, count=5).tolist() == [[[0]]]


def test_a_window_is_contiguous_and_has_the_given_frame_only_where_it_must():
    chosen = choose_frames(Draws.of(0, 64), total=12, window=8, count=3)
    assert chosen.shape == (64, 1, 8) and (chosen.diff(dim=2) == 1).all()
    assert set(chosen[:, 0, 0].tolist()) == {1, 2, 3, 4}
    assert choose_frames(Draws.of(0, 2), total=8, window=8, count=1).tolist() == [[list(range(8))]] * 2


def test_picking_takes_each_samples_own_frames():
    video = torch.arange(12.0).view(2, 6, 1)
    chosen = torch.tensor([[[1, 2], [4, 5]], [[0, 1], [2, 3]]])
    assert pick(video, chosen)[..., 0].tolist() == [[1, 2], [4, 5], [6, 7], [8, 9]]


# --- what is scored ---


def test_a_score_is_the_mean_of_what_each_frame_scores(base, batch):
    found = call(one(base, frames=FRAMES, weight=0.5), batch)
    expected = likeness(base, batch["x0"], batch["truth"])[:, 1:].mean()
    torch.testing.assert_close(found.scores["reward_near"], expected)
    torch.testing.assert_close(found.total, 0.5 * expected)
    assert set(found.scores) == {"reward_near"}


def test_only_the_chosen_frames_have_a_gradient(base, batch):
    x0 = batch["x0"].clone().requires_grad_()
    call(one(base, frames=2), batch, x0=x0, seed=3).total.backward()
    assert x0.grad is not None
    chosen = choose_frames(Draws.of(3, 4), total=FRAMES, window=1, count=2)[..., 0]
    touched = [row.nonzero()[:, 0].tolist() for row in x0.grad.flatten(2).any(2)]
    assert touched == chosen.tolist()


def test_a_windowed_reward_sees_its_window(base, batch):
    x0 = batch["x0"].clone().requires_grad_()
    call(one(base, window=4), batch, x0=x0, seed=3).total.backward()
    assert x0.grad is not None
    chosen = choose_frames(Draws.of(3, 4), total=FRAMES, window=4, count=1)[:, 0]
    assert [row.nonzero()[:, 0].tolist() for row in x0.grad.flatten(2).any(2)] == chosen.tolist()


@pytest.mark.parametrize("window", [1, 3])
def test_a_reference_is_scored_highest_by_itself(base, batch, window):
    for reference in ("truth", "teacher"):
        terms = one(base, window=window, reference=reference)
        assert float(call(terms, batch).total) < 0
        assert float(call(terms, batch, x0=batch[reference]).total) == 0


def test_the_first_frame_is_the_reference_of_every_frame(base, batch):
    still = batch["truth"][:, :1].expand(-1, FRAMES, -1, -1, -1)
    terms = one(base, reference="first", frames=3)
    assert float(call(terms, batch, x0=still).total) == pytest.approx(0, abs=1e-9)
    expected = call(one(base, frames=3), batch, truth=still).total
    torch.testing.assert_close(call(terms, batch).total, expected)


def test_a_caption_is_the_reference_of_every_frame_of_its_sample(base, batch):
    texts = [b"cat", b"a dog", b"\xc3\xa9t\xc3\xa9", b"abcdefg"]
    captions = torch.stack(
        [torch.tensor([*text, *[0] * (9 - len(text))], dtype=torch.uint8) for text in texts]
    )
    assert read_captions(captions, name="near") == ["cat", "a dog", "été", "abcdefg"]
    terms = one(base, reference="text", frames=2)
    assert terms.needs_captions
    found = call(terms, batch, captions=captions, seed=5)
    chosen = choose_frames(Draws.of(5, 4), total=FRAMES, window=1, count=2)
    frames = ((base.autoencoder.decode_window(pick(batch["x0"], chosen) / 0.5) + 1) / 2).clamp(0, 1)
    grey = torch.tensor([0.3, 0.3, 0.5, 0.5, 0.3, 0.3, 0.7, 0.7]).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(found.total, -(frames - grey).square().mean())


def test_a_missing_or_empty_caption_is_an_error_and_a_cut_character_is_not(base, batch):
    terms = one(base, reference="text")
    for captions, got in ((None, "without captions"), (torch.zeros(4, 5, dtype=torch.uint8), "empty")):
        with pytest.raises(GenPropError, match=got) as caught:
            call(terms, batch, captions=captions)
        assert "distill.rewards.near.reference" in caught.value.hint
    cut = torch.tensor([[*"né".encode()[:2]]], dtype=torch.uint8)
    assert read_captions(cut, name="near") == ["n"]


# --- the hinge ---


def test_no_more_is_asked_for_than_the_teacher_scores_sample_by_sample(base, batch):
    x0 = batch["x0"].clone()
    x0[:2] = batch["truth"][:2]  # two samples beat the teacher, two are
    teacher = torch.lerp(x0, batch["truth"], 0.5)
    teacher[:2] = batch["teacher"][:2]
    leaf = x0.requires_grad_()
    terms = one(base, hinge=True, frames=FRAMES)
    found = call(terms, batch, x0=leaf, teacher=teacher)
    ours, theirs = (likeness(base, v, batch["truth"])[:, 1:].mean(1) for v in (x0.detach(), teacher))
    assert (ours > theirs).tolist() == [True, True, False, False]
    torch.testing.assert_close(found.total, torch.minimum(ours, theirs).mean())
    torch.testing.assert_close(found.scores["reward_near"], ours.mean())
    torch.testing.assert_close(found.scores["reward_near_teacher"], theirs.mean())
    torch.testing.assert_close(found.scores["reward_near_hinged"], torch.minimum(ours, theirs).mean())
    found.total.backward()
    assert leaf.grad is not None and leaf.grad.flatten(1).any(1).tolist() == [False, False, True, True]


def test_a_hinge_at_what_is_the_reference_itself_is_left_out(base, batch):
    terms = one(base, hinge=True, reference="teacher")
    assert terms.cards()[0]["hinge"] is False
    assert set(call(terms, batch).scores) == {"reward_near"}


# --- a batch may be split ---


@pytest.mark.parametrize("window", [1, 3])
def test_two_processes_with_half_the_batch_have_the_loss_and_the_gradient_of_one(base, batch, window):
    """What DDP does: each takes the mean over its own samples, and gradients are averaged."""
    terms = one(base, window=window, hinge=True, frames=2, weight=0.3)
    seeds = [11, 22, 33, 44]

    def run(part: slice) -> tuple[Tensor, Tensor]:
        inputs = {name: value[part].clone() for name, value in batch.items()}
        scale = torch.ones((), requires_grad=True)  # the one weight of this student
        found = terms(scale * inputs.pop("x0"), draws=Draws(seeds[part]), **inputs)
        found.total.backward()
        assert scale.grad is not None
        return found.total.detach(), scale.grad

    whole, first, second = run(slice(0, 4)), run(slice(0, 2)), run(slice(2, 4))
    assert not torch.isclose(first[0], second[0]) and whole[1].abs() > 1e-5
    for got, one_half, other in zip(whole, first, second, strict=True):
        torch.testing.assert_close((one_half + other) / 2, got)


def test_gradients_that_accumulate_add_up(base, batch):
    terms, x0 = one(base, frames=2), batch["x0"].clone().requires_grad_()
    call(terms, batch, x0=x0).total.backward()
    assert x0.grad is not None
    once = x0.grad.clone()
    (2 * call(terms, batch, x0=x0).total).backward()
    torch.testing.assert_close(x0.grad, 3 * once)


def test_the_memory_plan_can_run_it_on_tensors_without_contents(small_config):
    with fake_tensors():
        base = frozen_base(small_config, How())
        terms = opened(base, frames=3, texture={"weight": 1.0, "hinge": True})
        assert terms is not None
        video = torch.zeros(2, 3, 4, 8, 8)
        x0, mask = video.clone().requires_grad_(), torch.zeros(2, 3, 1, 8, 8)
        found = terms(x0, truth=video, teacher=video, mask=mask, draws=Draws.of(0, 2))
        found.total.backward()
        assert x0.grad is not None and x0.grad.shape == video.shape


# --- opening ---


def opened(base: Base, *, frames: int = FRAMES, **rewards: Any) -> RewardTerms | None:
    """As a file with the tables `rewards` opens them."""
    config = RewardsConfig.model_validate(rewards)
    return open_rewards(config, base.autoencoder, base.image_encoder, base_name="tiny-base", frames=frames)


def test_a_table_that_names_a_weight_alone_keeps_the_rewards_own_defaults():
    names = ("hps", "viclip", "encoder", "texture")
    made = RewardsConfig.model_validate({name: {"weight": 1.0} for name in names})
    rewards = (made.hps, made.viclip, made.encoder, made.texture)
    assert [r.reference for r in rewards] == ["first", "truth", "truth", "truth"]
    assert [r.hinge for r in rewards] == [True, True, True, False]


def test_rewards_of_weight_zero_are_not_opened(base):
    assert opened(base) is None


def test_the_rewards_without_a_download_score_and_leave_a_card(base, batch):
    both: dict[str, Any] = {
        "encoder": dict(weight=0.5, reference="first", frames=2),
        "texture": dict(weight=2.0, reference="truth", frames=3, hinge=False),
    }
    terms = opened(base, **both)
    assert terms is not None
    x0 = batch["x0"].clone().requires_grad_()
    found = call(terms, batch, x0=x0)
    s = found.scores
    torch.testing.assert_close(
        found.total.detach(), 0.5 * s["reward_encoder_hinged"] + 2 * s["reward_texture"]
    )
    found.total.backward()
    assert x0.grad is not None and not x0.grad[:, 0].any() and x0.grad[:, 1:].any()
    cards = json.loads(json.dumps(terms.cards()))
    assert [card["reward"] for card in cards] == ["encoder", "texture"]
    assert cards[0] == {
        "reward": "encoder",
        "name": "encoder",
        "source": "tiny-base",
        "licence": "Apache-2.0",
        "weight": 0.5,
        "reference": "first",
        "frames": 2,
        "hinge": True,
    }


def test_texture_looks_only_into_the_hole(base, batch):
    terms = opened(base, texture=dict(weight=1.0, reference="truth", frames=9, hinge=False))
    assert terms is not None
    assert float(call(terms, batch, mask=torch.zeros_like(batch["mask"])).total) == 0
    assert float(call(terms, batch).total) < 0


@pytest.mark.parametrize(
    ("name", "reference"),
    [("encoder", "text"), ("texture", "first"), ("texture", "text"), ("viclip", "first")],
)
def test_a_reference_that_makes_no_sense_is_refused_before_anything_is_fetched(base, name, reference):
    with pytest.raises(GenPropError, match=f"{name}.reference is '{reference}', expected one of") as caught:
        table: dict[str, Any] = {name: dict(weight=1.0, reference=reference)}
        opened(base, **table)
    assert f"{name}.weight=0" in caught.value.hint


def test_a_clip_shorter_than_the_window_is_refused(base):
    config = RewardConfig(weight=1.0, reference="truth")
    with pytest.raises(GenPropError, match="sees 7 frames, and clips have 6") as caught:
        RewardTerms({"near": (config, Nearness(7))}, base.autoencoder, chunk=2, frames=FRAMES)
    assert "distill.rewards.near.weight=0" in caught.value.hint


@pytest.mark.parametrize("name", ["hps", "viclip"])
def test_weights_that_are_not_there_name_the_way_out(base, name, tmp_path):
    pytest.importorskip(f"genprop.distill.rewards.{name}")
    with pytest.raises(GenPropError) as caught:
        opened(
            base,
            frames=8,
            **{name: dict(weight=1.0, reference="truth", path=str(tmp_path / "no"))},
        )
    assert f"distill.rewards.{name}.weight" in caught.value.hint
