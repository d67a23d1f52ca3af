"""A DuckDB database: its cursors, a lock for its single writer, and its memory limit.

It is a file that is opened here, or an open connection of the caller. Of that, only cursors are used, with settings of
their own; it is not closed, and the settings of its database are not changed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

import duckdb

from entityframes import forks
from entityframes.engines.base import no_store
from entityframes.engines.database import TO_WRITE
from entityframes.engines.duckdb.errors import InvalidatedError, not_opened, translated
from entityframes.engines.url import Location
from entityframes.errors import ClosedError, ConnectError, DatabaseError, PermanentError, ResourceError, RowError
from entityframes.interrupt import Interrupt

T = TypeVar("T")

#: Settings of a database that change results, and their defaults, which the statements are written for.
_MEANING = {
    "arrow_lossless_conversion": "false",
    "arrow_output_list_view": "false",
    "default_collation": "",
    "default_null_order": "NULLS_LAST",
    "default_order": "ASCENDING",
    "errors_as_json": "false",
    "ieee_floating_point_ops": "true",
    "integer_division": "false",
    "preserve_insertion_order": "true",
}

#: DuckDB caches what it has read up to its memory limit, which by default is most of the memory of the machine. A file
#: gets MEMORY_BYTES plus MEMORY_PER_BYTE for each byte of a batch, and more if a statement needs it.
MEMORY_BYTES = 128 << 20
MEMORY_PER_BYTE = 4
MEMORY_AT_MOST = 8 << 30


class _Shared:
    """What all stores of this process on one database share."""

    def __init__(self) -> None:
        #: The writers' lock. Keys are unique only because writers take turns.
        self.writing = threading.Lock()
        #: Held while the database is opened.
        self.opening = threading.Lock()
        #: Whether its settings may be changed: not if the caller had opened it before. None until it is opened.
        self.adjustable: bool | None = None


#: By file. Keyed by process, because a lock that was copied by a fork may be held forever.
_shared_files: WeakValueDictionary[tuple[int, str], _Shared] = WeakValueDictionary()
#: The databases in memory of connections of the caller.
_in_memory: WeakSet[File] = WeakSet()
_shared_free = threading.Lock()


def _shared_file(target: str) -> _Shared:
    """What the stores on a file share; each store in memory has a separate one.

    Raises:
        ConnectError: this process has the file open under another name, which DuckDB would treat as another file.
    """
    if target == ":memory:":
        return _Shared()
    process, path = os.getpid(), os.path.realpath(target)
    with _shared_free:
        for owner, other in list(_shared_files):
            if owner == process and other != path and _same_file(other, path):
                raise ConnectError(
                    f"{target} is open in this process as {other}, which is the same file", advice="use that name"
                )
        shared = _shared_files.get((process, path))
        if shared is None:
            shared = _shared_files[process, path] = _Shared()
        return shared


def _shared_in_memory(file: File) -> _Shared:
    """What the stores on a database in memory share, of which the caller has handed in several connections."""
    with _shared_free:
        same = (other for other in list(_in_memory) if not other.is_inherited and other.is_same_database(file))
        shared = next((other.shared for other in same), file.shared)
        _in_memory.add(file)
        return shared


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _connect(location: Location, read_only: bool) -> Any:
    """Connect to a file; a reader shares the database if this process has the file open for writing."""
    target = location.target
    if location.connection is not None:
        # Not cursor(), which an object of SQLAlchemy has as well.
        return location.connection.duplicate()
    if not read_only:
        return duckdb.connect(target)
    if target == ":memory:":
        raise ConnectError("a store in memory cannot be opened read-only, because it would be empty")
    if not os.path.exists(target):
        raise no_store(
            f"there is no store at {target}: no such file", "check the path, or connect once for writing to create it"
        )
    try:
        return duckdb.connect(target, read_only=True)
    except duckdb.ConnectionException:
        return duckdb.connect(target)


def _settings(cursor: Any, location: Location) -> list[str]:
    """Statements for the settings that a cursor does not inherit from its connection, or must not inherit."""
    changed = dict(cursor.execute("SELECT name, value FROM duckdb_settings()").fetchall())
    reset = [f"SET SESSION {name} = '{value}'" for name, value in _MEANING.items() if changed.get(name) != value]
    # The current database and schema.
    path = location.search_path.replace("'", "''")
    return [*reset, f"SET search_path = '{path}'"] if path else reset


def _connections(cursor: Any) -> int:
    """The number of connections of this process to a database."""
    return int(cursor.execute("SELECT count FROM duckdb_connection_count()").fetchone()[0])


class File:
    """A DuckDB database that is open in this process.

    Args:
        location: the location of the file, or the connection of the caller.
        session: the statements that are executed on every new cursor.
        read_only: whether to open it read-only, which needs no write permission and allows concurrent readers.

    Raises:
        ConnectError: the file cannot be opened.
    """

    def __init__(self, location: Location, session: str, read_only: bool = False) -> None:
        self._process = os.getpid()
        self._session = session
        self._read_only = read_only
        #: Referred to, because its cursors are closed with it.
        self._given = location.connection
        self.shared = _shared_file(location.target)
        # The connection that cursors are created from; DuckDB does not allow concurrent calls on it.
        self._root: Any = None
        self._root_free = threading.RLock()
        self._memory = MEMORY_BYTES
        try:
            # Check the encoding first: DuckDB would report std::bad_cast.
            location.target.encode()
            with self.shared.opening:
                self._root = _connect(location, read_only)
                # Closing it in a child would write the log into the file.
                forks.keep(self)
                if self.shared.adjustable is None:
                    self.shared.adjustable = self._given is None and _connections(self._root) == 1
                if self._given is not None or not self.shared.adjustable:
                    self._session = "; ".join([*_settings(self._root, location), session])
                if self._given is not None:
                    # Its current database is looked up.
                    self._root.execute(self._session)
            if self._given is not None and location.target == ":memory:":
                self.shared = _shared_in_memory(self)
        except (duckdb.Error, ValueError) as error:
            self.close()
            raise not_opened(location, error) from None
        # A store in memory has no limit.
        self._bounded = bool(self.shared.adjustable) and location.target != ":memory:"

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the file, and has none of its threads."""
        return os.getpid() != self._process

    @property
    def not_seen(self) -> str:
        """For an error about something that is not there: what cursors of a connection of the caller do not see."""
        if self._given is None:
            return ""
        return "; temporary and uncommitted tables, and registered frames, can only be seen by your connection itself"

    def is_same_database(self, other: File) -> bool:
        """Whether the other one is a connection to the same database in memory; True if that cannot be found out.

        DuckDB has no name for a database in memory, but counts the connections to it.
        """
        matches = 0
        for _ in range(100):
            try:
                first, between, last = (one._next_connection() for one in (self, other, self))
            except (ClosedError, DatabaseError):
                return False
            if last == first + 1:
                return False
            matches += (between, last) == (first + 1, first + 2)
            if matches == 3:
                break
        return True

    def _next_connection(self) -> int:
        """The number of a new connection."""
        with self.root() as root:
            cursor = root.cursor()
            try:
                return int(cursor.execute("SELECT current_connection_id()").fetchone()[0])
            finally:
                cursor.close()

    def configure(self, settings: str) -> None:
        """Change settings of the database, unless they would change under a connection of the caller."""
        if self.shared.adjustable:
            with self.root() as root:
                root.execute(settings)

    @contextmanager
    def root(self) -> Iterator[Any]:
        """The connection that cursors are created from, for settings."""
        with self._root_free, translated():
            yield self._opened()

    def _opened(self) -> Any:
        if self._root is None:
            raise ClosedError("the store is closed", advice="open it again with entityframes.connect()")
        return self._root

    @contextmanager
    def cursor(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        """A new cursor, which in DuckDB is a separate connection."""
        if self.is_inherited:
            raise ClosedError(
                "this store was opened in another process", advice="after a fork, connect again in the child"
            )
        with self.root() as root:
            cursor = forks.keep(root.cursor())
        try:
            with translated():
                cursor.execute(self._session)
            if interrupt is None:
                yield cursor
            else:
                interrupt.check()
                with interrupt.cancelling(cursor.interrupt):
                    yield cursor
        except InvalidatedError as error:
            self.close()
            raise ClosedError(
                f"the store was closed, because DuckDB invalidated its database ({error})",
                advice="make sure that there is space on the disk, and connect again",
            ) from None
        finally:
            if not self.is_inherited:
                # An open transaction is rolled back with its connection.
                cursor.close()

    @contextmanager
    def writer(self, interrupt: Interrupt) -> Iterator[Any]:
        """A cursor with the writers' lock: concurrent writers of the same keys would make each other fail."""
        if self._read_only:
            raise PermanentError("the store was opened read-only", "25006", advice=TO_WRITE)
        with self.shared.writing, self.cursor(interrupt) as cursor:
            yield cursor

    @contextmanager
    def transaction(self, cursor: Any, interrupt: Interrupt) -> Iterator[None]:
        """BEGIN and COMMIT; an error rolls back."""
        with translated():
            cursor.begin()
        try:
            yield
            # A COMMIT that is interrupted during its checkpoint has succeeded, but reports a failure.
            with interrupt.uncancelled(), self.committing():
                cursor.commit()
        except (ResourceError, RowError):
            # The transaction may be retried on this cursor, also without the rejected rows. After other errors the
            # cursor is closed, which rolls back.
            with suppress(duckdb.Error):
                cursor.rollback()
            raise

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Close the database if a COMMIT runs out of memory: its index then has keys without rows, which must not be
        written to the file.
        """
        try:
            with translated():
                yield
        except ResourceError as error:
            if error.sqlstate != "53200":
                raise
            # Previous transactions are in the log, and are read from there when the file is opened again.
            with self._root_free:
                adjustable = self.shared.adjustable
                with suppress(duckdb.Error, ClosedError):
                    if adjustable:
                        self._opened().execute("PRAGMA disable_checkpoint_on_shutdown")
                self.close()
            instead = "connect again"
            if not adjustable:
                instead = (
                    "before anything else is written, execute PRAGMA disable_checkpoint_on_shutdown on your connection "
                    "and close it, because an index may have keys without rows; then use a higher memory_limit"
                )
            raise ClosedError(
                f"the store was closed, because a COMMIT ran out of memory ({error})", advice=instead
            ) from None

    def limit_memory(self) -> None:
        """Apply the current memory limit."""
        if self._bounded:
            with self.root() as root:
                root.execute(f"SET memory_limit = '{self._memory >> 20}MiB'")

    def reserve(self, batch_bytes: int) -> None:
        """Raise the memory limit, if necessary, for a batch of this size."""
        self._raise_limit(MEMORY_BYTES + MEMORY_PER_BYTE * batch_bytes)

    def _raise_limit(self, memory: int) -> None:
        if memory > self._memory:
            self._memory = memory
            self.limit_memory()

    def with_memory(self, work: Callable[[], T]) -> T:
        """Call `work`; if it runs out of memory, raise the memory limit and retry."""
        while True:
            try:
                return work()
            except ResourceError as error:
                if error.sqlstate != "53200" or not self._bounded or self._memory > MEMORY_AT_MOST:
                    raise
                self._raise_limit(2 * self._memory)

    def close(self) -> None:
        """Close the file as soon as no cursor executes a statement; of a connection of the caller, only our cursors.

        May be called repeatedly.
        """
        if os.getpid() != self._process:
            return
        with self._root_free:
            root, self._root = self._root, None
            # From now on the file may be opened under any of its names.
            self.shared = _Shared()
            while root is not None:
                # This also closes its cursors; DuckDB raises while one of them executes a statement.
                try:
                    root.close()
                    break
                except duckdb.ResourceInUseException:
                    time.sleep(0.005)
            self._given = None
