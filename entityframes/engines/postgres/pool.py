"""Connections to PostgreSQL: kept in a pool, each used by one thread at a time.

The driver sends a statement with parameters in two parts, and a transaction pooler may lend the server's side to
somebody else in between: the statement that then runs with our parameters is theirs. So behind a pooler everything runs
inside a transaction, which is opened and ended by messages that cannot be parted. Whether there is a pooler is found
out by a random value that each connection sends when it starts: only a server process that was started for this very
connection knows it.
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
from entityframes.engines.postgres.background import aside
from entityframes.engines.postgres.errors import streamed, translated
from entityframes.engines.queries import Statements
from entityframes.errors import ClosedError, ConnectError, ConnectionLostError, DatabaseError, PermanentError, RowError
from entityframes.interrupt import Interrupt
from entityframes.retry import describe

T = TypeVar("T")

_logger = logging.getLogger("entityframes")

#: What a pooler may say that does not pass on what a connection sends when it starts.
_REFUSED = re.compile("startup|parameter|option|unsupported|unrecognized|protocol", re.IGNORECASE)

#: In capitals is only what ends a transaction, so that it is told from this on the wire.
_BEGIN = "BEGIN ISOLATION LEVEL read committed"

#: One message, whole, to the server and back: neither prepared first nor copied.
_AT_ONCE = {"adbc.postgresql.use_copy": "false"}


class Pool:
    """Connections of one process to one database.

    Args:
        target: the connection URI or key=value string, with ``pool_mode`` if there is a pooler to be told of.
        keep: how many idle connections are kept.
        sql: the statements ``session``, ``local_settings`` and ``own_name``.

    Raises:
        ConnectError: the ``pool_mode`` cannot be used.
    """

    def __init__(self, target: str, keep: int, sql: Statements) -> None:
        target, self._mode = pool_mode(target)
        self._target = extended(target, client_encoding="UTF8")
        self._keep = keep
        self._session, self._local, self._name = sql["session"], sql["local_settings"], sql["own_name"]
        #: The ports that the server would have if nothing stood between, and whether nothing lends its processes there.
        self._ports, self._direct = _ports(target), False
        self._idle: list[PooledConnection] = []
        self._lock = threading.Lock()
        self._database: _Database | None = None
        self._first = threading.Lock()
        self._closed = False
        self._connected = False
        self._process = os.getpid()
        #: Whether a COMMIT waits for a standby, as it was when the last connection was made.
        self.synchronous = False
        #: How often a connection was lost, or could not be made: perhaps another server answers since.
        self.losses = 0
        #: Of these, those after which a new connection was made.
        self._noted = 0
        forks.keep(self)

    @contextmanager
    def borrow(self, interrupt: Interrupt | None = None) -> Iterator[PooledConnection]:
        """A connection of one's own; it goes back to the pool unless something failed on it.

        Raises:
            ClosedError: the pool was closed, or belongs to another process.
            ConnectError: the database, or a pooler before it, cannot be used.
        """
        if os.getpid() != self._process:
            raise ClosedError("this store was opened in another process: after a fork, connect again in the child")
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed: open it again with entityframes.connect()")
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
            # The server said no and is well: the rows are tried again, on the same connection.
            if self._rolled_back(connection):
                self._give_back(connection)
            raise
        except BaseException as error:
            # Whatever state it is in, closing it rolls back; a new one costs ten round trips, a wrong one the data.
            if os.getpid() != self._process:
                # A child that was forked in here: it is its parent's.
                raise
            self._discard(connection)
            if isinstance(error, ConnectionLostError):
                # The idle ones are from before it, too.
                self.losses += 1
                _logger.info("a connection was lost: %s", describe(error))
                self._empty()
            raise
        self._give_back(connection)

    def _connect(self) -> PooledConnection:
        try:
            with self._first, translated(connecting=True, again=self._connected):
                if self._database is None:
                    self._database = _Database(self._target, named=self._mode is None and _takes_options(self._target))
                driver, nonce = self._database.connect()
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

    def _start(self, connection: PooledConnection, nonce: str | None) -> None:
        """Find out whether there is a pooler, set what the session depends on, and check the database's encoding."""
        nonce = nonce or secrets.token_hex(8)
        found = self._look(connection, nonce)
        if not isinstance(found["encoding"], str):
            raise ConnectError(
                "the database driver cannot read text under quote_all_identifiers = on, and the pooler or service file "
                "lets it not be changed here: set it to off for this role and database"
            )
        if found["encoding"] != "UTF8":
            raise ConnectError(
                f"the database keeps its text in {found['encoding']}, which cannot hold every text: make one with "
                "CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and connect to that"
            )
        if found["own"] and found["set"] is None:
            # Something stands between: what passes on how a connection starts may lend its server process all the same.
            if self._is_lent(connection, nonce):
                self._mode = "transaction"
            else:
                self._direct = True
            found = self._look(connection, nonce)
        self.synchronous = found["synchronous"]
        connection.pinned = not found["own"]
        # A primary becomes no standby under its connections; behind a pooler the next one may be another server.
        connection.primary = not found["standby"] and not connection.pinned
        if connection.pinned:
            if self._mode is None:
                # So are those that were not found out.
                self._mode = "transaction"
                self._empty()
            connection.local = (self._local.replace("{compression}", f"'{found['compression']}'"),)
        if connection.pinned or self._mode is not None:
            self._try_transaction(connection)

    def _look(self, connection: PooledConnection, nonce: str) -> dict[str, Any]:
        """What the server process says of itself; its session is set if it is surely this connection's own."""
        knows = {"session": "true", "transaction": "false"}.get(self._mode or "", f"backend.nonce = '{nonce}'")
        sure = "true" if self._direct or self._mode == "session" else f"backend.port IN ({self._ports})"
        session = self._session.replace("{knows}", knows).replace("{sure}", sure)
        found: dict[str, Any] = connection.at_once(session.replace("{compression}", "backend.compression")).row(
            0, named=True
        )
        return found

    def _is_lent(self, connection: PooledConnection, nonce: str) -> bool:
        """Whether two connections meet each other's server process when they speak in turns."""
        with self._first, translated(connecting=True):
            assert self._database is not None
            driver, other_nonce = self._database.connect()
        other = PooledConnection(forks.keep(driver))
        one, another = (connection, nonce), (other, other_nonce)
        try:
            return any(spoken.at_once(self._name).item() != name for spoken, name in (one, one, another, one, another))
        finally:
            self._discard(other)

    def _try_transaction(self, connection: PooledConnection) -> None:
        try:
            with connection.transaction(Interrupt()):
                pass
        except DatabaseError as error:
            if not self._connected and (isinstance(error, ConnectionLostError) or error.sqlstate == "08P01"):
                raise ConnectError(
                    f"the pooler before the database lets no transaction be opened ({error}): statement pooling cannot "
                    "be used, set it to pool_mode = transaction or session, or connect to the server itself"
                ) from error
            raise

    def close(self) -> None:
        """Close every connection that is not lent out, and the others when they come back. May be called again."""
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

    def _give_back(self, connection: PooledConnection) -> None:
        with self._lock:
            # One from before a pooler was found is not used again.
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
        """Let go of what the driver keeps, 0.85 MB, after the last connection of a pool that is closed."""
        if self._closed and self._database is not None and self._database.unused:
            self._database.release()
            self._database = None


