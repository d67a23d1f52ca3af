"""Bulk upserts, lookups and deletes of entities with dataframes, on DuckDB and PostgreSQL."""

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
from entityframes.frames.schema import entities, ids
from entityframes.results import DeleteResult, EmbedResult, SyncResult, UpsertResult
from entityframes.store import EntityStore, connect
from entityframes.tables import Table, create_table, table
from entityframes.writing.plan import Plan
from entityframes.writing.tables.plan import TablePlan

if TYPE_CHECKING:
    from entityframes.directory import DirectorySync
    from entityframes.embedding import (
        HashingEmbedder,
        OpenAIEmbedder,
        SentenceTransformerEmbedder,
        WordLlamaEmbedder,
    )

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


def __getattr__(name: str) -> Any:
    """Load the embedders and DirectorySync, with their dependencies, on first access."""
    if name.endswith("Embedder") and name in __all__:
        from entityframes import embedding

        return getattr(embedding, name)
    if name == "DirectorySync":
        from entityframes.directory import DirectorySync

        return DirectorySync
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not, and no modules: what completion offers for ``ef.``."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
