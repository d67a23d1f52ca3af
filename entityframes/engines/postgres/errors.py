"""What PostgreSQL's errors mean for a batch, by SQLSTATE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import adbc_driver_manager
import pyarrow as pa

from entityframes.engines.conninfo import shown_when_connecting
from entityframes.engines.rules import rule_of
from entityframes.errors import (
    ConnectionLostError,
    DatabaseError,
    PermanentError,
    ResourceError,
    RowError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
)

#: The one that says that a copied row is stored already.
UNIQUE_VIOLATION = "23505"
#: What COPY says of a table with a row-level policy.
NO_COPY = "0A000"
#: What our own statements raise where a trigger has given rows other keys.
REKEYED = "EF001"
#: What a standby, or a server that was set to be read-only, says to a write.
READ_ONLY = "25006"

#: SQLSTATE, or its class, to what it means for a batch. The longest match counts.
_MEANING: dict[str, type[DatabaseError]] = {
    "08": ConnectionLostError,
    "08P01": PermanentError,
    "22": RowError,
    "23": RowError,
    "40001": TransientError,
    "40P01": TransientError,
    "53": ResourceError,
    "53300": TransientError,
    "54000": RowError,
    "55P03": TransientError,
    "57014": StatementTimeoutError,
    "57P01": ConnectionLostError,
    "57P02": ConnectionLostError,
    "57P03": ConnectionLostError,
    "25P03": ConnectionLostError,
    "57P05": ConnectionLostError,
    "58030": ResourceError,
}

#: Classes of errors of the statement, the session or the server. All others, also those that PostgreSQL does not use
#: itself, are raised by a trigger or a constraint for a row: P0 by RAISE and ASSERT, 0A and 21 too, a user's own.
_NO_ROW = re.compile("0[1238BLPZ]|2[4568BD]|3[4BD]|3F|42|5[578]|72|F0|HV|XX")

_LOST = re.compile(
    r"server closed the connection|no connection to the server|could not (?:receive|send) data|SSL SYSCALL"
    r"|connection (?:refused|reset)|terminating connection|connection is (?:closed|bad)|broken pipe"
    r"|connection to server .* failed|the database system is|connection has been closed|SSL error"
    r"|lost synchronization",
    re.IGNORECASE,
)
_FULL = re.compile(r"too many (?:connections|clients)|connection slots", re.IGNORECASE)


@contextmanager
def translated(
    *,
    connecting: bool = False,
    committing: bool = False,
    again: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Turn the driver's errors into ours, by SQLSTATE; its Python classes say little, its words are in any language.

    Args:
        connecting: whether a connection is being made, of which libpq gives no SQLSTATE.
        committing: whether what fails may have been committed.
        again: whether the database has let us in before, so that what it says now may pass.
        stopped: whether this side has asked for the end of a statement that was cancelled.
    """
    try:
        yield
    except adbc_driver_manager.Error as error:
        sqlstate = error.sqlstate or None
        message = _readable(error)
        if sqlstate is None and connecting and _FULL.search(message):
            # libpq does not say so when it connects.
            sqlstate = "53300"
        if sqlstate is None:
            meaning: type[DatabaseError] = ConnectionLostError if _LOST.search(message) else PermanentError
        else:
            other = PermanentError if _NO_ROW.match(sqlstate) else RowError
            meaning = _MEANING.get(sqlstate) or _MEANING.get(sqlstate[:2]) or other
        if connecting:
            if sqlstate is None and not _LOST.search(message):
                meaning = ConnectionLostError if again else PermanentError
            message = shown_when_connecting(message)
        if sqlstate == "57014" and stopped():
            meaning = StatementCancelledError
        name = _detail(error, "PG_DIAG_CONSTRAINT_NAME") or _detail(error, "PG_DIAG_COLUMN_NAME")
        lost = issubclass(meaning, ConnectionLostError)
        translated = meaning(message, sqlstate, "connection_lost" if lost else rule_of(sqlstate, name))
        translated.committing = committing
        raise translated from None


def streamed(cursor: Any) -> Iterator[pa.RecordBatch]:
    """What a cursor answers, in pieces, as they come.

    `fetch_record_batch` hands out a reader whose errors are a bare OSError without a SQLSTATE, once rows are on their
    way; the one that it is part of asks the driver what happened.

    Raises:
        adbc_driver_manager.Error: as the driver's calls do.
        ConnectionLostError: the driver knows no more than that; PermanentError if it was something else.
    """
    try:
        yield from cursor._results.reader
    except OSError as error:
        message = _readable(error)
        raise (ConnectionLostError if _LOST.search(message) else PermanentError)(message) from None


@contextmanager
def committed() -> Iterator[None]:
    """What is still asked after a COMMIT: where that fails, the ledger has to tell what was written."""
    try:
        yield
    except DatabaseError as error:
        lost = ConnectionLostError(str(error), error.sqlstate)
        lost.committing = True
        raise lost from error


def _detail(error: adbc_driver_manager.Error | OSError, wanted: str) -> str | None:
    """A field of the server's error, None if it has none of this name."""
    for name, value in getattr(error, "details", None) or ():
        # The driver gives the names as bytes.
        if name in (wanted, wanted.encode()):
            text: str = value.decode("utf-8", "replace")
            return text
    return None


def _readable(error: adbc_driver_manager.Error | OSError) -> str:
    """The server's own words, without the driver's preamble and without DETAIL, which may quote other rows."""
    if primary := _detail(error, "PG_DIAG_MESSAGE_PRIMARY"):
        return " ".join(primary.split())
    message = str(error)
    message = re.sub(r"^[A-Z_]+: (?:\[libpq\] )?", "", message.strip())
    message = message.partition("\nDETAIL:")[0].partition("\nCONTEXT:")[0].partition("\nLINE ")[0]
    message = message.partition("Query was:")[0]
    found = re.search(r"(?:ERROR|FATAL|PANIC):\s*(.*)", message, re.DOTALL)
    return " ".join((found[1] if found else message).split()).partition(" SQLSTATE:")[0]
