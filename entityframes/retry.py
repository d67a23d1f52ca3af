"""Trying again: what may pass is waited for, and a COMMIT without an answer is looked up. Every such wait is here.

Each retry is logged on the logger ``entityframes`` at level INFO, with what was done (run and batch ids where there
are any) and the kind and SQLSTATE of the error, never with its text, which may quote contents.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Generic, TypeVar

import polars as pl

from entityframes.errors import (
    ConnectionLostError,
    DatabaseError,
    RowError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
)
from entityframes.interrupt import Interrupt

T = TypeVar("T")

_logger = logging.getLogger("entityframes")

#: Seconds between the tries of a read, or of a write that does no harm when it is done twice.
PAUSES = (0.05, 0.2, 0.5, 1.0)
#: How often a transaction is tried when the database asks for it (deadlock, lock timeout, lost connection).
MAX_TRIES = 5
#: Seconds before its second try; doubled for each further one, times a random factor.
BACKOFF = 0.1
#: Seconds for which the server is asked what a COMMIT without an answer did: one that crashed needs some to recover. A
#: person who stopped the run waits less.
LOOK_UP_SECONDS = 20.0
LOOK_UP_SECONDS_WHEN_STOPPED = 1.5
#: Seconds between two such questions: at first, and at most.
_LOOK_UP_PAUSES = (0.1, 1.0)

#: Errors after which a transaction is tried again: after a timeout, or a cancellation from outside, once.
RETRIED = (TransientError, StatementTimeoutError, StatementCancelledError)


class CommitUnknownError(ConnectionLostError):
    """A COMMIT was not answered, and the server could not be asked what became of it."""


def describe(error: BaseException) -> str:
    """An error for the log: its kind and SQLSTATE, without the text, which may quote contents."""
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} ({sqlstate})" if sqlstate else type(error).__name__


def retry(
    call: Callable[[], T],
    *,
    on: type[BaseException] | tuple[type[BaseException], ...] = TransientError,
    pauses: Iterable[float | Callable[[BaseException], float]] = PAUSES,
    wait: Callable[[float], object] = time.sleep,
    what: str = "a statement",
) -> T:
    """What a call returns; it is made again after some errors.

    Args:
        call: does no harm when it is made again.
        on: the errors after which it is.
        pauses: the seconds before each further try, or what gives them for the error; without more the error is raised.
        wait: waits so many seconds; the error is raised if it returns True, which says that there is to be no more.
        what: what is tried, for the log.
    """
    left = iter(pauses)
    while True:
        try:
            return call()
        except on as error:
            pause = next(left, None)
            if pause is None:
                raise
            seconds = pause(error) if callable(pause) else pause
            _logger.info("%s is tried again in %.2g s after %s", what, seconds, describe(error))
            if wait(seconds) is True:
                raise


def retry_stream(begin: Callable[[], Generator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """The rows of a query in pieces; it begins again after a transient error until a first piece was handed on.

    Raises:
        TransientError: it did not pass, or pieces were handed on before, which a second try would bring again.
    """
    pauses = iter(PAUSES)
    while True:
        rows = 0
        try:
            with closing(begin()) as pieces:
                for piece in pieces:
                    yield piece
                    rows += piece.height
            return
        except TransientError as error:
            if rows:
                message = f"after {rows:,} rows had been handed on: {error}. Nothing was changed: read them again"
                raise type(error)(message, error.sqlstate) from error
            pause = next(pauses, None)
            if pause is None:
                raise
            _logger.info("a query is sent again in %.2g s after %s", pause, describe(error))
            time.sleep(pause)


class Transaction(Generic[T]):
    """A write of one transaction, which ends in an answer that is known: of its COMMIT, or looked up after it.

    Args:
        what: what is written, for the log: the run's and the batch's id.
        recovered: asks the server on a new connection what the transaction wrote. It is given the error that came
            instead of the answer, and the answer of a later try, None if there was none; it returns None if the first
            COMMIT came to nothing.
        interrupt: of the run; one that was stopped is not tried again, and does not wait long.
    """

    def __init__(
        self, what: str, recovered: Callable[[ConnectionLostError, T | None], T | None], interrupt: Interrupt
    ) -> None:
        self._what, self._recovered, self._interrupt = what, recovered, interrupt
        self._left = MAX_TRIES
        #: What came instead of the answer to a COMMIT.
        self._lost: ConnectionLostError | None = None
        #: Whether the answer was looked up.
        self.was_recovered = False

    def run(self, write: Callable[[], T]) -> T:
        """The answer of `write`, which runs the transaction. May be called again with another way to write the same.

        Raises:
            RowError: the database refuses a row.
            DatabaseError: tried as often as it helps.
            StatementCancelledError: the run was stopped.
            CommitUnknownError: the server could not be asked.
        """
        while True:
            try:
                answer = write()
            except RowError:
                # Refused, perhaps, because the first COMMIT had arrived.
                if self._lost is not None and (found := self._look_up(self._lost, None)) is not None:
                    return found
                raise
            except RETRIED as error:
                if isinstance(error, ConnectionLostError) and error.committing:
                    self._lost = error
                    if (found := self._look_up(error, None)) is not None:
                        return found
                self._pause(error)
            else:
                # The first COMMIT may have been on its way still when it was looked up.
                if self._lost is not None and (found := self._look_up(self._lost, answer)) is not None:
                    return found
                return answer

    def _look_up(self, lost: ConnectionLostError, answer: T | None) -> T | None:
        found = look_up(lambda: self._recovered(lost, answer), lost, self._interrupt)
        if found is not None:
            self.was_recovered = True
            _logger.info("%s: the COMMIT that was not answered had been done", self._what)
        return found

    def _pause(self, error: DatabaseError) -> None:
        """Wait for the next try.

        Raises:
            DatabaseError: `error`, if there is to be none.
            StatementCancelledError: the run was stopped meanwhile.
        """
        self._left = self._left - 1 if isinstance(error, TransientError) else min(self._left - 1, 1)
        if self._left <= 0 or self._interrupt.requested:
            raise error
        seconds = BACKOFF * 2 ** (MAX_TRIES - self._left - 1) * random.uniform(0.5, 1.5)
        _logger.info("%s is tried again in %.2g s after %s", self._what, seconds, describe(error))
        self._interrupt.wait(seconds)
        self._interrupt.check()


def look_up(ask: Callable[[], T], lost: DatabaseError, interrupt: Interrupt) -> T:
    """Ask the server about a COMMIT that was not answered, on a new connection, until it is back.

    Raises:
        CommitUnknownError: it cannot be asked; from `lost`, which was had instead of the answer.
    """
    started = time.monotonic()
    pause, longest = _LOOK_UP_PAUSES
    while True:
        try:
            return ask()
        except DatabaseError:
            until = started + LOOK_UP_SECONDS
            if interrupt.requested:
                # All that is asked after a stop shares the moment that a person waits.
                until = min(until, (interrupt.fired_at or time.monotonic()) + LOOK_UP_SECONDS_WHEN_STOPPED)
            if time.monotonic() + pause > until:
                raise CommitUnknownError(str(lost), lost.sqlstate, "connection_lost") from lost
        # Not the interrupt's own wait: it does not wait once the run was stopped, and the answer is worth a moment.
        time.sleep(pause)
        pause = min(2 * pause, longest)
