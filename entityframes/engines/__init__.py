"""Database engines: one folder per database, with the same file names, which implement the Protocols of `base`."""

from __future__ import annotations

from entityframes.engines.base import Engine
from entityframes.engines.tables import TableEngine
from entityframes.engines.url import Location
from entityframes.errors import ConnectError, DatabaseError


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


def open_tables(location: Location, workers: int | None) -> TableEngine:
    """Open a database without a store. Nothing is created in it.

    Raises:
        ConnectError: the database cannot be opened.
    """
    with location.opening():
        if location.engine == "postgresql":
            from entityframes.engines.postgres.database import PostgresDatabase
            from entityframes.engines.postgres.tables import PostgresTables

            database = PostgresDatabase(location, None, workers)
            try:
                with database.session() as session:
                    database.opened(session)
            except DatabaseError as error:
                database.close()
                raise ConnectError(f"cannot open the database at {database.address}: {error}") from error
            return PostgresTables(database)
        from entityframes.engines.duckdb.database import DuckDBDatabase
        from entityframes.engines.duckdb.tables import DuckDBTables

        return DuckDBTables(DuckDBDatabase(location, None, workers))
