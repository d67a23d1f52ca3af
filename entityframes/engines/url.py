"""Parsing of addresses, and of the objects that are accepted instead of one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote

from entityframes.engines import conninfo, given
from entityframes.engines.drivers import UnreadableError
from entityframes.errors import ConnectError

_logger = logging.getLogger("entityframes")

#: A path, a URL, a key=value string, a URL or Engine of SQLAlchemy, or an open DuckDB connection.
Address: TypeAlias = str | os.PathLike[str] | object

#: The environment variables that name a database, and the file that is used without them.
OWN_VARIABLE, COMMON_VARIABLE, DEFAULT = "$ENTITYFRAMES_URL", "$DATABASE_URL", "entities.duckdb"


@dataclass(frozen=True)
class Location:
    """The location of a database."""

    #: "postgresql" or "duckdb".
    engine: str
    #: The address for the driver: a connection URI, a file path, or ":memory:".
    target: str = field(repr=False)
    #: The address for display, without a password.
    address: str

    #: The source of the URL (a parameter, an environment variable, or the default), for messages.
    source: str = "url"

    #: An open DuckDB connection of the caller, whose cursors are used, or None. It is neither closed nor changed.
    connection: Any = field(default=None, repr=False, compare=False)
    #: Its setting ``search_path``, which its cursors do not inherit: the current database and schema.
    search_path: str = ""
    #: Whether it can only read.
    read_only: bool = False

    @property
    def origin(self) -> str:
        """A few words for display if the caller may not expect this database, else ""."""
        return f"from {self.source}" if self.source == COMMON_VARIABLE else ""

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Log which database is opened, and name the environment variable in errors, if the caller named none.

        Raises:
            ConnectError: the one that is raised, with the name of the variable.
        """
        if not self.origin:
            yield
            return
        if os.path.exists(DEFAULT):
            _logger.warning("%s is used (%s), not the file %s in this folder", self.address, self.origin, DEFAULT)
        else:
            _logger.info("%s is used (%s)", self.address, self.origin)
        try:
            yield
        except ConnectError as error:
            error.restate(error.happened, "; ".join(filter(None, [error.advice, _OVERRIDE])))
            raise


#: How to use another database than that of $DATABASE_URL.
_OVERRIDE = (
    f"the address is that of {COMMON_VARIABLE}, because {OWN_VARIABLE} is not set: to use another database, set "
    f"{OWN_VARIABLE} or pass an address, such as {DEFAULT}"
)

#: Addresses of DuckDB, and the schemes of addresses that are not supported.
_DUCKDB = re.compile(r"duckdb:(.*)", re.DOTALL | re.IGNORECASE)
_OTHER = re.compile(
    r"(athena|azure|az|bigquery|clickhouse|cockroachdb|databricks|db2|ducklake|file|ftp|gcs|gs|hdfs|https?|jdbc|kafka"
    r"|libsql|mariadb|md|memory|mongodb|motherduck|mssql|mysql|odbc|oracle|postgres|postgresql|rediss?|redshift|s3|sftp"
    r"|snowflake|sqlite|sqlserver|ssh|trino)(?:\+\w+)*:",
    re.IGNORECASE,
)
#: A path with a drive letter of Windows, within an address.
_DRIVE = re.compile(r"/[A-Za-z]:[\\/]")
#: Text that can only be a path.
_PATH = re.compile(r"(?:[A-Za-z]:[\\/]|\.{0,2}/(?!/)|\.{1,2}\\|~).*", re.DOTALL)
#: Settings at the end of a URL of duckdb-engine.
_SETTINGS = re.compile(r"\?(\w+)=[^/\\]*", re.DOTALL)
_BLANK = " \t\r\n\v\f\ufeff\u200b\u00a0"


