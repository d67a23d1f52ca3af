"""A DuckDB database: sessions on cursors, which in DuckDB are separate connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl

from entityframes.engines.database import unopened
from entityframes.engines.duckdb.connection import File
from entityframes.engines.duckdb.session import Session
from entityframes.engines.queries import Statements
from entityframes.engines.url import Location
from entityframes.errors import ConnectError, DatabaseError
from entityframes.interrupt import Interrupt


class DuckDBDatabase:
    """A DuckDB database; each session uses a separate cursor.

    Args:
        location: the address.
        namespace: the schema of the store, if there is one.
        workers: how many batches are processed concurrently; None for 2, of which one is written at a time.
        read_only: whether writing is forbidden.

    Raises:
        ConnectError: the file cannot be opened, or is not a database.
    """

    name = "duckdb"

    def __init__(self, location: Location, namespace: str | None, workers: int | None, read_only: bool = False) -> None:
        self.address, self.origin = location.address, location.origin
        self.read_only = read_only or location.read_only
        # One batch is prepared while another is written.
        self.workers, self.writers = workers or 2, 1
        # A full row group is written directly to the file; smaller batches go through the log, and are written twice.
        self.batch_bytes, self.batch_rows, self.lookup_rows, self.by_key = 128 << 20, 122_880, 500_000, False
        self.statements = Statements("duckdb", namespace)
        #: The name of the statement that looks up keys of entities.
        self.found = "found"
        self.file = File(location, self.statements["session"], self.read_only)
        try:
            with self.file.root() as root:
                # The file entityframes.duckdb is a catalog with the same name as its schema.
                ((catalog, path),) = root.execute(self.statements["catalog"]).fetchall()
                if path is None and location.target != ":memory:":
                    # DuckDB opens CSV, Parquet and JSON files as temporary databases.
                    raise ConnectError(
                        f"{self.address} is a data file", advice="use a separate file for a DuckDB store"
                    )
                self.statements = Statements("duckdb", namespace, catalog)
            self.file.configure(self.statements["settings"])
        except BaseException as error:
            self.close()
            if isinstance(error, DatabaseError):
                raise unopened("database", self.address, error) from error
            raise

    @property
    def namespace(self) -> str:
        return self.statements.namespace

    @property
    def losses(self) -> int:
        return 0

    @contextmanager
    def session(self, interrupt: Interrupt | None = None, *, writing: bool = False) -> Iterator[Session]:
        """A session on a new cursor.

        Args:
            interrupt: cancels its statements.
            writing: whether to acquire the writers' lock.
        """
        with self.file.writer(interrupt or Interrupt()) if writing else self.file.cursor(interrupt) as cursor:
            yield Session(cursor, self.statements, self.found, self.file)

    def read(self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None) -> pl.DataFrame:
        """Execute a statement in a new session and return its result."""
        with self.session() as session:
            return session.query(name, *parameters, placeholders=placeholders)

    def replicated(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
