"""Full disks, read-only disks, and truncated logs."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

import entityframes as ef
from tests.faults.invariants import Model, rows
from tests.faults.servers import Server, tmpfs


def fill(store: ef.EntityStore, model: Model, ends_in: type[ef.EntityFramesError] = ef.ResourceError) -> pl.DataFrame:
    """Write until the disk is full, and apply the outcomes to the model."""
    first = rows(100, size=1_000)
    model.upserted(first, store.upsert(first))
    for turn in range(100):
        # Contents that cannot be compressed.
        frame = rows(2_000, start=turn * 1_000).with_columns(
            content=pl.Series([os.urandom(1_000).hex() for _ in range(2_000)])
        )
        try:
            result = store.upsert(frame, batch_size=500)
        except ef.EntityFramesError as error:
            assert isinstance(error, ends_in), repr(error)
            result = store.last_result
            assert result.counts["failed"] >= 500
            assert set(result.failed["error_kind"]) == {"resource" if ends_in is ef.ResourceError else "connection"}
            model.upserted(frame, result)
            return frame
        model.upserted(frame, result)
    raise AssertionError("the disk did not fill up")


@pytest.mark.slow
def test_postgresql_runs_out_of_disk(own_server: Server, database: str, own_store) -> None:
    """The batch is rolled back and the run stops with that reason; with free space again the store works as before."""
    with tmpfs("24m") as disk:
        if disk is None:
            pytest.skip("mounting a file system needs privileges")
        shutil.chown(disk, own_server.user)
        own_server.sql(f"CREATE TABLESPACE small_{database} LOCATION '{disk}'")
        own_server.sql(f"ALTER TABLE entityframes.entities SET TABLESPACE small_{database}", database=database)
        model, store = Model(), own_store()
        frame = fill(store, model)
        assert store.stats()["entities"].sum() == len(model.entities)
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        model.check(store)
        result = store.upsert(frame)
        assert result.ok, result
        model.upserted(frame, result)
        model.check(store)
        own_server.sql("ALTER TABLE entityframes.entities SET TABLESPACE pg_default", database=database)
        own_server.sql(f"DROP TABLESPACE small_{database}")


@pytest.mark.slow
def test_duckdb_runs_out_of_disk() -> None:
    """The run stops with that reason; with free space the store works again without stale keys, and can be reopened."""
    with tmpfs("48m") as disk:
        if disk is None:
            pytest.skip("mounting a file system needs privileges")
        model = Model()
        with ef.connect(disk / "x.duckdb") as store:
            frame = fill(store, model)
            subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
            model.check(store)
            result = store.upsert(frame)
            assert result.ok, result
            model.upserted(frame, result)
            model.check(store)
        with ef.connect(disk / "x.duckdb") as store:
            model.check(store)


@pytest.mark.slow
def test_duckdb_gives_up_its_file() -> None:
    """The disk is full during a checkpoint: the store reports that it is closed, and is consistent when reopened."""
    with tmpfs("32m") as disk:
        if disk is None:
            pytest.skip("mounting a file system needs privileges")
        model = Model()
        with ef.connect(disk / "x.duckdb") as store:
            with store._engine.database.file.cursor() as cursor:
                # Checkpoint after each batch.
                cursor.execute("SET wal_autocheckpoint = '1KB'")
            frame = fill(store, model, ef.ClosedError)
            for call in (store.stats, lambda: store.get(frame), lambda: store.upsert(frame)):
                with pytest.raises(ef.ClosedError):
                    call()
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        with ef.connect(disk / "x.duckdb") as store:
            model.check(store)
            result = store.upsert(frame)
            assert result.ok, result
            model.upserted(frame, result)
            model.check(store)


@pytest.mark.slow
@pytest.mark.duckdb
def test_a_commit_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store closes, so that keys without a row do not reach the file; when reopened, none blocks an insert."""
    model = Model()
    with ef.connect(tmp_path / "x.duckdb") as store:
        first = rows(5_000, size=200)
        model.upserted(first, store.upsert(first))
        committing = store._engine.database.file.committing

        @contextlib.contextmanager
        def limited_memory() -> Iterator[None]:
            """Run COMMIT with hardly more memory than is in use."""
            limit = 400_000
            with store._engine.database.file._root.cursor() as cursor, contextlib.suppress(duckdb.OutOfMemoryException):
                while limit > 1_000:
                    cursor.execute(f"SET memory_limit = '{limit}KB'")
                    limit = limit * 98 // 100
            with committing():
                yield

        monkeypatch.setattr(store._engine.database.file, "committing", limited_memory)
        frame = rows(60_000, start=10_000, size=100)
        with pytest.raises(ef.ClosedError, match="COMMIT ran out of memory"):
            store.upsert(frame, batch_size=20_000)
        result = store.last_result
        assert result.counts["failed"] >= 20_000
        model.upserted(frame, result)
        with pytest.raises(ef.ClosedError):
            store.stats()
    with ef.connect(tmp_path / "x.duckdb") as store:
        model.check(store)
        result = store.upsert(frame)
        assert result.ok, result
        model.upserted(frame, result)
        model.check(store)


