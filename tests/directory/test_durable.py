"""What a sync reports as written survives a power failure."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import entityframes as ef
from tests.directory.test_sync import edit, put, statuses, tree

pytestmark = pytest.mark.parametrize("engine", ["duckdb"])


class Synced(NamedTuple):
    """One fsync: the path, and its content at that moment."""

    inode: int
    #: The bytes of a file, or the names in a folder.
    had: bytes | frozenset[str]


class Disk:
    """Records every fsync, and may fail some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[Synced] = []
        self.refuses: Callable[[bool], int | None] = lambda folder: None
        fsync = os.fsync

        def heard(fd: int) -> None:
            status = os.fstat(fd)
            folder = stat.S_ISDIR(status.st_mode)
            if (error := self.refuses(folder)) is not None:
                raise OSError(error, os.strerror(error))
            if folder:
                self.synced.append(Synced(status.st_ino, frozenset(os.listdir(fd))))
            else:
                self.synced.append(Synced(status.st_ino, Path(f"/proc/self/fd/{fd}").read_bytes()))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", heard)

    def has_bytes(self, path: Path) -> bool:
        """Whether an existing file had all of its bytes when it was flushed."""
        return Synced(path.stat().st_ino, path.read_bytes()) in self.synced

    def has_name(self, path: Path) -> bool:
        """Whether the last fsync of the folder included the current state of the name."""
        names = [had for inode, had in self.synced if inode == path.parent.stat().st_ino and isinstance(had, frozenset)]
        return bool(names) and (path.name in names[-1]) == path.exists()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_new_and_changed_files(store: ef.EntityStore, root: Path, folder: ef.DirectorySync, disk: Disk) -> None:
    """Their bytes, their names, and the folders created for them, up to one that existed."""
    store.upsert_entity("note", "a/b/c", "deep", {"title": "x"})
    store.upsert_entity("note", "top", "text")
    assert folder.sync().counts["exported"] == 2
    for path in (root / "note/a/b/c.md", root / "note/top.md"):
        assert disk.has_bytes(path)
        assert disk.has_name(path)
    for made in (root / "note", root / "note/a", root / "note/a/b"):
        assert disk.has_name(made)
    disk.synced.clear()
    store.upsert_entity("note", "top", "another text")
    assert folder.sync().counts["exported"] == 1
    assert disk.has_bytes(root / "note/top.md")
    assert disk.has_name(root / "note/top.md")


def test_names_that_go_and_move(store: ef.EntityStore, root: Path, folder: ef.DirectorySync, disk: Disk) -> None:
    """A file that is deleted, one that moves to another folder, and one that is saved next to the winner."""
    put(root / "note/gone.md", "gone")
    put(root / "note/moved.md", "moved")
    put(root / "note/old/last.md", "last")
    put(root / "note/here/x.md", "to another folder")
    put(root / "note/here/y.md", "stays")
    put(root / "both.md", "one")
    folder.sync().raise_for_failures()
    store.delete(ef.ids("note", ["gone", "moved", "old/last", "here/x"]))
    store.upsert_entity("note", "new/place", "moved")
    store.upsert_entity("other", "there", "to another folder")
    edit(root / "both.md", "of the file")
    store.upsert_entity("note", "both", "of the store")
    disk.synced.clear()
    result = folder.sync(delete=True, max_delete=5, on_conflict="store")
    assert result.ok, result.failed
    assert sorted(tree(root)) == [
        "both.md", "both.md.conflict", "note/here/y.md", "note/new/place.md", "other/there.md"
    ]  # fmt: skip
    for path in (
        root / "note/gone.md", root / "note/moved.md", root / "note/new/place.md", root / "note/new",
        root / "note/old", root / "both.md", root / "both.md.conflict", root / "note/here/x.md", root / "other/there.md",
        root / "other",
    ):  # fmt: skip
        assert disk.has_name(path), path
    for path in (root / "both.md", root / "both.md.conflict"):
        assert disk.has_bytes(path)


@pytest.mark.parametrize("new", [True, False])
def test_bytes_that_the_disk_refuses(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, disk: Disk, new: bool
) -> None:
    """The file is not written, or stays unchanged; it is reported, nothing is left behind, and the next sync writes it."""
    store.upsert_entity("note", "a", "one")
    if not new:
        folder.sync().raise_for_failures()
        store.upsert_entity("note", "a", "two")
    before = tree(root)
    disk.refuses = lambda folder: None if folder else errno.EIO
    result = folder.sync()
    assert statuses(result) == {"note/a.md": "failed"}
    assert result.failed.select("error_kind").item() == "file"
    assert "input/output error" in result.failed["error"].item().lower()
    assert tree(root) == before
    assert store.get_entity("note", "a")["content"] == ("one" if new else "two")
    disk.refuses = lambda folder: None
    assert statuses(folder.sync()) == {"note/a.md": "exported"}


def test_names_that_the_disk_refuses(store: ef.EntityStore, root: Path, folder: ef.DirectorySync, disk: Disk) -> None:
    """The file exists, but may be lost in a power failure: it is not reported as exported."""
    store.upsert_entity("note", "a", "one")
    disk.refuses = lambda folder: errno.EIO if folder else None
    result = folder.sync()
    assert statuses(result) == {"note/a.md": "failed"}
    assert "may be lost in a power failure" in result.failed["error"].item()
    disk.refuses = lambda folder: None
    assert folder.sync().ok
    assert tree(root) == {"note/a.md": b"one"}
    assert set(folder.plan()["action"]) == {"unchanged"}


def test_a_file_system_that_syncs_no_folders(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, disk: Disk
) -> None:
    """fsync of a folder is not supported: this is not a failure."""
    store.upsert_entity("note", "a", "one")
    disk.refuses = lambda folder: errno.EINVAL if folder else None
    assert statuses(folder.sync()) == {"note/a.md": "exported"}
