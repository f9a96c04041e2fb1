"""Propagation with stages whose every result is known in closed form, and once with a real small model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genprop.bundle import write_bundle
from genprop.config import Config, load_config
from genprop.edm import karras_sigmas, velocity_target
from genprop.errors import GenPropError
from genprop.pixels import to_pixels
from genprop.runtime.backends import Stages
from genprop.runtime.behind import OneBehind
from genprop.runtime.propagate import Model, load, sample_window
from genprop.runtime.sample import schedule
from genprop.settings import SamplingConfig
from genprop.student.clone import trained_tensors
from genprop.teacher.base import Base, save_base
from genprop.teacher.net import GenPropNet
from genprop.types import Clip, NetOut
from genprop.video import read_clip, write_clip, write_image

SIZE, FRAMES, CELL, SCALE = 16, 8, 4, 0.5
DEVICE = torch.device("cpu")
SIGMAS = {
    1: (20.0,),
    2: (20.0, 1.0),
    4: (20.0, 4.0, 1.0, 0.3),
    8: tuple(karras_sigmas(8, sigma_min=0.1, sigma_max=20.0)[:-1].tolist()),
}

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(x, first, source) -> x0`."""


def follow(x: Tensor, first: Tensor, source: Tensor) -> Tensor:
    """The original video again."""
    return source


def freeze(x: Tensor, first: Tensor, source: Tensor) -> Tensor:
    """The edited frame, repeated."""
    return first * SCALE


def brighten(x: Tensor, first: Tensor, source: Tensor) -> Tensor:
    """The edited frame, two levels brighter in each frame that follows."""
    return (first + torch.arange(FRAMES).view(1, -1, 1, 1, 1) * 2 / 127.5) * SCALE


def denoise(x: Tensor, first: Tensor, source: Tensor) -> Tensor:
    """What is left of the noise."""
    return 0.5 * x / (x.std() + 1)


@dataclass
class FakeNet:
    """A net that knows x0, and remembers what it was called with."""

    predict: Predict
    logits: Tensor
    calls: list[tuple[Tensor, ...]] = field(default_factory=list)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        first: Tensor,
        source: Tensor,
        image_embedding: Tensor,
        added_time_ids: Tensor,
    ) -> NetOut:
        self.calls.append((sample, timestep, first, source, image_embedding, added_time_ids))
        sigma = (4 * timestep).exp()
        x = sample * (sigma**2 + 1).sqrt()
        return NetOut(velocity_target(self.predict(x, first, source), x, sigma), self.logits)