def test_a_full_disk_is_no_lack_of_memory(tmp_path: Path) -> None:
    """A call that runs out of disk is not repeated with more memory."""
    calls = []

    def work() -> None:
        calls.append(1)
        raise ef.ResourceError("the disk is full", "53100")

    with ef.connect(tmp_path / "store.duckdb") as store, pytest.raises(ef.ResourceError):
        store._engine.database.file.with_memory(work)
    assert calls == [1]


@pytest.mark.slow
def test_duckdb_at_a_file_size_limit(tmp_path: Path) -> None:
    """The same without mounting a file system: a limit on the file size of a child process."""
    script = textwrap.dedent(
        """
        import json, resource, signal, sys
        import entityframes as ef
        from tests.faults.invariants import Model
        from tests.faults.test_disk import fill
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        model = Model()
        store = ef.connect(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 20, resource.RLIM_INFINITY))
        fill(store, model)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.close()
        with ef.connect(sys.argv[1]) as store:
            model.check(store)
        print("sound", len(model.entities))
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.duckdb"], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.startswith("sound"), run.stdout + run.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_duckdb_file_that_may_not_be_written(tmp_path: Path, what: str) -> None:
    """Refused at once, with the path; nothing is created and nothing changed."""
    script = textwrap.dedent(
        """
        import os, sys
        import entityframes as ef
        ef.connect(":memory:").close()  # What is imported late, is imported now.
        if os.geteuid() == 0:
            # Root can write anywhere.
            os.setgid(65534)
            os.setuid(65534)
        try:
            ef.connect(sys.argv[1])
        except ef.ConnectError as error:
            print(error)
        """
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "x.duckdb"
    if what == "file":
        with ef.connect(path) as store:
            store.upsert(rows(10))
        path.chmod(0o444)
    before = path.read_bytes() if path.exists() else None
    folder.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
    folder.chmod(0o755)
    assert "x.duckdb" in run.stdout, run.stdout + run.stderr
    assert "ermission denied" in run.stdout
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A DuckDB file with a write-ahead log: ten batches, then the process was killed."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        import entityframes as ef
        from tests.faults.invariants import rows
        store = ef.connect(sys.argv[1])
        for turn in range(10):
            assert store.upsert(rows(100, start=turn * 100), progress=False).ok
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    path = tmp_path / "x.duckdb"
    subprocess.run([sys.executable, "-c", script, path], timeout=120, check=False)
    assert Path(f"{path}.wal").stat().st_size > 10_000
    return path


@pytest.mark.duckdb
@pytest.mark.parametrize("cut", [1, 1_000, 20_000])
def test_a_torn_log(crashed: Path, cut: int) -> None:
    """A truncated log loses whole batches from the end, never a part of one, and the ledger is consistent."""
    log = Path(f"{crashed}.wal")
    log.write_bytes(log.read_bytes()[:-cut])
    with ef.connect(crashed) as store:
        ids = store.scan("note").select("id").collect()["id"].sort()
        assert ids.len() % 100 == 0
        assert ids.to_list() == [f"e{n:06}" for n in range(ids.len())]
        assert store.verify().is_empty()
        assert store.upsert(pl.concat([rows(100, start=turn * 100) for turn in range(10)])).ok


@pytest.mark.duckdb
def test_a_corrupt_log(crashed: Path) -> None:
    """A log with corrupt bytes in the middle: refused with the file's name, or valid up to there; no half batch."""
    log = Path(f"{crashed}.wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xa5" * 64
    log.write_bytes(bytes(data))
    try:
        store = ef.connect(crashed)
    except ef.ConnectError as error:
        assert "x.duckdb" in str(error)
        return
    with store:
        assert store.stats()["entities"].sum() % 100 == 0
        assert store.verify().is_empty()
