"""Connection strings of libpq: URIs and ``key=value`` strings, and which parts of them are safe to display."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

from entityframes.engines import drivers
from entityframes.engines.drivers import UnreadableError

#: The parameters of libpq 18, and `pool_mode`, which is specific to this package. A string that begins with one of them
#: and ``=`` is a key=value string.
KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "application_name channel_binding client_encoding connect_timeout dbname fallback_application_name "
        "gssdelegation gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle "
        "keepalives_interval krbsrvname load_balance_hosts max_protocol_version min_protocol_version "
        "oauth_client_id oauth_client_secret oauth_issuer oauth_scope options passfile password pool_mode port "
        "replication require_auth requirepeer requiressl scram_client_key scram_server_key service "
        "servicefile ssl sslcert sslcertmode sslcompression sslcrl sslcrldir sslkey sslkeylogfile sslmode "
        "sslnegotiation sslpassword sslrootcert sslsni ssl_max_protocol_version ssl_min_protocol_version "
        "target_session_attrs tcp_user_timeout tty user ",
    )
)
#: Parameters whose value is a secret. Other values that look like one are not displayed either.
_SECRETS = frozenset({"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"})
_SHOWN = ("host", "port", "dbname", "user", "service")

#: The scheme of libpq, or of SQLAlchemy with the name of a driver; case-insensitive.
_SCHEME = re.compile(r"postgres(?:ql)?(?:\+([a-z0-9_]+))?://", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]*|\[[0-9A-Fa-f:.]+(?:%25?[\w.-]+)?\]")
_HOST_ONLY = re.compile(r"[\w.:-]*(?:%[\w.-]+)?")
_SOCKETS = re.compile(r"[/@][^@:;=?&]*")
_PORT = re.compile(r"\d{0,5}")
#: Names that are safe to display.
_PLAIN = re.compile(r"[\w .$+@-]*")
_PAIR = re.compile(r"\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|$)", re.DOTALL)
_FIRST = re.compile(r"\s*([a-z_]+)\s*=", re.IGNORECASE)


def is_uri(text: str) -> bool:
    """Whether text is the URI of a PostgreSQL server."""
    return _SCHEME.match(text) is not None


def is_pairs(text: str) -> bool:
    """Whether text begins like a key=value string."""
    first = _FIRST.match(text)
    return first is not None and first[1].lower() in KEYWORDS


def read_pairs(text: str) -> tuple[str, str]:
    """The URI that is equivalent to a key=value string, and a version of it that is safe to display.

    Raises:
        UnreadableError: libpq could not parse it, or a value looks like several pairs.
    """
    given: dict[str, str] = {}
    place = 0
    while text[place:].strip():
        pair = _PAIR.match(text, place)
        if pair is None:
            raise UnreadableError("a value with spaces must be enclosed in ' quotes, with ' and \\ escaped by a \\")
        if pair[1] not in KEYWORDS:
            raise UnreadableError("it has a parameter that libpq does not support")
        given[pair[1]] = re.sub(r"\\(.)", r"\1", pair[2] if pair[2] is not None else pair[3] or "", flags=re.DOTALL)
        place = pair.end()
    return _from_parameters(given)


def read_parts(
    driver: str | None, given: Mapping[str, str | None], query: Iterable[tuple[str, str]]
) -> tuple[str, str]:
    """The URI that is equivalent to the parts of a URL of SQLAlchemy, and a version of it that is safe to display.

    Args:
        driver: the name after the + in the scheme, in lower case.
        given: the parts before the query, under the names of libpq.
        query: name and value of each parameter, which override the other parts.

    Raises:
        UnreadableError: libpq does not have one of the parameters, or a value is invalid.
    """
    pairs = list(query)
    _check_names(pairs)
    parameters = {name: value for name, value in given.items() if value} | drivers.translated(driver, pairs)
    if (default := drivers.default_host(driver)) and not parameters.get("host"):
        parameters["host"] = default
    return _from_parameters(parameters)


def _from_parameters(given: Mapping[str, str]) -> tuple[str, str]:
    hosts, ports = given.get("host", "").split(","), given.get("port", "").split(",")
    if not all(_HOST_ONLY.fullmatch(host) or _SOCKETS.fullmatch(host) for host in hosts):
        raise UnreadableError("host is not a valid host name")
    _check(given, ports)
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items())
    in_place = [host for host in hosts if not host.startswith(("/", "@"))]
    netloc = ""
    if len(in_place) == len(hosts) and len(ports) in (1, len(hosts)):
        each = ports * len(hosts) if len(ports) == 1 else ports
        netloc = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
            for host, port in zip(hosts, each, strict=True)
        )
    shown = ("service",) if netloc else ("host", "port", "service")
    elsewhere = {name: given[name] for name in shown if given.get(name)}
    return f"postgresql:///?{query}", _address(given.get("user", ""), netloc, given.get("dbname", ""), elsewhere)


def read_uri(text: str) -> tuple[str, str]:
    """A URI in the syntax of libpq, and a version of it that is safe to display.

    Raises:
        UnreadableError: libpq could not parse it, or it contains another ``@`` than the one after the password.
    """
    scheme = _SCHEME.match(text)
    driver = scheme[1].lower() if scheme and scheme[1] else None
    rest = _SCHEME.sub("", text, count=1)
    # Like libpq: the user and password are before the first @, unless there is a / before that.
    userinfo, at, after = rest.partition("@")
    if "/" in userinfo or not at:
        userinfo, after = "", rest
    place, _, query = after.partition("?")
    if "@" in place:
        raise UnreadableError("write an @ in the user, the password or a parameter as %40, and a / as %2F")
    user, _, password = userinfo.partition(":")
    netloc, _, dbname = place.partition("/")
    for host in netloc.split(","):
        parts = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", host, re.DOTALL)
        if parts is None or not _is_host(parts[1]) or not _PORT.fullmatch(parts[2] or ""):
            raise UnreadableError(
                "the host and port cannot be found: write @ : / ? # and % in a password as %40 %3A %2F %3F %23 and %25"
            )
    given = {"user": _decoded(user), "password": _decoded(password), "dbname": _decoded(dbname)}
    pairs = []
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise UnreadableError("a parameter after the ? has no value")
        if "@" in value and name not in _SECRETS:
            raise UnreadableError("write an @ in a parameter as %40")
        # In a query SQLAlchemy writes a space as a +, which libpq takes literally.
        pairs.append((_decoded(name), _decoded(value.replace("+", " ") if driver else value)))
    _check_names(pairs)
    queried = drivers.translated(driver, pairs)
    if (default := drivers.default_host(driver)) and not (queried.get("host") or netloc):
        queried["host"] = default
    _check(given | queried, queried.get("port", "").split(","))
    if not all(_HOST_ONLY.fullmatch(one) or _SOCKETS.fullmatch(one) for one in queried.get("host", "").split(",")):
        raise UnreadableError("host is not a valid host name")
    if driver or queried != dict(pairs):
        translated = "&".join(f"{name}={quote(value, safe='')}" for name, value in queried.items())
        rest = rest[: len(rest) - len(after)] + place + ("?" + translated if translated else "")
    if "@" in query:
        # Everything before it may be part of a password.
        return f"postgresql://{rest}", "postgresql://***"
    shown = {name: queried[name] for name in _SHOWN if name in queried}
    return f"postgresql://{rest}", _address(given["user"], netloc, given["dbname"], shown)


def _check_names(query: Iterable[tuple[str, str]]) -> None:
    """Reject unknown parameters, without their names, which may be part of a password that contains a &."""
    for number, (name, _) in enumerate(query, 1):
        if name not in KEYWORDS and name not in drivers.NAMES:
            raise UnreadableError(f"libpq does not have parameter number {number} after the ?")


def _is_host(text: str) -> bool:
    return bool(_HOST.fullmatch(text) or _SOCKETS.fullmatch(_decoded(text)))


def _decoded(text: str) -> str:
    """Percent-decoded text."""
    if re.search("%(?![0-9A-Fa-f]{2})|%00", text):
        raise UnreadableError("write a % in it as %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise UnreadableError("its percent-encoded characters are not UTF-8") from None


def _check(given: Mapping[str, str], ports: Iterable[str]) -> None:
    """Reject invalid values, and values that seem to contain another parameter."""
    if not all(_PORT.fullmatch(port) for port in ports):
        raise UnreadableError("port is not a number")
    for name, value in given.items():
        if "\0" in value:
            raise UnreadableError("it contains a NUL character")
        if name not in _SECRETS and (looks_secret(value) or "://" in value):
            raise UnreadableError(f"{name} contains what looks like another parameter")


#: Words that are followed by a secret.
_BEFORE_SECRETS = re.compile(
    r"(?:pass(?:word|wd|wort|phrase|file)?|pwd|pw|secret|token|credentials?|(?:api|access|private)[_-]?key)"
    r"""["'\s]*(?:[=:]|%3d|%3a)|-{1,2}password\b""",
    re.IGNORECASE,
)


