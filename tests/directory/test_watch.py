"""Watching a folder: bursts, echoes, an editor's way of saving, and the end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef

PATIENCE = 20.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    root.mkdir()
    return root


@contextmanager
def watching(folder: ef.DirectorySync, **rules: object) -> Iterator[queue.Queue[ef.SyncResult]]:
    """A watch in a thread; its results in a queue. It ends with the block, and must end without an error."""
    results: queue.Queue[ef.SyncResult] = queue.Queue()
    stop = threading.Event()
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            folder.watch(stop=stop, on_result=results.put, settle=0.2, **rules)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    try:
        yield results
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert ended == [None]


def done(results: queue.Queue[ef.SyncResult]) -> dict[str, str]:
    """The next result, as path and status of what was not unchanged."""
    rows = results.get(timeout=PATIENCE).outcomes.filter(pl.col("status") != "unchanged")
    return dict(rows.select("path", pl.col("status").cast(pl.String)).rows())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_burst_is_one_sync(store: ef.EntityStore, root: Path) -> None:
    """Files written one after the other come in together, and what was there before comes at once."""
    (root / "first.md").write_text("first")
    with watching(ef.DirectorySync(store, root)) as results:
        assert done(results) == {"first.md": "created"}
        for number in range(20):
            (root / f"{number}.md").write_text(f"text {number}")
            time.sleep(0.01)
        assert done(results) == {f"{number}.md": "created" for number in range(20)}


def test_an_editor_that_saves_by_renaming_deletes_nothing(store: ef.EntityStore, root: Path) -> None:
    """The file is away for a moment; the entity is updated, not deleted."""
    (root / "a.md").write_text("one")
    with watching(ef.DirectorySync(store, root), delete=True) as results:
        assert done(results) == {"a.md": "created"}
        created = store.get_entity("note", "a")["created_at"]
        (root / "a.md").rename(root / "a.md~")
        time.sleep(0.05)
        (root / ".a.md.tmp").write_text("two")
        (root / ".a.md.tmp").rename(root / "a.md")
        (root / "a.md~").unlink()
        assert done(results) == {"a.md": "updated"}
    assert store.get_entity("note", "a")["created_at"] == created


def test_its_own_files_start_no_sync(store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exported is not taken for a change; a change of the store is found at the next look."""
    syncs = []
    folder = ef.DirectorySync(store, root)
    run = folder._run
    monkeypatch.setattr(folder, "_run", lambda *given: syncs.append(1) or run(*given))
    with watching(folder, poll=2.0) as results:
        until(lambda: len(syncs) == 1)
        store.upsert_entity("note", "a", "from the store")
        assert done(results) == {"note/a.md": "exported"}
        seen = len(syncs)
        time.sleep(1.0)
        assert len(syncs) == seen
    assert (root / "note/a.md").read_text() == "from the store"


def test_a_bad_file_is_told_once(store: ef.EntityStore, root: Path) -> None:
    """Not at every look; and errors go to on_error, and the watch goes on."""
    (root / "a.md").write_bytes(b"\xff")
    with watching(ef.DirectorySync(store, root), poll=0.5) as results:
        assert done(results) == {"a.md": "failed"}
        with pytest.raises(queue.Empty):
            results.get(timeout=2)
        (root / "a.md").write_text("good")
        assert done(results) == {"a.md": "created"}
