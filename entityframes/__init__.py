"""Bulk upserts, lookups and deletes of entities with dataframes, on DuckDB and PostgreSQL."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from entityframes.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    DatabaseError,
    DirectoryError,
    DuplicateError,
    EmbedderBusyError,
    EmbedderError,
    EntityFramesError,
    FormatError,
    PermanentError,
    ResourceError,
    RowError,
    SchemaError,
    SpaceError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
    ValidationError,
)

if TYPE_CHECKING:
    from entityframes.directory import DirectorySync
    from entityframes.embedding import (
        HashingEmbedder,
        OpenAIEmbedder,
        Passages,
        SentenceTransformerEmbedder,
        WordLlamaEmbedder,
    )
    from entityframes.frames.schema import entities, ids
    from entityframes.results import DeleteResult, EmbedResult, SyncResult, UpsertResult
    from entityframes.store import EntityStore, connect
    from entityframes.tables import Table, create_table, table
    from entityframes.writing.plan import Plan
    from entityframes.writing.tables.plan import TablePlan

__version__ = "0.1.0"

__all__ = [
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "DatabaseError",
    "DeleteResult",
    "DirectoryError",
    "DirectorySync",
    "DuplicateError",
    "EmbedResult",
    "EmbedderBusyError",
    "EmbedderError",
    "EntityFramesError",
    "EntityStore",
    "FormatError",
    "HashingEmbedder",
    "OpenAIEmbedder",
    "Passages",
    "PermanentError",
    "Plan",
    "ResourceError",
    "RowError",
    "SchemaError",
    "SentenceTransformerEmbedder",
    "SpaceError",
    "StatementCancelledError",
    "StatementTimeoutError",
    "SyncResult",
    "Table",
    "TablePlan",
    "TransientError",
    "UpsertResult",
    "ValidationError",
    "WordLlamaEmbedder",
    "connect",
    "create_table",
    "entities",
    "ids",
    "table",
]


#: The modules of the public names that are loaded on first access: with them come Polars and the drivers.
_LATER = {
    "directory": ["DirectorySync"],
    "embedding": ["HashingEmbedder", "OpenAIEmbedder", "Passages", "SentenceTransformerEmbedder", "WordLlamaEmbedder"],
    "frames.schema": ["entities", "ids"],
    "results": ["DeleteResult", "EmbedResult", "SyncResult", "UpsertResult"],
    "store": ["EntityStore", "connect"],
    "tables": ["Table", "create_table", "table"],
    "writing.plan": ["Plan"],
    "writing.tables.plan": ["TablePlan"],
}
_MODULES = {name: f"entityframes.{module}" for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    """The public names, loaded or not, and no modules: what completion offers for ``ef.``."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
