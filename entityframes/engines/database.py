"""The Protocol of databases: what a store, a table and a run need to know about the database that they use."""

from __future__ import annotations

from typing import Protocol

from entityframes.errors import ConnectError, EntityFramesError, PermanentError


class Database(Protocol):
    """A database. All methods are thread-safe, and may raise DatabaseError."""

    #: "postgresql" or "duckdb".
    name: str
    #: The address, without a password.
    address: str
    #: Where the address is from, in a few words, if the caller may not expect this database, else "".
    origin: str
    #: Whether writing is forbidden.
    read_only: bool
    #: How many batches are processed concurrently.
    workers: int
    #: How many batches the database writes concurrently.
    writers: int
    #: The default batch size of a frame in memory: the approximate maximum of bytes, and the maximum number of rows.
    batch_bytes: int
    batch_rows: int
    #: Whether batches of adjacent keys are faster to compare with stored rows.
    by_key: bool
    #: The maximum number of keys in a lookup.
    lookup_rows: int

    @property
    def namespace(self) -> str:
        """The schema of the store, as spelled in the database."""

    @property
    def losses(self) -> int:
        """How often a connection was lost. After a loss, another server may respond, without the latest writes."""

    def replicated(self, seconds: float) -> bool:
        """Whether everything committed is on a standby, if COMMIT has to wait for one; waits at most `seconds`."""

    def close(self) -> None:
        """Close all connections. May be called repeatedly."""


class Recorder(Protocol):
    """What a run needs to know about the database that it writes to."""

    @property
    def database(self) -> Database:
        """The database."""

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        """The given batches that are not in the database, after another server may have taken over."""


#: The names of databases for people.
ENGINES = {"duckdb": "DuckDB", "postgresql": "PostgreSQL"}


def where(database: Database) -> str:
    """The address for the repr of what uses a database, and where it is from if the caller may not expect it."""
    return f"{database.address!r} ({database.origin})" if database.origin else repr(database.address)


#: What to do about a database that was opened read-only.
TO_WRITE = "to write, connect without read_only=True, and not with a DuckDB connection that can only read"


def unopened(what: str, address: str, error: EntityFramesError) -> ConnectError:
    """The error for a store or a database that cannot be opened because of another error."""
    return ConnectError(f"cannot open the {what} at {address}: {error.happened}", advice=error.advice)


def check_writable(database: Database) -> None:
    """Check that the store may be written to.

    Raises:
        PermanentError: the store was opened read-only.
    """
    if database.read_only:
        raise PermanentError(f"the store at {database.address} was opened read-only", "25006", advice=TO_WRITE)
