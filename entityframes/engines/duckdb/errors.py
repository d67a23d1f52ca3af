"""Translation of DuckDB's exceptions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from entityframes.engines.rules import rule_of
from entityframes.engines.url import Location
from entityframes.errors import (
    ClosedError,
    ConnectError,
    EntityFramesError,
    PermanentError,
    ResourceError,
    RowError,
    StatementCancelledError,
    TransientError,
)
from entityframes.frames.utf8 import printable


class InvalidatedError(ResourceError):
    """DuckDB rejects all statements until the file is opened again."""


def not_opened(location: Location, error: Exception) -> ConnectError:
    """The error for a file that could not be opened."""
    if isinstance(error, UnicodeError):
        return ConnectError(
            f"{printable(location.address)} cannot be a DuckDB store: the name of the file is not UTF-8",
            advice="use another name",
        )
    message = " ".join(str(error).split())
    holder = re.search(r"PID (\d+)", message)
    if holder:
        return ConnectError(
            f"{location.address} is open in another process (PID {holder[1]}): DuckDB allows one process at a time",
            advice="close it there, use another file, or use PostgreSQL for a shared store",
        )
    if "different configuration" in message:
        return ConnectError(
            f"{location.address} is open read-only in this process, or with other settings",
            advice="close it there first, or pass the open DuckDB connection instead of the address",
        )
    if "in-memory database in read-only mode" in message:
        # DuckDB opens CSV, Parquet and JSON files as databases in memory.
        return ConnectError(f"{location.address} is a data file", advice="use a separate file for a DuckDB store")
    if "Unique file handle conflict" in message:
        return ConnectError(
            f"{location.address} is attached to another DuckDB connection of this process",
            advice="pass that connection, with this database as the current one (USE), instead of the address",
        )
    folder = os.path.dirname(os.path.abspath(location.target))
    if not os.path.isdir(folder):
        return ConnectError(
            f"cannot open {location.address}: there is no folder {printable(folder)}", advice="create the folder first"
        )
    return ConnectError(f"cannot open {location.address} as a DuckDB store: {message.partition('. See also')[0][:300]}")


@contextmanager
def translated() -> Iterator[None]:
    """Translate DuckDB's exceptions to those of this package, with the SQLSTATE of the standard where one fits."""
    try:
        yield
    except duckdb.InterruptException:
        raise StatementCancelledError("the statement was cancelled", "57014", rule_of("57014")) from None
    except duckdb.ConstraintException as error:
        sqlstate = _violated(str(error))
        raise RowError(_constraint_message(str(error)), sqlstate, rule_of(sqlstate)) from None
    except duckdb.OutOfMemoryException as error:
        raise ResourceError(_readable(error), "53200", rule_of("53200")) from None
    except duckdb.TransactionException as error:
        # Two writers with the same file open cause a conflict, or a duplicate key.
        if "Failed to commit" in str(error) and not re.search("conflict|constraint", str(error), re.IGNORECASE):
            full = "53200" if "memory" in str(error) else "53100"
            raise ResourceError(_readable(error), full, rule_of(full)) from None
        raise TransientError(_readable(error) + _why_conflict(error), "40001", rule_of("40001")) from None
    except duckdb.FatalException as error:
        raise InvalidatedError(_readable(error), "58030", rule_of("58030")) from None
    except duckdb.IOException as error:
        raise ResourceError(_readable(error), "58030", rule_of("58030")) from None
    except (duckdb.DataError, duckdb.ConversionException) as error:
        raise RowError(_readable(error), "22000", rule_of("22000")) from None
    except duckdb.ConnectionException as error:
        raise ClosedError(f"the store is closed: {_readable(error)}") from None
    except duckdb.Error as error:
        if isinstance(error, duckdb.InvalidInputException) and "failed: KeyboardInterrupt" in str(error):
            # A Ctrl-C while DuckDB calls Python for the columns of a frame.
            raise KeyboardInterrupt from None
        raise PermanentError(_readable(error)) from None
    except RuntimeError as error:
        if isinstance(error, EntityFramesError) or "interrupt" not in str(error).lower():
            raise
        raise KeyboardInterrupt from None


#: The SQLSTATE of a constraint by a word in the message.
_CONSTRAINTS = {"foreign key": "23503", "Duplicate key": "23505", "NOT NULL": "23502", "CHECK": "23514"}


def _violated(message: str) -> str:
    """The SQLSTATE of a violated constraint."""
    return next((sqlstate for word, sqlstate in _CONSTRAINTS.items() if word in message), "23000")


def _constraint_message(message: str) -> str:
    """The message about a violated constraint."""
    text = " ".join(message.split("\n\n")[0].split())[:500].removeprefix("Constraint Error: ")
    if key := re.search(r'because key "(.*)" is still referenced', text):
        return (
            f"a foreign key of another table references this row ({key[1]}), so that DuckDB refuses to delete it, and "
            "to change a list or an indexed column of it"
        )
    return text


#: The beginnings of the messages of streaming results, for which DuckDB reports no exception class.
_NAMED: tuple[tuple[str, type[duckdb.Error]], ...] = (
    ("INTERRUPT", duckdb.InterruptException),
    ("Out of Memory", duckdb.OutOfMemoryException),
    ("FATAL", duckdb.FatalException),
    ("INTERNAL", duckdb.InternalException),
    ("IO Error", duckdb.IOException),
    ("Conversion", duckdb.ConversionException),
    ("Connection", duckdb.ConnectionException),
    ("TransactionContext", duckdb.TransactionException),
)


def streamed(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of a reader, with its OSErrors replaced by DuckDB's exceptions.

    Raises:
        duckdb.Error: of a class that `translated` handles.
    """
    try:
        # Not yield from, which would close the reader when this generator is closed.
        for batch in reader:  # noqa: UP028
            yield batch
    except (OSError, pa.ArrowException) as error:
        message = str(error)
        named = (kind for name, kind in _NAMED if message.startswith(name))
        raise next(named, duckdb.Error)(message) from None


def _why_conflict(error: Exception) -> str:
    """What to do after a conflict; only connections of this process can have caused it."""
    if not re.search("conflict", str(error), re.IGNORECASE):
        return ""
    return (
        " (another connection of this process has changed the same rows or tables: commit or roll back its "
        "transaction, and try again)"
    )


def _readable(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:500]
