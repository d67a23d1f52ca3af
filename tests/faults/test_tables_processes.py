"""Tables in processes that are interrupted, killed or forked, on full disks, and with a secret password."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from entityframes.engines.duckdb.tables import DuckDBTables
from tests.databases import execute
from tests.faults.servers import WAITING, Background, Proxy, Server, backends, tmpfs, wait_until
from tests.faults.test_connections import locked
from tests.faults.test_secrets import CONTENT, PASSWORD, Capture, capture, login  # noqa: F401
from tests.faults.test_tables import Model, items, rows  # noqa: F401

DDL = "CREATE TABLE items (k integer PRIMARY KEY, v text CHECK (v <> 'bad'), n integer DEFAULT 0)"


def made(path: Path | str) -> ef.Table:
    """A new table in a DuckDB file."""
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute(DDL)
    return ef.table(path, "items")


#: Prints when it was interrupted, and later the outcomes and that the table still works.
INTERRUPTED = textwrap.dedent(
    """
    import json, sys
    import polars as pl
    import entityframes as ef
    from tests.faults.test_tables import rows
    table = ef.table(sys.argv[1], "items", workers=1)
    frame = rows(int(sys.argv[2]), sys.argv[3])
    calls = {
        "upsert": lambda: table.upsert(frame, progress=False, batch_size=20_000),
        "plan": lambda: table.plan(frame), "delete": lambda: table.delete(frame["k"]), "get": lambda: table.get(frame),
        "exists": lambda: table.exists(frame), "read": lambda: table.read(), "scan": lambda: table.scan().collect(),
    }
    print("begins", flush=True)
    sys.stdin.readline()
    try:
        calls[sys.argv[4]]()
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        result = table.last_result
        sys.stdin.readline()
        statuses = result and result.outcomes.select("k", pl.col("status").cast(pl.String)).rows()
        again = table.upsert(pl.DataFrame({"k": [-1], "v": ["x"]}), progress=False).counts["created"]
        table.delete([-1])
        table.close()
        print(json.dumps({"statuses": statuses, "again": again}))
    """
)


def interrupted(
    url: str,
    condition: Callable[[], Any],
    count: int,
    call: str,
    hold: Callable[[], object] = lambda: None,
    release: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Interrupt a child during a call as soon as a condition holds; it must end before its obstacle is released."""
    command = [sys.executable, "-c", INTERRUPTED, url, str(count), "changed " + "x" * 300, call]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:
        try:
            assert child.stdout.readline() == "begins\n", child.stderr.read()
            hold()
            child.stdin.write("go\n")
            child.stdin.flush()
            wait_until(condition, "the moment to interrupt")
            child.send_signal(signal.SIGINT)
            line = Background(child.stdout.readline).outcome()
            release()
            out, errors = child.communicate("go\n", timeout=120)
        except BaseException:
            child.kill()
            raise
    assert line == "interrupted\n", line + out + errors
    report: dict[str, Any] = json.loads(out)
    assert report["again"] == 1
    return report


def applied(model: Model, report: dict[str, Any], frame: pl.DataFrame) -> None:
    new = dict(frame.iter_rows())
    assert [key for key, _ in report["statuses"]] == frame["k"].to_list()
    for key, status in report["statuses"]:
        assert status in ("created", "updated", "unchanged", "cancelled")
        if status != "cancelled":
            model.rows[key] = new[key]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["upsert", "plan", "delete", "read"])
def test_ctrl_c_on_postgresql(own_server: Server, database: str, items, call: str) -> None:  # noqa: F811
    """While it waits for a lock: KeyboardInterrupt before the lock is released; the batch is not written at all."""
    model, table = Model(), items()
    first = rows(20)
    model.upserted(first, table.upsert(first))
    hold = (
        "SELECT FROM items WHERE k = 7 FOR UPDATE"
        if call in ("upsert", "delete")
        else "LOCK TABLE items IN ACCESS EXCLUSIVE MODE"
    )
    with contextlib.ExitStack() as holding:

        def waits() -> bool:
            return bool(backends(own_server, database, WAITING))

        def release() -> None:
            # It has been cancelled, and no longer waits.
            assert not waits()
            holding.close()

        take = lambda: holding.enter_context(locked(own_server, database, hold))  # noqa: E731
        report = interrupted(own_server.url(database), waits, 100, call, take, release)
    if call in ("upsert", "delete"):
        assert {status for _, status in report["statuses"]} == {"cancelled"}
    model.check(table)


@pytest.mark.slow
def test_ctrl_c_on_duckdb(tmp_path: Path) -> None:
    """While batches are written: each is stored whole or not at all, and the outcomes say which."""
    path = tmp_path / "x.duckdb"
    made(path).close()
    log = Path(f"{path}.wal")
    report = interrupted(str(path), lambda: log.exists() and log.stat().st_size > 1 << 20, 400_000, "upsert")
    assert "cancelled" in {status for _, status in report["statuses"]}
    model = Model()
    applied(model, report, rows(400_000, "changed " + "x" * 300))
    with ef.table(path, "items") as table:
        model.check(table)


