"""The error tree.

    EntityFramesError
    ├── SchemaError          a frame, column or dtype that cannot be stored; nothing of that frame was written
    ├── ValidationError      rows that break the rules of the data, where the caller asked to be stopped
    │   └── DuplicateError   the same key twice in a frame, with ``on_duplicate="error"``
    ├── ConnectError         the store cannot be opened: address, credentials, locks, versions
    │   └── FormatError      the store was written by a newer version of this package, or an older one
    ├── ClosedError          the store was closed, or the process was forked from one that was at work
    ├── DirectoryError       a folder cannot be synced: missing, unreadable, or another sync is at work on it
    ├── SpaceError           there is no such embedding space, or it is of another model or dimension
    ├── EmbedderError        the embedder cannot work at all: credentials, model, shape of its vectors
    │   └── EmbedderBusyError   it asks to be tried again later: rate limit, overload, timeout
    └── DatabaseError        the database refused a statement; ``sqlstate`` says why
        ├── RowError         a value that the database refuses: constraint, trigger, domain
        ├── TransientError   worth another try: deadlock, serialization, lock timeout, lost connection
        │   └── ConnectionLostError   the connection ended; during COMMIT the outcome is unknown
        ├── StatementTimeoutError     the server's statement timeout ended a statement
        ├── ResourceError    disk or memory of the server is full: stop, do not hammer it
        ├── StatementCancelledError   a statement that this side cancelled
        └── PermanentError   no retry can help: permissions, missing tables, a read-only server

A message says what happened, to which rows or columns, and what to do next. It never holds a password.
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
    """The base class of all errors that this package raises."""


class SchemaError(EntityFramesError):
    """A frame, column or dtype cannot be stored. Nothing of that frame was written.

    If the frame is part of a stream, the message reports what was stored before, and `EntityStore.last_result` has the
    outcomes.
    """


class ValidationError(EntityFramesError):
    """A row breaks a rule of the data, and ``on_error="raise"`` or the call is `EntityStore.upsert_entity`."""


class DuplicateError(ValidationError):
    """A key is repeated in a frame and ``on_duplicate="error"``."""


class ConnectError(EntityFramesError):
    """The store cannot be opened: address, credentials, locks.

    Attributes:
        missing: whether there is no store at this address and none was created because of ``read_only=True``.
    """

    missing = False


class FormatError(ConnectError):
    """The store was written by a newer version of this package, or by an older one and is opened read-only."""


class ClosedError(EntityFramesError):
    """The store is closed, or this process was forked from one that had opened a store or used Polars."""


class DirectoryError(EntityFramesError):
    """A folder cannot be synced: it is missing or unreadable, or another sync of it is running."""


class SpaceError(EntityFramesError):
    """There is no such embedding space, or it belongs to another model or dimension."""


class EmbedderError(EntityFramesError):
    """The embedder cannot work at all, whatever the text: credentials, unknown model, vectors of the wrong shape."""


class EmbedderBusyError(EmbedderError):
    """The embedder asks to be called again later: rate limit, overload, timeout.

    Attributes:
        retry_after: seconds to wait, or None if it named none.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseError(EntityFramesError):
    """The database refused a statement, or cannot be reached.

    Attributes:
        sqlstate: the five-character SQLSTATE, or None if the engine reports none.
        rule: a short stable name for the cause, such as ``check:positive_price``, or None if it is not known.
    """

    #: The word for this error in an outcome's ``error_kind``.
    kind = "database"
    #: Whether it struck while a transaction was being committed, so that its fate is unknown.
    committing = False

    def __init__(self, message: str, sqlstate: str | None = None, rule: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate, self.rule = sqlstate, rule


class RowError(DatabaseError):
    """The database refused a value: a constraint, a trigger, a domain, a limit."""

    #: Whether nothing is refused: a trigger stores rows under other keys, and it has to be found which and where.
    rekeyed = False


class TransientError(DatabaseError):
    """A retry may succeed: deadlock, serialization failure, lock timeout, lost connection, server starting up."""


class ConnectionLostError(TransientError):
    """The connection was lost. If that happened during COMMIT, only the ledger shows whether the batch was stored."""

    kind = "connection"
    #: What the database had answered before that COMMIT, where the ledger does not tell it.
    answer: Any = None


class StatementTimeoutError(DatabaseError):
    """The statement timeout of the server ended a statement."""

    kind = "timeout"


class StatementCancelledError(DatabaseError):
    """The call was stopped by its `cancel` event, or its statement was cancelled."""


class ResourceError(DatabaseError):
    """The server has run out of disk space or memory. An immediate retry would fail again."""

    kind = "resource"


class PermanentError(DatabaseError):
    """A retry cannot succeed: missing permission or table, read-only store or server, a defect."""
