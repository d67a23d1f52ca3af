"""Files whose bytes changed and whose size and time did not: detected, reported, and never overwritten unseen."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.directory.handles import Stat
from entityframes.directory.tree import Tree
from tests.conftest import engine_and_keys

engine = engine_and_keys

NAMES = ("mon", "tue")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    root.mkdir()
    return root


@pytest.fixture(params=["imported", "exported"])
def folder(request: pytest.FixtureRequest, store: ef.EntityStore, root: Path) -> ef.DirectorySync:
    """A folder and a store in sync: note/mon.md and note/tue.md, of equal size and, if they can be, of equal time."""
    folder = ef.DirectorySync(store, root)
    if request.param == "exported":
        rows = pl.DataFrame({"entity_type": "note", "id": NAMES, "content": [f"of {name}\n" for name in NAMES]})
        store.upsert(rows, progress=False)
        assert folder.sync().counts["exported"] == 2
    else:
        (root / "note").mkdir()
        for name in NAMES:
            (root / f"note/{name}.md").write_text(f"of {name}\n")
            os.utime(root / f"note/{name}.md", ns=(10**18, 10**18))
        assert folder.sync().counts["created"] == 2
        folder.sync()
    return folder


def keeping_times(path: Path, change: Callable[[Path], object]) -> None:
    """Change a file, and restore its times."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def in_place(mon: Path, _: Path) -> None:
    """As `rsync --inplace --times` does, and programs that hide their changes."""
    keeping_times(mon, lambda path: path.write_text("edited\n"))


def new_inode(mon: Path, _: Path) -> None:
    """As editors save, and `rsync --times`."""

    def save(path: Path) -> None:
        path.with_name("saved").write_text("edited\n")
        path.with_name("saved").replace(path)

    keeping_times(mon, save)


def copied(mon: Path, tue: Path) -> None:
    """`cp -p` of a file with the same time."""
    os.utime(tue, ns=(tue.stat().st_atime_ns, mon.stat().st_mtime_ns))
    shutil.copy2(tue, mon)


def moved_over(mon: Path, tue: Path) -> None:
    """Move one file over the other."""
    os.utime(tue, ns=(tue.stat().st_atime_ns, mon.stat().st_mtime_ns))
    tue.rename(mon)


def swapped(mon: Path, tue: Path) -> None:
    """Exchange the names of two files."""
    os.utime(tue, ns=(tue.stat().st_atime_ns, mon.stat().st_mtime_ns))
    mon.rename(mon.with_name("kept"))
    tue.rename(mon)
    mon.with_name("kept").rename(tue)


def linked(mon: Path, tue: Path) -> None:
    """Replace the first file by a hard link to the other one."""
    os.utime(tue, ns=(tue.stat().st_atime_ns, mon.stat().st_mtime_ns))
    os.link(tue, mon.with_name("link"))
    mon.with_name("link").replace(mon)


CHANGES = [in_place, new_inode, copied, moved_over, swapped, linked]


def contents(store: ef.EntityStore) -> dict[str, str]:
    return dict(store.read("note").select("id", "content").rows())


@pytest.mark.parametrize("change", CHANGES)
def test_it_reaches_the_store(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, change: Callable[[Path, Path], None]
) -> None:
    """Case 55 of the fault catalogue: the next sync detects the changes."""
    change(root / "note/mon.md", root / "note/tue.md")
    there = {path.stem: path.read_text() for path in (root / "note").iterdir()}
    planned = folder.plan()
    assert "update" in set(planned["action"])
    result = folder.sync(delete=True)
    assert result.ok
    assert contents(store) == there
    assert {path.stem: path.read_text() for path in (root / "note").iterdir()} == there
    assert set(folder.plan()["action"]) == {"unchanged"}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_a_conflict_where_the_entity_changed_too(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, change: Callable[[Path, Path], None]
) -> None:
    """It is reported, and the file is left unchanged; so is a file whose entity was deleted."""
    store.upsert_entity("note", "mon", "of the store\n")
    change(root / "note/mon.md", root / "note/tue.md")
    there = (root / "note/mon.md").read_text()
    result = folder.sync(delete=True)
    assert dict(result.outcomes.select("path", "status").rows())["note/mon.md"] == "conflict"
    assert (root / "note/mon.md").read_text() == there
    store.delete_entity("note", "mon")
    folder.export_files(delete=True)
    folder.sync(delete=True)
    assert (root / "note/mon.md").read_text() == there


