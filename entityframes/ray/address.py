"""The address of a database that tasks on other machines open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from entityframes.engines.url import parse_url
from entityframes.errors import ConnectError

#: A URL without a password, a function that returns any URL, or None for $ENTITYFRAMES_URL of the process.
RemoteAddress: TypeAlias = str | Callable[[], str] | None


def check(url: RemoteAddress) -> None:
    """Check that processes on other machines can open a database, and that its password does not travel to them.

    Raises:
        ConnectError: it is a DuckDB file, which one process opens at a time; the URL has a password; or it cannot be
            parsed.
        TypeError: it is neither text nor a function.
    """
    if url is not None and not isinstance(url, str) and not callable(url):
        raise TypeError(f"url must be text, a function that returns text, or None, got {type(url).__name__}")
    location = parse_url(url() if callable(url) else url)
    if location.engine == "duckdb":
        raise ConnectError(
            f"{location.address} is a DuckDB file, which only one process can open for writing: use store.upsert, or "
            "PostgreSQL"
        )
    parts = urlsplit(location.target)
    if isinstance(url, str) and (parts.password or {"password", "sslpassword"} & parse_qs(parts.query).keys()):
        raise ConnectError(
            f"the address of {location.address} has a password, which would be stored in the cluster: set "
            "ENTITYFRAMES_URL or PGPASSWORD in the environment of its machines, or pass a function that returns the "
            "address, such as lambda: os.environ['STORE_URL']"
        )
