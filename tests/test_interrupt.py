"""Ctrl-C in this process: it never separates what a batch did from its outcomes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb.errors import translated
from entityframes.interrupt import CtrlC, Interrupt
from entityframes.results import OutcomeLog

ROWS = 5_000


def notes(start: int = 0, rows: int = ROWS) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, start + rows)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("text {}", "n")
    )


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


#: Works while SIGINT arrives again and again.
IGNORING = """
import os, signal, sys, threading
import polars as pl, entityframes as ef

stop = threading.Event()

def press():
    while not stop.wait(0.002):
        os.kill(os.getpid(), signal.SIGINT)

frame = pl.DataFrame({"n": range(60_000)}).select(
    entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("text {}", "n")
)
threading.Thread(target=press, daemon=True).start()
with ef.connect(sys.argv[1]) as store:
    result = store.upsert(frame, batch_size=2_000, progress=False)
    stop.set()
    print(result.counts["created"], store.stats()["entities"].sum())
"""


def ignoring() -> None:
    """Like a background job of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.slow
def test_a_background_job_ignores_it(url: str) -> None:
    """Importing Polars changes the signal handler; all batches complete regardless, with an outcome for each row."""
    run = subprocess.run(
        [sys.executable, "-c", IGNORING, url], capture_output=True, text=True, timeout=120, preexec_fn=ignoring
    )
    assert (run.returncode, run.stdout) == (0, "60000 60000\n"), run.stderr


@pytest.mark.slow
def test_a_command_in_the_background_ignores_it(tmp_path: Path) -> None:
    """Even while it reads its file."""
    (tmp_path / "rows.csv").write_text("id,text\n" + "".join(f"k{n},text {n}\n" for n in range(100_000)))
    words = "import rows.csv --type t --id id --content text --store s.duckdb"
    process = subprocess.Popen(
        [sys.executable, "-m", "entityframes", *words.split()], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=ignoring,
    )  # fmt: skip
    while process.poll() is None:
        # SIGINT is ignored before Polars is imported, too.
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, "100,000 created" in out) == (0, True), errors


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_while_a_batch_is_logged(store: ef.EntityStore, monkeypatch, before: bool, streamed: bool) -> None:
    """The batch that is being logged counts, once; the result reports what is stored."""
    append = OutcomeLog.append
    logged: list[int] = []

    def pressing(log: OutcomeLog, frame: pl.DataFrame) -> None:
        logged.append(frame.height)
        third = len(logged) == 3
        if third and before:
            press()
        append(log, frame)
        if third and not before:
            press()

    monkeypatch.setattr(OutcomeLog, "append", pressing)
    frame = notes()
    with pytest.raises(KeyboardInterrupt):
        store.upsert(iter([frame]) if streamed else frame, batch_size=100, progress=False)
    monkeypatch.undo()
    result = store.last_result
    assert result is not None
    created = result.outcomes.filter(pl.col("status").cast(pl.String) == "created")
    assert 300 <= created.height < ROWS
    assert result.outcomes["row"].is_unique().all()
    assert store.exists(frame)["exists"].sum() == created.height == result.counts["created"]
    if not streamed:
        assert result.outcomes.height == ROWS


def test_while_the_source_is_read(store: ef.EntityStore) -> None:
    """A source that waits, for a network or a user, is interrupted at once."""
    waited = threading.Event()

    def source() -> Iterator[pl.DataFrame]:
        yield notes(rows=100)
        press()
        waited.wait(120)
        raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        store.upsert(source(), batch_size=100, progress=False)
    assert store.last_result is not None
    assert store.last_result.counts["created"] == store.stats()["entities"].sum()


def test_while_duckdb_reads_the_columns_of_a_frame() -> None:
    """The error that DuckDB raises instead becomes a KeyboardInterrupt again."""

    class Interrupted:
        def __arrow_c_stream__(self, requested_schema: object = None) -> None:
            raise KeyboardInterrupt

        __arrow_c_schema__ = __arrow_c_stream__

    with duckdb.connect() as connection, pytest.raises(KeyboardInterrupt), translated():
        connection.register("given", Interrupted())
        connection.sql("FROM given").fetchall()


