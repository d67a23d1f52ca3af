"""The threads of a store: each works on one batch, or on one piece of what is asked."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import polars as pl

from entityframes.errors import ClosedError

#: Has a thread do some work on a frame.
Submit = Callable[[Callable[[pl.DataFrame], pl.DataFrame], pl.DataFrame], Future[pl.DataFrame]]


class Threads:
    """They are kept, because starting one takes longer than a small batch."""

    def __init__(self) -> None:
        self._process = 0
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[pl.DataFrame], pl.DataFrame], chunk: pl.DataFrame) -> Future[pl.DataFrame]:
        """Have a frame worked on. Each caller bounds its own frames; after a fork the old pool has no threads.

        Raises:
            ClosedError: there is no thread to be had.
        """
        if self._pool is None or self._process != os.getpid():
            self._process = os.getpid()
            self._pool = ThreadPoolExecutor(256, thread_name_prefix="entityframes")
        try:
            return self._pool.submit(work, chunk)
        except RuntimeError as error:
            # A thread of the caller's that goes on while Python ends, or a machine without another thread.
            raise ClosedError(f"there is no thread to be had: {error}") from None


def side_by_side(
    work: Callable[[pl.DataFrame], pl.DataFrame], pieces: Iterator[pl.DataFrame], submit: Submit, at_once: int
) -> Iterator[pl.DataFrame]:
    """What comes of each piece, in order, with several worked on at once."""
    begun: deque[Future[pl.DataFrame]] = deque()
    try:
        for piece in pieces:
            if len(begun) == at_once:
                yield begun.popleft().result()
            begun.append(submit(work, piece))
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
