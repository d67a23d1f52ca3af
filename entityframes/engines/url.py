"""Parsing of store addresses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from entityframes.engines import conninfo
from entityframes.errors import ConnectError


@dataclass(frozen=True)
class Location:
    """The location of a store."""

    #: "postgresql" or "duckdb".
    engine: str
    #: The address for the driver: a connection URI, a file path, or ":memory:".
    target: str = field(repr=False)
    #: The address for display, without a password.
    address: str

    #: The source of the URL (a parameter, an environment variable, or the default), for messages.
    source: str = "url"


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


def parse_url(url: str | os.PathLike[str] | None) -> Location:
    """Parse a URL or path.

    Args:
        url: None for $ENTITYFRAMES_URL or else ``./entities.duckdb``; a path, ``duckdb:///path`` or ``:memory:``
            for DuckDB; ``postgresql://...`` or ``host=... dbname=...`` for PostgreSQL, in the syntax of libpq or
            SQLAlchemy. The scheme is case-insensitive, and surrounding whitespace is ignored.

    Raises:
        ConnectError: the address is not supported or ambiguous. The message does not repeat it, because it may contain
            a password.
    """
    source = "url"
    if url is None:
        url = os.environ.get("ENTITYFRAMES_URL") or "entities.duckdb"
        source = "$ENTITYFRAMES_URL" if "ENTITYFRAMES_URL" in os.environ else "the default"
    text = os.fspath(url)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise ConnectError("the store's address is empty or holds a NUL character: use a path or postgresql://...")
    bare = text.strip(" \t\r\n\v\f\ufeff\u200b\u00a0")
    if not isinstance(url, os.PathLike):
        if conninfo.is_uri(bare) or conninfo.is_pairs(bare):
            try:
                read = conninfo.read_uri if conninfo.is_uri(bare) else conninfo.read_pairs
                target, address = read(bare)
            except conninfo.UnreadableError as error:
                raise _unreadable(source, str(error)) from None
            return Location("postgresql", target, address, source)
        if bare == ":memory:":
            return Location("duckdb", bare, bare, source)
        if duckdb := _DUCKDB.fullmatch(bare):
            path = duckdb[1].removeprefix("//")
            # The third slash is not part of the path if it is followed by :memory: or a drive letter.
            path = path.removeprefix("/") if path == "/:memory:" or _DRIVE.match(path) else path
            _check_path(path, source)
            return Location("duckdb", path or ":memory:", path or ":memory:", source)
    _check_path(text, source, given_as_path=isinstance(url, os.PathLike))
    # DuckDB treats a prefix with a colon as the name of an extension.
    bare_name = ":" in text and not _PATH.fullmatch(text)
    return Location("duckdb", os.path.join(".", text) if bare_name else text, text, source)


def _check_path(path: str, source: str, *, given_as_path: bool = False) -> None:
    """Reject text that is an address of something else, or that might contain a password.

    Raises:
        ConnectError: without repeating the text.
    """
    bare = unquote(path).strip(" \t\r\n\"'<>\ufeff\u200b\u00a0")
    if other := _OTHER.match(bare):
        if other[1].lower() in ("postgres", "postgresql", "duckdb"):
            raise _unreadable(source, f"{other[1].lower()}: must be followed by //")
        raise ConnectError(
            f"no engine for {other[1].lower()}: addresses ({source}): use a file path, duckdb:///path, :memory: or "
            "postgresql://..."
        )
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
        f"{why}. Use a path, duckdb:///path, or postgresql://user:password@host/database"
    )