def for_writing(target: str) -> str:
    """The address, asking for a server that can be written to if it names several and does not say which it wants."""
    parts = _split(target)
    if parts is None:
        return target
    given = {name: value for name, value, _ in parts[1]}
    asked = "target_session_attrs" in given or "service" in given or "PGTARGETSESSIONATTRS" in os.environ
    authority = "" if parts[0] is None else parts[0].partition("://")[2].partition("/")[0].rpartition("@")[2]
    hosts = [authority, *(given.get(name, "") for name in ("host", "hostaddr"))]
    if not any(hosts):
        hosts = [os.environ.get(name, "") for name in ("PGHOST", "PGHOSTADDR")]
    if asked or not any("," in unquote(host) for host in hosts):
        return target
    return extended(target, target_session_attrs="read-write")


class _Database:
    """What the driver reads of the types of a database, in ten times the time of connecting, for all connections.

    Used by one thread at a time.
    """

    def __init__(self, target: str, *, named: bool) -> None:
        self._target, self._named = target, named
        self._connections = 0
        try:
            self._handle = adbc_driver_postgresql.connect(self._with_name()[0])
        except adbc_driver_manager.Error as error:
            if not self._refused(error):
                raise
            self._handle = adbc_driver_postgresql.connect(target)

    def connect(self) -> tuple[Connection, str | None]:
        """A connection, and the random value by which its own server process can be told from others."""
        try:
            return self._connect()
        except adbc_driver_manager.Error as error:
            if not self._refused(error):
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
        # The driver reads the names of functions when it starts, and knows them without quotes only.
        options = f"-c entityframes.connection={nonce} -c quote_all_identifiers=off"
        return _with_option(self._target, options), nonce

    def _refused(self, error: adbc_driver_manager.Error) -> bool:
        """Whether connecting may have failed for the value that it sends, which it then sends no more."""
        refused = self._named and _REFUSED.search(str(error)) is not None
        self._named = self._named and not refused
        return refused

    def disconnect(self, connection: Connection) -> None:
        """Close a connection."""
        # An error means that it was broken already, or that Ctrl-C came before a statement was closed; the server rolls
        # back when the socket goes.
        with suppress(adbc_driver_manager.Error, RuntimeError):
            connection.close()
        self._connections -= 1

    @property
    def unused(self) -> bool:
        """Whether every connection is closed."""
        return self._connections == 0

    def release(self) -> None:
        """Let go of the driver's handle."""
        with suppress(adbc_driver_manager.Error, RuntimeError):
            self._handle.close()

    def close(self) -> None:
        """What a connection does at its end to a database of its own; this one outlives it."""


