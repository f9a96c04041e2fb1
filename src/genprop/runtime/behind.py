"""One worker thread, one job behind: what is left of a window is worked off while the next is begun.

More than one job would hold more than one window's tensors, so a second waits for the first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch


class OneBehind:
    """Runs jobs one after the other, beside the program; what a job raises, the next call raises.

    Args:
        device: a job's work on a GPU goes to a stream of its own, after all that was asked of the GPU before.
        threaded: False runs each job at once, in the caller's thread.
    """

    def __init__(self, device: torch.device, *, threaded: bool = True) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind") if threaded else None
        self._stream = torch.cuda.Stream(device) if threaded and device.type == "cuda" else None
        self._job: Future[None] | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Start a job, once the one before is done. It has to wait for the GPU itself before it returns."""
        self.wait()
        if self._pool is None:
            return job()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._job = self._pool.submit(self._run, job)

    def wait(self) -> None:
        """Until nothing is left to do."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def _run(self, job: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream), torch.no_grad():  # no stream is none entered
            job()

    def __enter__(self) -> OneBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
