"""A DuckDB file: cursors on it, one writer at a time, and as much memory as the work needs."""

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
from entityframes.errors import ClosedError, ConnectError, PermanentError, ResourceError
from entityframes.interrupt import Interrupt

T = TypeVar("T")

#: DuckDB keeps what it has read until its limit is reached, by default most of the machine's memory. A file gets this
#: many bytes, and so many for each byte of a batch; more as soon as a statement needs it.
MEMORY_BYTES = 128 << 20
MEMORY_PER_BYTE = 4
MEMORY_AT_MOST = 8 << 30

#: The lock of the writers of each file, whoever opened it: nothing but that they take turns keeps its keys unique.
#: By process, because one that a fork copied may be held for ever.
_locks: WeakValueDictionary[tuple[int, str], threading.Lock] = WeakValueDictionary()
_locks_free = threading.Lock()


def _writing(target: str) -> threading.Lock:
    """The lock that is held while a file is written; a store in memory has its own.

    Raises:
        ConnectError: this process has the file open under another name, which DuckDB would take for another file.
    """
    if target == ":memory:":
        return threading.Lock()
    process, path = os.getpid(), os.path.realpath(target)
    with _locks_free:
        for owner, other in list(_locks):
            if owner == process and other != path and _same_file(other, path):
                raise ConnectError(f"{target} is open in this process as {other}: it is the same file, use that name")
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
    """A connection; where this process has the file open for writing, a reader shares that."""
    if not read_only:
        return duckdb.connect(target)
    if target == ":memory:":
        raise ConnectError("a store in memory begins empty: there is nothing to be read in it")
    if not os.path.exists(target):
        raise no_store(f"there is no store at {target}: no such file")
    try:
        return duckdb.connect(target, read_only=True)
    except duckdb.ConnectionException:
        return duckdb.connect(target)


class File:
    """One DuckDB database of this process.

    Args:
        location: where it is.
        session: the statements that every cursor begins with.
        read_only: whether nothing is to be written, so that a file without the permission is opened too, and others
            may read it at the same time.

    Raises:
        ConnectError: it cannot be opened.
    """

    def __init__(self, location: Location, session: str, read_only: bool = False) -> None:
        self._process = os.getpid()
        self._session = session
        self._read_only = read_only
        self._writing = _writing(location.target)
        # The connection that cursors are made of; one call at a time, DuckDB refuses a second.
        self._root: Any = None
        self._root_free = threading.RLock()
        # A store in memory may fill it.
        self._bounded = location.target != ":memory:"
        self._memory = MEMORY_BYTES
        try:
            # DuckDB's own word for it is std::bad_cast.
            location.target.encode()
            self._root = _connect(location.target, read_only)
            # In a child its end would write the log into the file.
            forks.keep(self)
        except (duckdb.Error, UnicodeError, ValueError) as error:
            raise ConnectError(why_not_opened(location, error)) from None

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child of the process that opened it: it has none of the threads that work here."""
        return os.getpid() != self._process

    @contextmanager
    def root(self) -> Iterator[Any]:
        """The connection that cursors are made of, for settings."""
        with self._root_free, translated():
            yield self._opened()

    def _opened(self) -> Any:
        if self._root is None:
            raise ClosedError("the store is closed: open it again with entityframes.connect()")
        return self._root

    @contextmanager
    def cursor(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        """A cursor of one's own, which is a connection of its own."""
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
            said = f"the store was closed, because DuckDB gave up its file ({error})"
            raise ClosedError(f"{said}: see that there is room on the disk, and connect again") from None
        finally:
            if not self.is_inherited:
                # An open transaction is rolled back with its connection.
                cursor.close()

    @contextmanager
    def writer(self, interrupt: Interrupt) -> Iterator[Any]:
        """A cursor that no other writer works beside: writers to the same keys would fail each other."""
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
            # A COMMIT that is interrupted while it writes the log into the file has happened and says that it has not.
            with interrupt.uncancelled(), self.committing():
                cursor.commit()
        except ResourceError:
            # It may be tried again on this cursor; any other error ends with the cursor, which rolls back too.
            with suppress(duckdb.Error):
                cursor.rollback()
            raise

    @contextmanager
    def committing(self) -> Iterator[None]:
        """A COMMIT that ran out of memory leaves keys in the index that have no row: they must not reach the file."""
        try:
            with translated():
                yield
        except ResourceError as error:
            if error.sqlstate != "53200":
                raise
            # What was committed before is in the log, and is read from there when the file is opened again.
            with self._root_free:
                with suppress(duckdb.Error, ClosedError):
                    self._opened().execute("PRAGMA disable_checkpoint_on_shutdown")
                self.close()
            raise ClosedError(
                f"the store was closed, because a COMMIT ran out of memory ({error}): connect again"
            ) from None

    def limit_memory(self) -> None:
        """Let DuckDB use as much memory as it is allowed by now."""
        if self._bounded:
            with self.root() as root:
                root.execute(f"SET memory_limit = '{self._memory >> 20}MiB'")

    def allow(self, batch_bytes: int) -> None:
        """See to it that there is memory for a batch of so many bytes beyond what the store itself needs."""
        self._allow(MEMORY_BYTES + MEMORY_PER_BYTE * batch_bytes)

    def _allow(self, memory: int) -> None:
        if memory > self._memory:
            self._memory = memory
            self.limit_memory()

    def with_memory(self, work: Callable[[], T]) -> T:
        """Do the work; where the memory that DuckDB may use is not enough, allow it more and do the work again."""
        while True:
            try:
                return work()
            except ResourceError as error:
                if error.sqlstate != "53200" or not self._bounded or self._memory > MEMORY_AT_MOST:
                    raise
                self._allow(2 * self._memory)

    def close(self) -> None:
        """Close it, once no cursor is at a statement. May be called again."""
        if os.getpid() != self._process:
            return
        with self._root_free:
            root, self._root = self._root, None
            # From now on the file may be opened under any of its names.
            self._writing = threading.Lock()
            while root is not None:
                # Its cursors are closed with it; DuckDB refuses while one of them is at a statement.
                try:
                    root.close()
                    break
                except duckdb.ResourceInUseException:
                    time.sleep(0.005)