def constant(value: float) -> Tensor:
    return torch.full((1, FRAMES, 1, SIZE // CELL, SIZE // CELL), value)


def encode(frames: Tensor) -> Tensor:
    return F.avg_pool3d(frames[0], (1, CELL, CELL))[None]


def decode(latents: Tensor) -> Tensor:
    return (latents / SCALE).repeat_interleave(CELL, -1).repeat_interleave(CELL, -2)


def embed(frame: Tensor) -> Tensor:
    return frame.mean((-1, -2))[:, None]


def config(*, noise_aug: float = 0.0) -> Config:
    tiny = load_config("tiny")
    clip = tiny.clip.model_copy(
        update={"frames": FRAMES, "height": SIZE, "width": SIZE, "noise_aug": noise_aug}
    )
    return tiny.model_copy(update={"clip": clip})


def stages(
    predict: Predict = follow, *, logit: float = 0.0, kind: str = "student", noise_aug: float = 0.0
) -> Stages:
    return Stages(
        backend="fake",
        kind=kind,  # pyright: ignore[reportArgumentType]
        config=config(noise_aug=noise_aug),
        sigmas=SIGMAS,
        scaling_factor=SCALE,
        net=FakeNet(predict, constant(logit)),
        encode=encode,
        decode_window=decode,
        chunk=3,
        embed=embed,
        device=DEVICE,
    )


def calls(of: Stages) -> list[tuple[Tensor, ...]]:
    assert isinstance(of.net, FakeNet)
    return of.net.calls


def blocks(frames: int, seed: int = 0) -> np.ndarray:
    """Random colours, one for each latent cell: the pooling autoencoder loses nothing of them."""
    cells = np.random.default_rng(seed).integers(0, 200, (frames, SIZE // CELL, SIZE // CELL, 3))
    return cells.repeat(CELL, 1).repeat(CELL, 2).astype(np.uint8)


INFINITE = float("inf")
LENGTHS = [1, 3, 8, 9, 15, 22]


@pytest.mark.parametrize("kind", ["student", "teacher"])
@pytest.mark.parametrize("total", LENGTHS)
def test_with_an_empty_mask_all_but_the_first_frame_is_the_source(total: int, kind: str) -> None:
    video, edited = blocks(total), blocks(1, seed=1)[0]
    result = Model(stages(denoise, logit=-INFINITE, kind=kind)).propagate(video, edited, steps=2)
    assert np.array_equal(result.frames[0], edited)
    assert np.array_equal(result.frames[1:], video[1:])
    assert result.mask.max() < 1e-9


@pytest.mark.parametrize("composite", [True, False])
@pytest.mark.parametrize("total", LENGTHS)
def test_with_a_full_mask_everything_is_generated(total: int, composite: bool) -> None:
    edited = blocks(1, seed=1)[0]
    result = Model(stages(freeze, logit=INFINITE)).propagate(blocks(total), edited, composite=composite)
    assert np.array_equal(result.frames, np.repeat(edited[None], total, axis=0))
    assert (result.mask == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_net_that_follows_the_source_gives_the_source(steps: int) -> None:
    video = blocks(11)
    result = Model(stages()).propagate(video, video[0], steps=steps, composite=False)
    assert np.array_equal(result.frames, video)


@pytest.mark.parametrize("total", LENGTHS)
def test_a_window_begins_with_what_the_one_before_has_made(total: int) -> None:
    edited = blocks(1, seed=1)[0]
    result = Model(stages(brighten)).propagate(blocks(total), edited, composite=False)
    assert np.array_equal(result.frames, edited + 2 * np.arange(total, dtype=np.uint8)[:, None, None, None])


def test_the_kept_region_stays_exact_over_windows() -> None:
    video, edited = blocks(22), blocks(1, seed=1)[0]
    model = stages(freeze)
    assert isinstance(model.net, FakeNet)
    model.net.logits = torch.cat([constant(20.0)[..., :2], constant(-20.0)[..., 2:]], dim=-1)
    result = Model(model).propagate(video, edited)
    beyond = SIZE // 2 + 1  # the mask's half, grown by a pixel
    assert np.array_equal(result.frames[1:, :, beyond:], video[1:, :, beyond:])
    assert not np.array_equal(result.frames[1:, :, :beyond], video[1:, :, :beyond])
    # The frame that is handed on is the composited one: its right half is the source's.
    second_first = calls(model)[4][2][0, 0]
    expected = encode(to_pixels(torch.from_numpy(result.frames[7]))[None, None])[0, 0]
    assert torch.allclose(second_first, expected, atol=1e-6)


def test_a_short_clip_is_padded_with_its_last_frame() -> None:
    model, video = stages(), blocks(3)
    Model(model).propagate(video, video[0], steps=1)
    source = calls(model)[0][3]
    expected = encode(to_pixels(torch.from_numpy(video[[0, 1, 2, 2, 2, 2, 2, 2]]))[None]) * SCALE
    assert torch.allclose(source, expected, atol=1e-6)


def test_any_size_and_aspect_comes_back() -> None:
    y, x = np.mgrid[:20, :50]
    ramp = np.stack([40 + 3 * x, 60 + 5 * y, 90 + x + y], axis=-1).astype(np.uint8)
    video = np.stack([ramp, ramp + 10, ramp + 20])
    fine = replace(stages(), encode=lambda f: f, decode_window=lambda z: z / SCALE)
    result = Model(fine).propagate(video, video[0], steps=1, composite=False)
    assert result.frames.shape == video.shape and result.mask.shape == video.shape[:3]
    assert result.frames.dtype == np.uint8 and result.mask.dtype == np.float32
    assert np.abs(result.frames.astype(int) - video)[:, 2:-2, 4:-4].max() <= 3


def test_the_first_mask_is_predicted_too() -> None:
    model = stages()
    assert isinstance(model.net, FakeNet)
    model.net.logits = torch.linspace(-2, 2, FRAMES).view(1, -1, 1, 1, 1) + constant(0.0)
    mask = Model(model).propagate(blocks(8), blocks(1)[0]).mask
    assert mask[:, 0, 0] == pytest.approx(torch.linspace(-2, 2, FRAMES).sigmoid().numpy())


def test_a_seed_repeats_and_another_differs() -> None:
    video = blocks(9)
    run = [
        Model(stages(denoise, logit=INFINITE, noise_aug=0.02)).propagate(video, video[0], seed=seed).frames
        for seed in (3, 3, 4)
    ]
    assert np.array_equal(run[0], run[1])
    assert not np.array_equal(run[0], run[2])


@pytest.mark.parametrize(
    ("kind", "steps", "expected"), [("student", 4, 8), ("student", None, 8), ("teacher", 3, 12)]
)
def test_evaluations_timings_and_progress(kind: str, steps: int | None, expected: int) -> None:
    model, seen = stages(kind=kind), []
    result = Model(model).propagate(
        blocks(9), blocks(1)[0], steps=steps, progress=lambda done, total: seen.append((done, total))
    )
    assert result.evaluations == len(calls(model)) == expected
    assert seen == [(n, expected) for n in range(1, expected + 1)]
    assert set(result.seconds) == {"encode", "denoise", "decode", "total"}
    assert 0 < sum(s for name, s in result.seconds.items() if name != "total") < result.seconds["total"]


def test_a_teacher_takes_its_own_steps_and_guidance_drops_the_image() -> None:
    model = stages(kind="teacher")
    video = blocks(8)
    result = Model(model).propagate(video, video[0])
    assert result.evaluations == 2 * model.config.sampling.steps
    with_image, without = calls(model)[:2]
    assert with_image[2].any() and not without[2].any()
    assert with_image[4].any() and not without[4].any()
    assert torch.equal(with_image[3], without[3])


def slow_decode(latents: Tensor) -> Tensor:
    """A decoder that mixes the frames of its window, and is still at it when the next window is begun."""
    time.sleep(0.02)
    return decode(latents) + 0.1 * latents.mean()


@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (3, 0), (3, 1), (FRAMES, 0)])
def test_a_pipelined_run_gives_the_frames_and_the_mask_of_a_sequential_one(chunk: int, overlap: int) -> None:
    of = replace(stages(denoise, logit=0.3), decode_window=slow_decode, chunk=chunk, overlap=overlap)
    video, edited = blocks(18), blocks(1, seed=1)[0]  # three windows, the last moved back
    one, two, three = (
        Model(model, pipelined=pipelined).propagate(video, edited, steps=2)
        for model, pipelined in ((of, True), (of, False), (replace(of, concurrent=False), True))
    )
    for other in (two, three):
        assert np.array_equal(one.frames, other.frames) and np.array_equal(one.mask, other.mask)


def test_stages_that_take_one_thread_are_called_from_the_callers_only() -> None:
    threads: dict[bool, set[str]] = {True: set(), False: set()}
    for concurrent, seen in threads.items():

        def remember(latents: Tensor, seen: set[str] = seen) -> Tensor:
            seen.add(threading.current_thread().name)
            return decode(latents)

        of = replace(stages(), decode_window=remember, concurrent=concurrent)
        Model(of).propagate(blocks(18), blocks(1)[0], steps=1)
    main = threading.current_thread().name
    assert threads[False] == {main} and threads[True] > {main}


def test_padding_and_the_given_frame_are_not_decoded() -> None:
    seen: list[int] = []

    def remember(latents: Tensor) -> Tensor:
        seen.append(latents.shape[1])
        return decode(latents)

    of = replace(stages(), decode_window=remember, chunk=1)
    Model(of).propagate(blocks(4), blocks(1)[0], steps=1)
    assert seen == [1, 1, 1]


def test_what_the_worker_raises_reaches_the_caller() -> None:
    def broken(latents: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            raise GenPropError("out of memory")
        return decode(latents)

    for total in (5, 18):
        with pytest.raises(GenPropError, match="out of memory"):
            Model(replace(stages(), decode_window=broken)).propagate(blocks(total), blocks(1)[0], steps=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("behind")]


def test_a_second_job_waits_for_the_first() -> None:
    order: list[str] = []
    go_on = threading.Event()

    def first() -> None:
        go_on.wait()
        order.append("first")

    with OneBehind(DEVICE) as behind:
        behind.put(first)
        order.append("begun")
        go_on.set()
        behind.put(lambda: order.append("second"))
        behind.wait()
    assert order == ["begun", "first", "second"]


def window(
    of: Stages,
    *,
    seed: int = 0,
    steps: int | None = None,
    noise: Tensor | None = None,
    deterministic: bool = False,
):
    video = to_pixels(torch.from_numpy(blocks(FRAMES)))[None]
    edited = to_pixels(torch.from_numpy(blocks(1, seed=1)))
    generator = torch.Generator().manual_seed(seed)
    return sample_window(
        of, video, edited, steps=steps, generator=generator, noise=noise, deterministic=deterministic
    )


def test_noise_is_drawn_and_conditions_are_made_as_svds_pipeline_does() -> None:
    model = stages(noise_aug=0.02)
    window(model, seed=5, steps=1)
    generator = torch.Generator().manual_seed(5)
    edited = to_pixels(torch.from_numpy(blocks(1, seed=1)))
    augmented = edited + 0.02 * torch.randn(edited.shape, generator=generator)
    noise = torch.randn((1, FRAMES, 3, 4, 4), generator=generator)
    sample, timestep, first, source, embedding, ids = calls(model)[0]
    assert torch.allclose(first, encode(augmented[:, None]).expand(-1, FRAMES, -1, -1, -1))
    assert torch.allclose(sample, noise, atol=1e-6)  # c_in times a start of variance sigma^2 + 1
    assert timestep == pytest.approx(np.log(20) / 4)
    assert torch.allclose(source, SCALE * encode(to_pixels(torch.from_numpy(blocks(FRAMES)))[None]))
    assert torch.allclose(embedding, embed(edited))  # of the clean frame
    assert ids.tolist() == [pytest.approx([6, 127, 0.02])]


def test_the_first_output_frame_is_given() -> None:
    result = window(stages(denoise))
    assert torch.equal(result.frames[:, 0], to_pixels(torch.from_numpy(blocks(1, seed=1))))
    assert torch.allclose(result.frames[:, 1:], decode(result.latents)[:, 1:])
    assert result.mask_logits.shape == (1, FRAMES, 1, 4, 4)
    assert result.evaluations == 4
    assert result.seconds["total"] == pytest.approx(
        sum(result.seconds[stage] for stage in ("encode", "denoise", "decode"))
    )


def test_given_noise_replaces_the_generators() -> None:
    noise = torch.randn((1, FRAMES, 3, 4, 4), generator=torch.Generator().manual_seed(9))
    model = stages(denoise)
    runs = [window(model, seed=seed, noise=noise, deterministic=True).latents for seed in (0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert torch.allclose(calls(model)[0][0], noise, atol=1e-6)


def test_a_student_draws_fresh_noise_unless_it_is_to_be_deterministic() -> None:
    noise = torch.ones((1, FRAMES, 3, 4, 4))
    few = [window(stages(denoise), seed=s, noise=noise).latents for s in (0, 1)]
    assert not torch.equal(few[0], few[1])
    one = [window(stages(denoise), steps=1, noise=noise, deterministic=d).latents for d in (True, False)]
    assert torch.allclose(one[0], one[1], atol=1e-5)  # with one step there is nothing to draw


def test_a_students_eta_is_that_of_its_number_of_steps_and_fresh_noise_where_none_is_named() -> None:
    noise = torch.ones((1, FRAMES, 3, 4, 4))

    def draw(eta: dict[int, float], *, steps: int, seed: int, deterministic: bool = False) -> Tensor:
        of = replace(stages(denoise), eta=eta)
        return window(of, seed=seed, steps=steps, noise=noise, deterministic=deterministic).latents

    ode = draw({}, steps=4, seed=0, deterministic=True)
    assert torch.equal(draw({4: 0.0}, steps=4, seed=1), ode)
    assert torch.equal(draw({4: 0.5}, steps=4, seed=1, deterministic=True), ode)
    fresh = draw({}, steps=2, seed=1)
    assert torch.equal(draw({2: 1.0, 4: 0.0}, steps=2, seed=1), fresh)
    some = draw({2: 0.5}, steps=2, seed=1)
    assert not torch.equal(some, fresh) and not torch.equal(some, draw({2: 0.0}, steps=2, seed=1))


def test_schedules() -> None:
    student, teacher = stages(), stages(kind="teacher")
    assert schedule(student, 2).tolist() == [20.0, 1.0, 0.0]
    assert len(schedule(student, None)) == 5  # 4 steps, though 8 are known
    assert len(schedule(replace(student, sigmas={6: (1.0,) * 6, 8: (1.0,) * 8}), None)) == 7
    assert len(schedule(teacher, 3)) == 4
    assert schedule(teacher, 1).tolist() == pytest.approx([80.0, 0.0])


def unusable(*_: object) -> Tensor:
    raise AssertionError("nothing may be computed before the input is checked")


VIDEO, EDITED = blocks(9), blocks(1)[0]


@pytest.mark.parametrize(
    ("video", "edited", "steps", "kind", "message"),
    [
        (VIDEO, EDITED, 3, "student", "does not know 3 steps, expected one of 1, 2, 4, 8"),
        (VIDEO, EDITED, 0, "student", "does not know 0 steps"),
        (VIDEO, EDITED, 0, "teacher", "steps is 0, expected at least 1"),
        (VIDEO, blocks(1)[0][:, :8], None, "student", "another aspect"),
        (VIDEO, np.zeros((8, 8, 3), np.uint8), None, "student", "8x8, the video is 16x16: another size"),
        (VIDEO, EDITED.astype(np.float32), None, "student", "float32 of shape"),
        (VIDEO, EDITED[..., 0], None, "student", r"uint8 of shape \[16, 16\], expected uint8 \[H, W, 3\]"),
        (VIDEO[:0], EDITED, None, "student", "no frames"),
        (Clip(VIDEO[:0], Fraction(8)), EDITED, None, "student", "no frames"),
        (VIDEO[0], EDITED, None, "student", r"shape \[16, 16, 3\], expected uint8 \[T, H, W, 3\]"),
        (VIDEO / 255, EDITED, None, "student", "float64"),
        ("no-such-video.mp4", EDITED, None, "student", "does not exist"),
        (VIDEO, "no-such-picture.png", None, "student", "cannot be read"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    video: np.ndarray | Clip | str, edited: np.ndarray | str, steps: int | None, kind: str, message: str
) -> None:
    model = replace(stages(kind=kind), encode=unusable, embed=unusable, decode_window=unusable)
    with pytest.raises(GenPropError, match=message):
        Model(model).propagate(video, edited, steps=steps)
    assert not calls(model)


def test_a_student_without_schedules_says_so() -> None:
    with pytest.raises(GenPropError, match="holds no sigmas"):
        Model(replace(stages(), sigmas={})).propagate(VIDEO, EDITED)


def test_from_files_to_a_file(tmp_path: Path) -> None:
    video = blocks(10)
    write_clip(tmp_path / "in.mp4", video, fps=Fraction(25, 2), crf=0)
    write_image(tmp_path / "first.png", video[0])
    result = Model(stages()).propagate(str(tmp_path / "in.mp4"), tmp_path / "first.png")
    assert result.fps == Fraction(25, 2)
    result.save(tmp_path / "out.mp4")
    out = read_clip(tmp_path / "out.mp4")
    assert out.frames.shape == video.shape and out.fps == result.fps
    assert Model(stages()).propagate(video, video[0]).fps == 16
    assert Model(stages()).propagate(Clip(video, Fraction(30)), video[0]).fps == 30


@pytest.fixture
def real(
    tmp_path: Path, small_config: Config, small_base: Base, enliven: Callable[[nn.Module], nn.Module]
) -> dict[str, Model]:
    """A teacher of random weights, and as its student the very same network."""
    sampling = SamplingConfig(sigma_max=20.0, guidance_min=1.0, guidance_max=1.0, steps=3)
    config = small_config.model_copy(update={"sampling": sampling})
    save_base(small_base, tmp_path / "base")
    net = GenPropNet(small_base.backbone, config.net, config.sce)
    enliven(net)
    nodes = karras_sigmas(3, sigma_min=0.002, sigma_max=20.0)[:-1].tolist()
    for kind in ("teacher", "student"):
        write_bundle(
            tmp_path / kind,
            kind=kind,
            config=config,
            base=tmp_path / "base",
            tensors=trained_tensors(net, backbone=False),
            sigmas={3: tuple(nodes), 1: (20.0,)} if kind == "student" else {},
        )
    return {kind: load(tmp_path / kind, backend="torch") for kind in ("teacher", "student")}


def test_a_real_model_propagates_a_clip(real: dict[str, Model]) -> None:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (6, 20, 36, 3), dtype=np.uint8)
    edited = rng.integers(0, 256, (20, 36, 3), dtype=np.uint8)
    result, again = (real["student"].propagate(video, edited, composite=False) for _ in range(2))
    assert result.evaluations == 3 * 3  # windows of 3 frames: 0-2, 2-4, 3-5
    assert np.array_equal(result.frames[0], edited)
    assert result.frames.shape == video.shape and 0 < result.mask.min() <= result.mask.max() < 1
    assert np.array_equal(result.frames, again.frames)
    # Random weights, but every input counts.
    for other in (
        real["student"].propagate(video, edited, composite=False, seed=1),
        real["student"].propagate(255 - video, edited, composite=False),
        real["student"].propagate(video, 255 - edited, composite=False),
    ):
        assert not np.array_equal(other.frames[1:], result.frames[1:])


def test_without_guidance_a_deterministic_student_of_the_teachers_weights_is_the_teacher(
    real: dict[str, Model],
) -> None:
    video = torch.rand((1, 3, 3, 16, 16), generator=torch.Generator().manual_seed(1)) * 2 - 1
    teacher, student, free = (
        sample_window(
            real[kind].stages,
            video,
            video[:, 0].flip(-1),
            steps=3,
            generator=torch.Generator().manual_seed(0),
            deterministic=deterministic,
        )
        for kind, deterministic in (("teacher", False), ("student", True), ("student", False))
    )
    assert (teacher.evaluations, student.evaluations) == (6, 3)
    assert torch.allclose(teacher.latents, student.latents, atol=1e-4)
    assert torch.allclose(teacher.frames, student.frames, atol=1e-4)
    assert torch.allclose(teacher.mask_logits, student.mask_logits, atol=1e-4)
    assert not torch.allclose(free.latents, student.latents, atol=1e-2)


def guided(of: Stages, *, tasks: bool = False, scales: tuple[float, float] = (1.0, 4.0)) -> Stages:
    """Stages of a student that is told its guidance scale."""
    net = of.config.net.model_copy(update={"guidance": True, "tasks": tasks})
    distill = of.config.distill.model_copy(update={"guidance_range": scales})
    return replace(of, config=of.config.model_copy(update={"net": net, "distill": distill}))


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize(("asked", "told"), [(None, 1.5), (1.0, 1.0), (2.25, 2.25)])
def test_a_student_is_told_its_guidance(asked: float | None, told: float, tasks: bool) -> None:
    of, video = guided(stages(), tasks=tasks), blocks(10)
    Model(of).propagate(video, video[0], steps=2, guidance=asked, task="insert" if tasks else "remove")
    assert len(calls(of)) == 2 * 2
    for call in calls(of):
        assert call[5].tolist() == [pytest.approx([6, 127, 0, 1 if tasks else 0, told])]


def test_its_own_scale_is_one_that_it_was_shown() -> None:
    of, video = guided(stages(), scales=(2.0, 4.0)), blocks(4)
    Model(of).propagate(video, video[0], steps=1)
    assert calls(of)[0][5][0, 4] == 2 > of.config.sampling.guidance_max


@pytest.mark.parametrize("asked", [0.5, 4.5, -1.0, float("inf"), float("nan")])
def test_a_scale_that_the_student_was_not_shown_is_refused(asked: float) -> None:
    of, video = guided(stages()), blocks(4)
    with pytest.raises(GenPropError, match="expected one from 1 to 4"):
        Model(of).propagate(video, video[0], guidance=asked)
    assert not calls(of)


def test_a_student_with_baked_in_guidance_takes_none() -> None:
    of, video = stages(), blocks(4)
    with pytest.raises(GenPropError, match="its own baked in") as caught:
        Model(of).propagate(video, video[0], guidance=3.0)
    assert "embedded" in caught.value.hint and not calls(of)


def test_a_teacher_is_guided_as_strongly_as_it_is_asked() -> None:
    """x0 is the first frame in one branch and 0 in the other: the result is the scale times that."""
    video = blocks(4)
    for asked, last in ((None, 1.5), (2.5, 2.5), (1.0, 1.0)):
        of = stages(freeze, kind="teacher")
        window = sample_window(
            of,
            to_pixels(torch.from_numpy(blocks(FRAMES)))[None],
            to_pixels(torch.from_numpy(video[:1])),
            steps=2,
            guidance=asked,
            generator=torch.Generator().manual_seed(0),
        )
        assert calls(of)[0][5].shape == (1, 3)
        first = encode(to_pixels(torch.from_numpy(video[:1]))[None])[0, 0] * SCALE
        assert torch.allclose(window.latents[0, -1], last * first, atol=1e-3)
        assert torch.allclose(window.latents[0, 0], first, atol=1e-3)
    for asked in (-1.0, float("inf"), float("nan")):
        with pytest.raises(GenPropError, match="expected a number from 0 on"):
            Model(stages(kind="teacher")).propagate(video, video[0], guidance=asked)