@pytest.mark.parametrize("entity", ["changed", "deleted", "renamed"])
def test_bytes_are_compared_before_anything_is_overwritten(
    store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch, entity: str
) -> None:
    """A file that changes between the check of its status and the write, by any means, is left unchanged."""
    (root / "note").mkdir()
    path = root / "note/mon.md"
    path.write_text("of mon\n")
    os.utime(path, ns=(10**18, 10**18))
    folder = ef.DirectorySync(store, root)
    folder.sync()
    folder.sync()
    if entity == "changed":
        store.upsert_entity("note", "mon", "of the store\n")
    else:
        store.delete_entity("note", "mon")
    if entity == "renamed":
        store.upsert_entity("note", "other", "of mon\n")
    walk = Tree.walk

    def late(tree: Tree, *given: Any) -> object:
        found = walk(tree, *given)
        keeping_times(path, lambda path: path.write_text("edited\n"))
        return found

    monkeypatch.setattr(Tree, "walk", late)
    result = folder.sync(delete=True)
    assert result.counts["failed"] == 1
    assert "was changed by another process" in result.failed["error"].item()
    assert path.read_text() == "edited\n"
    monkeypatch.undo()
    assert folder.plan()["action"].to_list() != ["unchanged"]
    assert path.read_text() == "edited\n"


def test_another_status_alone_is_no_change(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """A restored backup, a clone, a checkout: the bytes are read, found to be equal, and recorded."""
    again = root.with_name("again")
    shutil.copytree(root, again)
    shutil.rmtree(root)
    again.rename(root)
    assert set(folder.plan()["action"]) == {"unchanged"}
    assert folder.sync().counts["unchanged"] == 2
    store.upsert_entity("note", "mon", "of the store\n")
    assert folder.sync().counts["exported"] == 1


def test_another_status_is_no_edit(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """An export does not treat it as changed, and the file of an entity that was renamed is still moved."""
    front = "---\ntitle: A  # kept\n---\n"
    path = root / "note/front.md"
    path.write_text(f"{front}text\n")
    folder.sync()
    path.chmod(0o600)
    result = folder.export_files(delete=True)
    assert result.counts["unchanged"] == 3
    assert result.outcomes["error"].null_count() == 3
    entity = store.get_entity("note", "front")
    store.delete_entity("note", "front")
    store.upsert_entity("note", "other", entity["content"], entity["metadata"])
    path.chmod(0o644)
    assert folder.sync(delete=True).counts["renamed"] == 1
    assert (root / "note/other.md").read_text() == f"{front}text\n"
    store.delete_entity("note", "mon")
    (root / "note/mon.md").chmod(0o600)
    assert folder.export_files(delete=True).counts["deleted"] == 1


def test_a_renamed_file_where_times_are_coarse(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that stores whole seconds: the next sync reads the file, which may have changed since."""
    entity = store.get_entity("note", "mon")
    store.delete_entity("note", "mon")
    store.upsert_entity("note", "other", entity["content"], entity["metadata"])
    with monkeypatch.context() as patch:
        patch.setattr(Stat, "coarse", True)
        assert folder.sync(delete=True).counts["renamed"] == 1
    read, asked = Tree.read, []
    monkeypatch.setattr(Tree, "read", lambda tree, paths: asked.extend(paths) or read(tree, paths))
    folder.sync()
    assert "note/other.md" in asked


def test_a_checkout(store: ef.EntityStore, root: Path) -> None:
    """Another branch of a repository, with other bytes of equal size, and back."""
    if shutil.which("git") is None:
        pytest.skip("git is not there")

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)

    git("init", "-q", "-b", "one")
    for branch, text in (("one", "first\n"), ("two", "other\n")):
        if branch == "two":
            git("checkout", "-q", "-b", "two")
        (root / "a.md").write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", branch)
    folder = ef.DirectorySync(store, root)
    folder.sync()
    for branch, text in (("one", "first\n"), ("two", "other\n"), ("one", "first\n")):
        before = (root / "a.md").stat()
        git("checkout", "-q", branch)
        os.utime(root / "a.md", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert folder.sync().counts["updated"] == 1
        assert store.get_entity("note", "a")["content"] == text


def test_exported_files_have_several_times(store: ef.EntityStore, root: Path) -> None:
    """Other programs detect changes by size and time: the files of one batch must differ for them."""
    ids = [str(number) for number in range(300)]
    store.upsert(pl.DataFrame({"entity_type": "note", "id": ids, "content": "text"}), progress=False)
    ef.DirectorySync(store, root).export_files().raise_for_failures()
    times = [path.stat().st_mtime_ns for path in (root / "note").iterdir()]
    assert len(set(times)) == 300
