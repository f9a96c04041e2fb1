"""An iterator that is worked off in a thread of its own, a few items ahead of whoever reads it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def ahead(items: Iterable[Item], *, depth: int = 2) -> Generator[Item]:
    """The items in order, at most `depth` of them waiting; what the iterator raises is raised here.

    When the reader stops early, so does the thread, and the iterator is closed.
    """
    waiting: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        stream = iter(items)
        try:
            for item in stream:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # it is the reader's to handle
            put(error)
        finally:
            if hasattr(stream, "close"):
                stream.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
