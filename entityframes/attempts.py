"""How often, and how soon, a batch is tried again; the same for upserts and deletes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from entityframes.engines import Engine, Interrupt
from entityframes.errors import (
    ClosedError,
    ConnectionLostError,
    DatabaseError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
)
from entityframes.results import WRITTEN, OutcomeLog

T = TypeVar("T")

#: How often a batch is tried when the database asks for it (deadlock, lock timeout, lost connection).
MAX_TRIES = 5
#: Seconds before the second try; doubled for each further one, times a random factor.
BACKOFF = 0.1
#: Seconds for which the ledger is asked what a COMMIT without an answer did: a server that crashed needs some to
#: recover. A person who stopped the run waits less.
LEDGER_SECONDS = 20.0
LEDGER_SECONDS_WHEN_STOPPED = 1.5

#: What may be tried again: a timeout, or a cancellation by somebody else, once; what asks to be retried, often.
RETRIED = (TransientError, StatementTimeoutError, StatementCancelledError)


class Attempts:
    """The tries of one batch."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._left = MAX_TRIES

    def again(self, error: DatabaseError) -> None:
        """Wait for the next try.

        Raises:
            DatabaseError: `error`, if there is to be none.
            StatementCancelledError: the run was stopped meanwhile.
        """
        self._left = self._left - 1 if isinstance(error, TransientError) else min(self._left - 1, 1)
        if self._left <= 0 or self._interrupt.requested:
            raise error
        self._interrupt.wait(BACKOFF * 2 ** (MAX_TRIES - self._left - 1) * random.uniform(0.5, 1.5))
        self._interrupt.check()


class FateUnknownError(ConnectionLostError):
    """A COMMIT was not answered and the ledger cannot be asked."""


#: What is said of rows that were committed before the connection was lost, and what they are now.
_GONE = "it was committed, and the server that took over after the connection was lost does not have it: run it again"
_UNSURE = "it was committed, then the connection was lost, and the server cannot be asked whether it still has it"


def confirm(engine: Engine, log: OutcomeLog, losses: int, interrupt: Interrupt, look: Callable[[], None]) -> int:
    """After a lost connection, ask the server whether it still has what was committed, and correct the outcomes.

    A standby that took over may lack the last of it.

    Args:
        engine: the store's.
        log: the outcomes of a run, in which rows that are not stored any more become failed, or unknown where the
            server cannot be asked.
        losses: the engine's when the run began.
        interrupt: of the run; one that was stopped does not wait long.
        look: called before each question; it may fire the interrupt.

    Returns:
        How many rows were corrected.
    """
    if engine.losses == losses or not (batch_ids := log.written()):
        return 0

    def ask() -> list[str]:
        look()
        return engine.not_recorded(batch_ids)

    try:
        lost = from_ledger(ask, ConnectionLostError(_UNSURE), interrupt)
    except BaseException as error:
        corrected = log.correct(batch_ids, "unknown", _UNSURE)
        if not isinstance(error, DatabaseError | ClosedError):
            raise
        return corrected
    return log.correct(lost, "failed", _GONE)


_NOT_REPLICATED = (
    "it was committed, and no synchronous standby has confirmed it: it may be lost if the server fails now"
)
#: Seconds that a synchronous standby is given at the end of a run, and where a person stopped it.
STANDBY_SECONDS = 2.0
STANDBY_SECONDS_WHEN_STOPPED = 0.3
#: A run that took less had no COMMIT that somebody could have cancelled.
_SHORT = 0.01


def check_replicated(engine: Engine, log: OutcomeLog, elapsed: float, interrupt: Interrupt) -> None:
    """Where a COMMIT has to wait for a standby, say of each row that was written if that was not waited for.

    A wait that is cancelled, by an administrator or with this run, ends in a COMMIT that succeeds.
    """
    if elapsed < _SHORT or not any(log.counts.get(status) for status in WRITTEN):
        return
    with suppress(DatabaseError, ClosedError):
        if not engine.replicated(STANDBY_SECONDS_WHEN_STOPPED if interrupt.requested else STANDBY_SECONDS):
            log.correct(log.written(), None, _NOT_REPLICATED)


def from_ledger(ask: Callable[[], T], lost: DatabaseError, interrupt: Interrupt) -> T:
    """Ask the ledger about a COMMIT that was not answered, on a new connection, until the server is back.

    Raises:
        FateUnknownError: it cannot be asked; from `lost`, which was had instead of the answer.
    """
    started = time.monotonic()
    pause = 0.1
    while True:
        try:
            return ask()
        except DatabaseError:
            until = started + LEDGER_SECONDS
            if interrupt.requested:
                # All that is asked after a stop shares the moment that a person waits.
                until = min(until, (interrupt.fired_at or time.monotonic()) + LEDGER_SECONDS_WHEN_STOPPED)
            if time.monotonic() + pause > until:
                raise FateUnknownError(str(lost), lost.sqlstate) from lost
        # Not the interrupt's own wait: it does not wait once the run was stopped, and the answer is worth a moment.
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
