"""Stopping a run: one flag that its batches look at, and the statements in flight that it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from entityframes.errors import StatementCancelledError


class Interrupt:
    """Asks the batches of a run to stop, also those that wait for the database.

    Args:
        cancel: an event of the caller's that stops the run as well when it is set.
    """

    def __init__(self, cancel: threading.Event | None = None) -> None:
        self._cancel = cancel
        self._fired = threading.Event()
        self._lock = threading.Lock()
        self._in_flight: set[Callable[[], None]] = set()

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._fired.is_set() or (self._cancel is not None and self._cancel.is_set())

    def fire(self) -> None:
        """Stop the run: set the flag and cancel what the database is doing for it. May be called again."""
        self._fired.set()
        with self._lock:
            for cancel in self._in_flight:
                cancel()

    def check(self) -> None:
        """Raise if the run is to stop.

        Raises:
            StatementCancelledError: it is.
        """
        if self.requested:
            raise StatementCancelledError("the run was stopped")

    def wait(self, seconds: float) -> None:
        """Sleep, at most until the run is stopped."""
        self._fired.wait(seconds)

    @contextmanager
    def cancelling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """While inside, `fire` calls `cancel`, which has to end the statement in flight and may be called late."""
        with self._lock:
            self._in_flight.add(cancel)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.discard(cancel)
