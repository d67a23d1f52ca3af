"""Objects in place of an address: URLs and Engines of SQLAlchemy, and open connections of DuckDB.

Neither package is imported: an object of SQLAlchemy is recognized by its attributes, and a connection of DuckDB can
only exist after DuckDB was imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from entityframes.errors import ConnectError


class Connected(NamedTuple):
    """An open DuckDB connection."""

    #: The connection, or a proxy of SQLAlchemy that has its methods.
    connection: Any
    #: The file of its current database; None in memory.
    path: str | None
    #: Whether that can only be read.
    read_only: bool
    #: The schemas in which it looks for tables, as the setting ``search_path``; "" for the default.
    search_path: str


class Parts(NamedTuple):
    """The parts of a URL of SQLAlchemy."""

    #: The name of the database system, such as ``postgresql``.
    system: str
    #: The name of the driver, in lower case; None if the URL has none.
    driver: str | None
    user: str | None
    password: str | None
    host: str | None
    port: str | None
    database: str | None
    #: Name and value of each parameter; repeated ones with each value.
    query: list[tuple[str, str]]


def is_connection(thing: Any) -> bool:
    """Whether an object is an open connection of DuckDB."""
    duckdb = sys.modules.get("duckdb")
    return duckdb is not None and isinstance(thing, duckdb.DuckDBPyConnection)


def connected(connection: Any) -> Connected:
    """Look at an open DuckDB connection, without a change to it or to a result that it has not returned yet.

    Raises:
        ConnectError: it is closed or in use, or its current database cannot be used.
    """
    with _explained():
        [(name, path, kind, read_only, search_path, locked)] = connection.sql(
            "SELECT database_name, path, type, readonly, current_setting('search_path'), "
            "current_setting('lock_configuration') "
            "FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchall()
    if kind != "duckdb" or name in ("temp", "system"):
        raise ConnectError(
            f"the current database of the DuckDB connection is {name} of type {kind}",
            advice="make a database of DuckDB the current one with USE",
        )
    if locked:
        raise ConnectError(
            "the configuration of the DuckDB connection is locked (lock_configuration), and entityframes has to set "
            "the time zone of its own cursors",
            advice="open it without that",
        )
    return Connected(connection, path, read_only, search_path)


@contextmanager
def _explained() -> Iterator[None]:
    """Replace the exceptions of a DuckDB connection."""
    import duckdb

    try:
        yield
    except duckdb.ResourceInUseException:
        raise ConnectError(
            "the DuckDB connection is executing a statement or has a result that was not fetched completely",
            advice="fetch the rest of it, or call complete() or abort() of the connection",
        ) from None
    except duckdb.TransactionException:
        raise ConnectError(
            "the transaction of the DuckDB connection has failed", advice="call its rollback()"
        ) from None
    except duckdb.ConnectionException:
        raise ConnectError("the DuckDB connection is closed") from None
    except duckdb.Error as error:
        raise ConnectError(f"the DuckDB connection cannot be used: {str(error).splitlines()[0][:300]}") from None


def is_sqlalchemy(thing: Any) -> bool:
    """Whether an object is a URL or an Engine of SQLAlchemy, also an asynchronous one."""
    return _is_url(thing) or hasattr(thing, "sync_engine") or (hasattr(thing, "dialect") and _is_url(_url(thing)))


def from_sqlalchemy(thing: Any) -> Parts | Connected:
    """The parts of the URL; for an Engine of DuckDB, one of its connections.

    Raises:
        ConnectError: the Engine connects to something else than its URL says, or cannot connect.
    """
    if _is_url(thing):
        return _parts(thing)
    engine = getattr(thing, "sync_engine", thing)
    if not hasattr(engine, "pool"):
        raise ConnectError(
            f"a {type(engine).__name__} of SQLAlchemy is no address", advice="pass the Engine that it belongs to"
        )
    parts = _parts(_url(engine))
    if parts.system == "duckdb":
        return _connected_by(engine)
    _check_engine(engine)
    return parts


def _is_url(thing: Any) -> bool:
    return hasattr(thing, "drivername") and hasattr(thing, "render_as_string")


def _url(engine: Any) -> Any:
    """The URL of an Engine, or of a Connection, which has it in its Engine."""
    return getattr(engine, "url", None) or getattr(getattr(engine, "engine", None), "url", None)


def _parts(url: Any) -> Parts:
    system, _, driver = url.drivername.lower().partition("+")
    # Not the text of the URL, in which the name of the database is not always encoded.
    query = [
        (name, value)
        for name, values in url.query.items()
        for value in ((values,) if isinstance(values, str) else values)
    ]
    port, password = url.port, url.password
    return Parts(
        system, driver or None, url.username,
        # It may be an object that computes it.
        None if password is None else str(password),
        url.host, None if port is None else str(port), url.database, query,
    )  # fmt: skip


def _connected_by(engine: Any) -> Connected:
    """A connection of an Engine of DuckDB, which returns to its pool when it is no longer referred to.

    The URL would not do: every connection of a process to a file needs the same settings, and in memory the URL would
    name another database.
    """
    with _explained():
        connection = engine.raw_connection()
    if not hasattr(connection, "duplicate"):
        raise ConnectError(
            "the connections of this Engine are not those of the duckdb package", advice="pass one of those"
        )
    return connected(connection)


def _check_engine(engine: Any) -> None:
    """Check that an Engine connects to what its URL says, with nothing else than its URL says.

    Raises:
        ConnectError: it was created with a creator or with connect_args, or a listener for do_connect was added to it.
    """
    where = "the Engine of SQLAlchemy connects with"
    instead = "pass a URL with all that is needed to connect"
    # SQLAlchemy connects by a function of its own, which refers to the arguments for the driver.
    creator = getattr(engine.pool, "_creator", None)
    code = getattr(creator, "__code__", None)
    closure = dict(zip(code.co_freevars, creator.__closure__ or (), strict=True)) if creator and code else {}
    if creator is None or creator.__module__ != "sqlalchemy.engine.create" or "cparams" not in closure:
        raise ConnectError(
            f"{where} a function of its own (creator), so that its URL may not be its address: {instead}"
        )
    arguments = closure["cparams"].cell_contents
    _, from_url = engine.dialect.create_connect_args(engine.url)
    others = sorted(
        name for name in {*arguments, *from_url} if name not in arguments or arguments[name] != from_url.get(name)
    )
    if others:
        raise ConnectError(f"{where} connect_args that its URL does not have ({', '.join(others)}): {instead}")
    if list(getattr(engine.dialect.dispatch, "do_connect", ())):
        raise ConnectError(f"{where} a listener for the event do_connect, which may change its address: {instead}")