def looks_secret(text: str) -> bool:
    """Whether text contains a word such as password that is followed by a value."""
    return _BEFORE_SECRETS.search(text) is not None


def _address(user: str, netloc: str, dbname: str, parameters: Mapping[str, str]) -> str:
    """A URI for display, without parts that may contain a secret."""
    query = "&".join(f"{name}={_plain(value, more='/,:')}" for name, value in parameters.items())
    name = f"/{_plain(dbname)}" if dbname or query else ""
    return f"postgresql://{_plain(user) + '@' if user else ''}{netloc}{name}{'?' + query if query else ''}"


def _plain(text: str, more: str = "") -> str:
    return (
        quote(text, safe=" $+" + more) if _PLAIN.fullmatch(text.translate({ord(one): None for one in more})) else "***"
    )


#: From the first quotation mark to the last, because a value may contain quotation marks; without the last one to the
#: end. What libpq says of a service, a file or a line of it is kept.
_QUOTED = re.compile(r'".*"((?: not found|, line \d+)\s*\Z)|".*"?', re.DOTALL)


def shown_when_connecting(message: str) -> str:
    """The message of libpq after a failed connection, without values of parameters, which may be secret.

    Messages of the server, and the address of a server that did not respond, are kept.
    """
    if re.search(r"\b(?:FATAL|ERROR|PANIC):", message):
        return message
    parts = re.split(r'(connection to server (?:at|on socket) "[\w./:%-]*")', message)
    return "".join(part if number % 2 else _QUOTED.sub(r"***\1", part) for number, part in enumerate(parts))
