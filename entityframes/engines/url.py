"""The address of a store: which engine it means, and what the driver is given."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from entityframes.engines import conninfo
from entityframes.errors import ConnectError


@dataclass(frozen=True)
class Location:
    """Where a store is."""

    #: "postgresql" or "duckdb".
    engine: str
    #: What the driver is given: a connection URI, a file path, or ":memory:".
    target: str = field(repr=False)
    #: The same for people, without a password.
    address: str

    #: Set when the URL came from the environment, for messages.
    source: str = "url"


#: What a DuckDB address begins with, and what other addresses do that people have.
_DUCKDB = re.compile(r"duckdb:(.*)", re.DOTALL | re.IGNORECASE)
_OTHER = re.compile(
    r"(athena|azure|az|bigquery|clickhouse|cockroachdb|databricks|db2|ducklake|file|ftp|gcs|gs|hdfs|https?|jdbc|kafka"
    r"|libsql|mariadb|md|memory|mongodb|motherduck|mssql|mysql|odbc|oracle|postgres|postgresql|rediss?|redshift|s3|sftp"
    r"|snowflake|sqlite|sqlserver|ssh|trino)(?:\+\w+)*:",
    re.IGNORECASE,
)
#: A path on a drive of Windows, as it stands in an address.
_DRIVE = re.compile(r"/[A-Za-z]:[\\/]")
#: What nobody takes for anything but a path.
_PATH = re.compile(r"(?:[A-Za-z]:[\\/]|\.{0,2}/(?!/)|\.{1,2}\\|~).*", re.DOTALL)


def parse_url(url: str | os.PathLike[str] | None) -> Location:
    """Tell which engine a URL or path means.

    Args:
        url: None for $ENTITYFRAMES_URL or else ``./entities.duckdb``; a path, ``duckdb:///path`` or ``:memory:``
            for DuckDB; ``postgresql://...`` or libpq's ``host=... dbname=...`` for PostgreSQL, with blanks around or
            without, the scheme in any case and also as SQLAlchemy has it.

    Raises:
        ConnectError: no engine serves it, or its parts cannot be told apart for certain. It is not repeated in the
            message, because it may hold a password.
    """
    source = "url"
    if url is None:
        url = os.environ.get("ENTITYFRAMES_URL") or "entities.duckdb"
        source = "$ENTITYFRAMES_URL" if "ENTITYFRAMES_URL" in os.environ else "the default"
    text = os.fspath(url)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise ConnectError("the store's address is empty or holds a NUL character: give a path or postgresql://...")
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
            # What follows the third slash, where it does not begin at the root.
            path = path.removeprefix("/") if path == "/:memory:" or _DRIVE.match(path) else path
            _check_path(path, source)
            return Location("duckdb", path or ":memory:", path or ":memory:", source)
    _check_path(text, source, given_as_path=isinstance(url, os.PathLike))
    # What stands before a colon DuckDB takes for an extension.
    bare_name = ":" in text and not _PATH.fullmatch(text)
    return Location("duckdb", os.path.join(".", text) if bare_name else text, text, source)


def _check_path(path: str, source: str, *, given_as_path: bool = False) -> None:
    """Refuse text that is the address of something else, or that could hold a password.

    Raises:
        ConnectError: it is not repeated.
    """
    bare = unquote(path).strip(" \t\r\n\"'<>\ufeff\u200b\u00a0")
    if other := _OTHER.match(bare):
        if other[1].lower() in ("postgres", "postgresql", "duckdb"):
            raise _unreadable(source, f"{other[1].lower()}: is followed by //")
        raise ConnectError(
            f"no engine for {other[1].lower()}: addresses ({source}): use a file path, duckdb:///path, :memory: or "
            "postgresql://..."
        )
    if "://" in bare or bare.startswith("{") or conninfo.is_uri(bare):
        raise _unreadable(source, "it is not an address of DuckDB or PostgreSQL")
    if given_as_path or path == ":memory:":
        return
    if conninfo.looks_secret(bare):
        raise _unreadable(source, "it has a word such as password; a file of that name is given as a pathlib.Path")
    if not _PATH.fullmatch(bare) and re.search(":.*@", bare, re.DOTALL):
        raise _unreadable(source, "a file whose name holds : and then @ is given with its folder, as ./name")


def _unreadable(source: str, why: str) -> ConnectError:
    return ConnectError(
        f"the store's address ({source}) cannot be read for certain, and is not repeated because it may hold a "
        f"password: {why}. Use a path, duckdb:///path, or postgresql://user:password@host/database"
    )
