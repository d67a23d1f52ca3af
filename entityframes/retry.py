"""Retries after transient errors, and recovery of transactions whose COMMIT got no response.

Each retry is logged on the logger ``entityframes`` at level INFO, with the operation (for batches, the run and batch
ids) and the class and SQLSTATE of the error. The message of the error is not logged, because it may quote contents.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, TypeVar

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

#: Seconds between the attempts of a read or of an idempotent write.
PAUSES = (0.05, 0.2, 0.5, 1.0)
#: The maximum number of attempts of a transaction after transient errors (deadlock, lock timeout, lost connection).
MAX_ATTEMPTS = 5
#: Seconds before its first retry; doubled for each further retry, times a random factor.
BACKOFF = 0.1
#: The maximum number of seconds to wait for the server after a COMMIT without a response, as crash recovery takes time,
#: and the maximum once the run was stopped.
LOOK_UP_SECONDS = 20.0
LOOK_UP_SECONDS_WHEN_STOPPED = 1.5
#: Seconds between two queries of the server meanwhile: the initial and the longest pause.
_LOOK_UP_PAUSES = (0.1, 1.0)

#: Errors after which a transaction is retried; after a timeout or an external cancellation, only once.
RETRIED = (TransientError, StatementTimeoutError, StatementCancelledError)


class CommitUnknownError(ConnectionLostError):
    """A COMMIT got no response, and the server could not be queried to find out whether it succeeded."""


def describe(error: BaseException) -> str:
    """The class and SQLSTATE of an error, for the log; without its message, which may quote contents."""
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} ({sqlstate})" if sqlstate else type(error).__name__


def retry(
    call: Callable[[], T],
    *,
    on: type[BaseException] | tuple[type[BaseException], ...] = TransientError,
    pauses: Iterable[float | Callable[[BaseException], float]] = PAUSES,
    wait: Callable[[float], object] = time.sleep,
    what: str = "a statement",
    when: Callable[[Any], bool] = lambda error: True,
) -> T:
    """Call a function, retry it after some errors, and return its result.

    Args:
        call: the function. Unless `when` excludes errors during COMMIT, it must be idempotent.
        on: the errors after which it is retried.
        pauses: the seconds before each retry, or functions that return them for the error. If they are used up, the
            error is raised.
        wait: waits for a number of seconds. If it returns True, the error is raised without another retry.
        what: the name of the operation, for the log.
        when: whether it is retried after this error; if not, the error is raised.
    """
    remaining = iter(pauses)
    while True:
        try:
            return call()
        except on as error:
            pause = next(remaining, None)
            if pause is None or not when(error):
                raise
            seconds = pause(error) if callable(pause) else pause
            _logger.info("retrying %s in %.2g s after %s", what, seconds, describe(error))
            if wait(seconds) is True:
                raise


def retry_stream(begin: Callable[[], Generator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """The result of a query in pieces. After a transient error it is retried, unless rows have already been yielded.

    Raises:
        TransientError: all attempts failed, or rows have been yielded, which a retry would repeat.
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
                message = f"the query failed after {rows:,} rows had been returned: {error}. Read them again"
                raise type(error)(message, error.sqlstate) from error
            pause = next(pauses, None)
            if pause is None:
                raise
            _logger.info("retrying a query in %.2g s after %s", pause, describe(error))
            time.sleep(pause)


class Transaction(Generic[T]):
    """A write in one transaction, with retries. If COMMIT gets no response, the result is recovered from the server.

    Args:
        what: the name of the write, for the log: its run id and batch id.
        recovered: finds out on a new connection what the transaction wrote. Its arguments are the error that was
            raised by COMMIT, and the result of a later attempt or None. It returns None if the first COMMIT failed.
        interrupt: the interrupt of the run. If it was requested, the write is not retried, and recovery waits only
            briefly.
    """

    def __init__(
        self, what: str, recovered: Callable[[ConnectionLostError, T | None], T | None], interrupt: Interrupt
    ) -> None:
        self._what, self._recovered, self._interrupt = what, recovered, interrupt
        #: The number of remaining attempts.
        self._remaining = MAX_ATTEMPTS
        #: The error of a COMMIT without a response.
        self._lost: ConnectionLostError | None = None
        #: Whether the result was recovered.
        self.was_recovered = False

    def run(self, write: Callable[[], T]) -> T:
        """Run the transaction and return its result. May be called again with another function for the same write.

        Args:
            write: runs the transaction, including COMMIT.

        Raises:
            RowError: the database rejects a row.
            DatabaseError: the error is permanent, or all attempts failed.
            StatementCancelledError: the run was stopped.
            CommitUnknownError: COMMIT got no response, and the server could not be queried.
        """
        while True:
            try:
                result = write()
            except RowError:
                # The row may be rejected because the first COMMIT has succeeded.
                if self._lost is not None and (found := self._look_up(self._lost, None)) is not None:
                    return found
                raise
            except RETRIED as error:
                if isinstance(error, ConnectionLostError) and error.committing:
                    self._lost = error
                    if (found := self._look_up(error, None)) is not None:
                        return found
                try:
                    self._pause(error)
                except DatabaseError:
                    # An earlier COMMIT may have arrived meanwhile.
                    if self._lost not in (None, error) and (found := self._look_up(self._lost, None)) is not None:
                        return found
                    raise
            else:
                # The first COMMIT may have arrived at the server only after it was looked up.
                if self._lost is not None and (found := self._look_up(self._lost, result)) is not None:
                    return found
                return result

    def _look_up(self, lost: ConnectionLostError, later: T | None) -> T | None:
        found = look_up(lambda: self._recovered(lost, later), lost, self._interrupt)
        if found is not None:
            self.was_recovered = True
            _logger.info("%s: the COMMIT without a response had succeeded", self._what)
        return found

    def _pause(self, error: DatabaseError) -> None:
        """Wait before the next attempt.

        Raises:
            DatabaseError: `error`, if there is no further attempt.
            StatementCancelledError: the run was stopped meanwhile.
        """
        self._remaining = self._remaining - 1 if isinstance(error, TransientError) else min(self._remaining - 1, 1)
        if self._remaining <= 0 or self._interrupt.requested:
            raise error
        seconds = BACKOFF * 2 ** (MAX_ATTEMPTS - self._remaining - 1) * random.uniform(0.5, 1.5)
        _logger.info("retrying %s in %.2g s after %s", self._what, seconds, describe(error))
        self._interrupt.wait(seconds)
        self._interrupt.check()


def look_up(query: Callable[[], T], lost: DatabaseError, interrupt: Interrupt) -> T:
    """Query the server about a COMMIT without a response, on a new connection, and retry until the server responds.

    Args:
        query: queries the server.
        lost: the error of the COMMIT.
        interrupt: the interrupt of the run; if it was requested, the wait is short.

    Raises:
        CommitUnknownError: the server did not respond in time, or cannot tell.
    """
    started = time.monotonic()
    pause, longest = _LOOK_UP_PAUSES
    while True:
        try:
            return query()
        except CommitUnknownError:
            # It will not be known later either.
            raise
        except DatabaseError:
            deadline = started + LOOK_UP_SECONDS
            if interrupt.requested:
                # All queries after the stop share one deadline.
                deadline = min(deadline, (interrupt.fired_at or time.monotonic()) + LOOK_UP_SECONDS_WHEN_STOPPED)
            if time.monotonic() + pause > deadline:
                raise CommitUnknownError(str(lost), lost.sqlstate, "connection_lost") from lost
        # Not `Interrupt.wait`, which returns immediately once the run was stopped.
        time.sleep(pause)
        pause = min(2 * pause, longest)