def test_a_cancelled_call(store: ef.EntityStore, sql: Callable[..., list]) -> None:
    """The event of the caller stops a run between batches, and a plan; the outcomes say what is stored."""
    sql(DDL)
    table, cancel = store.table("items"), threading.Event()
    frame = rows(500)

    def progress(done: int, total: int | None) -> None:
        if done >= 100:
            cancel.set()

    result = table.upsert(frame, batch_size=50, progress=progress, cancel=cancel)
    assert result.counts["cancelled"] > 0
    assert result.counts["created"] == table.read().height > 0
    for call in (table.plan, table.exists, table.get):
        with pytest.raises(ef.StatementCancelledError):
            call(frame, cancel=cancel)
    assert table.upsert(frame, cancel=cancel).counts["cancelled"] == 500
    assert table.upsert(frame).counts["unchanged"] == result.counts["created"]


@pytest.mark.duckdb
def test_a_batch_that_is_stopped_in_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB writes the halves of a batch with a bad row in several transactions: what was committed has its outcome."""
    table, cancel = made(tmp_path / "x.duckdb"), threading.Event()
    # As if the database refused one row for a reason that no query finds.
    write, calls = DuckDBTables._write, []

    def struck(self: DuckDBTables, session: Any, writing: Any, rows: pl.DataFrame, *args: Any, **options: Any) -> Any:
        if rows["c0"].is_in([70]).any():
            if rows.height <= 25:
                cancel.set()
                time.sleep(0.1)
                args[0].interrupt.fire()
                args[0].interrupt.check()
            raise ef.RowError("refused", "23000")
        calls.append(rows.height)
        return write(self, session, writing, rows, *args, **options)

    monkeypatch.setattr(DuckDBTables, "_write", struck)
    frame = rows(100).sort("k")
    result = table.upsert(frame, cancel=cancel)
    monkeypatch.undo()
    assert calls, "nothing was committed before the run was stopped"
    assert result.outcomes["row"].to_list() == list(range(100))
    assert set(result.outcomes["status"]) == {"created", "cancelled"}
    stored = table.read("k")["k"].to_list()
    assert result.succeeded["k"].sort().to_list() == stored
    table.close()


#: Writes batches of a hundred and prints the number of each committed batch, until it is killed.
COMMITS = textwrap.dedent(
    """
    import sys
    import entityframes as ef
    from tests.faults.test_tables import rows
    table = ef.table(sys.argv[1], "items")
    turn = int(sys.argv[2])
    while True:
        frame = rows(100, "x" * 300, start=turn * 100)
        assert table.upsert(frame, progress=False).counts["created"] == 100
        print(turn, flush=True)
        turn += 1
    """
)
AT_WORK = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@pytest.mark.slow
def test_killed_in_a_commit_loop(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No reported batch is lost, and none is stored in part."""
    if engine == "duckdb":
        url = str(tmp_path / "x.duckdb")
        made(url).close()
    else:
        url = request.getfixturevalue("postgres_url")
        execute(url, DDL)
    rng, turn = random.Random(7), 0
    for _ in range(2):
        command = [sys.executable, "-c", COMMITS, url, str(turn)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(rng.randint(5, 20)):
                turn = int(child.stdout.readline()) + 1
            time.sleep(rng.uniform(0, 0.02))
            child.kill()
            reported = child.stdout.read().split()
            turn = int(reported[-1]) + 1 if reported else turn
        if engine == "postgresql":
            wait_until(lambda: not execute(url, AT_WORK)[0][0], "the server")
        with ef.table(url, "items") as table:
            keys = table.read("k")["k"].to_list()
        # The last batch may have been committed and not reported.
        assert len(keys) in (turn * 100, turn * 100 + 100)
        assert keys == list(range(len(keys)))
        turn = len(keys) // 100


@pytest.mark.duckdb
def test_a_second_process(tmp_path: Path) -> None:
    """It is refused with the id of the first; afterwards it may open the file."""
    table = made(tmp_path / "x.duckdb")
    script = "import sys, entityframes as ef\ntry: ef.table(sys.argv[1], 'items')\nexcept ef.ConnectError as error: print(error)"
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.duckdb"], capture_output=True, text=True, timeout=120
    )
    assert f"open in another process (PID {os.getpid()})" in run.stdout, run.stdout + run.stderr
    assert table.upsert(rows(3)).counts["created"] == 3
    table.close()


