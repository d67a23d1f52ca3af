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

A message states what happened, to which rows or columns, and what to do next, which is also in the attribute
``advice``. It never contains a password.
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
    """The base class of all errors that this package raises.

    Attributes:
        happened: what happened, to which rows or columns.
        advice: what to do next, which is also the end of the message; None if there is nothing to add.
    """

    def __init__(self, happened: str = "", *, advice: str | None = None) -> None:
        super().__init__()
        self.restate(happened, advice)

    def restate(self, happened: str, advice: str | None) -> None:
        """Replace the message."""
        self.happened, self.advice = happened, advice
        self.args = (happened if advice is None else f"{happened}: {advice}",)


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

    def __init__(self, happened: str, retry_after: float | None = None) -> None:
        super().__init__(happened)
        self.retry_after = retry_after


class DatabaseError(EntityFramesError):
    """The database refused a statement, or cannot be reached.

    Attributes:
        sqlstate: the five-character SQLSTATE, or None if the engine reports none.
        rule: a short stable name for the cause, such as ``check:positive_price``, or None if it is not known.
    """

    #: The value of ``error_kind`` in the outcome of a row.
    kind = "database"
    #: Whether it occurred during COMMIT, so that the outcome of the transaction is unknown.
    committing = False

    def __init__(
        self, happened: str, sqlstate: str | None = None, rule: str | None = None, *, advice: str | None = None
    ) -> None:
        super().__init__(happened, advice=advice)
        self.sqlstate, self.rule = sqlstate, rule


class RowError(DatabaseError):
    """The database refused a value: a constraint, a trigger, a domain, a limit."""

    #: Whether no row was rejected, but a trigger stores rows under other keys. Those rows have yet to be identified.
    rekeyed = False


class TransientError(DatabaseError):
    """A retry may succeed: deadlock, serialization failure, lock timeout, lost connection, server starting up."""


class ConnectionLostError(TransientError):
    """The connection was lost. If that happened during COMMIT, only the ledger shows whether the batch was stored."""

    kind = "connection"
    #: The result of the statements before that COMMIT, if it cannot be recovered from the ledger.
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
