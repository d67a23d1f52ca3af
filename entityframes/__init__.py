"""Bulk work on entities: frames in, outcome frames out, on DuckDB and PostgreSQL."""

from entityframes.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    DatabaseError,
    DuplicateError,
    EntityFramesError,
    FormatError,
    PermanentError,
    ResourceError,
    RowError,
    SchemaError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
    ValidationError,
)
from entityframes.frames import entities, ids
from entityframes.plans import Plan
from entityframes.results import DeleteResult, UpsertResult
from entityframes.store import EntityStore, connect

__version__ = "0.1.0"

__all__ = [
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "DatabaseError",
    "DeleteResult",
    "DuplicateError",
    "EntityFramesError",
    "EntityStore",
    "FormatError",
    "PermanentError",
    "Plan",
    "ResourceError",
    "RowError",
    "SchemaError",
    "StatementCancelledError",
    "StatementTimeoutError",
    "TransientError",
    "UpsertResult",
    "ValidationError",
    "connect",
    "entities",
    "ids",
]
