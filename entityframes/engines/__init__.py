"""Database engines: one folder per database, with the same file names, which implement the Protocols of `base`."""

from __future__ import annotations

import os

from entityframes.engines.base import Engine, no_store
from entityframes.engines.database import unopened
from entityframes.engines.tables import TableEngine
from entityframes.engines.url import Location
from entityframes.errors import DatabaseError


def open_engine(location: Location, namespace: str, workers: int | None, *, read_only: bool = False) -> Engine:
    """Open the store; unless `read_only`, create or migrate it if necessary.

    Raises:
        ConnectError: the store cannot be opened, or does not exist and `read_only` is set.
        FormatError: the format of the store is newer than this version supports, or older and `read_only` is set.
    """
    with location.opening():
        if location.engine == "postgresql":
            from entityframes.engines.postgres.database import PostgresDatabase
            from entityframes.engines.postgres.engine import PostgresEngine

            return PostgresEngine(PostgresDatabase(location, namespace, workers, read_only))
        from entityframes.engines.duckdb.database import DuckDBDatabase
        from entityframes.engines.duckdb.engine import DuckDBEngine

        return DuckDBEngine(DuckDBDatabase(location, namespace, workers, read_only))


def open_tables(
    location: Location, workers: int | None, *, read_only: bool = False, create: bool = False
) -> TableEngine:
    """Open a database without a store. Nothing is created in it.

    Args:
        location: the address.
        workers: how many batches are processed concurrently; None for 2.
        read_only: whether writing is forbidden, so that a DuckDB file can have several readers.
        create: whether a DuckDB file is created if it does not exist.

    Raises:
        ConnectError: the database cannot be opened.
    """
    with location.opening():
        if location.engine == "postgresql":
            from entityframes.engines.postgres.database import PostgresDatabase
            from entityframes.engines.postgres.tables import PostgresTables

            database = PostgresDatabase(location, None, workers, read_only)
            try:
                with database.session() as session:
                    database.opened(session)
            except DatabaseError as error:
                database.close()
                raise unopened("database", database.address, error) from error
            return PostgresTables(database)
        from entityframes.engines.duckdb.database import DuckDBDatabase
        from entityframes.engines.duckdb.tables import DuckDBTables

        if not create and location.connection is None and _is_missing(location.target):
            raise no_store(f"there is no database at {location.address}: no such file", "check the path")
        return DuckDBTables(DuckDBDatabase(location, None, workers, read_only))


def _is_missing(path: str) -> bool:
    return path != ":memory:" and not os.path.exists(path)
