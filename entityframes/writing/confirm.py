"""At the end of a run: whether the server still has, and a standby too, what the run has committed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from entityframes.engines.base import Engine
from entityframes.errors import ClosedError, ConnectionLostError, DatabaseError
from entityframes.interrupt import Interrupt
from entityframes.results import WRITTEN, OutcomeLog
from entityframes.retry import look_up

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
        lost = look_up(ask, ConnectionLostError(_UNSURE), interrupt)
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
