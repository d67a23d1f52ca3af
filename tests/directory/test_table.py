"""All states of a file and its entity, with the outcome for both: in each direction, with and without deletions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

import entityframes as ef
from tests.directory.test_sync import edit, put

#: The changes of a file and of its entity since they were last in sync, then what each call does without and with
#: delete=True. ">" is from the file to the entity, "<" from the entity to the file; "." is nothing, "-" not even a row.
TABLE = """
    file     entity     import    with delete    export    with delete    sync      with delete
    same     same       .         .              .         .              .         .
    same     changed    .         .              export<   export<        export<   export<
    same     gone       create>   create>        .         delete<        .         delete<
    changed  same       update>   update>        .         .              update>   update>
    changed  changed    update>   update>        conflict  conflict       conflict  conflict
    changed  gone       create>   create>        .         .              conflict  conflict
    gone     same       .         delete>        export<   export<        .         delete>
    gone     changed    conflict  conflict       export<   export<        conflict  conflict
    gone     gone       .         .              .         .              .         .
    new      none       create>   create>        .         .              create>   create>
    new      new        update>   update>        conflict  conflict       conflict  conflict
    none     new        -         -              export<   export<        export<   export<
"""
#: The same for conflicts, with a winning side; the last write is that of the entity.
WINNERS = """
    file     entity     files     with delete    store     with delete    newer     with delete
    changed  changed    update>   update>        export<   export<        export<   export<
    changed  gone       create>   create>        conflict  delete<        create>   create>
    gone     changed    conflict  delete>        export<   export<        export<   export<
    new      new        update>   update>        export<   export<        export<   export<
