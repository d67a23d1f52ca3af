"""A folder and a store in sync: what is applied, what is not, and what is reported, on both engines."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest

import entityframes as ef
from entityframes.directory import plan, survey
from entityframes.directory.handles import Folder
from entityframes.directory.tree import Tree

FRONT = "---\ntitle: {}\ntags: [a, b]  # a comment that has to survive\n---\n\n"


def write(root: Path, **files: str | bytes) -> None:
    for name, text in files.items():
        put(root / name.replace("__", "/"), text)


def once(do: Callable[[], object]) -> Callable[[int, int | None], None]:
    """A progress callback that acts on its first call: all files have been read, and nothing is written yet."""
    left = [do]

    def progress(done: int, total: int | None) -> None:
        if left:
            left.pop()()

    return progress


def test_progress_of_a_plan_and_of_a_survey(
    store: ef.EntityStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that are found are shown while the folder is walked; those that are read have a total."""
    write(tmp_path, **{f"note__{n}.md": "text" for n in range(30)})
    calls: list[tuple[int, int | None]] = []
    folder = ef.DirectorySync(store, tmp_path)
    assert folder.plan(progress=lambda *call: calls.append(call)).counts["create"] == 30
    assert calls[-1] == (30, 30)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ef.StatementCancelledError):
        folder.plan(cancel=cancel)
    monkeypatch.setattr("entityframes.progress.DELAY", 0.0)
    folder.plan(progress="log")
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(",")[:2] for line in shown] == [["survey: done", " 30 files"], ["plan: done", " 30 files"]]
    assert folder.sync(progress="log").counts["created"] == 30
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(",")[:2] for line in shown] == [["survey: done", " 30 files"], ["sync: done", " 30 files"]]


