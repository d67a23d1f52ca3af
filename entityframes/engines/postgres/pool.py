"""A pool of connections to PostgreSQL, each used by one thread at a time.

The driver sends a statement with parameters in two messages, and a transaction pooler may assign the server process to
another client in between: our parameters would then be bound to a statement of that client. Behind a pooler every
statement therefore runs in a transaction, which is started and ended by single messages. To detect a pooler, each
connection sends a random value at startup, which only the server process that was started for this connection has.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import adbc_driver_manager
import adbc_driver_postgresql
import polars as pl
import pyarrow as pa
from adbc_driver_manager.dbapi import Connection, Cursor

from entityframes import forks
from entityframes.engines.arrow import to_frame
from entityframes.engines.postgres.background import run_in_helper
from entityframes.engines.postgres.errors import streamed, translated
from entityframes.engines.queries import Statements
from entityframes.errors import ClosedError, ConnectError, ConnectionLostError, DatabaseError, PermanentError, RowError
from entityframes.interrupt import Interrupt
from entityframes.retry import describe, retry

T = TypeVar("T")

_logger = logging.getLogger("entityframes")

#: The error of a pooler that does not support startup parameters.
_UNSUPPORTED = re.compile("startup|parameter|option|unsupported|unrecognized|protocol", re.IGNORECASE)

#: With "committed" in lower case, so that it is not mistaken for a COMMIT on the wire.
_BEGIN = "BEGIN ISOLATION LEVEL read committed"

#: Seconds before each further attempt to open the first connection.
_FIRST_PAUSES = (0.05, 0.2, 0.5)

#: Send a statement as a single message, without preparing it first and without COPY.
_AT_ONCE = {"adbc.postgresql.use_copy": "false"}


class Pool:
    """The connections of this process to a database.

    Args:
        target: the connection URI, with ``pool_mode`` if the mode of a pooler is specified.
        keep: the maximum number of idle connections.
        sql: the statements ``session``, ``local_settings`` and ``own_name``.

    Raises:
        ConnectError: the ``pool_mode`` is not supported.
    """

    def __init__(self, target: str, keep: int, sql: Statements) -> None:
        target, self._mode = pool_mode(target)
        self._target = extended(target, client_encoding="UTF8")
        self._keep = keep
        self._session, self._local, self._name = sql["session"], sql["local_settings"], sql["own_name"]
        #: The ports that the server reports without a proxy in between, and whether the proxy, if any, is no pooler.
        self._ports, self._direct = _ports(target), False
        self._idle: list[PooledConnection] = []
        self._lock = threading.Lock()
        self._database: _Database | None = None
        self._first = threading.Lock()
        self._closed = False
        self._connected = False
        self._process = os.getpid()
        #: Whether a COMMIT waits for a standby, as of the latest connection.
        self.synchronous = False
        #: The version of the server as a number, and whether it has the extension Citus; known once it is connected.
        self.version, self.citus = 0, False
        #: How often a connection was lost or could not be opened, after which another server may respond.
        self.losses = 0
        #: Of these, those after which a new connection was made.
        self._noted = 0
        forks.keep(self)

    @contextmanager
    def borrow(self, interrupt: Interrupt | None = None) -> Iterator[PooledConnection]:
        """Borrow a connection, which is returned to the pool unless an error occurs on it.

        Raises:
            ClosedError: the pool was closed, or belongs to another process.
            ConnectError: the database, or a pooler in front of it, is not supported.
        """
        if os.getpid() != self._process:
            raise ClosedError(
                "this store was opened in another process", advice="after a fork, connect again in the child"
            )
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed", advice="open it again with entityframes.connect()")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        connection.cancelled = False
        try:
            if interrupt is None:
                yield connection
            else:
                interrupt.check()
                with interrupt.cancelling(connection.cancel):
                    yield connection
        except RowError:
            # The connection is intact: the rows are retried on it.
            if self._rolled_back(connection):
                self._return(connection)
            raise
        except BaseException as error:
            # The state of the connection is unknown: close it, which rolls back. A new one costs ten round trips.
            if os.getpid() != self._process:
                # In a child that was forked here, the connection belongs to the parent.
                raise
            self._discard(connection)
            if isinstance(error, ConnectionLostError):
                # The idle connections are probably lost, too.
                self.losses += 1
                _logger.info("a connection was lost: %s", describe(error))
                self._empty()
            raise
        self._return(connection)

    def _connect(self) -> PooledConnection:
        try:
            # The driver has just closed a connection of its own, which the server may still count as one too many.
            driver, nonce = retry(
                self._open,
                pauses=() if self._connected else _FIRST_PAUSES,
                when=lambda error: not isinstance(error, ConnectionLostError),
                what="connecting",
            )
        except ConnectionLostError:
            self.losses += 1
            raise
        connection = PooledConnection(forks.keep(driver))
        try:
            self._start(connection, nonce)
        except BaseException:
            self._discard(connection)
            raise
        if self.losses > self._noted:
            self._noted = self.losses
            _logger.info("connected again after a connection was lost")
        self._connected = True
        return connection

    def _open(self) -> tuple[Connection, str | None]:
        with self._first, translated(connecting=True, again=self._connected):
            if self._database is None:
                self._database = _Database(self._target, named=self._mode is None and _takes_options(self._target))
            return self._database.connect()

    def _start(self, connection: PooledConnection, nonce: str | None) -> None:
        """Detect a pooler, apply the session settings, and check the encoding of the database."""
        nonce = nonce or secrets.token_hex(8)
        found = self._inspect(connection, nonce)
        if not isinstance(found["encoding"], str):
            raise ConnectError(
                "the database driver cannot read text with quote_all_identifiers = on, and the pooler or service file "
                "prevents changing it here",
                advice="set it to off for this role and database",
            )
        if found["encoding"] != "UTF8":
            raise ConnectError(
                f"the encoding of the database is {found['encoding']}, which cannot represent all text",
                advice="create a "
                "database with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and connect to that",
            )
        if found["own"] and found["set"] is None:
            # There is a proxy, which may be a pooler even though it forwards startup parameters.
            if self._is_pooled(connection, nonce):
                self._mode = "transaction"
            else:
                self._direct = True
            found = self._inspect(connection, nonce)
        self.synchronous, self.version, self.citus = found["synchronous"], found["version"], found["citus"]
        connection.pinned = not found["own"]
        # A primary cannot become a standby without closing its connections. A pooler may switch to another server.
        connection.primary = not found["standby"] and not connection.pinned
        if connection.pinned:
            if self._mode is None:
                # Idle connections from before the pooler was detected cannot be used.
                self._mode = "transaction"
                self._empty()
            connection.local = (self._local.replace("{compression}", f"'{found['compression']}'"),)
        if connection.pinned or self._mode is not None:
            self._try_transaction(connection)

    def _inspect(self, connection: PooledConnection, nonce: str) -> dict[str, Any]:
        """The properties of the server process; applies the session settings if the process is certainly not shared."""
        knows = {"session": "true", "transaction": "false"}.get(self._mode or "", f"backend.nonce = '{nonce}'")
        sure = "true" if self._direct or self._mode == "session" else f"backend.port IN ({self._ports})"
        session = self._session.replace("{knows}", knows).replace("{sure}", sure)
        found: dict[str, Any] = connection.query_at_once(session.replace("{compression}", "backend.compression")).row(
            0, named=True
        )
        return found

    def _is_pooled(self, connection: PooledConnection, nonce: str) -> bool:
        """Whether two connections that alternate are assigned each other's server process."""
        with self._first, translated(connecting=True):
            assert self._database is not None
            driver, other_nonce = self._database.connect()
        other = PooledConnection(forks.keep(driver))
        one, another = (connection, nonce), (other, other_nonce)
        try:
            return any(
                each.query_at_once(self._name).item() != name for each, name in (one, one, another, one, another)
            )
        finally:
            self._discard(other)

    def _try_transaction(self, connection: PooledConnection) -> None:
        try:
            with connection.transaction(Interrupt()):
                pass
        except DatabaseError as error:
            if not self._connected and (isinstance(error, ConnectionLostError) or error.sqlstate == "08P01"):
                raise ConnectError(
                    f"the pooler in front of the database does not allow transactions ({error}): statement pooling "
                    "cannot be used",
                    advice="set it to pool_mode = transaction or session, or connect directly to the server",
                ) from error
            raise

    def close(self) -> None:
        """Close all idle connections, and borrowed ones when they are returned. May be called repeatedly."""
        if os.getpid() != self._process:
            # A fork may have copied the lock while it was held.
            return
        with self._lock:
            self._closed = True
        self._empty()
        with self._first:
            self._close_database()

    def _empty(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._discard(connection)

    def _return(self, connection: PooledConnection) -> None:
        with self._lock:
            # A connection from before the pooler was detected is not reused.
            keep = (
                not self._closed and len(self._idle) < self._keep and (connection.pinned or self._mode != "transaction")
            )
            if keep:
                self._idle.append(connection)
        if not keep:
            self._discard(connection)

    def _rolled_back(self, connection: PooledConnection) -> bool:
        try:
            connection.rollback()
        except DatabaseError:
            self._discard(connection)
            return False
        return True

    def _discard(self, connection: PooledConnection) -> None:
        with self._first:
            assert self._database is not None
            self._database.disconnect(connection.driver)
            self._close_database()

    def _close_database(self) -> None:
        """Release the memory of the driver (0.85 MB) after the last connection of a closed pool."""
        if self._closed and self._database is not None and self._database.unused:
            self._database.release()
            self._database = None


def for_writing(target: str) -> str:
    """The address, with ``target_session_attrs=read-write`` if it has several hosts and does not set this itself."""
    head, parameters = _split(target)
    given = {name: value for name, value, _ in parameters}
    specified = "target_session_attrs" in given or "service" in given or "PGTARGETSESSIONATTRS" in os.environ
    hosts = [_hosts(head), *(given.get(name, "") for name in ("host", "hostaddr"))]
    if not any(hosts):
        hosts = [os.environ.get(name, "") for name in ("PGHOST", "PGHOSTADDR")]
    if specified or not any("," in unquote(host) for host in hosts):
        return target
    return extended(target, target_session_attrs="read-write")


class _Database:
    """The driver's handle of a database, which is shared by all connections.

    Creating it loads the types of the database, which takes ten times as long as connecting. Not thread-safe.
    """

    def __init__(self, target: str, *, named: bool) -> None:
        self._target, self._named = target, named
        self._connections = 0
        try:
            self._handle = adbc_driver_postgresql.connect(self._with_name()[0])
        except adbc_driver_manager.Error as error:
            if not self._is_unsupported(error):
                raise
            self._handle = adbc_driver_postgresql.connect(target)

    def connect(self) -> tuple[Connection, str | None]:
        """A connection, and the random value that identifies its server process."""
        try:
            return self._connect()
        except adbc_driver_manager.Error as error:
            if not self._is_unsupported(error):
                raise
            return self._connect()

    def _connect(self) -> tuple[Connection, str | None]:
        target, nonce = self._with_name()
        self._handle.set_options(uri=target)
        connection = Connection(self, adbc_driver_manager.AdbcConnection(self._handle), autocommit=True)  # type: ignore[arg-type]
        self._connections += 1
        return connection, nonce

    def _with_name(self) -> tuple[str, str | None]:
        if not self._named:
            return self._target, None
        nonce = secrets.token_hex(16)
        # The driver loads the names of functions on startup, and recognizes them only without quotes.
        options = f"-c entityframes.connection={nonce} -c quote_all_identifiers=off"
        return _with_option(self._target, options), nonce

    def _is_unsupported(self, error: adbc_driver_manager.Error) -> bool:
        """Whether connecting may have failed because of the random value, which is then no longer sent."""
        unsupported = self._named and _UNSUPPORTED.search(str(error)) is not None
        self._named = self._named and not unsupported
        return unsupported

    def disconnect(self, connection: Connection) -> None:
        """Close a connection."""
        # An error means that the connection was already broken, or that a Ctrl-C occurred before a statement was
        # closed. The server rolls back when the socket is closed.
        with suppress(adbc_driver_manager.Error, RuntimeError):
            connection.close()
        self._connections -= 1

    @property
    def unused(self) -> bool:
        """Whether every connection is closed."""
        return self._connections == 0

    def release(self) -> None:
        """Release the driver's handle."""
        with suppress(adbc_driver_manager.Error, RuntimeError):
            self._handle.close()

    def close(self) -> None:
        """Called by the driver when a connection is closed; does nothing, because the handle is shared."""


class PooledConnection:
    """A connection and its open transaction, if any.

    Attributes:
        driver: the driver's connection, in autocommit mode; transactions are started and ended by statements.
        pinned: whether a pooler assigns a server process for the duration of a transaction only, so that each statement
            needs one.
        local: the settings for each transaction, if settings of the session would not persist.
        cancelled: whether this side has cancelled the current statement.
        primary: whether the server is certainly not a standby.
    """

    def __init__(self, driver: Connection) -> None:
        self.driver = driver
        self.pinned = False
        self.local: tuple[str, ...] = ()
        self.cancelled = self.primary = False
        self._open = self._failed = False

    def cancel(self) -> None:
        """Cancel the current statement; may be called from another thread, even if the statement has already ended."""
        self.cancelled = True
        self.driver.adbc_cancel()

    def query_at_once(self, statement: str) -> pl.DataFrame:
        """Execute a statement, sent as a single message, and return its result."""
        with self._running() as cursor:
            return cursor.query(statement)

    def script(self, statements: str, *, committing: bool = False) -> None:
        """Execute statements without parameters and results, sent as a single message."""
        with self._running(committing=committing) as cursor:
            cursor.script(statements)

    @contextmanager
    def statement(self, *, committing: bool = False) -> Iterator[_Cursor]:
        """A cursor for one statement, in a transaction of its own if it needs one and none is open.

        Args:
            committing: whether the statement may have been committed if it fails.

        Raises:
            DatabaseError: with the SQLSTATE; ``committing`` is set if it may have been committed nevertheless.
        """
        alone = self.pinned and not self._open
        if alone:
            self._begin()
        with self._running(committing=committing and not alone) as cursor:
            yield cursor
        if alone:
            self._commit(committing=committing)

    @contextmanager
    def transaction(self, interrupt: Interrupt, *settings: str) -> Iterator[None]:
        """BEGIN and COMMIT; after an error the transaction is open until `rollback` or the end of the connection.

        Args:
            interrupt: checked before COMMIT.
            settings: SET statements for this transaction only, which are sent together with BEGIN.
        """
        self._begin(*settings)
        yield
        interrupt.check()
        with interrupt.committing(self.cancel):
            self._commit(committing=True)

    def begin(self) -> None:
        """Start a transaction that `rollback` ends."""
        self._begin()

    def rollback(self) -> None:
        """Roll back the open transaction, if any."""
        if self._open:
            self._failed = False
            self.script("ROLLBACK")
            self._open = False

    def _begin(self, *settings: str) -> None:
        self._open, self._failed = True, False
        self.script(";\n".join((_BEGIN, *settings, *self.local)))

    def _commit(self, *, committing: bool) -> None:
        if self._failed:
            # The server would respond to a COMMIT with a rollback, without an error.
            raise PermanentError("a statement of the transaction failed, so nothing of it was written")
        self.script("COMMIT", committing=committing)
        self._open = False

    @contextmanager
    def _running(self, *, committing: bool = False) -> Iterator[_Cursor]:
        try:
            with (
                closing(_Cursor(self.driver)) as cursor,
                translated(committing=committing, stopped=lambda: self.cancelled),
            ):
                yield cursor
        except BaseException:
            self._failed = True
            raise


class _Cursor:
    """Executes the statements of a connection in a helper thread, so that the program handles Ctrl-C while they run."""

    def __init__(self, connection: Connection) -> None:
        self._cursor = Cursor(connection)

    def close(self) -> None:
        self._cursor.close()

    def execute(self, statement: str, parameters: pa.RecordBatch | None = None) -> None:
        """Execute a statement; without parameters, it is sent as a single message."""
        self._in_helper(lambda: self._send(statement, parameters))

    def _send(self, statement: str, parameters: pa.RecordBatch | None) -> None:
        if parameters is None:
            self._cursor.adbc_statement.set_options(**_AT_ONCE)
        self._cursor.execute(statement, parameters)

    def script(self, statements: str) -> None:
        """Execute statements without parameters and results, sent as a single message."""
        self._in_helper(lambda: self._cursor.executescript(statements))

    def ingest(self, table: str, rows: pa.Table, **where: Any) -> None:
        """Copy rows into an existing table."""
        self._in_helper(lambda: self._cursor.adbc_ingest(table, rows, mode="append", **where))

    def query(self, statement: str, parameters: pa.RecordBatch | None = None) -> pl.DataFrame:
        """Execute a statement and return its result; without parameters, it is sent as a single message."""

        def query() -> pl.DataFrame:
            self._send(statement, parameters)
            return to_frame(self._cursor.fetch_arrow_table())

        return self._in_helper(query)

    def stream(self, statement: str, parameters: pa.RecordBatch | None = None) -> Iterator[pl.DataFrame]:
        """Execute a statement and yield its result in chunks; without parameters, it is sent as a COPY."""
        self._in_helper(lambda: self._cursor.execute(statement, parameters))
        batches = streamed(self._cursor)
        while (batch := self._in_helper(lambda: next(batches, None))) is not None:
            yield to_frame(batch)

    def _in_helper(self, call: Callable[[], T]) -> T:
        return run_in_helper(call, self._cursor.adbc_cancel)


# Parameters of addresses.


def pool_mode(target: str) -> tuple[str, str | None]:
    """The address without ``pool_mode``, which the driver does not support, and the value of this parameter.

    Args:
        target: a connection URI.

    Returns:
        The address, and "transaction", "session", or None if the mode has to be detected.

    Raises:
        ConnectError: the value is "statement" or invalid.
    """
    head, parameters = _split(target)
    given = [value for name, value, _ in parameters if name == "pool_mode"]
    if not given:
        return target, None
    if given[-1] == "statement":
        raise ConnectError(
            "pool_mode=statement: a pooler in statement mode does not allow transactions",
            advice="set the pooler to transaction or session mode, or connect directly to the server",
        )
    if given[-1] not in ("transaction", "session"):
        raise ConnectError("pool_mode in the URL must be transaction or session, as configured in the pooler")
    return _joined(head, [text for name, _, text in parameters if name != "pool_mode"]), given[-1]


def extended(target: str, **parameters: str) -> str:
    """The address with additional parameters, which override existing ones."""
    head, given = _split(target)
    added = [f"{name}={quote(value, safe='')}" for name, value in parameters.items()]
    return _joined(head, [text for _, _, text in given] + added)


def _ports(target: str) -> str:
    """The ports of the server in the address, separated by commas; 0 for a Unix-domain socket."""
    head, parameters = _split(target)
    given = {name: value for name, value, _ in parameters}
    hosts = [one.rpartition(":") for one in _hosts(head).split(",") if ":" in one]
    named = [port for _, _, port in hosts] or given.get("port", os.environ.get("PGPORT", "5432")).split(",")
    return ", ".join(dict.fromkeys(["0", *(port for port in named if port.isdecimal())]))


def _with_option(target: str, option: str) -> str:
    """The address with a further option for the server, in addition to those of the address or the environment."""
    given = [value for name, value, _ in _split(target)[1] if name == "options"]
    before = given[-1] if given else os.environ.get("PGOPTIONS", "")
    return extended(target, options=f"{before} {option}")


def _takes_options(target: str) -> bool:
    """Whether an option can be added without overriding others: those of a service file are unknown, and would be."""
    names = [name for name, _, _ in _split(target)[1]]
    return "options" in names or ("service" not in names and "PGSERVICE" not in os.environ)


def _split(target: str) -> tuple[str, list[tuple[str, str, str]]]:
    """The part of a URI before its parameters, and the name, value and text of each parameter."""
    start = target.index("://") + 3
    # Like libpq: a question mark before an @ is part of the user or password.
    user = re.match("[^@/]*@", target[start:])
    mark = target.find("?", start + (user.end() if user else 0))
    head, query = (target, "") if mark < 0 else (target[:mark], target[mark + 1 :])
    pairs = [(pair.partition("="), pair) for pair in query.split("&") if pair]
    return head, [(unquote(cut[0]), unquote(cut[2]), pair) for cut, pair in pairs]


def _hosts(head: str) -> str:
    """The hosts in a URI, with their ports, separated by commas."""
    return head.partition("://")[2].partition("/")[0].rpartition("@")[2]


def _joined(head: str, texts: list[str]) -> str:
    return head + ("?" + "&".join(texts) if texts else "")
