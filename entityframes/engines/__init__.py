"""Engines: one folder for each database, with the same file names, behind the Protocols of `base`."""

from __future__ import annotations

from entityframes.engines.base import Engine
from entityframes.engines.url import Location


def open_engine(location: Location, namespace: str, workers: int | None, *, read_only: bool = False) -> Engine:
    """Open the store; unless it is to be read only, create or migrate it if need be.

    Raises:
        ConnectError: it cannot be opened, or is to be read only and is not there; FormatError if it is newer than this
            version, or is to be read only and is older.
    """
    if location.engine == "postgresql":
        from entityframes.engines.postgres.engine import PostgresEngine

        return PostgresEngine(location, namespace, workers, read_only)
    from entityframes.engines.duckdb.engine import DuckDBEngine

    return DuckDBEngine(location, namespace, workers, read_only)
