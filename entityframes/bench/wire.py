"""A TCP proxy in front of PostgreSQL that counts round trips on the wire and can add latency to each."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

_SOCKET_FOLDERS = ("/var/run/postgresql", "/tmp")  # noqa: S108 - the default socket directories of libpq


class WireProxy:
    """Forwards bytes between clients and a server; a client request and the server's response are one round trip.

    A context manager; connections made through it are closed on exit.

    Args:
        url: the URL of the server, in libpq's syntax. Certificates are not verified against the host name, because
            clients connect to the proxy.
        latency_ms: milliseconds added to each round trip.
    """

    def __init__(self, url: str, *, latency_ms: float = 0.0) -> None:
        self.latency_ms = latency_ms
        self._target, through = _target(url)
        self._lock = threading.Lock()
        self._round_trips = 0
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: The URL that clients connect to.
        self.url = through(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="entityframes-wire", daemon=True).start()

    @property
    def round_trips(self) -> int:
        """The number of round trips since the start or the last `reset`, including those of connecting."""
        with self._lock:
            return self._round_trips

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self._round_trips = 0

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self._listener.close()
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            one.close()

    def __enter__(self) -> WireProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = _connect(self._target)
            except OSError:
                # To the client this looks like a server that is down.
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {client, server}
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        responding = True
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ)
                selector.register(server, selectors.EVENT_READ)
                while True:
                    for key, _ in selector.select():
                        source = key.fileobj
                        assert isinstance(source, socket.socket)
                        data = source.recv(1 << 20)
                        if not data:
                            return
                        if (source is client) == responding:
                            # The direction changes: add half of the latency.
                            responding = not responding
                            with self._lock:
                                self._round_trips += responding
                            if self.latency_ms:
                                time.sleep(self.latency_ms / 2_000)
                        (server if source is client else client).sendall(data)
        except (OSError, ValueError):
            return
        finally:
            client.close()
            server.close()
            with self._lock:
                self._sockets -= {client, server}


def _target(url: str):  # type: ignore[no-untyped-def]
    """The address of the server, and a function that returns its URL through a local port."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = query.pop("hostaddr", None) or query.pop("host", None) or unquote(parts.hostname or "")
    query.pop("host", None)
    host = host or os.environ.get("PGHOST") or next((f for f in _SOCKET_FOLDERS if _listens(f)), "127.0.0.1")
    port = int(query.pop("port", None) or parts.port or os.environ.get("PGPORT", "5432"))
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""

    def through(own_port: int) -> str:
        return urlunsplit(parts._replace(netloc=f"{user}127.0.0.1:{own_port}", query=urlencode(query)))

    return (f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)), through


def _listens(folder: str) -> bool:
    return os.path.exists(f"{folder}/.s.PGSQL.{os.environ.get('PGPORT', '5432')}")


def _connect(target: str | tuple[str, int]) -> socket.socket:
    if isinstance(target, str):
        server = socket.socket(socket.AF_UNIX)
        server.connect(target)
        return server
    server = socket.create_connection(target)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server
