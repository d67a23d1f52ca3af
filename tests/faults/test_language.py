"""Case 47: a server with another language: outcomes depend on error codes, not on the text of messages."""

from __future__ import annotations

import os
import signal
import threading

import polars as pl
import pytest

import entityframes as ef
from tests.faults.invariants import Model, rows
from tests.faults.servers import WAITING, Background, Proxy, Server, backends, wait_until
from tests.faults.test_connections import ONE_ROW, locked

WORDS = "так не пойдёт"
TABLE = "LOCK TABLE entityframes.entities IN ACCESS EXCLUSIVE MODE"


@pytest.fixture
def foreign(proxy: Proxy) -> Proxy:
    proxy.translate = True
    return proxy


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 3_000])
def test_rejected_rows(own_server: Server, database: str, own_store, foreign: Proxy, count: int) -> None:
    """The bad row is found and named, without the values that the server quotes."""
    own_server.sql(
        "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (id <> 'e000007')", database=database
    )
    model, store = Model(), own_store(port=foreign.port)
    frame = rows(count, "c4n4ry")
    result = store.upsert(frame)
    assert result.failed.select("id", "sqlstate").rows() == [("e000007", "23514")]
    assert result.failed["error"].item()
    assert "c4n4ry" not in result.failed["error"].item()
    model.upserted(frame, result)
    model.check(own_store())


@pytest.mark.slow
def test_the_servers_timeout(own_server: Server, database: str, own_store, foreign: Proxy) -> None:
    """A server-side timeout is a timeout, not a Ctrl-C or a cancelled run."""
    store = own_store(port=foreign.port)
    store.upsert(rows(20))
    own_server.sql(f"ALTER DATABASE {database} SET statement_timeout = '1s'")
    store = own_store(port=foreign.port)
    with locked(own_server, database, ONE_ROW):
        result = store.upsert(rows(20, "changed"))
    assert result.failed.select("error_kind", "sqlstate").unique().rows() == [("timeout", "57014")]
    assert result.failed["error"].str.ends_with(WORDS).fill_null(False).all()
    assert result.failed.height == 20
    with locked(own_server, database, TABLE), pytest.raises(ef.StatementTimeoutError):
        # In the main thread, where a Ctrl-C would arrive.
        store.exists(rows(5).select("entity_type", "id"))
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")


def test_a_cancelled_run(own_server: Server, database: str, own_store, foreign: Proxy) -> None:
    """Its rows are cancelled, and none of them is stored."""
    store = own_store(port=foreign.port, workers=1)
    store.upsert(rows(20))
    cancel = threading.Event()
    with locked(own_server, database, ONE_ROW):
        run = Background(lambda: store.upsert(rows(20, "changed"), cancel=cancel))
        wait_until(lambda: backends(own_server, database, WAITING), "the lock")
        cancel.set()
        result = run.outcome()
    assert result.counts["cancelled"] == 20, result
    assert not own_store().scan().filter(pl.col("content").str.contains("changed")).collect().height


def test_ctrl_c_while_the_database_works(own_server: Server, database: str, own_store, foreign: Proxy) -> None:
    """It is a KeyboardInterrupt, and the store still works."""
    store = own_store(port=foreign.port)
    store.upsert(rows(20))

    def press() -> None:
        wait_until(lambda: backends(own_server, database, WAITING), "the lock")
        os.kill(os.getpid(), signal.SIGINT)

    with locked(own_server, database, TABLE):
        pressing = Background(press)
        with pytest.raises(KeyboardInterrupt):
            store.exists(rows(5).select("entity_type", "id"))
        pressing.outcome()
    assert store.exists(rows(5).select("entity_type", "id"))["exists"].all()


def test_the_server_is_away(own_server: Server, database: str, own_store, foreign: Proxy) -> None:
    """The error of a server that is starting up, which has no code while connecting, is temporary."""
    model, store = Model(), own_store(port=foreign.port, workers=1)
    frame = rows(50)
    model.upserted(frame, store.upsert(frame))
    own_server.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    own_server.sql(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'")
    refused = []

    def back_again(error: bytes) -> None:
        if b"C55000" in error:
            refused.append(error)
            own_server.sql(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")

    foreign.on_error = back_again
    changed = rows(50, "changed")
    result = store.upsert(changed)
    assert refused
    assert result.counts["updated"] == 50, result
    model.upserted(changed, result)
    model.check(store)