def parse_url(url: Address | None = None) -> Location:
    """Parse a URL or path, or look at an object that is given instead of one.

    Args:
        url: None for $ENTITYFRAMES_URL, else $DATABASE_URL, else ``./entities.duckdb``; a path, ``duckdb:///path`` or
            ``:memory:`` for DuckDB; ``postgresql://...`` or ``host=... dbname=...`` for PostgreSQL, in the syntax of
            libpq or SQLAlchemy, whose driver may be any; a URL or an Engine of SQLAlchemy; an open DuckDB connection.
            The scheme is case-insensitive, and surrounding whitespace is ignored. A Location is returned as it is.

    Raises:
        ConnectError: the address is not supported or ambiguous. The message does not repeat it, because it may contain
            a password.
        TypeError: `url` is something else.
    """
    if isinstance(url, Location):
        return url
    if url is None:
        return _from_environment()
    if given.is_connection(url):
        return _location(given.connected(url))
    if given.is_sqlalchemy(url):
        found = given.from_sqlalchemy(url)
        return _from_parts(found) if isinstance(found, given.Parts) else _location(found)
    if not isinstance(url, str | bytes | os.PathLike):
        raise TypeError(
            "expected a path, a URL, a URL or Engine of SQLAlchemy, or an open DuckDB connection, such as "
            f"duckdb.default_connection(), got {type(url).__name__}"
        )
    return _parse(url, "url")


def _from_environment() -> Location:
    if url := os.environ.get(OWN_VARIABLE[1:]):
        return _parse(url, OWN_VARIABLE)
    if url := os.environ.get(COMMON_VARIABLE[1:]):
        try:
            # Other programs may give it another meaning; a path could be that of a file of SQLite.
            bare = url.strip(_BLANK)
            if not (conninfo.is_uri(bare) or conninfo.is_pairs(bare) or _DUCKDB.match(bare) or _OTHER.match(bare)):
                raise _unreadable(COMMON_VARIABLE, "it is not an address of DuckDB or PostgreSQL")
            return _parse(url, COMMON_VARIABLE)
        except ConnectError as error:
            error.restate(error.happened, "; ".join(filter(None, [error.advice, _OVERRIDE])))
            raise
    return _parse(DEFAULT, "the default")


def _location(connected: given.Connected) -> Location:
    """The location of an open DuckDB connection."""
    address = connected.path or ":memory:"
    return Location(
        "duckdb", address, address,
        connection=connected.connection, search_path=connected.search_path, read_only=connected.read_only,
    )  # fmt: skip


def _from_parts(parts: given.Parts) -> Location:
    """The location that a URL of SQLAlchemy names."""
    source = "url"
    if parts.system == "duckdb":
        path = parts.database or ":memory:"
        for name, _ in parts.query:
            raise _with_settings(source, name)
        _check_path(path, source)
        return Location("duckdb", _as_file(path), path, source)
    if parts.system not in ("postgresql", "postgres"):
        _check_path(f"{parts.system}:", source)
        raise _unsupported(parts.system, source)
    start = {
        "user": parts.user, "password": parts.password, "host": parts.host, "port": parts.port, "dbname": parts.database
    }  # fmt: skip
    try:
        target, address = conninfo.read_parts(parts.driver, start, parts.query)
    except UnreadableError as error:
        raise _unreadable(source, str(error)) from None
    return Location("postgresql", target, address, source)


def _parse(url: str | bytes | os.PathLike[Any], source: str) -> Location:
    text = os.fspath(url)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise ConnectError(
            "the store's address is empty or contains a NUL character", advice="use a path or postgresql://..."
        )
    bare = text.strip(_BLANK)
    if not isinstance(url, os.PathLike):
        if conninfo.is_uri(bare) or conninfo.is_pairs(bare):
            try:
                read = conninfo.read_uri if conninfo.is_uri(bare) else conninfo.read_pairs
                target, address = read(bare)
            except UnreadableError as error:
                raise _unreadable(source, str(error)) from None
            return Location("postgresql", target, address, source)
        if bare == ":memory:":
            return Location("duckdb", bare, bare, source)
        if duckdb := _DUCKDB.fullmatch(bare):
            path = _path_of(duckdb[1].removeprefix("//"), source)
            return Location("duckdb", path or ":memory:", path or ":memory:", source)
    _check_path(text, source, given_as_path=isinstance(url, os.PathLike))
    return Location("duckdb", _as_file(text), text, source)