class PooledConnection:
    """A connection, and the transaction that is open on it.

    Attributes:
        driver: the driver's connection, in autocommit; transactions are opened and ended by statements.
        pinned: whether the server's side is ours within a transaction only, so that each statement has to have one.
        local: what has to be set in each transaction, because nothing else is ours.
        cancelled: whether this side has cancelled what it runs.
        primary: whether the server surely is no standby.
    """

    def __init__(self, driver: Connection) -> None:
        self.driver = driver
        self.pinned = False
        self.local: tuple[str, ...] = ()
        self.cancelled = self.primary = False
        self._open = self._failed = False

    def cancel(self) -> None:
        """End what it runs; may be called from another thread, and late."""
        self.cancelled = True
        self.driver.adbc_cancel()

    def at_once(self, statement: str) -> pl.DataFrame:
        """The answer to a statement that goes to the server in one message, as a frame."""
        with self._running() as cursor:
            return cursor.answer(statement, **_AT_ONCE)

    def script(self, statements: str, *, committing: bool = False) -> None:
        """Run statements without parameters and answers in one message."""
        with self._running(committing=committing) as cursor:
            cursor.script(statements)

    @contextmanager
    def statement(self, *, committing: bool = False) -> Iterator[_Cursor]:
        """A cursor for one statement, in a transaction of its own where it needs one and none is open.

        Args:
            committing: whether the statement may be committed although it fails.

        Raises:
            DatabaseError: with the SQLSTATE; its ``committing`` says whether it may have been committed all the same.
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
        """BEGIN and COMMIT; an error leaves the transaction to `rollback` or the connection's end.

        Args:
            interrupt: looked at before COMMIT.
            settings: SET statements, for this transaction only, that go along with BEGIN.
        """
        self._begin(*settings)
        yield
        interrupt.check()
        with interrupt.committing(self.cancel):
            self._commit(committing=True)

    def rollback(self) -> None:
        """Leave the transaction that is open, if one is."""
        if self._open:
            self._failed = False
            self.script("ROLLBACK")
            self._open = False

    def _begin(self, *settings: str) -> None:
        self._open, self._failed = True, False
        self.script(";\n".join((_BEGIN, *settings, *self.local)))

    def _commit(self, *, committing: bool) -> None:
        if self._failed:
            # The server would answer that, too, without an error.
            raise PermanentError("a statement of the transaction failed, so that nothing of it was written")
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
    """Runs the statements of one connection; what they wait for does not keep Ctrl-C from the program."""

    def __init__(self, connection: Connection) -> None:
        self._cursor = Cursor(connection)

    def close(self) -> None:
        self._cursor.close()

    def execute(self, statement: str, parameters: pa.RecordBatch | None = None) -> None:
        """Run a statement."""
        self._aside(lambda: self._cursor.execute(statement, parameters))

    def script(self, statements: str) -> None:
        """Run statements without parameters and answers in one message."""
        self._aside(lambda: self._cursor.executescript(statements))

    def ingest(self, table: str, rows: pa.Table, **where: Any) -> None:
        """Copy rows into a table that there is."""
        self._aside(lambda: self._cursor.adbc_ingest(table, rows, mode="append", **where))

    def answer(self, statement: str, parameters: pa.RecordBatch | None = None, **options: str) -> pl.DataFrame:
        """What a statement answers, whole."""

        def ask() -> pl.DataFrame:
            if options:
                self._cursor.adbc_statement.set_options(**options)
            self._cursor.execute(statement, parameters)
            return to_frame(self._cursor.fetch_arrow_table())

        return self._aside(ask)

    def pieces(self, statement: str, parameters: pa.RecordBatch | None = None) -> Iterator[pl.DataFrame]:
        """What a statement answers, in pieces, as they come."""
        self.execute(statement, parameters)
        batches = streamed(self._cursor)
        while (batch := self._aside(lambda: next(batches, None))) is not None:
            yield to_frame(batch)

    def _aside(self, call: Callable[[], T]) -> T:
        return aside(call, self._cursor.adbc_cancel)


# What the address of a database says besides where it is.


def pool_mode(target: str) -> tuple[str, str | None]:
    """The address without ``pool_mode``, which the driver does not know, and its value.

    Args:
        target: a connection URI or key=value string.

    Returns:
        The address and "transaction", "session", or None where it is to be found out.

    Raises:
        ConnectError: statement pooling, or another value.
    """
    parts = _split(target)
    given = [value for name, value, _ in parts[1] if name == "pool_mode"] if parts else []
    if not parts or not given:
        return target, None
    if given[-1] == "statement":
        raise ConnectError(
            "pool_mode=statement: a pooler that lends the server for one statement at a time lets no transaction be "
            "opened; set the pooler to transaction or session, or connect to the server itself"
        )
    if given[-1] not in ("transaction", "session"):
        raise ConnectError("pool_mode in the URL is transaction or session, as the pooler before the database has it")
    return _joined(parts[0], [text for name, _, text in parts[1] if name != "pool_mode"]), given[-1]


def extended(target: str, **parameters: str) -> str:
    """The address with parameters that count before those that it has; as it is where it cannot be read."""
    parts = _split(target)
    if parts is None:
        return target
    texts = [text for _, _, text in parts[1]]
    for name, value in parameters.items():
        if parts[0] is None:
            texts.append(f"{name}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'")
        else:
            texts.append(f"{name}={quote(value, safe='')}")
    return _joined(parts[0], texts)


def _ports(target: str) -> str:
    """The ports at which the server is looked for, with commas between; 0 for a socket in the file system."""
    parts = _split(target)
    given = {name: value for name, value, _ in parts[1]} if parts else {}
    authority = "" if parts is None or parts[0] is None else parts[0].partition("://")[2].partition("/")[0]
    hosts = [one.rpartition(":") for one in authority.rpartition("@")[2].split(",") if ":" in one]
    named = [port for _, _, port in hosts] or given.get("port", os.environ.get("PGPORT", "5432")).split(",")
    return ", ".join(dict.fromkeys(["0", *(port for port in named if port.isdecimal())]))


def _with_option(target: str, option: str) -> str:
    """The address with one more option for the server, beside those of the address or else the environment."""
    given = [value for name, value, _ in (_split(target) or (None, []))[1] if name == "options"]
    before = given[-1] if given else os.environ.get("PGOPTIONS", "")
    return extended(target, options=f"{before} {option}".strip())


def _takes_options(target: str) -> bool:
    """Whether an option can be added without a loss: a service file's would be replaced, and are not known here."""
    parts = _split(target)
    if parts is None:
        return False
    names = [name for name, _, _ in parts[1]]
    return "options" in names or ("service" not in names and "PGSERVICE" not in os.environ)


