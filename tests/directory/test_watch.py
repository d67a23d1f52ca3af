"""Watching a folder: bursts, its own writes, saving by replacing a file, and stopping."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import watchfiles

import entityframes as ef

#: Timeout in seconds.
PATIENCE = 120.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    root.mkdir()
    return root


@contextmanager
def watching(folder: ef.DirectorySync, **rules: object) -> Iterator[queue.Queue[ef.SyncResult]]:
    """Run a watch in a thread, with its results in a queue; it ends with the block, and must not raise."""
    results: queue.Queue[ef.SyncResult] = queue.Queue()
    stop = threading.Event()
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            folder.watch(stop=stop, on_result=results.put, **({"settle": 0.05} | rules))
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert ended == [None]


def done(results: queue.Queue[ef.SyncResult]) -> dict[str, str]:
    """The next result, as path and status of the rows that are not unchanged."""
    rows = results.get(timeout=PATIENCE).outcomes.filter(pl.col("status") != "unchanged")
    return dict(rows.select("path", pl.col("status").cast(pl.String)).rows())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def counted(folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A queue that receives an item at the end of each sync of a folder."""
    run, syncs = folder._run, []

    def counting(*given: object) -> ef.SyncResult:
        result = run(*given)
        syncs.append(1)
        return result

    monkeypatch.setattr(folder, "_run", counting)
    return syncs


@pytest.mark.slow
def test_a_burst_is_one_sync(store: ef.EntityStore, root: Path) -> None:
    """Files written in quick succession are synced together, and existing files immediately."""
    (root / "first.md").write_text("first")
    # Far longer than the burst takes.
    with watching(ef.DirectorySync(store, root), settle=1.0) as results:
        assert done(results) == {"first.md": "created"}
        for number in range(20):
            (root / f"{number}.md").write_text(f"text {number}")
        assert done(results) == {f"{number}.md": "created" for number in range(20)}


@pytest.mark.slow
def test_an_editor_that_saves_by_renaming_deletes_nothing(store: ef.EntityStore, root: Path) -> None:
    """The file is missing for a moment; the entity is updated, not deleted."""
    (root / "a.md").write_text("one")
    with watching(ef.DirectorySync(store, root), delete=True, settle=1.0) as results:
        assert done(results) == {"a.md": "created"}
        created = store.get_entity("note", "a")["created_at"]
        (root / "a.md").rename(root / "a.md~")
        (root / ".a.md.tmp").write_text("two")
        (root / ".a.md.tmp").rename(root / "a.md")
        (root / "a.md~").unlink()
        assert done(results) == {"a.md": "updated"}
    assert store.get_entity("note", "a")["created_at"] == created