def test_after_the_last_batch(store: ef.EntityStore, monkeypatch) -> None:
    """The interrupt is delivered afterwards, and the result is complete."""
    result_of = ef.UpsertResult
    append = OutcomeLog.append
    monkeypatch.setattr(OutcomeLog, "append", lambda log, frame: (append(log, frame), press())[0])
    with pytest.raises(KeyboardInterrupt):
        store.upsert(notes(rows=100), progress=False)
    assert isinstance(store.last_result, result_of)
    assert store.last_result.counts["created"] == 100


def test_while_entities_are_deleted(store: ef.EntityStore, monkeypatch) -> None:
    """The result reports what was deleted, and what was not."""
    monkeypatch.setattr("entityframes.writing.delete.DELETE_ROWS", 100)
    frame = notes(rows=1_000)
    store.upsert(frame, progress=False)
    append = OutcomeLog.append
    monkeypatch.setattr(OutcomeLog, "append", lambda log, part: (part.height and press(), append(log, part))[1])
    with pytest.raises(KeyboardInterrupt):
        store.delete(frame)
    monkeypatch.undo()
    result = store.last_result
    assert result is not None
    assert result.outcomes.height == 1_000
    assert result.counts["deleted"] == 1_000 - store.stats()["entities"].sum()
    assert result.counts["cancelled"] == store.stats()["entities"].sum() > 0


@pytest.mark.slow
def test_while_duckdb_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMIT that runs a checkpoint is not cut off: its effect and its reported outcome are the same."""
    rng = random.Random(1)
    runs: list[Interrupt] = []

    class Kept(Interrupt):
        def __init__(self, cancel: threading.Event | None = None) -> None:
            super().__init__(cancel)
            runs.append(self)

    monkeypatch.setattr("entityframes.store.Interrupt", Kept)
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(notes(rows=50_000), progress=False)
        with store._engine.database.file.cursor() as cursor:
            cursor.execute("SET wal_autocheckpoint = '1KB'")
        committing = store._engine.database.file.committing

        @contextmanager
        def struck() -> Iterator[None]:
            threading.Timer(rng.uniform(0, 0.03), runs[-1].fire).start()
            with committing():
                yield

        monkeypatch.setattr(store._engine.database.file, "committing", struck)
        for turn in range(40):
            frame = notes(100_000 + 500 * turn, 500)
            outcomes = store.upsert(frame, progress=False).outcomes
            assert (store.exists(frame)["exists"] == (outcomes["status"] == "created")).all(), turn


def test_a_handler_of_the_caller() -> None:
    """It receives the signal, once, and if it does not raise, the work continues."""
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        with CtrlC() as ctrl_c:
            press()
            assert got == []
            ctrl_c.check()
            assert got == [signal.SIGINT]
            assert list(ctrl_c.let_through([1, 2])) == [1, 2]
        assert got == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_is_not_delayed_for_long(monkeypatch) -> None:
    """A second Ctrl-C after some seconds takes effect at once."""
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt), CtrlC():
        press()
        press()
        now += 60.0
        press()
        raise AssertionError("not interrupted")
    assert now == 1_060.0


def test_each_is_received_during_reads(store: ef.EntityStore) -> None:
    """The program's own handler receives each of them, whatever the driver is doing, and the answers stay complete."""
    store.upsert(notes(rows=3), progress=False)
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        for turn in range(50):
            pressing = threading.Timer(random.uniform(0.0, 0.01), press)
            pressing.start()
            end = time.monotonic() + 120
            while len(received) == turn and time.monotonic() < end:
                assert store._engine.existing(notes(rows=3)).height == 3
            pressing.join()
            assert len(received) == turn + 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_calls_share_a_helper_thread(postgres_url: str) -> None:
    """Which runs the calls of the main thread one after another; it does not pile up with their number."""
    with ef.connect(postgres_url) as store:
        store.stats()

        def helpers() -> int:
            return sum(thread.name == "entityframes-helper" for thread in threading.enumerate())

        before = helpers()
        for _ in range(20):
            store.stats()
        assert helpers() == before > 0
