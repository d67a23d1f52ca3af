"""Checks at the end of a run whether committed rows are still stored, and whether a standby has them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from entityframes.engines.database import Recorder
from entityframes.errors import ClosedError, ConnectionLostError, DatabaseError
from entityframes.interrupt import Interrupt
from entityframes.results import WRITTEN, OutcomeLog
from entityframes.retry import look_up

#: The errors of rows that were committed before a connection was lost: the server no longer has them, or cannot be
#: queried.
_LOST = (
    "the change was committed, but the connection was lost and the server that took over does not have it: "
    "repeat the call"
)
_UNCONFIRMED = (
    "the change was committed, but then the connection was lost and the server cannot be queried: it may not have it"
)


def confirm(
    engine: Recorder, log: OutcomeLog, losses: int, interrupt: Interrupt, before_each: Callable[[], None]
) -> int:
    """After a lost connection, check that the server still has the committed batches, and correct the outcomes.

    A standby that took over may lack the most recent ones.

    Args:
        engine: the engine of the store, or of tables.
        log: the outcomes of the run. Rows that are no longer stored become failed, or unknown if the server cannot be
            reached.
        losses: the `Database.losses` at the start of the run.
        interrupt: the interrupt of the run; if it was requested, the wait for the server is short.
        before_each: called before each attempt to query the server; it may fire the interrupt.

    Returns:
        The number of corrected rows.
    """
    if engine.database.losses == losses or not (batch_ids := log.written()):
        return 0

    def query() -> list[str]:
        before_each()
        return engine.not_recorded(batch_ids)

    try:
        lost = look_up(query, ConnectionLostError(_UNCONFIRMED), interrupt)
    except BaseException as error:
        corrected = log.correct(batch_ids, "unknown", _UNCONFIRMED)
        if not isinstance(error, DatabaseError | ClosedError):
            raise
        return corrected
    return log.correct(lost, "failed", _LOST)


#: The error of rows that were committed without the confirmation of a synchronous standby.
_NOT_REPLICATED = (
    "the change was committed, but no synchronous standby has confirmed it: it may be lost if the server fails now"
)
#: Seconds to wait for a synchronous standby at the end of a run, and after the run was stopped.
STANDBY_SECONDS = 2.0
STANDBY_SECONDS_WHEN_STOPPED = 0.3
#: The check is skipped for runs of fewer seconds, in which no COMMIT can have been cancelled.
_SHORT_RUN = 0.01


def check_replicated(engine: Recorder, log: OutcomeLog, elapsed: float, interrupt: Interrupt) -> None:
    """If COMMIT has to wait for a synchronous standby but did not, report this in the outcome of each written row.

    If the wait is cancelled, by an administrator or because the run is stopped, COMMIT succeeds without the standby.
    """
    if elapsed < _SHORT_RUN or not any(log.counts.get(status) for status in WRITTEN):
        return
    with suppress(DatabaseError, ClosedError):
        if not engine.database.replicated(STANDBY_SECONDS_WHEN_STOPPED if interrupt.requested else STANDBY_SECONDS):
            log.correct(log.written(), None, _NOT_REPLICATED)