def put(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    # As if it had been written a while ago, so that its state is stable.
    at = path.stat().st_mtime_ns - 10_000_000_000
    os.utime(path, ns=(at, at))


def edit(path: Path, text: str) -> None:
    """Rewrite a file, with a later modification time."""
    at = path.stat().st_mtime_ns + 1_000_000_000 if path.exists() else None
    put(path, text)
    if at is not None:
        os.utime(path, ns=(at, at))


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def actions(plan: pl.DataFrame) -> dict[str, str]:
    return {row["path"]: row["action"] for row in plan.iter_rows(named=True)}


def statuses(result: ef.SyncResult) -> dict[str, str]:
    return {row["path"]: row["status"] for row in result.outcomes.iter_rows(named=True)}


def test_a_first_import(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Files become entities: type and id from the path, metadata from the front matter, the rest is content."""
    put(root / "readme.md", "# Hello\n")
    put(root / "post/2026/first.md", FRONT.format("First") + "Text\n")
    put(root / "post/picture.png", b"\x89PNG")
    plan = folder.plan()
    assert plan.columns == ["path", "entity_type", "id", "action", "direction", "reason"]
    assert plan.rows() == [
        ("post/2026/first.md", "post", "2026/first", "create", "import", None),
        ("readme.md", "note", "readme", "create", "import", None),
    ]
    assert store.stats().is_empty()
    result = folder.import_files()
    assert result.ok
    assert statuses(result) == {"post/2026/first.md": "created", "readme.md": "created"}
    entity = store.get_entity("post", "2026/first")
    assert entity["content"] == "\nText\n"
    assert entity["metadata"] == {"title": "First", "tags": ["a", "b"]}
    assert store.get_entity("note", "readme")["content"] == "# Hello\n"
    assert result.outcomes["job_id"].null_count() == 0


def test_again_there_is_nothing_to_do(root: Path, folder: ef.DirectorySync) -> None:
    """A second sync of the same files writes nothing on either side."""
    put(root / "a.md", FRONT.format("A") + "a")
    folder.sync()
    before = {path: (root / path).stat().st_mtime_ns for path in tree(root)}
    assert set(folder.plan()["action"]) == {"unchanged"}
    result = folder.sync()
    assert result.counts["unchanged"] == result.rows == 1
    assert result.batches == 0
    assert {path: (root / path).stat().st_mtime_ns for path in tree(root)} == before


def test_an_unchanged_file_is_not_read(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status has not changed since the last sync: it is not read, even if there are new entities."""
    put(root / "a.md", "aaa")
    time.sleep(0.1)
    folder.sync()
    read: list[str] = []
    reading = Tree.read
    monkeypatch.setattr(Tree, "read", lambda tree, paths, *rest: read.extend(paths) or reading(tree, paths, *rest))
    assert folder.sync().counts["unchanged"] == 1
    assert read == []
    (root / "a.md").chmod(0o600)
    assert folder.sync().counts["unchanged"] == 1
    assert read == ["a.md"]
    time.sleep(0.1)
    folder.sync()
    read.clear()
    assert folder.sync().counts["unchanged"] == 1
    assert read == []
    store.upsert_entity("note", "new", "text")
    assert {status: n for status, n in folder.sync().counts.items() if n} == {"exported": 1, "unchanged": 1}
    assert "a.md" not in read


def test_a_file_that_moved_along_is_not_read_again(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked at when it got its new name."""
    put(root / "note/a.md", "aaa")
    folder.sync()
    store.delete_entity("note", "a")
    store.upsert_entity("note", "b", "aaa")
    assert statuses(folder.sync()) == {"note/b.md": "renamed"}
    read: list[str] = []
    reading = Tree.read
    monkeypatch.setattr(Tree, "read", lambda tree, paths, *rest: read.extend(paths) or reading(tree, paths, *rest))
    assert statuses(folder.sync()) == {"note/b.md": "unchanged"}
    assert read == []


def test_a_young_file_is_read_again(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """A file that was written just before it was read may be written again within the same tick of the clock."""
    at = time.time_ns() + 3_600_000_000_000
    for text in ("aaa", "bbb"):
        (root / "a.md").write_text(text)
        os.utime(root / "a.md", ns=(at, at))
        folder.import_files()
    assert store.get_entity("note", "a")["content"] == "bbb"


def test_export_to_an_empty_folder_is_byte_for_byte(store: ef.EntityStore, root: Path, tmp_path: Path) -> None:
    """Imported files are exported unchanged: comments, byte order mark, line endings, suffix and path."""
    write(
        root,
        readme_md=b"",
        **{
            "readme.md": FRONT.format("Readme") + "text",
            "note__sub__x.txt": "plain\r\ntext\r\n",
            "post__bom.md": b"\xef\xbb\xbf---\r\ntitle: x\r\n---\r\nbody\r\n",
            "post__empty.md": "",
            "post__rule.markdown": "---\nnot a front matter, but a line\n",
        },
    )
    (root / "readme_md").unlink()
    ef.DirectorySync(store, root).import_files().raise_for_failures()
    other = tmp_path / "other"
    other.mkdir()
    result = ef.DirectorySync(store, other).export_files()
    assert result.counts["exported"] == 5
    assert tree(other) == tree(root)
    assert set(ef.DirectorySync(store, other).plan()["action"]) == {"unchanged"}


def test_changes_of_either_side_are_applied(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """An edited file updates its entity, a changed entity its file; the front matter keeps its bytes."""
    put(root / "note/a.md", FRONT.format("A") + "a\n")
    put(root / "note/b.md", FRONT.format("B") + "b\n")
    folder.sync()
    edit(root / "note/a.md", FRONT.format("A") + "edited\n")
    b = store.get_entity("note", "b")
    store.upsert_entity("note", "b", "changed\n", b["metadata"])
    store.upsert_entity("note", "c", "new\n", {"count": 1})
    assert actions(folder.plan()) == {"note/a.md": "update", "note/b.md": "export", "note/c.md": "export"}
    assert statuses(folder.sync()) == {"note/a.md": "updated", "note/b.md": "exported", "note/c.md": "exported"}
    assert store.get_entity("note", "a")["content"] == "\nedited\n"
    assert (root / "note/b.md").read_text() == FRONT.format("B")[:-1] + "changed\n"
    assert (root / "note/c.md").read_text() == "---\ncount: 1\n---\nnew\n"
    assert set(folder.plan()["action"]) == {"unchanged"}


def test_a_conflict_is_reported_and_left_alone(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Both sides changed: nothing is written until the caller decides which side wins."""
    put(root / "a.md", "one")
    folder.sync()
    edit(root / "a.md", "file")
    store.upsert_entity("note", "a", "store")
    result = folder.sync()
    assert statuses(result) == {"a.md": "conflict"}
    assert not result.ok
    assert "both" in result.outcomes["error"][0]
    assert (root / "a.md").read_text() == "file"
    assert store.get_entity("note", "a")["content"] == "store"


@pytest.mark.parametrize(("policy", "wins"), [("files", "file"), ("store", "store"), ("newer", "store")])
def test_a_conflict_is_resolved_and_the_loser_kept(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, policy: str, wins: str
) -> None:
    """The losing version is saved next to the file."""
    put(root / "a.md", "one")
    folder.sync()
    edit(root / "a.md", "file")
    store.upsert_entity("note", "a", "store")
    assert folder.sync(on_conflict=policy).ok
    loser = {"file": "store", "store": "file"}[wins]
    assert tree(root) == {"a.md": wins.encode(), "a.md.conflict": loser.encode()}
    assert store.get_entity("note", "a")["content"] == wins
    assert set(folder.plan()["action"]) == {"unchanged"}


def test_the_same_change_on_both_sides_is_no_conflict(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync
) -> None:
    """Equal files and entities are in sync, whichever side was written first."""
    put(root / "a.md", "one")
    folder.sync()
    edit(root / "a.md", "two")
    store.upsert_entity("note", "a", "two")
    assert folder.sync().counts["unchanged"] == 1
    assert set(folder.plan()["action"]) == {"unchanged"}


def test_deletions_are_applied_only_if_wanted(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """In both directions, and only with delete=True."""
    for name in "abcdefghijkl":
        put(root / f"{name}.md", name)
    folder.sync()
    (root / "a.md").unlink()
    store.delete_entity("note", "b")
    result = folder.sync()
    assert result.counts["unchanged"] == 12
    assert "delete=True" in folder.plan().filter(pl.col("path") == "a.md")["reason"][0]
    assert actions(folder.plan(delete=True))["a.md"] == "delete"
    assert folder.sync(delete=True).counts["deleted"] == 2
    assert not store.entity_exists("note", "a")
    assert not (root / "b.md").exists()
    assert folder.plan().height == 10


def test_too_many_deletions_are_refused(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Above a fifth of the files nothing is deleted unless max_delete allows it."""
    for number in range(10):
        put(root / f"{number}.md", "x")
    folder.sync()
    for number in range(3):
        (root / f"{number}.md").unlink()
    result = folder.sync(delete=True)
    assert result.counts["failed"] == 3
    assert "max_delete=3" in result.failed["error"][0]
    assert store.stats()["entities"].item() == 10
    assert folder.sync(delete=True, max_delete=3).counts["deleted"] == 3


def test_an_empty_folder_deletes_nothing(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """A folder without any files may not be mounted; a missing folder is an error."""
    put(root / "a.md", "a")
    folder.sync()
    shutil.rmtree(root)
    root.mkdir()
    result = folder.import_files(delete=True, max_delete=100)
    assert result.counts["failed"] == 1
    assert "mounted" in result.failed["error"][0]
    root.rmdir()
    with pytest.raises(ef.DirectoryError, match="notes"):
        folder.sync(delete=True)
    assert store.entity_exists("note", "a")


def test_a_file_that_moved_takes_its_entity_along(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """created_at and vectors are kept; nothing is deleted, nothing is due."""
    put(root / "note/a.md", FRONT.format("A") + "text of a")
    put(root / "note/b.md", "text of b")
    folder.sync()
    store.embed(ef.HashingEmbedder(16), progress=False)
    before, jobs = store.get_entity("note", "a"), store.jobs().rows()
    (root / "post").mkdir()
    (root / "note/a.md").rename(root / "post/moved.md")
    assert actions(folder.plan()) == {"note/b.md": "unchanged", "post/moved.md": "rename"}
    result = folder.sync()
    assert statuses(result)["post/moved.md"] == "renamed"
    assert result.batches == 1
    assert store.jobs().rows() == jobs
    assert not store.entity_exists("note", "a")
    after = store.get_entity("post", "moved")
    assert after["created_at"] == before["created_at"]
    assert after["metadata"] == before["metadata"]
    assert store.stats()["embedded"].sum() == 2
    assert store.read("post")["title"].to_list() == ["A"]
    assert store.verify().is_empty()
    assert set(folder.plan()["action"]) == {"unchanged"}
    store.upsert_entity("post", "moved", "\nanother text", after["metadata"])
    assert folder.sync().counts["exported"] == 1
    assert (root / "post/moved.md").read_text() == FRONT.format("A") + "another text"


def test_a_path_that_two_folders_have(store: ef.EntityStore, tmp_path: Path) -> None:
    """What is deleted in one is known as before in the other."""
    folders = {}
    for name in ("one", "two"):
        put(tmp_path / name / "x.md", f"of {name}")
        put(tmp_path / name / "y.md", f"of {name}")
        folders[name] = ef.DirectorySync(store, tmp_path / name, types=[name], default_type=name)
        folders[name].sync()
    (tmp_path / "one/x.md").unlink()
    assert folders["one"].sync(delete=True, max_delete=5).counts["deleted"] == 1
    assert actions(folders["one"].plan().frame) == {"y.md": "unchanged"}
    store.upsert_entity("two", "x", "changed")
    assert statuses(folders["two"].sync()) == {"x.md": "exported", "y.md": "unchanged"}
    assert (tmp_path / "two/x.md").read_text() == "changed"


def test_an_export_has_the_front_matter_of_the_latest_file(store: ef.EntityStore, tmp_path: Path) -> None:
    """With its comments, whichever of several folders was synced last."""
    folders = {}
    for name in ("b", "a", "c"):
        put(tmp_path / name / "note/x.md", f"---\ntitle: T # of {name}\n---\ntext")
        folders[name] = ef.DirectorySync(store, tmp_path / name)
        folders[name].sync()
    for latest in ("c", "b", "a"):
        if latest != "c":
            folders[latest].sync()
            edit(tmp_path / latest / "note/x.md", f"---\ntitle: T # new of {latest}\n---\ntext of {latest}")
            folders[latest].sync()
        out = tmp_path / f"out of {latest}"
        out.mkdir()
        ef.DirectorySync(store, out).export_files()
        assert f"of {latest}\n" in (out / "note/x.md").read_text()
        shutil.rmtree(out)


def test_an_entity_that_moved_is_due_where_it_was_due(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync
) -> None:
    """A job lists the old key; each space embeds missing vectors under the new key."""
    put(root / "note/a.md", "text of a")
    folder.sync()
    store.embed(ef.HashingEmbedder(16), progress=False)
    store.embed(ef.HashingEmbedder(32), space="second", progress=False)
    edit(root / "note/a.md", "newer text")
    folder.sync()
    store.embed(ef.HashingEmbedder(16), progress=False)
    (root / "note/a.md").rename(root / "note/moved.md")
    assert folder.sync().counts["renamed"] == 1
    assert store.embed(ef.HashingEmbedder(32), space="second", progress=False).counts["embedded"] == 1
    assert store.spaces()["due"].to_list() == [0, 0]
    assert store.embed(ef.HashingEmbedder(16), progress=False).counts["embedded"] == 0


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_rename_that_has_to_wait(store: ef.EntityStore, root: Path, folder: ef.DirectorySync, sql, url: str) -> None:
    """A lock that another session holds for a while is retried, as in an upsert."""
    put(root / "note/a.md", "text of a")
    folder.sync()
    (root / "note/a.md").rename(root / "note/moved.md")
    sql("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = 100', current_database()); END $$")
    with ef.connect(url) as patient, adbc.connect(url, autocommit=True) as other, other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM entityframes.entities FOR UPDATE")
        threading.Timer(0.4, cursor.execute, ("COMMIT",)).start()
        assert ef.DirectorySync(patient, root).sync().counts["renamed"] == 1
        assert patient.entity_exists("note", "moved")


def test_an_entity_with_another_key_takes_its_file_along(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync
) -> None:
    """Stored under another id and deleted under the old one: the file is moved, with the same bytes."""
    data = FRONT.format("A") + "text"
    put(root / "note/a.md", data)
    folder.sync()
    entity = store.get_entity("note", "a")
    store.delete_entity("note", "a")
    store.upsert_entity("note", "sub/z", entity["content"], entity["metadata"])
    assert statuses(folder.sync()) == {"note/sub/z.md": "renamed"}
    assert tree(root) == {"note/sub/z.md": data.encode()}
    assert set(folder.plan()["action"]) == {"unchanged"}
    store.upsert_entity("note", "sub/z", "\nanother text", entity["metadata"])
    assert folder.sync().counts["exported"] == 1
    assert tree(root) == {"note/sub/z.md": (FRONT.format("A") + "another text").encode()}


def test_another_suffix_is_the_same_entity(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """a.txt in the place of a.md, also next to another type with the same id."""
    write(root, **{"a.md": "a", "post__a.md": "a post"})
    folder.sync()
    (root / "a.md").rename(root / "a.txt")
    (root / "post/a.md").rename(root / "post/a.txt")
    result = folder.sync(delete=True)
    assert result.ok
    assert result.rows == 2
    assert store.get(ef.ids("note", ["a"]))["content"].to_list() == ["a"]
    assert folder.plan().sort("path").rows() == [
        ("a.txt", "note", "a", "unchanged", None, None), ("post/a.txt", "post", "a", "unchanged", None, None)
    ]  # fmt: skip


def test_a_sync_without_progress_writes_nothing(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for what is created nor for what is deleted."""
    write(root, **{"a.md": "a", "b.md": "b"})
    folder.sync(progress=False)
    (root / "a.md").unlink()
    assert folder.sync(delete=True, progress=False).counts["deleted"] == 1
    assert capsys.readouterr() == ("", "")


def test_the_default_limit_of_a_file(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """It is 5 MiB, as the guide says."""
    put(root / "a.md", b"x" * ((5 << 20) + 1))
    assert "more than the limit of 5,242,880" in folder.sync().failed["error"].item()


def test_two_files_of_one_entity_are_a_collision(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Neither is imported, and the others are."""
    write(root, **{"a.md": "one", "a.txt": "two", "note__a.md": "three", "b.md": "b"})
    result = folder.sync()
    assert statuses(result) == {"a.md": "failed", "a.txt": "failed", "note/a.md": "failed", "b.md": "created"}
    assert "collision" in result.failed["error"][0]
    assert not store.entity_exists("note", "a")


def test_a_bad_file_is_reported_and_left(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """With line and reason; its entity is kept, and the others are synced."""
    write(root, **{"a.md": "good", "b.md": "good too"})
    folder.sync()
    edit(root / "a.md", "---\ntitle: [\n---\n")
    put(root / "c.md", b"caf\xe9\n")
    result = folder.sync(delete=True)
    assert statuses(result) == {"a.md": "failed", "b.md": "unchanged", "c.md": "failed"}
    assert all("line" in error for error in result.failed["error"])
    assert store.get_entity("note", "a")["content"] == "good"


@pytest.mark.parametrize("what", ["pipe", "unreadable rules"])
def test_what_took_the_place_of_a_file_deletes_nothing(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, what: str
) -> None:
    """A path that is no file any more, and what is below a folder that cannot be read, may still be meant."""
    write(root, **{"note__a.md": "a", "post__b.md": "b"})
    folder.sync()
    if what == "pipe":
        (root / "note/a.md").unlink()
        os.mkfifo(root / "note/a.md")
    else:
        put(root / "note/.efignore", b"\xff")
    result = folder.sync(delete=True)
    assert statuses(result)["note/a.md"] == "failed"
    assert statuses(result)["post/b.md"] == "unchanged"
    assert store.get_entity("note", "a")["content"] == "a"


def test_a_rename_of_what_another_folder_had_last(store: ef.EntityStore, root: Path, tmp_path: Path) -> None:
    """With other metadata: the file keeps its metadata when its entity gets another content."""
    put(root / "x.md", "---\na: 1\n---\ntext")
    folder = ef.DirectorySync(store, root)
    folder.sync()
    other = tmp_path / "other"
    other.mkdir()
    elsewhere = ef.DirectorySync(store, other)
    elsewhere.sync()
    (file,) = tree(other)
    edit(other / file, "---\na: 2\n---\ntext")
    assert elsewhere.sync().counts["updated"] == 1
    (root / "x.md").rename(root / "y.md")
    assert folder.sync().counts["renamed"] == 1
    store.upsert_entity("note", "y", "new", {"a": 1})
    assert folder.sync().counts["exported"] == 1
    assert (root / "y.md").read_text() == "---\na: 1\n---\nnew"


def test_an_edit_right_behind_an_export_is_seen(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is edited as soon as it has its name: the next sync imports the edit."""
    store.upsert_entity("note", "a", "text")
    move = Folder.move

    def late(source: Folder, old: str, other: Folder, new: str) -> None:
        move(source, old, other, new)
        (root / "note/a.md").write_text("edit")

    monkeypatch.setattr(Folder, "move", late)
    assert folder.sync().counts["exported"] == 1
    monkeypatch.undo()
    assert folder.sync().counts["updated"] == 1
    assert store.get_entity("note", "a")["content"] == "edit"


def test_what_a_killed_sync_left_behind_is_removed(
    root: Path, folder: ef.DirectorySync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is so old that nobody can be writing it any more."""
    put(root / "a.md", "a")
    left = f"note/.ef-{'0' * 16}.tmp"
    put(root / left, "half")
    folder.sync()
    assert left in tree(root)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 7_200)
    folder.sync()
    assert list(tree(root)) == ["a.md"]


def test_progress_of_a_sync(root: Path, folder: ef.DirectorySync) -> None:
    """Each file is counted once, in however many batches they are written."""
    for number in range(7):
        put(root / f"{number}.md", "x")
    calls: list[tuple[int, int | None]] = []
    folder.sync(batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (7, 7)


def test_many_new_files_and_entities(
    store: ef.EntityStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are asked about at once: each file still meets its own entity, and each entity its own file."""
    monkeypatch.setattr(survey, "_KEYS", 2)
    for number in range(5):
        put(root / f"{number}.txt", f"text {number}")
        store.upsert_entity("note", str(number), f"text {number}")
    plan = ef.DirectorySync(store, root).plan()
    assert actions(plan.frame) == {f"{number}.txt": "unchanged" for number in range(5)}
    ef.DirectorySync(store, root).sync()
    other = tmp_path / "other"
    other.mkdir()
    assert ef.DirectorySync(store, other).export_files().counts["exported"] == 5
    assert {path.split("/")[-1]: data.decode() for path, data in tree(other).items()} == {
        f"{number}.txt": f"text {number}" for number in range(5)
    }


def test_quarantine(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """An invalid file is renamed, keeps its entity, and gets its name back when it is repaired."""
    put(root / "a.md", "good")
    folder.sync()
    edit(root / "a.md", "---\na: [\n---\n")
    assert folder.import_files(quarantine=True, delete=True).counts["failed"] == 1
    assert list(tree(root)) == ["a.md.invalid"]
    assert store.entity_exists("note", "a")
    assert folder.import_files(quarantine=True, delete=True).counts["failed"] == 1
    (root / "a.md.invalid").write_text("---\na: []\n---\nnew")
    assert folder.import_files(quarantine=True, delete=True).counts["updated"] == 1
    assert list(tree(root)) == ["a.md"]


def test_hostile_ids_stay_inside_and_come_back(store: ef.EntityStore, root: Path, tmp_path: Path) -> None:
    """Every id has a file inside the folder, and is read back unchanged."""
    ids = ["../../etc/passwd", "/etc/passwd", "a/../../b", "CON", "new\nline", "dots...", "-rf", "x" * 300, "Case", "case",
           ".hidden", "_under", "a//b", "%41", "é", "e\u0301", "a\\b", "c:d", " ", "sub/.git/config"]  # fmt: skip
    store.upsert(pl.DataFrame({"entity_type": ["note"] * len(ids), "id": ids, "content": ids}), progress=False)
    outer = root / "in/ner"
    outer.mkdir(parents=True)
    folder = ef.DirectorySync(store, outer)
    result = folder.export_files()
    assert result.counts["exported"] == len(ids), result
    assert len(tree(root)) == len(tree(outer)) == len(ids)
    with ef.connect(tmp_path / "other.duckdb") as other:
        ef.DirectorySync(other, outer).import_files().raise_for_failures()
        assert other.read("note").select("id", "content").rows() == [(id, id) for id in sorted(ids)]


def test_only_the_wanted_types(store: ef.EntityStore, root: Path) -> None:
    """Entities of other types are not exported, and their files are not imported."""
    store.upsert_entity("airport", "FRA", "Frankfurt")
    put(root / "airport/HAM.md", "Hamburg")
    put(root / "note/a.md", "a")
    folder = ef.DirectorySync(store, root, types=["note"])
    assert statuses(folder.sync()) == {"note/a.md": "created"}
    assert store.stats()["entities"].to_list() == [1, 1]


def test_a_front_matter_without_a_line_end(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Front matter without a body and without a final line ending stays closed when the entity gets a body."""
    put(root / "a.md", "---\ntitle: x\n---")
    folder.sync()
    store.upsert_entity("note", "a", "a body", {"title": "x"})
    assert folder.sync().counts["exported"] == 1
    assert (root / "a.md").read_text() == "---\ntitle: x\n---\na body"
    assert set(folder.plan()["action"]) == {"unchanged"}


def test_new_files_get_the_first_suffix(store: ef.EntityStore, root: Path) -> None:
    """And ambiguous suffixes are rejected."""
    store.upsert_entity("note", "a", "text")
    folder = ef.DirectorySync(store, root, suffixes=(".txt", ".md"))
    assert statuses(folder.export_files()) == {"note/a.txt": "exported"}
    assert set(folder.plan()["action"]) == {"unchanged"}
    for suffixes in ((), ".md", ("md",), (".md", ".post.md")):
        with pytest.raises(ValueError, match="suffix"):
            ef.DirectorySync(store, root, suffixes=suffixes)


def test_a_folder_is_not_filled_with_strangers(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """A store with many entities of other types does not export them to a folder of notes unless asked to."""
    put(root / "note/a.md", "a")
    others = pl.DataFrame({"id": [str(number) for number in range(1_001)]})
    store.upsert(ef.entities(others, "airport", id="id"), progress=False)
    result = folder.sync()
    assert result.counts["created"] == 1
    assert result.counts["failed"] == 1_001
    assert "--type" in result.failed["error"][0]
    assert list(tree(root)) == ["note/a.md"]
    assert ef.DirectorySync(store, root, types=["note", "airport"]).sync().counts["exported"] == 1_001


def test_a_second_sync_is_kept_off(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """One at a time; the error names the holder of the lock."""
    put(root / "a.md", "a")
    met: list[Exception] = []

    def meanwhile(done: int, total: int | None) -> None:
        try:
            folder.sync()
        except ef.DirectoryError as error:
            met.append(error)

    assert folder.sync(progress=meanwhile).ok
    assert met
    assert str(os.getpid()) in str(met[0])
    assert folder.sync().ok


def test_cancelling(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Every row has an outcome; unprocessed rows are cancelled, and done by the next sync."""
    for number in range(1_000):
        put(root / f"{number:04}.md", f"text {number}")
    cancel = threading.Event()
    result = folder.import_files(
        batch_size=100, cancel=cancel, progress=lambda done, total: done >= 300 and cancel.set()
    )
    counts = {status: count for status, count in result.counts.items() if count}
    assert set(counts) == {"created", "cancelled"}
    assert sum(counts.values()) == result.outcomes.height == 1_000
    assert store.stats()["entities"].item() == counts["created"]
    again = folder.import_files()
    assert again.counts["created"] == counts["cancelled"]
    assert again.counts["unchanged"] == counts["created"]


def test_an_entity_changed_meanwhile_is_not_overwritten(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync
) -> None:
    """Changed by another writer between the survey and the write: a conflict, not a loss."""
    write(root, **{"a.md": "one", "b.md": "as it was"})
    folder.sync()
    edit(root / "a.md", "file")
    result = folder.sync(progress=once(lambda: store.upsert_entity("note", "a", "another writer")))
    assert statuses(result) == {"a.md": "conflict", "b.md": "unchanged"}
    assert store.get_entity("note", "a")["content"] == "another writer"


def test_where_a_folder_lives_is_no_secret_but_its_store_password_is(root: Path, folder: ef.DirectorySync) -> None:
    """The repr names both ends."""
    assert "notes" in repr(folder)
    assert "@" not in repr(folder) or ":***" in repr(folder) or "postgres@" in repr(folder)


def test_a_plan_is_carried_out(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """It has the interface of an upsert plan, behaves like a frame, and is applied once."""
    write(root, **{"a.md": "a", "b.md": "b", "bad.md": b"\xff", "p.png": "picture"})
    folder.sync()
    edit(root / "a.md", "edited")
    store.upsert_entity("note", "b", "changed")
    store.upsert_entity("note", "c", "new")
    plan = folder.plan()
    assert {action: count for action, count in plan.counts.items() if count} == {"update": 1, "export": 2, "invalid": 1}
    assert plan.frame["path"].to_list() == ["a.md", "b.md", "bad.md", "note/c.md"]
    assert plan["action"].to_list() == plan.frame["action"].to_list()
    assert (len(plan), plan.height, plan.filter(pl.col("path") == "a.md").height) == (4, 4, 1)
    assert "4 files and entities: 1 to update, 2 to export, 1 invalid" in plan.summary()
    assert "bad.md: line 1" in plan.summary()
    assert "1 .png" in plan.summary()
    assert repr(plan).startswith(f"SyncPlan: {plan.summary().splitlines()[0]}\n")
    assert "bad.md" in plan._repr_html_()
    with pytest.raises(AttributeError, match="nothing_like_it"):
        plan.nothing_like_it()
    assert store.get_entity("note", "a")["content"] == "a"
    result = plan.apply()
    assert statuses(result) == {"a.md": "updated", "b.md": "exported", "bad.md": "failed", "note/c.md": "exported"}
    assert store.get_entity("note", "a")["content"] == "edited"
    assert (root / "note/c.md").read_text() == "new"
    assert statuses(plan.apply()) == {
        "a.md": "unchanged", "b.md": "unchanged", "bad.md": "failed", "note/c.md": "unchanged"
    }  # fmt: skip


def test_a_plan_leaves_alone_what_changed_since(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """On either side, also what was created or deleted; the rest of the plan is applied."""
    names = ("edited", "touched", "there", "entity", "deleted", "gone", "renamed", "kept")
    write(root, **{f"{name}.md": f"of {name}" for name in names})
    folder.sync()
    for name in ("edited", "touched", "there"):
        edit(root / f"{name}.md", "first")
    store.upsert_entity("note", "entity", "first")
    store.delete_entity("note", "deleted")
    (root / "gone.md").unlink()
    (root / "renamed.md").rename(root / "moved.md")
    plan = folder.plan(delete=True, max_delete=10)
    assert plan.counts == plan.counts | {"update": 3, "export": 1, "delete": 2, "rename": 1, "unchanged": 1}
    edit(root / "edited.md", "again")
    os.utime(root / "touched.md")
    store.upsert_entity("note", "there", "another writer")
    store.upsert_entity("note", "entity", "second")
    edit(root / "deleted.md", "edited")
    store.upsert_entity("note", "gone", "edited")
    (root / "moved.md").rename(root / "moved again.md")
    put(root / "new.md", "new")
    result = plan.apply()
    assert statuses(result) == {
        "edited.md": "conflict",
        "touched.md": "updated",
        "there.md": "conflict",
        "entity.md": "conflict",
        "deleted.md": "conflict",
        "gone.md": "conflict",
        "moved.md": "conflict",
        "moved again.md": "conflict",
        "new.md": "conflict",
        "kept.md": "unchanged",
    }
    assert "plan again" in result.outcomes.filter(pl.col("path") == "edited.md")["error"].item()
    contents = dict(store.read("note").select("id", "content").rows())
    assert contents == {
        "edited": "of edited", "touched": "first", "there": "another writer", "entity": "second", "gone": "edited",
        "renamed": "of renamed", "kept": "of kept",
    }  # fmt: skip
    assert (root / "deleted.md").read_text() == "edited"


def test_the_options_with_which_a_plan_is_applied(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Batches, embedding, progress and cancellation are those of this call."""
    write(root, **{f"{number}.md": "text" for number in range(3)})
    plan, cancel = folder.plan(), threading.Event()
    cancel.set()
    assert plan.apply(cancel=cancel).counts["created"] == 0
    reported: list[int] = []
    result = plan.apply(batch_size=1, embed=False, progress=lambda done, total: reported.append(done))
    assert (result.counts["created"], reported[-1], store.jobs().height) == (3, 3, 0)


def test_many_entities_of_a_new_type_are_not_exported(
    store: ef.EntityStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync of a folder without named types refuses them; an export, or a name, is a decision."""
    write(root, **{"a.md": "a"})
    monkeypatch.setattr(plan, "MAX_NEW_TYPE", 9)
    count = 10
    frame = pl.DataFrame({"entity_type": "log", "id": [f"{n:04}" for n in range(count)], "content": "text"})
    store.upsert(pl.concat([frame, frame.head(3).with_columns(entity_type=pl.lit("few"))]), progress=False)
    folder = ef.DirectorySync(store, root)
    result = folder.sync()
    assert result.counts["exported"] == 3
    refused = result.outcomes.filter(pl.col("entity_type") == "log")["error"]
    assert refused.str.contains(f"{count:,} entities of type 'log', which has no files in this folder").all()
    assert not (root / "log").exists()
    assert folder.plan(direction="export").counts["export"] == count
    named = ef.DirectorySync(store, root, types=["note", "few", "log"])
    assert named.sync().counts["exported"] == count


def test_a_plan_of_deletions_is_done_once(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """When planned a second time, both sides are gone."""
    write(root, **{f"{number}.md": f"{number}" for number in range(10)})
    folder.sync()
    (root / "0.md").unlink()
    store.delete_entity("note", "1")
    plan = folder.plan(delete=True)
    result = plan.apply()
    assert (result.counts["deleted"], result.batches) == (2, 1)
    assert plan.apply().ok
    assert not (root / "1.md").exists()


def test_failures_name_their_files(root: Path, folder: ef.DirectorySync) -> None:
    """In the repr of a result, in the message of its error, and in its notebook view."""
    write(root, **{"a/b.md": b"\xff", "c.md": "fine"})
    result = folder.sync()
    assert "first failure: a/b.md: line 1" in repr(result)
    assert len(repr(result).splitlines()) == 2
    assert "a/b.md" in result._repr_html_()
    with pytest.raises(ef.EntityFramesError, match=r"1 failed of 2 rows: a/b\.md: line 1"):
        result.raise_for_failures()


def test_what_is_left_out_is_reported(root: Path, folder: ef.DirectorySync) -> None:
    """In result and plan, with its reason, at every depth."""
    write(
        root,
        **{
            "docs/_posts/2024/a.md": "a", "docs/_posts/b.md": "b", "docs/_posts/.hidden.md": "", "docs/_posts/c.pdf": "", "_top.md": "c",
            "docs/picture.png": "", "docs/.obsidian/x.md": "", ".h.md": "", "drafts/d.md": "d", "docs/_config.yml": "",
            "d.md": "d",
        },
    )  # fmt: skip
    (root / ".efignore").write_text("drafts/\n")
    expected = [
        (".h.md", "its name begins with .", 1),
        ("_top.md", "its name begins with _", 1),
        ("docs/.obsidian/", "its name begins with .", None),
        ("docs/_config.yml", "it has another suffix", 0),
        ("docs/_posts/", "its name begins with _", 2),
        ("docs/picture.png", "it has another suffix", 0),
        ("drafts/", "a rule ignores it", None),
    ]
    plan, result = folder.plan(), folder.sync()
    assert plan.left_out.rows() == result.left_out.rows() == expected
    assert "7 names left out, see result.left_out" in repr(result)
    assert "names that begin with _ are left out, 3 files in all (_top.md, docs/_posts)" in plan.summary()
    everything = ef.DirectorySync(folder._store, root, ignore=["!_*"]).sync()
    assert everything.counts["created"] == 3


def test_a_folder_that_is_left_out_later(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Its files are still there, so their entities are kept, even with delete=True, and the outcome says why."""
    write(root, **{"drafts/a.md": "a", "drafts/deep/b.md": "b", "c.md": "c"})
    folder.sync()
    (root / ".efignore").write_text("drafts/\n")
    for result in (folder.sync(delete=True, max_delete=10), folder.import_files(delete=True, max_delete=10)):
        assert statuses(result) == dict.fromkeys(("c.md", "drafts/a.md", "drafts/deep/b.md"), "unchanged")
        errors = dict(result.outcomes.select("path", "error").rows())
        assert errors["drafts/a.md"] == errors["drafts/deep/b.md"] == "the file or its folder is now left out"
    assert store.stats()["entities"].sum() == 3


def test_hidden_files_with_any_suffix_are_left_out_as_hidden(root: Path, folder: ef.DirectorySync) -> None:
    write(root, **{".env": "x", "a.env": "x", "a.md": "a"})
    expected = [(".env", "its name begins with .", 1), ("a.env", "it has another suffix", 0)]
    assert folder.sync().left_out.rows() == expected


def test_a_copy_of_an_entity_is_a_new_file(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Only an entity that is gone can have been renamed to one of equal content and metadata."""
    put(root / "note/a.md", FRONT.format("A") + "text of a")
    folder.sync()
    entity = store.get_entity("note", "a")
    store.upsert_entity("note", "b", entity["content"], entity["metadata"])
    assert actions(folder.plan()) == {"note/a.md": "unchanged", "note/b.md": "export"}
    assert statuses(folder.sync()) == {"note/a.md": "unchanged", "note/b.md": "exported"}
    assert set(tree(root)) == {"note/a.md", "note/b.md"}


def test_the_time_of_a_sync(root: Path, folder: ef.DirectorySync) -> None:
    put(root / "a.md", "a")
    started = time.perf_counter()
    result = folder.sync()
    assert 0 < result.elapsed <= time.perf_counter() - started


def test_directions_of_a_plan(folder: ef.DirectorySync) -> None:
    with pytest.raises(ValueError, match="direction must be one of .*, got 'sideways'"):
        folder.plan(direction="sideways")


def test_links_are_no_failures(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Links to a file, a folder, nothing: listed as left out. Paths that were files or folders keep their entities."""
    write(root, **{"a.md": "a", "b.md": "b", "sub/c.md": "c", "sub/d.md": "d"})
    folder.sync()
    (root / "file.md").symlink_to("a.md")
    (root / "nothing.md").symlink_to("nowhere")
    (root / "folder").symlink_to("sub")
    (root / "b.md").unlink()
    (root / "b.md").symlink_to("a.md")
    (root / "sub").rename(root.parent / "elsewhere")
    (root / "sub").symlink_to(root.parent / "elsewhere")
    for result in (folder.sync(delete=True, max_delete=10), folder.import_files(delete=True, max_delete=10)):
        assert result.ok
        assert statuses(result) == dict.fromkeys(("a.md", "b.md", "sub/c.md", "sub/d.md"), "unchanged")
        errors = dict(result.outcomes.select("path", "error").rows())
        assert "link" in errors["b.md"]
        assert "link" in errors["sub/c.md"]
        assert dict(result.left_out.select("path", "reason").rows()) == {
            "b.md": "it is a link", "file.md": "it is a link", "nothing.md": "it is a link",
            "folder": "it is a link to a folder", "sub": "it is a link to a folder",
        }  # fmt: skip
    assert store.stats()["entities"].sum() == 4


def test_a_rule_and_a_template(store: ef.EntityStore, root: Path, folder: ef.DirectorySync) -> None:
    """Two thematic breaks with text in between are text; a template is reported with its line and the remedy."""
    text = "---\n\nSome text: with a colon: or two\n\n---\nand more\n"
    write(root, **{"rule.md": text, "list.md": "---\n- a\n---\n", "template.md": "---\na: 1\ntitle: {{title}}\n---\n"})
    result = folder.sync()
    assert statuses(result) == {"rule.md": "created", "list.md": "created", "template.md": "failed"}
    assert store.get_entity("note", "rule")["content"] == text
    assert "first failure: template.md: line 3: {{title}} is a template placeholder" in repr(result)


def test_a_sync_whose_hold_has_ended_leaves_the_hold_of_the_next(
    store: ef.EntityStore, root: Path, folder: ef.DirectorySync, sql
) -> None:
    """It was suspended for longer than its lease, and another one began: it reports that, and a third one cannot start."""
    put(root / "a.md", "a")
    began, ended = threading.Event(), threading.Event()
    results: list[ef.SyncResult] = []

    def second() -> None:
        results.append(folder.sync(progress=lambda done, total: began.set() or ended.wait(60)))

    other = threading.Thread(target=second)

    def meanwhile(done: int, total: int | None) -> None:
        if not other.ident:
            sql("UPDATE entityframes.folders SET lease_until = now() - INTERVAL '1 minute'")
            put(root / "b.md", "b")
            other.start()
            assert began.wait(60)

    try:
        with pytest.raises(ef.DirectoryError, match="took over"):
            folder.sync(progress=meanwhile)
        with pytest.raises(ef.DirectoryError, match="is being synced by"):
            folder.sync()
    finally:
        ended.set()
        other.join(60)
    assert results[0].ok
    assert folder.sync().ok
