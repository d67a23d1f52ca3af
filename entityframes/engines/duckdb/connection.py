"""A DuckDB file: its cursors, a lock for its single writer, and its memory limit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import duckdb

from entityframes import forks
from entityframes.engines.base import no_store
from entityframes.engines.duckdb.errors import InvalidatedError, translated, why_not_opened
from entityframes.engines.url import Location
from entityframes.errors import ClosedError, ConnectError, PermanentError, ResourceError, RowError
from entityframes.interrupt import Interrupt

T = TypeVar("T")

#: DuckDB caches what it has read up to its memory limit, which by default is most of the memory of the machine. A file
#: gets MEMORY_BYTES plus MEMORY_PER_BYTE for each byte of a batch, and more if a statement needs it.
MEMORY_BYTES = 128 << 20
MEMORY_PER_BYTE = 4
MEMORY_AT_MOST = 8 << 30

#: The writers' lock of each file, shared by all stores of this process. Keys are unique only because writers take
#: turns. Keyed by process, because a lock that was copied by a fork may be held forever.
_locks: WeakValueDictionary[tuple[int, str], threading.Lock] = WeakValueDictionary()
_locks_free = threading.Lock()


def _writing(target: str) -> threading.Lock:
    """The writers' lock of a file; each store in memory has a separate one.

    Raises:
        ConnectError: this process has the file open under another name, which DuckDB would treat as another file.
    """
    if target == ":memory:":
        return threading.Lock()
    process, path = os.getpid(), os.path.realpath(target)
    with _locks_free:
        for owner, other in list(_locks):
            if owner == process and other != path and _same_file(other, path):
                raise ConnectError(
                    f"{target} is open in this process as {other}, which is the same file: use that name"
                )
        lock = _locks.get((process, path))
        if lock is None:
            lock = _locks[process, path] = threading.Lock()
        return lock


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _connect(target: str, read_only: bool) -> Any:
    """Connect to a file; a reader shares the database if this process has the file open for writing."""
    if not read_only:
        return duckdb.connect(target)
    if target == ":memory:":
        raise ConnectError("a store in memory cannot be opened read-only, because it would be empty")
    if not os.path.exists(target):
        raise no_store(f"there is no store at {target}: no such file")
    try:
        return duckdb.connect(target, read_only=True)
    except duckdb.ConnectionException:
        return duckdb.connect(target)


class File:
    """A DuckDB database that is open in this process.

    Args:
        location: the location of the file.
        session: the statements that are executed on every new cursor.
        read_only: whether to open it read-only, which needs no write permission and allows concurrent readers.

    Raises:
        ConnectError: the file cannot be opened.
    """

    def __init__(self, location: Location, session: str, read_only: bool = False) -> None:
        self._process = os.getpid()
        self._session = session
        self._read_only = read_only
        self._writing = _writing(location.target)
        # The connection that cursors are created from; DuckDB does not allow concurrent calls on it.
        self._root: Any = None
        self._root_free = threading.RLock()
        # A store in memory has no limit.
        self._bounded = location.target != ":memory:"
        self._memory = MEMORY_BYTES
        try:
            # Check the encoding first: DuckDB would report std::bad_cast.
            location.target.encode()
            self._root = _connect(location.target, read_only)
            # Closing it in a child would write the log into the file.
            forks.keep(self)
        except (duckdb.Error, ValueError) as error:
            raise ConnectError(why_not_opened(location, error)) from None

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one that opened the file, and has none of its threads."""
        return os.getpid() != self._process

    @contextmanager
    def root(self) -> Iterator[Any]:
        """The connection that cursors are created from, for settings."""
        with self._root_free, translated():
            yield self._opened()

    def _opened(self) -> Any:
        if self._root is None:
            raise ClosedError("the store is closed: open it again with entityframes.connect()")
        return self._root

    @contextmanager
    def cursor(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        """A new cursor, which in DuckDB is a separate connection."""
        if self.is_inherited:
            raise ClosedError("this store was opened in another process: after a fork, connect again in the child")
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
                f"the store was closed, because DuckDB invalidated its database ({error}): make sure that there is "
                "space on the disk, and connect again"
            ) from None
        finally:
            if not self.is_inherited:
                # An open transaction is rolled back with its connection.
                cursor.close()

    @contextmanager
    def writer(self, interrupt: Interrupt) -> Iterator[Any]:
        """A cursor with the writers' lock: concurrent writers of the same keys would make each other fail."""
        if self._read_only:
            raise PermanentError("the store was opened read-only: connect without read_only=True to write", "25006")
        with self._writing, self.cursor(interrupt) as cursor:
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
                with suppress(duckdb.Error, ClosedError):
                    self._opened().execute("PRAGMA disable_checkpoint_on_shutdown")
                self.close()
            raise ClosedError(
                f"the store was closed, because a COMMIT ran out of memory ({error}): connect again"
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
        """Close the file as soon as no cursor executes a statement. May be called repeatedly."""
        if os.getpid() != self._process:
            return
        with self._root_free:
            root, self._root = self._root, None
            # From now on the file may be opened under any of its names.
            self._writing = threading.Lock()
            while root is not None:
                # This also closes its cursors; DuckDB raises while one of them executes a statement.
                try:
                    root.close()
                    break
                except duckdb.ResourceInUseException:
                    time.sleep(0.005)
