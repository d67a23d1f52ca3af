"""A folder that another sync has taken over: what the first one still does is not recorded as in sync."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import entityframes as ef
from entityframes.directory import sync
from tests.directory.test_sync import edit, once, put, statuses
from tests.faults.servers import Background

ENDED = "UPDATE entityframes.folders SET lease_until = now() - INTERVAL '1 minute'"


def test_a_sync_that_was_not_heard_of(
    connect: Callable[..., ef.EntityStore], store: ef.EntityStore, tmp_path: Path, sql: Callable[..., Any]
) -> None:
    """Another sync then holds the lock: the first one records nothing, does not release the lock, and reports it."""
    root = tmp_path / "notes"
    put(root / "a.md", "one")
    put(root / "kept.md", "kept")
    first, second = ef.DirectorySync(store, root), ef.DirectorySync(connect(), root)
    first.sync().raise_for_failures()
    edit(root / "a.md", "two")
    holding, go = threading.Event(), threading.Event()
    others: list[Background] = []

    def hold() -> None:
        holding.set()
        assert go.wait(60)

    def take_over() -> None:
        sql(ENDED)
        others.append(Background(lambda: second.sync(progress=once(hold))))
        assert holding.wait(60)

    remembered = "SELECT path, file_hash FROM entityframes.files ORDER BY path"
    before = sql(remembered)
    try:
        with pytest.raises(ef.DirectoryError, match="took over"):
            first.sync(progress=once(take_over))
        # Its changes were kept.
        assert store.get_entity("note", "a")["content"] == "two"
        assert sql(remembered) == before
        with pytest.raises(ef.DirectoryError, match="is being synced by"):
            first.sync()
    finally:
        go.set()
    assert statuses(others[0].outcome())["kept.md"] == "unchanged"
    assert set(statuses(first.sync()).values()) == {"unchanged"}
    assert sql(remembered) != before
    edit(root / "a.md", "three")
    assert statuses(first.sync())["a.md"] == "updated"


@pytest.mark.slow
def test_a_long_sync_keeps_its_hold(
    connect: Callable[..., ef.EntityStore], store: ef.EntityStore, tmp_path: Path, sql: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It says that it is at work before its hold ends: another sync is kept off all the time."""
    monkeypatch.setattr(sync, "LEASE", 6.0)
    root = tmp_path / "notes"
    put(root / "a.md", "one")
    first, second = ef.DirectorySync(store, root), ef.DirectorySync(connect(), root)

    def until_it_is_renewed() -> None:
        held = sql("SELECT lease_until FROM entityframes.folders")
        while sql("SELECT lease_until FROM entityframes.folders") == held:
            with pytest.raises(ef.DirectoryError, match="is being synced by"):
                second.sync()
            time.sleep(0.1)

    assert first.sync(progress=once(until_it_is_renewed)).counts["created"] == 1


def test_a_hold_that_ended_and_that_nobody_took(store: ef.EntityStore, tmp_path: Path, sql: Callable[..., Any]) -> None:
    """This sync still holds the lock: its changes are recorded."""
    root = tmp_path / "notes"
    put(root / "a.md", "one")
    folder = ef.DirectorySync(store, root)
    assert folder.sync(progress=once(lambda: sql(ENDED))).counts["created"] == 1
    assert sql("SELECT count(*) FROM entityframes.files") == [(1,)]
    assert folder.sync().counts["unchanged"] == 1
