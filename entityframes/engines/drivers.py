"""Parameters of Python drivers in URLs of PostgreSQL, and their equivalents in libpq.

A URL of SQLAlchemy hands its parameters to the driver that it names. Those that libpq has under another name or in
another form are translated. Those that it does not have are refused, because a connection without them may behave
differently from what the URL asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable


class UnreadableError(ValueError):
    """Text that cannot be parsed unambiguously; the message repeats nothing of it but names of known parameters."""


#: Values of `ssl`, a parameter of asyncpg and others, and the values of sslmode.
_SSL = {mode: mode for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")} | {
    # This one libpq itself translates, for URLs of Java programs.
    "true": "require",
    "false": "disable",
}
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
#: Parameters with another name in libpq.
_RENAMED = {"database": "dbname", "username": "user"}

_POOLER = "leave it out, or write pool_mode=transaction for a pooler in transaction mode"
_SETTING = "write it as a setting of the server, such as options=-c%20statement_timeout%3D60000 (milliseconds)"
_SCHEMA = "write it as a setting of the server, such as options=-c%20search_path%3Dsales"
_TLS = "write sslmode=require, verify-ca or verify-full, with sslrootcert"
_POOL = "leave it out: connections are opened as they are needed, see workers"
#: Parameters of drivers, frameworks and other tools without an equivalent, and what to do instead. Only names of this
#: list are repeated in a message, because the name of an unknown parameter may be part of a password.
REFUSED = {
    **dict.fromkeys(
        (
            "binary_parameters", "max_cacheable_statement_size", "max_cached_statement_lifetime", "pgbouncer",
            "prepare_threshold", "prepared_max", "prepared_statement_cache_size", "prepared_statement_name_func",
            "prepared_statements", "statement_cache_size",
        ),
        _POOLER,
    ),
    **dict.fromkeys(
        (
            "command_timeout", "idle_in_transaction_session_timeout", "lock_timeout", "server_settings",
            "socket_timeout", "startup_params", "statement_timeout", "timezone",
        ),
        _SETTING,
    ),
    **dict.fromkeys(("currentSchema", "current_schema", "schema", "search_path"), _SCHEMA),
    **dict.fromkeys(("ssl_ca", "ssl_cert", "ssl_context", "ssl_key", "ssl_mode", "sslaccept", "sslidentity"), _TLS),
    **dict.fromkeys(
        (
            "conn_health_checks", "conn_max_age", "connection_limit", "max_overflow", "max_size", "maxsize", "min_size",
            "minsize", "pool", "pool_pre_ping", "pool_recycle", "pool_size", "pool_timeout", "poolclass",
        ),
        _POOL,
    ),
    **dict.fromkeys(
        (
            "async_", "async_fallback", "autocommit", "connection_class", "connection_factory", "context",
            "cursor_factory", "disable_server_side_cursors", "executemany_mode", "isolation_level", "loop",
            "record_class", "reconnect", "row_factory", "sock", "source_address", "supa", "uselibpqcompat",
        ),
        "leave it out",
    ),
    **dict.fromkeys(("charset", "encoding"), "leave it out: text is always sent as UTF-8"),
    **dict.fromkeys(("connect_timeout_ms", "loginTimeout", "timeout"), "write connect_timeout=10 (seconds)"),
    "ApplicationName": "write application_name",
    "direct_tls": "write sslnegotiation=direct",
    "targetServerType": "write target_session_attrs",
    "tcp_keepalive": "write keepalives=1",
    "unix_sock": "write host=/folder and port",
}  # fmt: skip
#: The parameters that `translated` knows, besides those of libpq.
NAMES = frozenset({*_RENAMED, *REFUSED})


def translated(driver: str | None, given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The parameters of a URL under the names and in the form of libpq; those that libpq has are unchanged.

    Args:
        driver: the name after the + in the scheme of the URL, in lower case; None if there is none.
        given: name and value of each parameter. `host` may be repeated, with or without a port, as in SQLAlchemy.

    Raises:
        UnreadableError: a parameter has no equivalent, or its value is invalid.
    """
    found: dict[str, str] = {}
    #: The name under which each parameter was given.
    names: dict[str, str] = {}
    hosts: list[str] = []
    for name, value in given:
        if name == "host":
            hosts += value.split(",")
            continue
        for renamed, translation in _translated(driver, name, value).items():
            # Of two values under the same name libpq takes the last.
            if names.setdefault(renamed, name) != name and found[renamed] != translation:
                raise UnreadableError(f"it has both {names[renamed]} and {name}: remove one of them")
            found[renamed] = translation
    if hosts:
        _add_hosts(found, hosts)
    return found


def _translated(driver: str | None, name: str, value: str) -> dict[str, str]:
    if name == "timeout" and driver == "asyncpg":
        return {"connect_timeout": _whole_seconds(value)}
    if name == "unix_sock" and driver == "pg8000":
        socket = re.fullmatch(r"(/.*)/\.s\.PGSQL\.(\d{1,5})", value, re.DOTALL)
        if socket is None:
            raise UnreadableError("unix_sock must end with /.s.PGSQL. and the port")
        return {"host": socket[1], "port": socket[2]}
    if name == "tcp_keepalive" and driver == "pg8000":
        return {"keepalives": str(int(_truth(name, value)))}
    if name == "direct_tls" and driver == "asyncpg":
        return {"sslnegotiation": "direct" if _truth(name, value) else "postgres"}
    if name == "ssl":
        if value.lower() not in _SSL:
            raise UnreadableError(f"ssl must be one of {', '.join(_SSL)}")
        return {"sslmode": _SSL[value.lower()]}
    if name in REFUSED:
        raise UnreadableError(f"it has the parameter {name}, which libpq does not have: {REFUSED[name]}")
    return {_RENAMED.get(name, name): value}


def _add_hosts(found: dict[str, str], hosts: list[str]) -> None:
    """Add host, and port if the hosts have ports of their own (``host=a:1&host=b:2``)."""
    parts = [re.fullmatch(r"([\w.-]*):(\d{1,5})", host) for host in hosts]
    if "port" not in found and any(parts):
        found["port"] = ",".join(part[2] if part else "" for part in parts)
        hosts = [part[1] if part else host for part, host in zip(parts, hosts, strict=True)]
    if found.get("host", ",".join(hosts)) != ",".join(hosts):
        raise UnreadableError("it has both unix_sock and host: remove one of them")
    found["host"] = ",".join(hosts)


def default_host(driver: str | None) -> str | None:
    """The host that a driver connects to if the URL names none, if that differs from the default of libpq."""
    return "localhost" if driver == "pg8000" else None


def _whole_seconds(value: str) -> str:
    try:
        return str(max(1, math.ceil(float(value))))
    except (ValueError, OverflowError):
        raise UnreadableError("timeout is not a number of seconds") from None


def _truth(name: str, value: str) -> bool:
    if value.lower() not in _TRUE + _FALSE:
        raise UnreadableError(f"{name} must be true or false")
    return value.lower() in _TRUE
