"""Upserts as tasks of Ray, on a real cluster of one machine."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.distributed import Entities, Rows
from tests.databases import execute
from tests.distributed.test_partition import notes
from tests.faults.servers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def upsert(cluster: Any) -> Any:
    """`entityframes.ray.upsert`."""
    from entityframes import ray as ours

    return ours.upsert


def files(folder: Path, count: int = 4, rows: int = 50) -> list[str]:
    """Parquet files with notes."""
    paths = [folder / f"part-{number}.parquet" for number in range(count)]
    for number, path in enumerate(paths):
        notes(range(number * rows, (number + 1) * rows)).write_parquet(path)
    return list(map(str, paths))


def counted(result: Any) -> dict[str, int]:
    return {status: count for status, count in result.counts.items() if count}


def test_files_are_written_by_tasks(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """One task a file; the result has counts and partitions; a second run changes nothing."""
    paths = files(tmp_path)
    result = upsert(str(tmp_path / "*.parquet"), store_url, connections=2)
    assert counted(result) == {"created": 200}
    assert result.ok
    assert result.partitions.select("partition", "rows", "attempts", "resumed", "error").rows() == [
        (path, 50, 1, 0, None) for path in paths
    ]
    assert result.outcomes.is_empty()
    with ef.connect(store_url) as store:
        assert store.count("note") == 200
        assert store.runs()["run_id"].to_list() == [result.run_id]
    again = upsert(paths, store_url)
    assert counted(again) == {"unchanged": 200}
    assert "200 unchanged" in repr(again)
    assert "4 partitions" in repr(again)


def test_data_that_cannot_be_stored(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """An unreadable file, a file of other dtypes and a bad row are named; everything else is stored."""
    paths = files(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more of it")
    pl.DataFrame({"entity_type": ["note"], "id": [1.5], "content": [3]}).write_parquet(tmp_path / "dtypes.parquet")
    bad = pl.DataFrame({"entity_type": ["note"] * 2, "id": [None, "extra"], "content": ["x", "y"]})
    bad.write_parquet(tmp_path / "row.parquet")
    result = upsert([*paths, *(str(tmp_path / f"{name}.parquet") for name in ("broken", "dtypes", "row"))], store_url)
    assert counted(result) == {"created": 201, "failed": 1}
    assert not result.ok
    named = result.outcomes.with_columns(pl.col("partition").str.split("/").list.last())
    assert named.select("partition", "row", "status", "rule").rows() == [
        ("broken.parquet", None, "failed", "source"),
        ("dtypes.parquet", None, "failed", "schema"),
        ("row.parquet", 0, "failed", "null_key"),
    ]
    assert result.partitions["error"].null_count() == 5
    with pytest.raises(ef.EntityFramesError, match="2 of 7 partitions not read to their end"):
        result.raise_for_failures()


def test_frames_functions_and_transform(upsert: Any, store_url: str) -> None:
    """A list of frames and functions; each is a partition called by its number."""
    people = pl.DataFrame({"key": [1, 2], "text": ["a", "b"]})
    result = upsert(
        [people, lambda: people.with_columns(pl.col("key") + 2)],
        lambda: store_url,
        transform=lambda rows: ef.entities(rows, "person", id="key", content="text"),
    )
    assert counted(result) == {"created": 4}
    assert result.partitions["partition"].to_list() == ["0", "1"]


def test_a_table(upsert: Any, store_url: str) -> None:
    """Rows of a table of the user; what its constraints refuse has the key of the table."""
    frames = [pl.DataFrame({"id": range(start, start + 10), "size": range(start, start + 10)}) for start in (0, 10)]
    ef.create_table(store_url, "public.things", frames[0], key="id").close()
    execute(store_url, "ALTER TABLE public.things ADD CHECK (size <> 13)")
    result = upsert(frames, store_url, table="public.things")
    assert counted(result) == {"created": 19, "failed": 1}
    assert result.failed.select("partition", "row", "id", "rule").rows() == [("1", 3, 13, "check:things_size_check")]
    skipped = upsert([frames[0].with_columns(size=pl.lit(99))], store_url, target=Rows(table="things", on_match="skip"))
    assert counted(skipped) == {"unchanged": 10}
    with pytest.raises(ef.SchemaError, match="no table"):
        upsert(frames, store_url, table="public.nothing")


def test_all_outcomes(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """In the result, or in a folder."""
    paths = files(tmp_path, count=2, rows=3)
    result = upsert(paths, store_url, outcomes="all")
    assert result.outcomes.select("partition", "row", "id", "status").rows() == [
        (path, row, f"n{3 * number + row}", "created") for number, path in enumerate(paths) for row in range(3)
    ]
    result = upsert(paths, store_url, outcomes=str(tmp_path / "out"))
    assert counted(result) == {"unchanged": 6}
    assert result.outcomes.is_empty()
    stored = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert stored.select("partition", "row", "status").height == 6
    assert stored["id"].to_list() == [f"n{number}" for number in range(6)]


def test_overlapping_keys(upsert: Any, store_url: str) -> None:
    """Tasks that write the same keys in opposite order do not deadlock; each row has an outcome."""
    frames = [notes(range(500), f"text {number}").sample(fraction=1, shuffle=True, seed=number) for number in range(4)]
    result = upsert([frame.lazy() for frame in frames], store_url, target=Entities(batch_size=100), connections=2)
    assert result.ok
    assert counted(result) == {"created": 500, "updated": 1500}


def test_connections_are_limited(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """No more tasks run at a time than there may be connections, and none is left open."""
    paths = files(tmp_path, count=6)
    seen: list[int] = []
    done = threading.Event()
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(execute(store_url, query)[0][0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert upsert(paths, store_url, connections=1).ok
    finally:
        done.set()
        thread.join()
    assert max(seen) == 1
    wait_until(lambda: execute(store_url, query) == [(0,)], "the connections of the tasks to end")
    assert upsert(paths, store_url, connections=2).ok
    wait_until(lambda: execute(store_url, query) == [(0,)], "the connections of the tasks to end")


def test_a_task_whose_process_is_killed(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """It is tried again, and the counts are those of a run without faults."""
    with ef.connect(store_url) as store:
        store.upsert(notes(range(300)))
    frame = pl.concat([notes(range(100)), notes(range(100, 900), "new")])
    frame.write_parquet(tmp_path / "rows.parquet")
    marker = str(tmp_path / "killed")
    path = str(tmp_path / "rows.parquet")

    def source() -> Any:
        for number, piece in enumerate(pl.read_parquet(path).iter_slices(100)):
            if number == 6 and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

    result = upsert([source, *files(tmp_path, count=1)], store_url, target=Entities(batch_size=100))
    assert counted(result) == {"created": 600, "unchanged": 150, "updated": 200}
    assert result.ok
    [task] = result.partitions.filter(pl.col("partition") == "0").iter_rows(named=True)
    assert task["attempts"] == 2
    assert task["resumed"] >= 1


def test_a_task_that_always_dies(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """After the last retry the partition has an error, and the others are stored."""
    result = upsert([lambda: os.kill(os.getpid(), signal.SIGKILL), notes(range(3))], store_url, retries=1)
    assert counted(result) == {"created": 3}
    [dead] = result.outcomes.iter_rows(named=True)
    assert (dead["partition"], dead["status"], dead["rule"]) == ("0", "failed", "task")
    assert "2 attempts" in dead["error"]
    assert not result.ok


def test_cancel(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """Tasks that run roll back and end; those that have not started are cancelled."""
    cancel = threading.Event()
    started = str(tmp_path / "started")

    def endless() -> Any:
        open(started, "w").close()
        while True:
            yield notes(range(10))
            time.sleep(0.05)

    def stop() -> None:
        while not os.path.exists(started):
            cancel.wait(0.05)
        cancel.set()

    thread = threading.Thread(target=stop)
    thread.start()
    result = upsert([endless, notes(range(20, 30))], store_url, connections=1, cancel=cancel)
    thread.join()
    assert not result.ok
    assert result.outcomes["status"].to_list() == ["cancelled", "cancelled"], result.outcomes.to_dicts()
    assert result.partitions["attempts"].to_list() == [1, 0]


def test_ctrl_c(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """The exception has the counts and the result; nothing is written afterwards."""
    started = str(tmp_path / "started")

    def endless() -> Any:
        for number in itertools.count():
            yield notes(range(10 * number, 10 * number + 10))
            if number == 3:
                open(started, "w").close()
            time.sleep(0.05)

    def press() -> None:
        wait_until(lambda: os.path.exists(started), "the endless partition to begin")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        upsert([notes(range(1_000_000, 1_000_003)), endless], store_url, target=Entities(batch_size=10), connections=1)
    thread.join()
    assert "Before that: 3 created. Run the same call again" in caught.value.__notes__[0]
    assert counted(caught.value.result) == {"created": 3}
    assert caught.value.result.partitions["error"].to_list() == [
        None,
        "the run was stopped: the batch in flight was rolled back, earlier ones are kept",
    ]
    with ef.connect(store_url) as store:
        stored = store.count("note")
        assert stored >= 23
        time.sleep(0.5)
        assert store.count("note") == stored


def test_what_is_refused_before_anything_starts(upsert: Any, store_url: str, tmp_path: Path) -> None:
    """A DuckDB file, an address with a password, patterns without files, and values that make no sense."""
    with pytest.raises(ef.ConnectError, match="DuckDB file"):
        upsert([notes(range(1))], str(tmp_path / "store.duckdb"))
    with pytest.raises(ef.ConnectError, match="has a password") as caught:
        upsert([notes(range(1))], "postgresql://me:canary@127.0.0.1/db")
    assert "canary" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        upsert(str(tmp_path / "*.parquet"), store_url)
    with pytest.raises(ValueError, match="neither Parquet nor Arrow"):
        upsert(["rows.csv"], store_url)
    with pytest.raises(ValueError, match="twice"):
        upsert(["a.parquet", "a.parquet"], store_url)
    with pytest.raises(ValueError, match="connections"):
        upsert([notes(range(1))], store_url, connections=0)
    with pytest.raises(ef.ConnectError):
        upsert([notes(range(1))], "postgresql://nobody@127.0.0.1:1/none")


def test_the_command_line_imports_no_ray() -> None:
    """Nor does the package."""
    script = "import sys, entityframes, entityframes.cli; entityframes.connect; print('ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "False", run.stderr
