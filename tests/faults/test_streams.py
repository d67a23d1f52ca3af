"""The connection drops while rows stream out: a retry if no row was returned yet, else a package error (case 50)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from entityframes.retry import PAUSES
from tests.faults.servers import Proxy, Server, _messages

ROWS = 30_000
#: Positions in the result of a full read: nothing, the first bytes, the middle of the first piece (the driver returns
#: some 16 MiB at once), the middle of the second, and the end, before and after the last row.
SHARES = (0.0, 0.001, 0.2, 0.45, 0.7, 0.95, 0.9999)


class Cutting(Proxy):
    """Closes a connection after a number of bytes of rows.

    Attributes:
        cut_after: the number of bytes of rows after which it cuts, or None.
        cuts: how often it cuts.
        cut_at_end: whether it forwards all rows, and cuts before the server's end of the result.
        rows: bytes of rows in the longest result so far.
    """

    def __init__(self, server: Server) -> None:
        self.cut_after: int | None = None
        self.cuts = 0
        self.cut_at_end = False
        self.rows = 0
        super().__init__(server)

    def _to_client(self, server: socket.socket, client: socket.socket, state: dict) -> None:
        seen = 0
        for kind, message in _messages(server):
            seen = seen + len(message) if kind == b"d" else seen if kind in (b"c", b"H") else 0
            self.rows = max(self.rows, seen)
            over = self.cut_after is not None and kind == b"d" and seen > self.cut_after
            if self.cuts and (over or (self.cut_at_end and kind == b"c" and seen > 1_000)):
                self.cuts -= 1
                client.sendall(message[: len(message) // 2] if over else b"")
                return
            client.sendall(message)


@pytest.fixture
def cutting(own_server: Server) -> Iterator[Cutting]:
    proxy = Cutting(own_server)
    yield proxy
    proxy.close()


def people() -> pl.DataFrame:
    numbers = pl.DataFrame({"n": range(ROWS)})
    return numbers.select(
        entity_type=pl.lit("p"), id=pl.format("i{}", pl.col("n").cast(pl.String).str.zfill(6)),
        content=pl.format("{}{}", pl.lit("x" * 1_000), "n"), metadata=pl.struct("n"),
    )  # fmt: skip


@pytest.fixture
def filled(own_store: Callable[..., ef.EntityStore], cutting: Cutting) -> ef.EntityStore:
    own_store().upsert(people(), progress=False, embed=False)
    return own_store(port=cutting.port)


def positions(cutting: Cutting, ask: Callable[[], Any]) -> list[int | None]:
    """Where to cut the result of a query; None for its end."""
    cutting.rows = 0
    ask()
    return [int(share * cutting.rows) for share in SHARES] + [None]


def strike(cutting: Cutting, at: int | None, cuts: int) -> None:
    cutting.cut_after, cutting.cut_at_end, cutting.cuts = at, at is None, cuts


@pytest.mark.slow
def test_read_is_retried(filled: ef.EntityStore, cutting: Cutting) -> None:
    """Wherever the connection is cut, `read` returns what is stored; after too many cuts it raises a package error."""
    whole = filled.read("p")
    assert whole.height == ROWS
    for at in positions(cutting, lambda: filled.read("p")):
        strike(cutting, at, 1)
        assert filled.read("p").equals(whole), at
        assert cutting.cuts == 0
    strike(cutting, int(0.7 * cutting.rows), len(PAUSES) + 1)
    with pytest.raises(ef.ConnectionLostError):
        filled.read("p")
    assert filled.read("p").equals(whole)


@pytest.mark.slow
@pytest.mark.parametrize("engine_of_polars", ["in-memory", "streaming"])
def test_scan_is_retried_if_no_row_was_returned(
    filled: ef.EntityStore, cutting: Cutting, engine_of_polars: Any
) -> None:
    """Later it raises this package's error, which mentions that rows had been returned; it never returns fewer rows."""

    def ask() -> pl.DataFrame:
        return filled.scan("p").select("id", "content").collect(engine=engine_of_polars)

    raised, answered = 0, 0
    for at in positions(cutting, ask):
        strike(cutting, at, 1)
        try:
            found = ask()
        except ef.ConnectionLostError as error:
            assert "rows had been returned" in str(error)
            raised += 1
        else:
            assert (found.height, found["id"].n_unique()) == (ROWS, ROWS)
            answered += 1
        assert cutting.cuts == 0, at
    assert raised >= 2
    assert answered >= 3


def test_the_backend_is_terminated_between_two_pieces(
    filled: ef.EntityStore, own_server: Server, database: str
) -> None:
    """As by an administrator: the same error, with the server's message."""
    # More than all socket buffers on the way together hold, so that the server is not done yet.
    more = people().with_columns(id=pl.format("j{}", "id"))
    filled.upsert(more, progress=False, embed=False)
    pieces = filled._engine.select(["id", "content"], "p", None, None)
    next(pieces)
    own_server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    with pytest.raises(ef.ConnectionLostError, match="rows had been returned"):
        for _ in pieces:
            pass
    assert filled.scan("p").select(pl.len()).collect().item() == 2 * ROWS


def test_other_errors_while_rows_stream(own_server: Server, database: str, own_store: Any) -> None:
    """A statement timeout in the middle keeps its class and SQLSTATE."""
    store = own_store()
    store.upsert(people(), progress=False, embed=False)
    own_server.sql(f"ALTER DATABASE {database} SET statement_timeout = '1s'")
    slow = own_store()
    pieces = slow._engine.select(["id", "content"], "p", None, None)
    with pytest.raises(ef.StatementTimeoutError) as raised:
        for _ in pieces:
            time.sleep(1.2)
    assert raised.value.sqlstate == "57014"


class Numbered:
    """Vectors of 512 numbers, far larger than the content."""

    name, dim, max_batch = "numbered", 512, 4_096

    def embed(self, texts: Any, /) -> Any:
        return np.random.default_rng(len(texts)).normal(size=(len(texts), 512)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("pgvector", [True, False])
def test_search_is_retried(
    filled: ef.EntityStore, cutting: Cutting, own_store: Any, monkeypatch: pytest.MonkeyPatch, pgvector: bool
) -> None:
    """Whether the vectors are compared on the server or fetched in pieces."""
    if not pgvector:
        from entityframes.engines.postgres.embedding import PostgresEmbedding

        monkeypatch.setattr(PostgresEmbedding, "_has_pgvector", lambda self: False)
    direct = own_store()
    direct.enqueue()
    direct.embed(Numbered(), progress=False)
    query = np.ones(512)
    whole = filled.search(query, k=300)
    assert whole.height == 300
    for at in positions(cutting, lambda: filled.search(query, k=300)):
        strike(cutting, at, 1)
        assert filled.search(query, k=300).equals(whole), at
        assert cutting.cuts == 0 or at is None or at >= cutting.rows
        strike(cutting, None, 0)


@pytest.mark.slow
def test_errors_of_duckdb_while_rows_stream(tmp_path: Any) -> None:
    """Its reader raises a bare OSError too: cancelled, closed or out of memory, it becomes an error of this package."""
    from entityframes.interrupt import Interrupt

    with ef.connect(tmp_path / "s.duckdb") as store:
        many = pl.concat([people().with_columns(id=pl.format("{}-{}", "id", pl.lit(n))) for n in range(6)])
        store.upsert(many, progress=False, embed=False)
        interrupt = Interrupt()
        pieces = store._engine.select(["id", "content"], "p", None, None, interrupt)
        next(pieces)
        interrupt.fire()
        with pytest.raises(ef.StatementCancelledError):
            for _ in pieces:
                pass
