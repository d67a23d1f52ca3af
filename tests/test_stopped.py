"""What a call that ends early says: what is stored, what was not read, and how to continue."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.embedding import worker
from entityframes.writing import delete


def notes(start: int = 0, rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, start + rows)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("text {}", "n")
    )


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def counted(note: str) -> dict[str, int]:
    """The numbers by status in a note."""
    return {status: int(number.replace(",", "")) for number, status in re.findall(r"(\d[\d,]*) ([a-z]+)[,.]", note)}


def frames_of_ours(error: BaseException) -> list[str]:
    return [each.filename for each in traceback.extract_tb(error.__traceback__) if "/entityframes/" in each.filename]


def pressing(done: int, total: int | None) -> None:
    """A progress callback."""
    if done >= 300:
        press()


def test_ctrl_c_in_a_stream(store: ef.EntityStore) -> None:
    """The note has the numbers that the store has, and the traceback is that of the call."""

    def source() -> Iterator[pl.DataFrame]:
        for start in range(0, 10_000, 100):
            yield notes(start)

    with pytest.raises(KeyboardInterrupt) as caught:
        store.upsert(source(), batch_size=100, progress=pressing)
    [note] = caught.value.__notes__
    assert counted(note)["created"] == store.stats()["entities"].item() >= 300
    assert store.last_result is not None
    assert f"Reading stopped after {store.last_result.rows:,} rows" in note
    assert "store.last_result has the outcome of each row" in note
    assert "Run the same call again to continue" in note
    assert frames_of_ours(caught.value) == []
    assert store.upsert(source(), batch_size=100, progress=False).ok
    assert store.stats()["entities"].item() == 10_000


def test_ctrl_c_in_a_frame(store: ef.EntityStore) -> None:
    """All of its rows have an outcome, and the note counts them."""
    with pytest.raises(KeyboardInterrupt) as caught:
        store.upsert(notes(rows=5_000), batch_size=100, progress=pressing)
    [note] = caught.value.__notes__
    numbers = counted(note)
    assert numbers["created"] == store.stats()["entities"].item()
    assert sum(numbers.values()) == 5_000
    assert "Reading" not in note


def test_ctrl_c_before_anything_is_written(store: ef.EntityStore) -> None:
    """The note says so."""

    def source() -> Iterator[pl.DataFrame]:
        press()
        yield notes()

    with pytest.raises(KeyboardInterrupt) as caught:
        store.upsert(source(), progress=False)
    assert caught.value.__notes__[0].startswith("Nothing was written.")


def test_ctrl_c_in_a_delete(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted and what was not."""
    monkeypatch.setattr(delete, "DELETE_ROWS", 100)
    store.upsert(notes(rows=1_000), progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        store.delete(notes(rows=1_000), progress=pressing)
    numbers = counted(caught.value.__notes__[0])
    assert numbers == {
        "deleted": 1_000 - store.stats()["entities"].item(),
        "cancelled": store.stats()["entities"].item(),
    }


def test_ctrl_c_in_an_embedding(store: ef.EntityStore) -> None:
    """What is embedded is counted by the store, too."""
    store.upsert(notes(rows=400), batch_size=100, progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        store.embed(ef.HashingEmbedder(16, max_batch=10), progress=pressing)
    assert counted(caught.value.__notes__[0]).get("embedded", 0) == store.stats()["embedded"].item()
    assert frames_of_ours(caught.value) == []


def test_ctrl_c_while_vectors_are_written(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes too long is not written, and is not said to be that of another worker."""
    released = threading.Event()
    write, release = store._engine.embedding.write_vectors, worker.EmbedRun._release

    def late(*given: Any) -> Any:
        press()
        assert released.wait(60)
        return write(*given)

    def releasing(run: Any, *given: Any) -> None:
        release(run, *given)
        released.set()

    monkeypatch.setattr(worker, "ABORT_WRITE_SECONDS", 0.0)
    monkeypatch.setattr(store._engine.embedding, "write_vectors", late)
    monkeypatch.setattr(worker.EmbedRun, "_release", releasing)
    store.upsert(notes(rows=40), progress=False)
    with pytest.raises(KeyboardInterrupt):
        store.embed(ef.HashingEmbedder(16), workers=1, progress=False)
    assert store.last_result is not None
    until = time.monotonic() + 60
    while store.last_result.outcomes.is_empty() and time.monotonic() < until:
        time.sleep(0.01)
    assert store.last_result.outcomes["status"].unique().to_list() == ["cancelled"]
    assert store.stats()["due"].item() == 40


def test_ctrl_c_in_a_table(store: ef.EntityStore) -> None:
    """It names the table."""
    people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
    with pytest.raises(KeyboardInterrupt) as caught:
        people.upsert(pl.DataFrame({"id": range(5_000)}), batch_size=100, progress=pressing)
    [note] = caught.value.__notes__
    assert counted(note)["created"] == people.read().height
    assert "table.last_result" in note


def test_ctrl_c_in_a_sync(store: ef.EntityStore, tmp_path: Path) -> None:
    """As for the other calls that write; files that were written last may count as cancelled, and are then in sync."""
    store.upsert(notes(rows=400), progress=False)
    with pytest.raises(KeyboardInterrupt) as caught:
        ef.DirectorySync(store, tmp_path).export_files(progress=pressing)
    assert 0 < counted(caught.value.__notes__[0])["exported"] <= len(list(tmp_path.rglob("*.md")))
    assert ef.DirectorySync(store, tmp_path).sync(progress=False).ok


def test_ctrl_c_in_an_export_writes_no_further_files(store: ef.EntityStore, tmp_path: Path) -> None:
    """However many are left; the threads that write them end at once."""
    store.upsert(notes(rows=5_000), progress=False)
    with pytest.raises(KeyboardInterrupt):
        ef.DirectorySync(store, tmp_path).export_files(progress=lambda done, total: press())
    written = len(list(tmp_path.rglob("*.md")))
    assert written < 4_000
    assert store.last_result is not None
    assert store.last_result.counts["cancelled"] >= 5_000 - written


def test_an_export_that_is_cancelled(store: ef.EntityStore, tmp_path: Path) -> None:
    """Also in the middle of a chunk: each file that is there was exported, and all others are cancelled."""
    store.upsert(notes(rows=2_000), progress=False)
    cancel = threading.Event()
    result = ef.DirectorySync(store, tmp_path).export_files(progress=lambda done, total: cancel.set(), cancel=cancel)
    assert result.counts["exported"] == len(list(tmp_path.rglob("*.md")))
    assert result.counts["cancelled"] == 2_000 - result.counts["exported"] > 0
    assert not result.counts["failed"]


def failing() -> Iterator[Any]:
    """A source that ends with an error."""
    yield notes()
    yield notes(100)
    raise OSError("the network is down")


@pytest.mark.parametrize("source", [failing, lambda: (row for frame in failing() for row in frame.to_dicts())])
def test_an_error_of_the_source(store: ef.EntityStore, source: Callable[[], Any]) -> None:
    """Rows before it are stored; the traceback has the code of the caller only."""
    with pytest.raises(OSError, match="network") as caught:
        store.upsert(source(), batch_size=50, progress=False)
    [note] = caught.value.__notes__
    assert counted(note) == {"created": 200} == {"created": store.stats()["entities"].item()}
    assert "Reading stopped after 200 rows" in note
    assert frames_of_ours(caught.value) == []
    assert "failing" in [each.name for each in traceback.extract_tb(caught.value.__traceback__)]


def test_an_error_of_ours_keeps_its_traceback(store: ef.EntityStore) -> None:
    """It may be a defect of this package."""
    with pytest.raises(ef.SchemaError) as caught:
        store.upsert(pl.DataFrame({"x": [1]}), progress=False)
    assert frames_of_ours(caught.value)
    assert not hasattr(caught.value, "__notes__")


def test_a_stream_that_is_cancelled(store: ef.EntityStore) -> None:
    """There is no exception: the result says that the rest was not read."""
    cancel = threading.Event()
    frames = (notes(start) for start in range(0, 10_000, 100))
    result = store.upsert(frames, batch_size=100, cancel=cancel, progress=lambda done, total: cancel.set())
    [note] = result.notes
    assert note.startswith(f"Reading stopped after {result.rows:,} rows: later rows")
    assert not result.ok
    assert repr(result).endswith(f"\n{note}")
    assert note in result._repr_html_()
    with pytest.raises(ef.EntityFramesError, match="Reading stopped"):
        result.raise_for_failures()
    assert store.upsert(notes(), progress=False).notes == ()
    assert store.upsert(iter([notes()]), progress=False).notes == ()
