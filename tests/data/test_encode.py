"""Encoding a dataset: it goes on where it stopped, and several processes make the same files as one."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genprop.config import Config
from genprop.data import jobs
from genprop.data.jobs import Job, encode_part
from genprop.data.latents import PixelSamples
from genprop.data.mixture import EditClips
from genprop.data.procedural import ProceduralClips
from genprop.data.shards import LatentFolder, read_index, shard_path
from genprop.data.sources import open_source
from genprop.data.triplets import FOLDERS
from genprop.errors import GenPropError
from genprop.teacher.base import Base, new_base
from genprop.video import write_clip

Encoded = Callable[..., LatentFolder]
SIZE = {"frames": 3, "height": 16, "width": 16}


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


class Deadly:
    """Ends the process that unpickles it."""

    def __len__(self) -> int:
        return 5

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked processes need not import torch again; that they may be spawned is tested once."""
    monkeypatch.setattr(jobs, "START", "fork")


@pytest.fixture
def interrupt() -> Iterator[None]:
    """What a Ctrl-C does, put back."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


# --- going on ---


def test_encoding_goes_on_where_it_stopped(
    encoded: Encoded, noise: Any, small_config: Config, tmp_path: Path
) -> None:
    folder, clip = tmp_path / "latents", small_config.clip
    encoded(folder, clip)
    whole = files(folder)
    assert list(whole) == ["index.json", "latents-000000.tar", "latents-000001.tar", "latents-000002.tar"]
    (folder / "latents-000001.tar").unlink()
    dataset = noise()
    encoded(folder, clip, dataset=dataset)
    assert files(folder) == whole
    assert dataset.asked == [2, 3]
    again, written = noise(), (folder / "index.json").stat().st_mtime_ns
    encoded(folder, clip, dataset=again)
    assert again.asked == [] and (folder / "index.json").stat().st_mtime_ns == written


def test_a_failure_leaves_whole_shards_and_can_be_resumed(
    encoded: Encoded, noise: Any, small_config: Config, tmp_path: Path
) -> None:
    folder, clip = tmp_path / "latents", small_config.clip
    with pytest.raises(RuntimeError, match="no such clip"):
        encoded(folder, clip, dataset=noise(broken=3))
    assert list(files(folder)) == ["index.json", "latents-000000.tar"]
    with pytest.raises(GenPropError, match="is not finished") as caught:
        LatentFolder(folder)
    assert "goes on where it stopped" in caught.value.hint
    encoded(folder, clip)
    encoded(tmp_path / "straight", clip)
    assert files(folder) == files(tmp_path / "straight")


def test_what_a_killed_run_left_is_swept_away(encoded: Encoded, small_config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    encoded(folder, small_config.clip)
    whole = files(folder)
    # killed between the last shard and the index, with one process in the middle of a shard
    (folder / "latents-000002.tar").rename(folder / "latents-000002.4711.tmp")
    index = read_index(folder)
    del index["samples"]
    (folder / "index.json").write_text(json.dumps(index))
    encoded(folder, small_config.clip)
    assert files(folder) == whole


@pytest.mark.parametrize(
    "change", ["autoencoder", "scaling", "image_encoder", "seed", "clip", "source", "made_by"]
)
def test_latents_of_another_run_are_refused(
    encoded: Encoded, small_base: Base, small_config: Config, tmp_path: Path, change: str
) -> None:
    folder, clip = tmp_path / "latents", small_config.clip
    encoded(folder, clip, made_by={"betas": (1, 2)})
    encoded(folder, clip, made_by={"betas": (1, 2)})
    before, other, options = files(folder), small_base, {"made_by": {"betas": (1, 2)}}
    fresh = new_base(small_config.base, seed=1)
    if change == "autoencoder":
        other = small_base._replace(autoencoder=fresh.autoencoder)
    elif change == "image_encoder":
        other = small_base._replace(image_encoder=fresh.image_encoder)
    elif change == "scaling":
        small_base.autoencoder.vae.register_to_config(scaling_factor=0.25)
    elif change == "clip":
        clip = clip.model_copy(update={"noise_aug": 0.1})
    else:
        options[change] = {"seed": 1, "source": "other", "made_by": {"betas": [1, 3]}}[change]  # type: ignore[assignment]
    named = "autoencoder" if change == "scaling" else change
    with pytest.raises(GenPropError, match=f"latents of another run: {named} is"):
        encoded(folder, clip, base=other, **options)
    assert files(folder) == before


def test_shards_that_nobody_can_name_are_not_taken(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    encoded(tmp_path, small_config.clip)
    (tmp_path / "index.json").unlink()
    with pytest.raises(GenPropError, match=r"holds latents-000000\.tar, but no index\.json"):
        encoded(tmp_path, small_config.clip)


def test_a_damaged_shard_is_named_and_made_again(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    encoded(tmp_path, small_config.clip)
    whole = files(tmp_path)
    (tmp_path / "latents-000000.tar").write_bytes(b"not one")
    (tmp_path / "latents-000001.tar").unlink()
    with pytest.raises(GenPropError, match=r"latents-000000\.tar cannot be read"):
        encoded(tmp_path, small_config.clip)
    (tmp_path / "latents-000000.tar").unlink()
    encoded(tmp_path, small_config.clip)
    assert files(tmp_path) == whole


def test_a_dataset_without_samples_is_refused(encoded: Encoded, small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match="holiday has no samples"):
        encoded(tmp_path / "out", small_config.clip, dataset=ProceduralClips(0, 0, **SIZE), source="holiday")
    assert not (tmp_path / "out").exists()


def test_the_seed_moves_the_augmentation_and_nothing_else(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    first, second = (encoded(tmp_path / str(s), small_config.clip, seed=s)[4] for s in (0, 1))
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"first", "source_first"}


def test_encoding_leaves_the_callers_random_numbers_alone(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    encoded(tmp_path / "latents", small_config.clip)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- several processes ---


@pytest.mark.usefixtures("forked")
def test_several_processes_make_the_same_files(
    encoded: Encoded, noise: Any, small_config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoded(tmp_path / "one", small_config.clip)
    dataset = noise()
    with caplog.at_level(logging.INFO):
        encoded(tmp_path / "two", small_config.clip, dataset=dataset, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert dataset.asked == []  # none of it here
    assert "encoded 5 of 5 samples" in caplog.text and "samples/s" in caplog.text


@pytest.mark.usefixtures("forked")
def test_an_error_of_a_process_reaches_the_user_as_it_is(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    for name in FOLDERS:
        (tmp_path / "clips" / name).mkdir(parents=True)
        for index in range(4):
            frames = np.full((2, 16, 16, 3), 255, np.uint8)
            write_clip(tmp_path / "clips" / name / f"{index}.mp4", frames, fps=Fraction(8))
    triplets = EditClips([(open_source(tmp_path / "clips"), 1.0)], small_config, count=4, seed=0)
    with pytest.raises(
        GenPropError, match=r"none of the 4 clips.*has 2 frames, expected at least 3"
    ) as caught:
        encoded(tmp_path / "out", small_config.clip, dataset=triplets, processes=2)
    assert "genprop data check" in caught.value.hint
    assert "latents-000001.tar" not in files(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.usefixtures("forked")
def test_a_bug_in_a_process_keeps_its_traceback(
    encoded: Encoded, noise: Any, small_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in encoding process 1:.*conftest\.py.*no such clip"):
        encoded(tmp_path, small_config.clip, dataset=noise(broken=3), processes=2)


@pytest.mark.usefixtures("forked")
def test_a_process_that_dies_is_reported(encoded: Encoded, small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(GenPropError, match=r"an encoding process died \(exit code 3\)") as caught:
        encoded(tmp_path, small_config.clip, dataset=Deadly(), processes=2)
    assert "fewer processes" in caught.value.hint


@pytest.fixture
def part(
    interrupt: None, noise: Any, small_base: Base, small_config: Config, tmp_path: Path
) -> Callable[..., list[Any]]:
    """`part(shards, messages, ...)`: what an encoding process, run here, sends."""

    def run(shards: list[int], messages: int, **broken: int) -> list[Any]:
        samples = PixelSamples(noise(**broken))
        job = Job(samples, *small_base[1:], small_config.clip, tmp_path, source="", size=2)
        ours, theirs = Pipe()

        def send() -> None:
            ours.send_bytes(pickle.dumps(job))
            ours.send_bytes(pickle.dumps(shards))

        thread = threading.Thread(target=send)  # a pipe holds less than a job
        thread.start()
        encode_part(theirs, 0)
        thread.join()
        got = [ours.recv() for _ in range(messages)]
        assert not ours.poll()
        ours.close()
        theirs.close()
        return got

    return run


def test_a_process_does_its_shards_and_says_so(part: Callable[..., list[Any]], tmp_path: Path) -> None:
    assert part([0, 2], 3) == [2, 1, None]
    assert [shard_path(tmp_path, n).is_file() for n in range(3)] == [True, False, True]


def test_a_process_that_fails_says_why_after_what_it_did(
    part: Callable[..., list[Any]], tmp_path: Path
) -> None:
    done, error = part([0, 1], 2, broken=3)
    assert done == 2 and isinstance(error, RuntimeError) and "no such clip" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["latents-000000.tar"]


def test_a_process_passes_on_what_is_for_users(
    part: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "write_shard", lambda path, samples: (_ for _ in ()).throw(OSError(28, "full")))
    (error,) = part([0], 1)
    assert isinstance(error, OSError) and error.errno == 28


def test_a_job_moves_to_a_device_without_the_callers_modules(
    noise: Any, small_base: Base, small_config: Config, tmp_path: Path
) -> None:
    job = Job(PixelSamples(noise()), *small_base[1:], small_config.clip, tmp_path, source="", size=2)
    moved = job.on(torch.device("meta"))
    for module, device in ((moved, "meta"), (job, "cpu")):
        for parameters in (module.autoencoder.parameters(), module.image_encoder.parameters()):
            assert {p.device.type for p in parameters} == {device}
    assert job.on(torch.device("cpu")) is job


@pytest.mark.slow
def test_spawned_processes_make_the_same_files_too(
    encoded: Encoded, small_config: Config, tmp_path: Path
) -> None:
    clips = ProceduralClips(5, 0, **SIZE)
    encoded(tmp_path / "one", small_config.clip, dataset=clips)
    encoded(tmp_path / "two", small_config.clip, dataset=clips, processes=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
