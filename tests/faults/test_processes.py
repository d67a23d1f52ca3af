"""Processes that are interrupted or killed while they work."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import entityframes as ef
from tests.conftest import execute
from tests.faults.invariants import Model, rows
from tests.faults.servers import WAITING, Background, Server, backends, wait_until
from tests.faults.test_connections import ONE_ROW, locked

#: Prints when it was interrupted, and later the outcomes of the result and that the store still works.
INTERRUPTED = textwrap.dedent(
    """
    import contextlib, json, sys, time
    import polars as pl
    import entityframes as ef
    from tests.faults.invariants import rows
    store = ef.connect(sys.argv[1], workers=int(sys.argv[4]))
    frame = rows(int(sys.argv[2]), "changed", size=int(sys.argv[3]))
    def scan():
        try:
            store.scan().collect()
        except KeyboardInterrupt:
            # Polars raises it, and then Python's handler raises it again.
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(0.1)
            raise
    calls = {
        "upsert": lambda: store.upsert(frame, progress=False, batch_size=50_000),
        "upsert_entity": lambda: store.upsert_entity(*frame.row(0)[:3]),
        "delete": lambda: store.delete(frame),
        "get": lambda: store.get(frame),
        "scan": scan,
        "stats": lambda: store.stats(),
    }
    print("begins", flush=True)
    try:
        calls[sys.argv[5]]()
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        result = store.last_result
        sys.stdin.readline()
        statuses = result and result.outcomes.select("id", pl.col("status").cast(pl.String)).rows()
        again = store.upsert_entity("probe", "after", "x")["status"]
        store.delete_entity("probe", "after")
        store.close()
        print(json.dumps({"statuses": statuses, "again": again}))
    """
)


def interrupted(
    url: str, condition, *words: object, call: str = "upsert", release: Callable[[], object] = lambda: None
) -> dict:
    """Interrupt a child that upserts, or makes another call, as soon as a condition holds.

    After the interruption its obstacle is released, and the child shows that the store still works.
    """
    command = [sys.executable, "-c", INTERRUPTED, url, *map(str, words), call]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:
        try:
            assert child.stdout.readline() == "begins\n", child.stderr.read()
            wait_until(condition, "the moment to interrupt")
            child.send_signal(signal.SIGINT)
            line = Background(child.stdout.readline).outcome()
            release()
            out, errors = child.communicate("go\n", timeout=120)
        except BaseException:
            child.kill()
            raise
    assert out.startswith("{"), line + out + errors
    assert line == "interrupted\n"
    return json.loads(out)


def apply(model: Model, report: dict, frame) -> None:
    """Apply the outcomes that the child reported."""
    new = {row["id"]: row for row in frame.iter_rows(named=True)}
    assert [id for id, _ in report["statuses"]] == frame["id"].to_list()
    for id, status in report["statuses"]:
        assert status in ("created", "updated", "unchanged", "cancelled")
        if status != "cancelled":
            model.entities["note", id] = (new[id]["content"], json.loads(new[id]["metadata"]))


@pytest.mark.slow
@pytest.mark.parametrize("point", ["merge", "one statement", "copy"])
def test_interrupt_on_postgresql(own_server: Server, database: str, own_store, point: str) -> None:
    """Ctrl-C while a merge waits, a small batch waits, or rows stream in: KeyboardInterrupt before that ends.

    A batch is stored completely or not at all.
    """
    model, store = Model(), own_store()
    first = rows(20)
    model.upserted(first, store.upsert(first))
    count, size = {"merge": (5_000, 0), "one statement": (20, 0), "copy": (50_000, 1_500)}[point]
    if point == "copy":
        report = interrupted(
            own_server.url(database), lambda: backends(own_server, database, "query LIKE 'COPY %'"), count, size, 1
        )
    else:
        with locked(own_server, database, ONE_ROW):
            report = interrupted(
                own_server.url(database), lambda: backends(own_server, database, WAITING), count, size, 1
            )
    assert report["again"] == "created"
    assert "cancelled" in {status for _, status in report["statuses"]}
    apply(model, report, rows(count, "changed", size=size))
    model.check(store)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["upsert_entity", "delete", "get", "scan", "stats"])
def test_interrupt_of_other_calls(own_server: Server, database: str, own_store, call: str) -> None:
    """Ctrl-C while a deletion or a read waits for a lock: the same, and nothing is deleted."""
    model, store = Model(), own_store()
    frame = rows(20)
    model.upserted(frame, store.upsert(frame))
    hold = (
        ONE_ROW if call in ("upsert_entity", "delete") else "LOCK TABLE entityframes.entities IN ACCESS EXCLUSIVE MODE"
    )
    if call == "upsert_entity":
        hold = ONE_ROW.replace("e000007", frame["id"][0])
    with contextlib.ExitStack() as holding:
        holding.enter_context(locked(own_server, database, hold))

        def release() -> None:
            # It has been cancelled, and no longer waits.
            assert not backends(own_server, database, WAITING)
            holding.close()

        url = own_server.url(database)
        report = interrupted(url, lambda: backends(own_server, database, WAITING), 20, 0, 1, call=call, release=release)
    assert report["again"] == "created"
    if call == "delete":
        assert report["statuses"] == [[id, "cancelled"] for id in frame["id"]]
    model.check(store)


@pytest.mark.slow
def test_interrupt_on_duckdb(tmp_path: Path) -> None:
    """Ctrl-C while batches are written: KeyboardInterrupt before the last; each is stored whole or not at all."""
    path = tmp_path / "x.duckdb"
    log = Path(f"{path}.wal")

    def grows() -> bool:
        return log.exists() and log.stat().st_size > 1 << 20

    report = interrupted(str(path), grows, 200_000, 100, 2)
    assert report["again"] == "created"
    assert "cancelled" in {status for _, status in report["statuses"]}
    model = Model()
    apply(model, report, rows(200_000, "changed", size=100))
    with ef.connect(path) as store:
        model.check(store)


#: Writes batches of a hundred and prints the number of each committed batch, until it is killed.
COMMITS = textwrap.dedent(
    """
    import sys
    import entityframes as ef
    from tests.faults.invariants import rows
    store = ef.connect(sys.argv[1])
    turn = int(sys.argv[2])
    while True:
        assert store.upsert(rows(100, start=turn * 100, size=500), progress=False).counts["created"] == 100
        print(turn, flush=True)
        turn += 1
    """
)

AT_WORK = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


def kill_in_a_commit_loop(url: str, kills: int, seed: int) -> int:
    """Repeatedly kill a process that commits; every reported batch is stored whole. Returns the number of batches."""
    rng = random.Random(seed)
    turn = 0
    for _ in range(kills):
        with subprocess.Popen(
            [sys.executable, "-c", COMMITS, url, str(turn)], stdout=subprocess.PIPE, text=True
        ) as child:
            for _ in range(rng.randint(1, 20)):
                turn = int(child.stdout.readline()) + 1
            # Sleep for a random time.
            time.sleep(rng.uniform(0, 0.02))
            child.kill()
            reported = child.stdout.read().split()
            turn = int(reported[-1]) + 1 if reported else turn
        if url.startswith("postgresql"):
            # The server may still be executing the last statement of a disconnected client.
            wait_until(lambda: not execute(url, AT_WORK)[0][0], "the server")
        with ef.connect(url) as store:
            ids = store.scan("note").select("id").collect()["id"]
            # The last batch may have been committed and not reported.
            assert ids.len() in (turn * 100, turn * 100 + 100), (ids.len(), turn)
            turn = ids.len() // 100
            assert store.verify().is_empty()
    with ef.connect(url) as store:
        ids = store.scan("note").select("id").collect()["id"].sort()
    assert ids.to_list() == [f"e{n:06}" for n in range(turn * 100)]
    return turn


@pytest.mark.slow
def test_killed_in_a_commit_loop(url: str) -> None:
    """No reported batch is lost, and none is stored in part."""
    assert kill_in_a_commit_loop(url, kills=3, seed=7) > 3


if __name__ == "__main__":
    # python -m tests.faults.test_processes URL KILLS
    print(kill_in_a_commit_loop(sys.argv[1], int(sys.argv[2]), seed=1), "batches, none lost")
