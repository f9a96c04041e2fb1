"""Encoding in this process or in several: each shard is one piece of work, done by whoever has it.

Several are fresh processes that end with this one. What they need goes through pipes, not through shared
memory, which is small in many containers.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from genprop.data.latents import Batch, PixelSamples, encode_sample
from genprop.data.shards import AGAIN, shard_path, write_shard
from genprop.errors import GenPropError
from genprop.latents import Autoencoder, ImageEncoder
from genprop.settings import ClipConfig
from genprop.types import TASKS

START = "spawn"
"""How processes start: CUDA cannot be forked."""


@dataclass(frozen=True)
class Job:
    """What an encoding process needs to know; `size` is the number of samples in a shard."""

    samples: PixelSamples
    autoencoder: Autoencoder
    image_encoder: ImageEncoder
    clip: ClipConfig
    folder: Path
    source: str
    size: int
    workers: int = 0

    def on(self, device: torch.device) -> Job:
        """With its modules on `device`; those of the caller stay where they are."""
        if next(self.autoencoder.parameters()).device == device:
            return self
        return replace(
            self,
            autoencoder=copy.deepcopy(self.autoencoder).to(device),
            image_encoder=copy.deepcopy(self.image_encoder).to(device),
        )

    def encode(self, shards: list[int]) -> Iterator[int]:
        """Write these shards; yields how many samples each has."""
        device = next(self.autoencoder.parameters()).device
        for shard in shards:
            indices = range(shard * self.size, min((shard + 1) * self.size, len(self.samples)))
            write_shard(shard_path(self.folder, shard), self._encoded(indices, device))
            yield len(indices)

    def _encoded(self, indices: range, device: torch.device) -> Iterator[tuple[Batch, dict[str, Any]]]:
        loader = DataLoader(
            Subset(self.samples, indices),
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the caller's global generator
        )
        for index, item in zip(indices, loader, strict=True):
            pixels = {name: value.to(device) for name, value in item.items()}
            task = TASKS[int(item["task"])]
            facts = {"index": index, "seed": int(item["seed"]), "task": task, "source": self.source}
            yield encode_sample(pixels, self.autoencoder, self.image_encoder, self.clip), facts


def _device(rank: int) -> torch.device:
    """The processes are dealt out to the GPUs, if there are any."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", rank % count) if count else torch.device("cpu")


def encode_here(job: Job, shards: list[int]) -> Iterator[int]:
    """Write these shards in this process; yields the number of samples of each."""
    yield from job.on(_device(0)).encode(shards)


def encode_in_processes(job: Job, shards: list[int], processes: int) -> Iterator[int]:
    """Write these shards in several processes; yields the number of samples of each, as they come.

    Raises:
        GenPropError: what one of them raised; or one died.
    """
    context = multiprocessing.get_context(START)
    payload = pickle.dumps(replace(job, workers=0))
    children: dict[Connection, Any] = {}
    try:
        for rank in range(processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=encode_part, args=(theirs, rank), daemon=True)
            child.start()
            theirs.close()
            children[ours] = child
        for rank, connection in enumerate(children):
            _send(connection, payload)
            _send(connection, pickle.dumps(shards[rank::processes]))
        running = dict(children)
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, ConnectionError):
                    child = running[connection]
                    child.join()
                    raise GenPropError(
                        f"an encoding process died (exit code {child.exitcode}), expected it to finish",
                        f"if memory ran out, ask for fewer processes; {AGAIN}",
                    ) from None
                if isinstance(message, BaseException):
                    raise message
                if message is None:
                    running.pop(connection)
                else:
                    yield message
    finally:
        for connection, child in children.items():
            child.terminate()  # the shard that it has not finished is begun again by the next call
            child.join()
            connection.close()
            for leftover in job.folder.glob(f"latents-*.{child.pid}.tmp"):
                leftover.unlink(missing_ok=True)


def _send(connection: Connection, content: bytes) -> None:
    with suppress(OSError):  # a child that died: reading from it will say so
        connection.send_bytes(content)


def encode_part(connection: Connection, rank: int) -> None:
    """One encoding process: takes its job and its shards, sends the number of samples of each shard it
    made, then None; or what went wrong. Where nobody listens any more, it ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's to answer
    outcome: BaseException | None = None
    try:
        job: Job = pickle.loads(connection.recv_bytes()).on(_device(rank))
        for number in job.encode(pickle.loads(connection.recv_bytes())):
            connection.send(number)
    except (GenPropError, OSError) as error:  # both are for users, as they are
        outcome = error
    except Exception:
        outcome = RuntimeError(f"in encoding process {rank}:\n{traceback.format_exc()}")
    with suppress(OSError):
        connection.send(outcome)
