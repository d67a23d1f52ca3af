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
    """The root of every error that this package raises on purpose."""


class SchemaError(EntityFramesError):
    """A frame, column or dtype cannot be stored as it is. Nothing of that frame was written.

    Where it is one of a stream, the message says what was stored before, and `EntityStore.last_result` holds it.
    """


class ValidationError(EntityFramesError):
    """Rows break the rules of the data and the caller asked to be stopped (``on_error="raise"``)."""


class DuplicateError(ValidationError):
    """A key stands more than once in a frame and ``on_duplicate="error"``."""


class ConnectError(EntityFramesError):
    """The store cannot be opened.

    Attributes:
        missing: whether there is none at this address, and none could be made because it was to be read only.
    """

    missing = False


class FormatError(ConnectError):
    """The store has a newer format than this version of the package knows, or an older one and is to be read only."""


class ClosedError(EntityFramesError):
    """The store was closed, or belongs to another process: neither a store nor work on frames survives a fork."""


class DirectoryError(EntityFramesError):
    """A folder cannot be synced: it is missing or unreadable, or another sync is at work on it."""


class SpaceError(EntityFramesError):
    """There is no such embedding space, or its model or dimension is another one."""


class EmbedderError(EntityFramesError):
    """The embedder cannot work at all, whatever the text: credentials, an unknown model, vectors of another shape."""


class EmbedderBusyError(EmbedderError):
    """The embedder asks to be tried again: rate limit, overload, timeout.

    Attributes:
        retry_after: seconds that it asks to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseError(EntityFramesError):
    """The database refused a statement.

    Attributes:
        sqlstate: the five-character SQLSTATE, or None where the engine gives none.
        rule: a short stable name for it, such as ``check:positive_price``; None where nothing is known.
    """

    #: The word for this error in an outcome's ``error_kind``.
    kind = "database"
    #: Whether it struck while a transaction was being committed, so that its fate is unknown.
    committing = False

    def __init__(self, message: str, sqlstate: str | None = None, rule: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate, self.rule = sqlstate, rule


class RowError(DatabaseError):
    """A value that the database refuses: a constraint, a trigger, a domain, a limit."""

    #: Whether nothing is refused: a trigger stores rows under other keys, and it has to be found which and where.
    rekeyed = False


class TransientError(DatabaseError):
    """Worth another try: deadlock, serialization failure, lock timeout, server starting up."""


class ConnectionLostError(TransientError):
    """The connection ended. If it was during COMMIT, only the ledger knows what became of the batch."""

    kind = "connection"
    #: What the database had answered before that COMMIT, where the ledger does not tell it.
    answer: Any = None


class StatementTimeoutError(DatabaseError):
    """The server's own statement timeout ended a statement."""

    kind = "timeout"


class StatementCancelledError(DatabaseError):
    """A statement that was cancelled from this side."""


class ResourceError(DatabaseError):
    """The server's disk or memory is exhausted. Trying again at once would not help."""

    kind = "resource"


class PermanentError(DatabaseError):
    """No retry can help: missing permission or table, read-only server, a defect."""
