"""Transaction poolers in front of a private server: one as hostile as the protocol allows, and PgBouncer."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.servers import Server, _cut, wait_until

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")

Message = tuple[bytes, bytes]


class Pooler:
    """Lends a few server connections to many clients, each for one transaction: until a ReadyForQuery with status idle.

    Whenever there is a choice, a client gets a different server connection than before, so that a statement which it
    prepared in one transaction is on another client's connection in the next.

    Args:
        server: the server behind the pooler.
        size: the number of server connections.
        options: how the ``options`` of a client's startup message are handled: "swallowed", "refused" as by older
            PgBouncers, "replayed" by SET whenever a server connection is lent, or "forwarded" when the first client of
            a server connection starts it, so that later clients get them too.
    """

    def __init__(self, server: Server, size: int = 2, options: str = "swallowed") -> None:
        self._server, self._size, self._options = server, size, options
        self._free: list[socket.socket] = []
        self._all = 0
        self._changed = threading.Condition()
        self._random = random.Random(46)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._clients: set[socket.socket] = set()
        #: How often a client got a different server connection than the last time.
        self.switches = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for connection in [*self._clients, *self._free]:
            _cut(connection)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        lent: socket.socket | None = None
        try:
            stream = client.makefile("rb")
            given = _startup(stream.read(struct.unpack("!I", stream.read(4))[0] - 4))
            options = given.get("options", "")
            if options and self._options == "refused":
                client.sendall(_error("unsupported startup parameter: options"))
                return
            with self._lend(None, given) as first:
                greeting = _greetings[first]
            client.sendall(greeting)
            last = None
            while True:
                message = _read(stream)
                if message is None or message[0] == b"X":
                    return
                lent = self._take(last, given)
                self.switches += lent is not last
                if self._options == "replayed":
                    _replay(lent, options)
                if not _transaction(message, stream, client, lent):
                    return
                last, lent = lent, self._give(lent)
        except (OSError, struct.error):
            return
        finally:
            _cut(client)
            self._clients.discard(client)
            if lent is not None:
                # The client left in the middle of a transaction.
                _cut(lent)
                self._lost()

    @contextlib.contextmanager
    def _lend(self, last: socket.socket | None, given: dict[str, str]) -> Iterator[socket.socket]:
        taken = self._take(last, given)
        yield taken
        self._give(taken)

    def _take(self, last: socket.socket | None, given: dict[str, str]) -> socket.socket:
        with self._changed:
            if not self._free and self._all < self._size:
                self._all += 1
                forwarded = given.get("options", "") if self._options == "forwarded" else ""
                return _server_connection(self._server.port, given, forwarded)
            assert self._changed.wait_for(lambda: self._free, 60), "no server connection is given back"
            others = [one for one in self._free if one is not last] or self._free
            taken = self._random.choice(others)
            self._free.remove(taken)
            return taken

    def _give(self, taken: socket.socket) -> None:
        with self._changed:
            self._free.append(taken)
            self._changed.notify()

    def _lost(self) -> None:
        with self._changed:
            self._all -= 1
            self._changed.notify()


_greetings: dict[socket.socket, bytes] = {}
_streams: dict[socket.socket, Any] = {}


def _server_connection(port: int, given: dict[str, str], options: str = "") -> socket.socket:
    server = socket.create_connection(("127.0.0.1", port))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    words = ("user", given["user"], "database", given["database"], *(("options", options) if options else ()))
    body = struct.pack("!I", 196608) + b"".join(word.encode() + b"\0" for word in words) + b"\0"
    server.sendall(struct.pack("!I", len(body) + 4) + body)
    _streams[server] = server.makefile("rb")
    greeting = b""
    while True:
        kind, message = _read(_streams[server]) or (b"", b"")
        assert kind not in (b"E", b""), message
        greeting += message
        if kind == b"Z":
            _greetings[server] = greeting
            return server


def _transaction(message: Message | None, stream: Any, client: socket.socket, server: socket.socket) -> bool:
    """Forward a client's messages until its transaction has ended. Returns whether the client is still connected."""
    while True:
        # Collect messages up to one that is answered with ReadyForQuery.
        turn = b""
        while message is not None:
            turn += message[1]
            if message[0] in (b"Q", b"S", b"c", b"f"):
                break
            if message[0] == b"d" and len(turn) > 1 << 16:
                server.sendall(turn)
                turn = b""
            message = _read(stream)
        if message is None or message[0] == b"X":
            return False
        server.sendall(turn)
        answer = b""
        while True:
            kind, text = _read(_streams[server]) or (b"", b"")
            answer += text
            if kind in (b"Z", b"G", b"") or len(answer) > 1 << 16:
                client.sendall(answer)
                answer = b""
            if kind == b"":
                return False
            if kind in (b"Z", b"G"):
                break
        if kind == b"Z" and text[-1:] == b"I":
            return True
        message = _read(stream)


def _replay(server: socket.socket, options: str) -> None:
    for name, value in re.findall(r"-c (\S+)=(\S+)", options):
        body = f"SET {name} = '{value}'\0".encode()
        server.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
        while (_read(_streams[server]) or (b"Z", b""))[0] != b"Z":
            pass


def _read(stream: Any) -> Message | None:
    head = stream.read(5)
    if len(head) < 5:
        return None
    body = stream.read(struct.unpack("!I", head[1:])[0] - 4)
    return head[:1], head + body


def _startup(body: bytes) -> dict[str, str]:
    words = body[4:].rstrip(b"\0").split(b"\0")
    return {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=True)}


def _error(message: str) -> bytes:
    body = f"SFATAL\0VFATAL\0C08P01\0M{message}\0\0".encode()
    return b"E" + struct.pack("!I", len(body) + 4) + body


class PgBouncer:
    """PgBouncer as packaged by the distribution, running as a user other than root."""

    def __init__(self, server: Server, mode: str, *, size: int = 2, more: str = "") -> None:
        assert PGBOUNCER is not None
        self.folder = Path(tempfile.mkdtemp(prefix="ef-bouncer-"))
        self.folder.chmod(0o755)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = f"""
            [databases]
            * = host=127.0.0.1 port={server.port} user=postgres pool_size={size}
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = any
            pool_mode = {mode}
            {"user = nobody" if os.geteuid() == 0 else ""}
            {more}
        """
        file = self.folder / "pgbouncer.ini"
        file.write_text("\n".join(line.strip() for line in settings.splitlines()))
        file.chmod(0o644)
        self._process = subprocess.Popen(
            [PGBOUNCER, "-q", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, "PgBouncer")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(120)
        shutil.rmtree(self.folder)