def _as_file(path: str) -> str:
    """The path for DuckDB, which treats a prefix with a colon as the name of an extension."""
    is_name = ":" in path and path != ":memory:" and not _PATH.fullmatch(path)
    return os.path.join(".", path) if is_name else path


def _path_of(path: str, source: str) -> str:
    """The path in a URL of DuckDB, which begins with a slash if there are three slashes.

    Raises:
        ConnectError: it is an address of something else, has settings, or SQLAlchemy would open another file.
    """
    # SQLAlchemy encodes the colons when it writes a URL.
    decoded = unquote(path)
    if decoded == "/:memory:" or _DRIVE.match(decoded):
        # The third slash is not part of the path if it is followed by :memory: or a drive letter.
        path = decoded.removeprefix("/")
    _check_path(path, source)
    relative = path.removeprefix("/")
    if other := _OTHER.match(relative):
        # Such as md:, the extension that this would be for duckdb-engine.
        raise _unsupported(other[1].lower(), source)
    if settings := _SETTINGS.search(path):
        raise _with_settings(source, settings[1])
    if path.startswith("/") and relative and not relative.startswith("/") and not os.path.exists(path):
        there, elsewhere = (os.path.isdir(os.path.dirname(one) or ".") for one in (path, relative))
        if os.path.exists(relative) or (elsewhere and not there):
            raise ConnectError(
                f"duckdb://{path} is the path {path}, which does not exist, but for SQLAlchemy it is the relative path "
                f"{relative}",
                advice=f"write {relative} for that, or duckdb:///{path} for a new file at {path}",
            )
    return path


#: The settings of duckdb-engine that a message may name; another name may be a part of a password.
_NAMED_SETTINGS = ("access_mode", "memory_limit", "motherduck_token", "read_only", "threads")


def _with_settings(source: str, name: str) -> ConnectError:
    which = name if name in _NAMED_SETTINGS else "settings"
    return ConnectError(
        f"the address ({source}) has {which} after a ?, which is not supported for DuckDB",
        advice="pass read_only=True to "
        "connect, or an open connection of duckdb.connect(path, config=...) instead of an address; pass a file of that "
        "name as a pathlib.Path",
    )


def _unsupported(system: str, source: str) -> ConnectError:
    return ConnectError(
        f"no engine for {system}: addresses ({source})",
        advice="use a file path, duckdb:///path, :memory: or postgresql://...",
    )


def _check_path(path: str, source: str, *, given_as_path: bool = False) -> None:
    """Reject text that is an address of something else, or that might contain a password.

    Raises:
        ConnectError: without repeating the text.
    """
    bare = unquote(path).strip(" \t\r\n\"'<>\ufeff\u200b\u00a0")
    if other := _OTHER.match(bare):
        if other[1].lower() in ("postgres", "postgresql", "duckdb"):
            raise _unreadable(source, f"{other[1].lower()}: must be followed by //")
        raise _unsupported(other[1].lower(), source)
    if "://" in bare or bare.startswith("{") or conninfo.is_uri(bare):
        raise _unreadable(source, "it is not an address of DuckDB or PostgreSQL")
    if given_as_path or path == ":memory:":
        return
    if conninfo.looks_secret(bare):
        raise _unreadable(source, "it contains a word such as password; pass a file of that name as a pathlib.Path")
    if not _PATH.fullmatch(bare) and re.search(":.*@", bare, re.DOTALL):
        raise _unreadable(source, "pass a file whose name contains a : followed by an @ with its folder, as ./name")


def _unreadable(source: str, why: str) -> ConnectError:
    return ConnectError(
        f"the store's address ({source}) cannot be parsed, and is not repeated because it may contain a password: "
        f"{why}",
        advice="use a path, duckdb:///path, or postgresql://user:password@host/database",
    )