FORKED = textwrap.dedent(
    """
    import os, signal, sys
    import polars as pl, entityframes as ef
    table = ef.table(sys.argv[1], "items")
    frame = pl.DataFrame({"k": [1, 2], "v": ["a", "b"]})
    plan = table.plan(frame)
    table.upsert(frame, progress=False)
    calls = [lambda: table.upsert(frame), lambda: table.plan(frame), lambda: table.read(), lambda: table.get([1]),
        lambda: table.exists([1]), lambda: table.delete([1]), lambda: plan.apply(), lambda: table.columns,
        lambda: table.scan(), lambda: ef.table(sys.argv[1], "items"), lambda: table.mirror(frame)]
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        for call in calls:
            try:
                call()
            except (ef.ClosedError, ef.ConnectError) as error:
                print(type(error).__name__, flush=True)
        table.close()
        sys.exit(0)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(table.upsert(frame.with_columns(v=pl.lit("c")), progress=False).counts["updated"], table.read().height)
    """
)


def test_a_forked_child(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every call in it is refused at once; its end does not affect the parent."""
    if engine == "duckdb":
        url = str(tmp_path / "x.duckdb")
        made(url).close()
    else:
        url = request.getfixturevalue("postgres_url")
        execute(url, DDL)
    run = subprocess.run([sys.executable, "-c", FORKED, url], capture_output=True, text=True, timeout=120)
    lines = run.stdout.splitlines()
    assert lines[-2:] == ["exit 0", "2 2"], run.stdout + run.stderr
    assert sorted(lines[:-2]) == ["ClosedError"] * 10 + ["ConnectError"], run.stdout


def incompressible(start: int) -> pl.DataFrame:
    return pl.DataFrame({"k": range(start, start + 4_000), "v": [os.urandom(500).hex() for _ in range(4_000)]})


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "postgresql"])
def test_a_full_disk(own_server: Server, database: str, items, engine: str) -> None:  # noqa: F811
    """The run stops with that reason, and no batch is half-written; with space again the table works as before."""
    with tmpfs("40m") as disk:
        if disk is None:
            pytest.skip("mounting a file system needs privileges")
        if engine == "duckdb":
            table = made(disk / "x.duckdb")
        else:
            shutil.chown(disk, own_server.user)
            own_server.sql(f"CREATE TABLESPACE small_{database} LOCATION '{disk}'")
            own_server.sql(f"ALTER TABLE items SET TABLESPACE small_{database}", database=database)
            table = items()
        model = Model()
        with pytest.raises(ef.ResourceError):
            for turn in range(100):
                frame = incompressible(turn * 4_000)
                table.upsert(frame, batch_size=1_000)
                model.upserted(frame, table.last_result)
        result = table.last_result
        assert result.counts["failed"] >= 1_000
        assert set(result.failed["error_kind"]) == {"resource"}
        model.upserted(frame, result)
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        model.check(table)
        again = table.upsert(frame)
        assert again.ok, again
        model.upserted(frame, again)
        model.check(table)
        table.close()
        if engine == "postgresql":
            own_server.sql("ALTER TABLE items SET TABLESPACE pg_default", database=database)
            own_server.sql(f"DROP TABLESPACE small_{database}")


@pytest.mark.slow
def test_no_secret_in_messages(
    own_server: Server,
    database: str,
    login: str,  # noqa: F811
    capture: Capture,  # noqa: F811
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong logins, rejected rows, lost answers, a table that is gone: neither the password nor other rows' contents."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.3)
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    monkeypatch.setattr(retry, "PAUSES", (0.01,))
    own_server.sql(DDL.replace("n integer", "u integer UNIQUE, n integer"), database=database)
    capture.call(lambda: ef.table(login.replace(PASSWORD, PASSWORD + "x"), "items"))
    capture.call(lambda: ef.table(login, "nope"))
    capture.call(lambda: ef.table(login, "items", "v"))
    through = login.replace(f":{own_server.port}/", f":{proxy.port}/")
    table = ef.table(through, "items", workers=1)
    frame = pl.DataFrame({"k": range(20), "v": [f"{CONTENT} {n}" for n in range(20)], "u": range(20)})
    capture.call(lambda: table)
    capture.call(lambda: table.columns)
    assert capture.call(lambda: table.upsert(frame)).ok
    capture.call(
        lambda: table.upsert(frame.with_columns(v=pl.when(pl.col("k") == 3).then(pl.lit("bad")).otherwise("v")))
    )
    capture.call(lambda: table.upsert(frame.with_columns(u=pl.lit(7)), on_error="rollback"))
    capture.call(lambda: table.upsert(frame.with_columns(u=pl.lit(8)), on_error="raise"))
    capture.call(lambda: table.plan(frame).summary())
    proxy.drop_answer_to, proxy.refuse_after_drop = b"COMMIT\0", True
    capture.call(lambda: table.upsert(frame.with_columns(v=pl.col("v") + "!")))
    for call in (lambda: table.read(), lambda: table.upsert(frame), lambda: table.delete([1]), lambda: table.get([1])):
        capture.call(call)
    proxy.refuse = False
    own_server.sql("DROP TABLE items", database=database)
    for call in (lambda: table.upsert(frame), lambda: table.get([1]), lambda: table.plan(frame)):
        capture.call(call)
    table.close()
    capture.call(lambda: table.read())