def test_its_own_files_start_no_sync(store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export is not treated as a change."""
    folder = ef.DirectorySync(store, root)
    syncs, dealt_with = counted(folder, monkeypatch), []
    watch = watchfiles.watch

    def telling(*given: object, **options: object) -> Iterator[object]:
        for batch in watch(*given, **options):
            yield batch
            dealt_with.extend(Path(path).name for _, path in batch)

    monkeypatch.setattr(watchfiles, "watch", telling)
    store.upsert_entity("note", "a", "from the store")
    (root / "note").mkdir()
    with watching(folder, poll=3_600.0) as results:
        assert done(results) == {"note/a.md": "exported"}
        until(lambda: "a.md" in dealt_with)
        (root / "b.md").write_text("from the folder")
        assert done(results) == {"b.md": "created"}
        assert len(syncs) == 2
    assert (root / "note/a.md").read_text() == "from the store"


def test_a_change_among_its_own_files_starts_a_sync(
    store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export and a new file that are noticed at the same time."""
    stop, results = threading.Event(), []

    def batches(*_: object, **__: object) -> Iterator[set[tuple[object, str]]]:
        yield set()
        (root / "b.md").write_text("from the folder")
        yield {(watchfiles.Change.added, str(root / name)) for name in ("note/a.md", "b.md")}
        stop.set()

    monkeypatch.setattr(watchfiles, "watch", batches)
    store.upsert_entity("note", "a", "from the store")
    ef.DirectorySync(store, root).watch(stop=stop, on_result=results.append, poll=3_600.0)
    assert [result.counts["exported"] + result.counts["created"] for result in results] == [1, 1]


def test_every_save_is_reported(store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file, repeatedly, and together with an invalid one: once each time."""
    (root / "bad.md").write_bytes(b"\xff")
    folder = ef.DirectorySync(store, root)
    syncs = counted(folder, monkeypatch)
    with watching(folder, poll=0.05) as results:
        assert done(results) == {"bad.md": "failed"}
        (root / "a.md").write_text("one")
        assert done(results) == {"a.md": "created", "bad.md": "failed"}
        for text in ("two", "six", "ten"):
            (root / "a.md").write_text(text)
            assert done(results) == {"a.md": "updated", "bad.md": "failed"}
            assert store.get_entity("note", "a")["content"] == text
        seen = len(syncs)
        until(lambda: len(syncs) > seen + 3)
        assert results.empty()


def test_every_change_of_the_store_is_reported(store: ef.EntityStore, root: Path) -> None:
    """In the other direction, too: the same file is exported twice."""
    with watching(ef.DirectorySync(store, root), poll=0.05) as results:
        for text in ("one", "two", "six"):
            store.upsert_entity("note", "a", text)
            assert done(results) == {"note/a.md": "exported"}
            assert (root / "note/a.md").read_text() == text


def test_embedding_what_was_synced(store: ef.EntityStore, root: Path) -> None:
    """The example in the guide: after every save the note is found."""
    stop, embedder = threading.Event(), ef.HashingEmbedder(32)
    folder = ef.DirectorySync(store, root)

    def embed(_: ef.SyncResult) -> None:
        store.embed(embedder, progress=False)

    watch = threading.Thread(
        target=folder.watch, kwargs={"stop": stop, "on_result": embed, "settle": 0.05, "poll": 0.05}
    )
    watch.start()
    try:
        for text in ("apples and pears", "trains and stations", "clouds and rain"):
            (root / "a.md").write_text(text)
            until(lambda text=text: (store.get_entity("note", "a") or {}).get("content") == text)
            until(lambda: store.stats()["due"].sum() == 0)
    finally:
        stop.set()
        watch.join(PATIENCE)
    assert not watch.is_alive()


def test_a_save_while_a_sync_runs(store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is saved just after it was read or written is synced and reported without waiting for a poll."""
    folder = ef.DirectorySync(store, root)
    run = folder._run
    late = [b"of the file\n", b"anew, longer\n"]

    def slow(*given: object) -> ef.SyncResult:
        result = run(*given)
        if result.counts["created"] or result.counts["exported"]:
            (root / "note/a.md").write_bytes(late.pop(0))
        return result

    monkeypatch.setattr(folder, "_run", slow)
    (root / "note").mkdir()
    (root / "note/a.md").write_text("first")
    with watching(folder, poll=600.0) as results:
        assert done(results) == {"note/a.md": "created"}
        assert done(results) == {"note/a.md": "updated"}
        store.upsert_entity("note", "a", "of the store")
        (root / "note/b.md").write_text("b")
        assert done(results) == {"note/a.md": "exported", "note/b.md": "created"}
        assert done(results) == {"note/a.md": "updated"}
    assert store.get_entity("note", "a")["content"] == "anew, longer\n"


@pytest.mark.parametrize("handled", [True, False])
def test_errors_of_on_result(store: ef.EntityStore, root: Path, handled: bool) -> None:
    """They are passed to on_error like those of a sync, or end the watch without it; the change counts as reported."""
    (root / "a.md").write_text("one")
    stop, reported = threading.Event(), []

    def failing(result: ef.SyncResult) -> None:
        reported.append(result.counts["created"] or result.counts["updated"])
        if len(reported) == 1:
            raise ef.EntityFramesError("no embedder")
        stop.set()

    def mind(error: ef.EntityFramesError) -> None:
        reported.append(str(error))
        (root / "a.md").write_text("two")

    watch = ef.DirectorySync(store, root).watch
    if handled:
        watch(stop=stop, on_result=failing, on_error=mind, settle=0.05, poll=0.05)
        assert reported == [1, "no embedder", 1]
    else:
        with pytest.raises(ef.EntityFramesError, match="no embedder"):
            watch(stop=stop, on_result=failing, settle=0.05, poll=0.05)


def test_what_was_done_before_an_error_is_reported(
    store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next sync finds it in sync and would not report it."""
    (root / "a.md").write_text("one")
    folder = ef.DirectorySync(store, root)
    monkeypatch.setattr(type(store._engine.directory), "record", lambda *_: False)
    stop, reported = threading.Event(), []

    def mind(error: ef.EntityFramesError) -> None:
        reported.append(type(error))
        stop.set()

    folder.watch(
        stop=stop, on_result=lambda result: reported.append(result.counts["created"]), on_error=mind, poll=0.05
    )
    assert reported == [1, ef.DirectoryError]


def test_a_bad_file_is_reported_once(store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after every sync; errors are passed to on_error, and the watch continues."""
    (root / "a.md").write_bytes(b"\xff")
    folder = ef.DirectorySync(store, root)
    syncs = counted(folder, monkeypatch)
    with watching(folder, poll=0.05) as results:
        assert done(results) == {"a.md": "failed"}
        seen = len(syncs)
        until(lambda: len(syncs) > seen + 3)
        assert results.empty()
        (root / "a.md").write_text("good")
        assert done(results) == {"a.md": "created"}