_URI = re.compile("postgres(?:ql)?://", re.IGNORECASE)
_PAIR = re.compile(r"\s*([^\s=]+)\s*=\s*('(?:[^'\\]|\\.)*'|(?!')(?:[^\s\\]|\\.)*)(?:\s+|$)", re.DOTALL)


def _split(target: str) -> tuple[str | None, list[tuple[str, str, str]]] | None:
    """The parts of an address: what comes before the parameters of a URI (None: it is a key=value string), and name,
    value and text of each parameter; None if it cannot be read.
    """
    if scheme := _URI.match(target):
        # As libpq reads it: what comes before an @ may hold a question mark.
        user = re.match("[^@/]*@", target[scheme.end() :])
        mark = target.find("?", scheme.end() + (user.end() if user else 0))
        head, query = (target, "") if mark < 0 else (target[:mark], target[mark + 1 :])
        pairs = [(pair.partition("="), pair) for pair in query.split("&") if pair]
        return head, [(unquote(cut[0]), unquote(cut[2]), pair) for cut, pair in pairs]
    found, place = [], 0
    while place < len(target):
        pair = _PAIR.match(target, place)
        if pair is None:
            return None
        value = re.sub(r"\\(.)", r"\1", pair[2][1:-1] if pair[2].startswith("'") else pair[2], flags=re.DOTALL)
        found.append((pair[1], value, pair[0].strip()))
        place = pair.end()
    return None, found


def _joined(head: str | None, texts: list[str]) -> str:
    if head is None:
        return " ".join(texts)
    return head + ("?" + "&".join(texts) if texts else "")