"""
ANSWERS = {"update": "updated", "create": "created", "export": "exported", "delete": "deleted", "unchanged": "unchanged",
           "conflict": "conflict"}  # fmt: skip


class Side(NamedTuple):
    """The content of a file or an entity."""

    title: str
    body: str


def cells(table: str, column: int) -> dict[str, tuple[str, str | None] | None]:
    """The outcome of one call for each file: action and direction; None if it has no row."""
    found: dict[str, tuple[str, str | None] | None] = {}
    for line in table.strip().splitlines()[1:]:
        file, entity, *moves = line.split()
        move = moves[column]
        way = {">": "import", "<": "export"}.get(move[-1])
        action = "unchanged" if move == "." else move.rstrip("<>")
        for differ in ("content", "metadata"):
            found[f"{file} {entity} {differ}"] = None if move == "-" else (action, way)
    return found


class Sides:
    """A folder and a store in which files and their entities are in states of the table.

    Args:
        states: what became of a file and of its entity, and what of them differs where they do: content or metadata.
    """

    def __init__(self, store: ef.EntityStore, root: Path, states: list[str]) -> None:
        self.store, self.root = store, root
        root.mkdir()
        self.folder = ef.DirectorySync(store, root)
        before = [state for state in states if "new" not in state]
        for state in before:
            put(self._path(state), self._text(self.side(state, "before")))
        self.folder.sync().raise_for_failures()
        for state in states:
            file, entity, _ = state.split()
            if file in ("changed", "new"):
                self.edit_file(state, "file")
            elif file == "gone":
                self._path(state).unlink()
            if entity in ("changed", "new"):
                self.edit_entity(state, "entity")
            elif entity == "gone":
                store.delete_entity("note", state)

    def edit_file(self, state: str, version: str) -> None:
        """Write a file."""
        edit(self._path(state), self._text(self.side(state, version)))

    def edit_entity(self, state: str, version: str) -> None:
        """Store an entity."""
        title, body = self.side(state, version)
        self.store.upsert_entity("note", state, body, {"title": title})

    @staticmethod
    def side(state: str, version: str) -> Side:
        """The state of one side: as it was when they were in sync, or as it was changed."""
        title = f"{version} of {state}" if state.endswith("metadata") else f"title of {state}"
        return Side(title, f"{version} of {state}\n" if state.endswith("content") else f"body of {state}\n")

    def _path(self, state: str) -> Path:
        return self.root / f"note/{state}.md"

    @staticmethod
    def _text(side: Side) -> str:
        return f"---\n# kept\ntitle: {side.title}\n---\n{side.body}"

    def files(self) -> dict[str, Side]:
        """The content of the files."""
        found = {}
        for path in self.root.rglob("*.md"):
            _, front, body = path.read_text().split("---\n")
            found[path.stem] = Side(front.splitlines()[-1].removeprefix("title: "), body)
        return found

    def entities(self) -> dict[str, Side]:
        """The content of the entities."""
        rows = self.store.read("note").select("id", "title", "content").rows()
        return {id: Side(title, body) for id, title, body in rows}


def check(sides: Sides, expected: dict[str, Any], run: Callable[..., ef.SyncResult], plan: ef.SyncPlan) -> None:
    """The plan is what the table specifies, it is applied, and nothing else."""
    files, entities = sides.files(), sides.entities()
    planned = {Path(path).stem: (action, way) for path, _, _, action, way, _ in plan.frame.rows()}
    assert planned == {state: move for state, move in expected.items() if move is not None}
    result = run()
    statuses = {row["id"]: row["status"] for row in result.outcomes.iter_rows(named=True)}
    assert statuses == {state: ANSWERS[action] for state, (action, _) in planned.items()}
    for state, (action, way) in planned.items():
        source, target = (files, entities) if way == "import" else (entities, files)
        if action == "delete":
            del target[state]
        elif way is not None:
            target[state] = source[state]
    assert sides.files() == files
    assert sides.entities() == entities
    assert sides.store.verify().is_empty()


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("direction", ["import", "export", "both"])
def test_every_state_of_both(store: ef.EntityStore, tmp_path: Path, direction: str, delete: bool) -> None:
    """A file and its entity are each the same, changed, gone, new or never existed: what is applied, and where to."""
    expected = cells(TABLE, ["import", "export", "both"].index(direction) * 2 + delete)
    sides = Sides(store, tmp_path / "root", list(expected))
    call = {"import": "import_files", "export": "export_files", "both": "sync"}[direction]
    given: dict[str, Any] = {"delete": delete, "max_delete": 10}
    plan = sides.folder.plan(direction=direction, **given)
    check(sides, expected, lambda: getattr(sides.folder, call)(**given), plan)


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("policy", ["files", "store", "newer"])
def test_every_conflict_that_is_decided(store: ef.EntityStore, tmp_path: Path, policy: str, delete: bool) -> None:
    """The winning side overwrites the other, and a deletion wins only with delete=True."""
    expected = cells(WINNERS, ["files", "store", "newer"].index(policy) * 2 + delete)
    sides = Sides(store, tmp_path / "root", list(expected))
    given: dict[str, Any] = {"on_conflict": policy, "delete": delete, "max_delete": 0}
    plan = sides.folder.plan(**given)
    lost = {"file": dict(sides.files()), "entity": dict(sides.entities())}
    check(sides, expected, lambda: sides.folder.sync(**given), plan)
    kept = {path.name.removesuffix(".md.conflict"): path.read_text() for path in sides.root.rglob("*.conflict")}
    for state, move in expected.items():
        assert move is not None
        loser = lost["entity" if move[1] == "import" else "file"].get(state)
        assert (state in kept) == (loser is not None and move[0] != "conflict"), state
        if state in kept:
            assert loser is not None
            assert loser.title in kept[state]
            assert loser.body in kept[state]


def test_an_export_may_let_the_store_win(store: ef.EntityStore, tmp_path: Path) -> None:
    """Over edited files; but an edited file is not deleted because its entity is gone."""
    wins = ("export", "export")
    expected = {
        "changed changed": wins,
        "new new": wins,
        "changed gone": ("unchanged", None),
        "changed same": ("unchanged", None),
    }
    expected = {f"{state} {differ}": move for state, move in expected.items() for differ in ("content", "metadata")}
    sides = Sides(store, tmp_path / "root", list(expected))
    plan = sides.folder.plan(direction="export", on_conflict="store", delete=True)
    check(sides, expected, lambda: sides.folder.export_files(on_conflict="store", delete=True), plan)


def test_the_same_edit_of_both(store: ef.EntityStore, tmp_path: Path) -> None:
    """Both became the same: no conflict, and in sync from then on, so that the next edit of either is applied."""
    states = [f"{state} same {differ}" for state in ("changed", "same") for differ in ("content", "metadata")]
    sides = Sides(store, tmp_path / "root", states)
    for state in states:
        sides.edit_file(state, "file")
        sides.edit_entity(state, "file")
    assert sides.folder.sync().counts["unchanged"] == 4
    for state in states[:2]:
        sides.edit_file(state, "later")
    for state in states[2:]:
        sides.edit_entity(state, "later")
    expected = dict.fromkeys(states[:2], ("update", "import")) | dict.fromkeys(states[2:], ("export", "export"))
    check(sides, expected, sides.folder.sync, sides.folder.plan())
    assert sides.folder.plan()["action"].to_list() == ["unchanged"] * 4


@pytest.mark.parametrize("why", ["link", "rules"])
@pytest.mark.parametrize("call", ["import_files", "sync", "export_files"])
def test_a_folder_that_cannot_be_looked_at_takes_nothing_along(
    store: ef.EntityStore, tmp_path: Path, why: str, call: str
) -> None:
    """A subfolder that is now a link, or unreadable: its content, at any depth, is not taken for deleted."""
    root = tmp_path / "root"
    for path in ("note/a.md", "note/b.md", "sub/c.md", "sub/deep/d.md", "sub/deep/er/e.md"):
        put(root / path, f"of {path}")
    folder = ef.DirectorySync(store, root)
    folder.sync().raise_for_failures()
    (root / "note/b.md").unlink()
    if why == "link":
        (root / "sub").rename(tmp_path / "elsewhere")
        (root / "sub").symlink_to(tmp_path / "elsewhere")
    else:
        # Not valid, so it is not known what it would leave out.
        (root / "sub/.efignore").write_bytes(b"\xff\n")
    deleting = folder.plan(delete=True, max_delete=10).filter(pl.col("action") == "delete")
    assert deleting["path"].to_list() == ["note/b.md"]
    result = getattr(folder, call)(delete=True, max_delete=10)
    inside = result.outcomes.filter(pl.col("path").str.starts_with("sub/"))
    assert inside["path"].to_list() == ["sub/c.md", "sub/deep/d.md", "sub/deep/er/e.md"]
    assert set(inside["status"]) == {"unchanged" if why == "link" else "failed"}
    assert store.stats()["entities"].to_list() == ([2, 3] if call == "export_files" else [1, 3])
    assert (root / "sub/deep/er/e.md").read_text() == "of sub/deep/er/e.md"
    # Readable again, it is in sync as before.
    if why == "link":
        (root / "sub").unlink()
        (tmp_path / "elsewhere").rename(root / "sub")
    else:
        (root / "sub/.efignore").unlink()
    assert set(folder.plan(delete=True)["action"]) == {"unchanged"}
