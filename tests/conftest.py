"""What every test shares: one thread, seeded randomness, no network, and real clips where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# A test may not reach out for weights: huggingface_hub reads this when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# The same examples in every run, and no deadline: the machine may be busy.
settings.register_profile("genprop", derandomize=True, deadline=None)
settings.load_profile("genprop")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums in a fixed order, and no threads that fight over a small machine."""
    torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    """A CPU generator with a fixed seed, fresh for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real clips (`<name>/video.mp4`, `<name>/mask-0.mp4`) beside the repository."""
    clips = REPOSITORY.parent / "shared" / "data" / "clips"
    if not clips.is_dir():
        pytest.skip(f"no sample clips: {clips} is not a folder")
    return clips
