"""The exception hierarchy.

    EntityFramesError
    ├── SchemaError          a frame, column or dtype that cannot be stored; nothing of that frame was written
    ├── ValidationError      invalid rows, where the caller asked for an exception
    │   └── DuplicateError   the same key twice in a frame, with ``on_duplicate="error"``
    ├── ConnectError         the store cannot be opened: address, credentials, locks, versions
    │   └── FormatError      the store was written by a newer version of this package, or by an older one
    ├── ClosedError          the store was closed, or the process was forked after it had opened a store or used frames
    ├── DirectoryError       a folder cannot be synced: missing, unreadable, or locked by another sync
    ├── SpaceError           the embedding space does not exist, or has another model or dimension
    ├── EmbedderError        the embedder cannot embed any text: credentials, model, shape of its vectors
    │   └── EmbedderBusyError   the embedder asks to retry later: rate limit, overload, timeout
    └── DatabaseError        the database rejected a statement; ``sqlstate`` holds the reason
        ├── RowError         the database rejected a value: constraint, trigger, domain
        ├── TransientError   worth a retry: deadlock, serialization failure, lock timeout, lost connection
        │   └── ConnectionLostError   the connection was lost; during COMMIT the outcome is unknown
        ├── StatementTimeoutError     the server's statement timeout ended a statement
        ├── ResourceError    the server is out of disk space or memory; do not retry at once
        ├── StatementCancelledError   the client cancelled a statement
        └── PermanentError   no retry can help: permissions, missing tables, a read-only server

A message states what happened, to which rows or columns, and what to do next. It never contains a password.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "DatabaseError",
    "DirectoryError",
    "DuplicateError",
    "EmbedderBusyError",
    "EmbedderError",
    "EntityFramesError",
    "FormatError",
    "PermanentError",
    "ResourceError",
    "RowError",
    "SchemaError",
    "SpaceError",
    "StatementCancelledError",
    "StatementTimeoutError",
    "TransientError",
    "ValidationError",
]


class EntityFramesError(Exception):
    """Base class of all exceptions that this package raises."""


class SchemaError(EntityFramesError):
    """A frame, column or dtype cannot be stored. Nothing of that frame was written.

    If the frame is part of a stream, the message states what was stored before it, and `EntityStore.last_result` holds
    the result.
    """


class ValidationError(EntityFramesError):
    """Rows are invalid and the caller asked for an exception (``on_error="raise"``)."""


class DuplicateError(ValidationError):
    """A key occurs more than once in a frame and ``on_duplicate="error"``."""


class ConnectError(EntityFramesError):
    """The store cannot be opened.

    Attributes:
        missing: whether no store exists at this address, and none was created because it was opened read-only.
    """

    missing = False


class FormatError(ConnectError):
    """The store has a newer format than this version supports, or an older one and was opened read-only."""


class ClosedError(EntityFramesError):
    """The store was closed, or was opened in another process: neither a store nor work on frames survives a fork."""


class DirectoryError(EntityFramesError):
    """A folder cannot be synced: it is missing or unreadable, or another sync holds its lock."""


class SpaceError(EntityFramesError):
    """The embedding space does not exist, or has another model or dimension."""


class EmbedderError(EntityFramesError):
    """The embedder cannot embed any text: wrong credentials, an unknown model, vectors of another shape."""


class EmbedderBusyError(EmbedderError):
    """The embedder asks to retry later: rate limit, overload, timeout.

    Attributes:
        retry_after: seconds to wait, as requested by the embedder, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseError(EntityFramesError):
    """The database rejected a statement.

    Attributes:
        sqlstate: the five-character SQLSTATE, or None if the engine provides none.
    """

    #: The value of ``error_kind`` in the outcome of a row.
    kind = "database"
    #: Whether it occurred during COMMIT, so that the outcome of the transaction is unknown.
    committing = False

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class RowError(DatabaseError):
    """The database rejected a value: a constraint, a trigger, a domain, a limit."""

    #: Whether no row was rejected, but a trigger stores rows under other keys. Those rows have yet to be identified.
    rekeyed = False


class TransientError(DatabaseError):
    """Worth a retry: deadlock, serialization failure, lock timeout, server starting up."""


class ConnectionLostError(TransientError):
    """The connection was lost. If it was lost during COMMIT, only the ledger shows whether the batch was written."""

    kind = "connection"
    #: The result of the statements before that COMMIT, if it cannot be recovered from the ledger.
    answer: Any = None


class StatementTimeoutError(DatabaseError):
    """The server's statement timeout ended a statement."""

    kind = "timeout"


class StatementCancelledError(DatabaseError):
    """The client cancelled a statement."""


class ResourceError(DatabaseError):
    """The server is out of disk space or memory. An immediate retry would not help."""

    kind = "resource"


class PermanentError(DatabaseError):
    """No retry can help: a missing permission or table, a read-only server, a bug."""
