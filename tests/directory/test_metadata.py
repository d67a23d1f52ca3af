"""Edits of metadata alone: treated like edits of the text, wherever and whenever they are made."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from tests.directory.test_sync import edit, once, put, statuses, tree

FRONT = "---\n# kept\ntitle: {}\n---\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def folder(store: ef.EntityStore, root: Path) -> ef.DirectorySync:
    """Three notes in sync."""
    for name in "abc":
        put(root / f"{name}.md", FRONT.format("one") + f"text of {name}\n")
    folder = ef.DirectorySync(store, root)
    folder.sync().raise_for_failures()
    return folder


def titles(store: ef.EntityStore) -> dict[str, str]:
    return dict(store.read("note").select("id", "title").rows())


def test_it_reaches_the_file_and_stays(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Edited in the store, it is in the file after the next sync, and is kept by the next edit of the text."""
    store.upsert_entity("note", "a", metadata={"title": "two", "stars": 5})
    assert statuses(folder.sync()) == {"a.md": "exported", "b.md": "unchanged", "c.md": "unchanged"}
    front = "---\n# kept\ntitle: two\nstars: 5\n---\n"
    assert (root / "a.md").read_text() == f"{front}text of a\n"
    edit(root / "a.md", f"{front}edited\n")
    assert statuses(folder.sync())["a.md"] == "updated"
    entity = store.get_entity("note", "a")
    assert (entity["metadata"], entity["content"]) == ({"title": "two", "stars": 5}, "edited\n")


def test_it_is_a_conflict_with_an_edit_of_the_text(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """The text edited in the file, the metadata in the store, and the other way round: both changed."""
    edit(root / "a.md", FRONT.format("one") + "edited\n")
    store.upsert_entity("note", "a", metadata={"title": "two"})
    edit(root / "b.md", FRONT.format("two") + "text of b\n")
    store.upsert_entity("note", "b", "edited\n")
    before = tree(root), store.scan().sort("id").collect()
    assert statuses(folder.sync()) == {"a.md": "conflict", "b.md": "conflict", "c.md": "unchanged"}
    assert tree(root) == before[0]
    assert store.scan().sort("id").collect().equals(before[1])


def test_it_comes_while_the_file_is_imported(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Between the survey and the write: a conflict, and the edit is kept."""
    edit(root / "a.md", FRONT.format("one") + "edited\n")
    result = folder.sync(progress=once(lambda: store.upsert_entity("note", "a", metadata={"title": "two"})))
    assert statuses(result)["a.md"] == "conflict"
    assert titles(store) == {"a": "two", "b": "one", "c": "one"}
    assert store.get_entity("note", "a")["content"] == "text of a\n"


@pytest.mark.parametrize("call", ["sync", "import_files"])
def test_it_comes_while_the_entity_is_deleted(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, call: str
) -> None:
    """The files are gone, but an entity edited during the sync is not deleted; the others are."""
    for name in "ab":
        (root / f"{name}.md").unlink()
    result = getattr(folder, call)(
        delete=True, max_delete=5, progress=once(lambda: store.upsert_entity("note", "a", metadata={"title": "two"}))
    )
    assert statuses(result) == {"a.md": "conflict", "b.md": "deleted", "c.md": "unchanged"}
    assert titles(store) == {"a": "two", "c": "one"}


@pytest.mark.parametrize("gone", [False, True])
def test_it_comes_while_the_file_wins(store: ef.EntityStore, root: Path, folder: ef.DirectorySync, gone: bool) -> None:
    """The saved version would not be the overwritten one: a conflict again."""
    store.upsert_entity("note", "a", "edited\n")
    if gone:
        (root / "a.md").unlink()
    else:
        edit(root / "a.md", FRONT.format("file") + "text of a\n")
    result = folder.sync(
        on_conflict="files",
        delete=True,
        progress=once(lambda: store.upsert_entity("note", "a", metadata={"title": "two"})),
    )
    assert statuses(result)["a.md"] == "conflict"
    assert titles(store)["a"] == "two"
    assert "a.md.conflict" not in tree(root)


def test_it_comes_after_the_plan(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """The plan is not applied to an entity that has changed since."""
    edit(root / "a.md", FRONT.format("one") + "edited\n")
    (root / "b.md").unlink()
    store.upsert_entity("note", "c", "edited\n")
    plan = folder.plan(delete=True)
    assert plan["action"].to_list() == ["update", "delete", "export"]
    for name in "abc":
        store.upsert_entity("note", name, metadata={"title": "two"})
    before = tree(root)
    assert statuses(plan.apply()) == dict.fromkeys(("a.md", "b.md", "c.md"), "conflict")
    assert titles(store) == dict.fromkeys("abc", "two")
    assert tree(root) == before


def test_another_title_is_another_entity(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """A new and a deleted entity are only treated as a rename if their metadata is equal."""
    store.delete_entity("note", "a")
    store.upsert_entity("note", "moved", "text of a\n", {"title": "two"})
    plan = folder.plan(delete=True)
    assert plan.filter(pl.col("action") != "unchanged").select("path", "action").rows() == [
        ("a.md", "delete"),
        ("note/moved.md", "export"),
    ]
    folder.sync(delete=True).raise_for_failures()
    assert (root / "note/moved.md").read_text() == "---\ntitle: two\n---\ntext of a\n"
    assert not (root / "a.md").exists()


def test_a_key_that_was_a_file_before(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """An entity that was deleted and created again with other metadata gets new front matter."""
    store.delete_entity("note", "a")
    folder.sync(delete=True).raise_for_failures()
    store.upsert_entity("note", "a", "text of a\n", {"title": "two"})
    assert statuses(folder.sync())["note/a.md"] == "exported"
    assert (root / "note/a.md").read_text() == "---\ntitle: two\n---\ntext of a\n"
