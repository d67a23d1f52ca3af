"""Database engines: one folder per database, with the same file names, which implement the Protocols of `base`."""

from __future__ import annotations

from entityframes.engines.base import Engine
from entityframes.engines.url import Location


def open_engine(location: Location, namespace: str, workers: int | None, *, read_only: bool = False) -> Engine:
    """Open the store; unless `read_only`, create or migrate it if necessary.

    Raises:
        ConnectError: the store cannot be opened, or does not exist and `read_only` is set.
        FormatError: the format of the store is newer than this version supports, or older and `read_only` is set.
    """
    if location.engine == "postgresql":
        from entityframes.engines.postgres.database import PostgresDatabase
        from entityframes.engines.postgres.engine import PostgresEngine

        return PostgresEngine(PostgresDatabase(location, namespace, workers, read_only))
    from entityframes.engines.duckdb.database import DuckDBDatabase
    from entityframes.engines.duckdb.engine import DuckDBEngine

    return DuckDBEngine(DuckDBDatabase(location, namespace, workers, read_only))
