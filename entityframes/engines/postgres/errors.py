"""Translation of PostgreSQL's errors by SQLSTATE."""

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

#: A copied row is already stored.
UNIQUE_VIOLATION = "23505"
#: An internal error.
INTERNAL = "XX000"
#: COPY into a table with a row-level policy.
NO_COPY = "0A000"
#: Raised by statements of this package if a trigger has changed the keys of rows.
REKEYED = "EF001"
#: A write to a standby or to a server in read-only mode.
READ_ONLY = "25006"

#: The exception for each SQLSTATE or SQLSTATE class; the longest match applies.
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

#: Classes of errors that concern the statement, the session or the server. All others concern a row, and are raised by
#: a trigger or a constraint: P0 by RAISE and ASSERT, also 0A and 21, and classes that a user has defined.
_NO_ROW = re.compile("0[1238BLPZ]|2[4568BD]|3[4BD]|3F|42|5[578]|72|F0|HV|XX")

_LOST = re.compile(
    r"server closed the connection|no connection to the server|could not (?:receive|send) data|SSL SYSCALL"
    r"|connection (?:refused|reset)|terminating connection|connection is (?:closed|bad)|broken pipe"
    r"|connection to server .* failed|the database system is|connection has been closed|SSL error"
    r"|lost synchronization",
    re.IGNORECASE,
)
#: Where the driver quotes the statement, if the server has sent no error.
_STATEMENT = "Failed to execute query '"
#: What to do about a connection that cannot be opened.
_ADVICE = (
    (re.compile("password authentication failed|no password supplied"), "check the user and the password"),
    (
        re.compile("Connection refused|could not translate host name|timeout expired|No such file or directory"),
        "check the address, and that the server runs",
    ),
    (re.compile('database ".*" does not exist'), "check the name of the database, or create it"),
    (re.compile('role ".*" does not exist'), "check the user, or create it"),
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
    """Translate the driver's errors by SQLSTATE: its exception classes are unspecific, and its messages are localized.

    Args:
        connecting: whether this is a connection attempt, for which libpq reports no SQLSTATE.
        committing: whether the statement may have been committed in spite of an error.
        again: whether a connection has succeeded before, so that a failure may be transient.
        stopped: whether the client has cancelled the statement.
    """
    try:
        yield
    except adbc_driver_manager.Error as error:
        sqlstate = error.sqlstate or None
        message = _readable(error)
        if sqlstate is None and connecting and _FULL.search(message):
            # libpq reports no SQLSTATE for failed connections.
            sqlstate = "53300"
        if sqlstate is None:
            meaning: type[DatabaseError] = ConnectionLostError if _LOST.search(message) else PermanentError
        else:
            other = PermanentError if _NO_ROW.match(sqlstate) else RowError
            meaning = _MEANING.get(sqlstate) or _MEANING.get(sqlstate[:2]) or other
        if connecting:
            if sqlstate is None and not _LOST.search(message):
                meaning = ConnectionLostError if again else PermanentError
            # libpq asks whether the server runs, and so does the advice.
            message = shown_when_connecting(message).partition(" Is the server running")[0]
        if sqlstate == "57014" and stopped():
            meaning = StatementCancelledError
        name = _detail(error, "PG_DIAG_CONSTRAINT_NAME") or _detail(error, "PG_DIAG_COLUMN_NAME")
        lost = issubclass(meaning, ConnectionLostError)
        rule = "connection_lost" if lost else rule_of(sqlstate, name)
        advice = next((each for cause, each in _ADVICE if connecting and cause.search(message)), None)
        translated = meaning(message, sqlstate, rule, advice=advice)
        translated.committing = committing
        raise translated from None


def streamed(cursor: Any) -> Iterator[pa.RecordBatch]:
    """The result of a cursor in chunks.

    The reader returned by `fetch_record_batch` raises a plain OSError without a SQLSTATE; the internal reader that is
    used here gets the error from the driver.

    Raises:
        adbc_driver_manager.Error: as for the other calls of the driver.
        ConnectionLostError: the driver reports an OSError for a lost connection.
        PermanentError: the driver reports another OSError.
    """
    try:
        yield from cursor._results.reader
    except OSError as error:
        message = _readable(error)
        raise (ConnectionLostError if _LOST.search(message) else PermanentError)(message) from None


@contextmanager
def committed() -> Iterator[None]:
    """For queries after a COMMIT: if they fail, what was written has to be looked up in the ledger."""
    try:
        yield
    except DatabaseError as error:
        lost = ConnectionLostError(str(error), error.sqlstate)
        lost.committing = True
        raise lost from error


def _detail(error: adbc_driver_manager.Error | OSError, wanted: str) -> str | None:
    """A field of the error that the server reported, or None."""
    for name, value in getattr(error, "details", None) or ():
        # The driver returns the names as bytes.
        if name in (wanted, wanted.encode()):
            text: str = value.decode("utf-8", "replace")
            return text
    return None


def _readable(error: adbc_driver_manager.Error | OSError) -> str:
    """The message of the server, without the prefix of the driver and without DETAIL, which may quote other rows."""
    if primary := _detail(error, "PG_DIAG_MESSAGE_PRIMARY"):
        return " ".join(primary.split())
    message = str(error)
    if _STATEMENT in message:
        # The statement may contain values. Whatever they are, the last quote with a colon is not before its end.
        message = message.partition(_STATEMENT)[2].rpartition("': ")[2]
    message = re.sub(r"^[A-Z_]+: (?:\[libpq\] )?", "", message.strip())
    message = message.partition("\nDETAIL:")[0].partition("\nCONTEXT:")[0].partition("\nLINE ")[0]
    message = message.partition("Query was:")[0]
    found = re.search(r"(?:ERROR|FATAL|PANIC):\s*(.*)", message, re.DOTALL)
    return " ".join((found[1] if found else message).split()).partition(" SQLSTATE:")[0]
