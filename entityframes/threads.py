"""The thread pool of a store: each thread processes one batch, or one chunk of a query."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import polars as pl

from entityframes.errors import ClosedError

#: Submits a function and its frame to a thread pool.
Submit = Callable[[Callable[[pl.DataFrame], pl.DataFrame], pl.DataFrame], Future[pl.DataFrame]]


class Threads:
    """A thread pool that is reused, because starting a thread takes longer than writing a small batch."""

    def __init__(self) -> None:
        self._process = 0
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[pl.DataFrame], pl.DataFrame], chunk: pl.DataFrame) -> Future[pl.DataFrame]:
        """Run `work` on a frame in the pool. Callers limit the number of their own frames in flight.

        After a fork the inherited pool has no threads, so a new pool is created.

        Raises:
            ClosedError: no thread is available.
        """
        if self._pool is None or self._process != os.getpid():
            self._process = os.getpid()
            self._pool = ThreadPoolExecutor(256, thread_name_prefix="entityframes")
        try:
            return self._pool.submit(work, chunk)
        except RuntimeError as error:
            # The interpreter is shutting down, or the system cannot start another thread.
            raise ClosedError(f"no thread available: {error}") from None


def map_concurrently(
    work: Callable[[pl.DataFrame], pl.DataFrame], pieces: Iterator[pl.DataFrame], submit: Submit, at_once: int
) -> Iterator[pl.DataFrame]:
    """Apply `work` to each frame, up to `at_once` of them concurrently, and yield the results in order."""
    running: deque[Future[pl.DataFrame]] = deque()
    try:
        for piece in pieces:
            if len(running) == at_once:
                yield running.popleft().result()
            running.append(submit(work, piece))
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
