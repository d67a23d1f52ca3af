"""What people see in a terminal: tables and records, one entity, questions, and more or less of it with -v and -q."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from tests.command import run
from tests.test_terminal import in_terminal

pytestmark = pytest.mark.duckdb

STORE = ("--store", "x.duckdb")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of three people and a table, and a file with a bad row."""
    frame = pl.DataFrame(
        {
            "id": ["ada@example.org", "alan@example.org", "grace@example.org"],
            "bio": ["wrote the first\nprogram", "asked whether machines can think " * 9, "wrote the first compiler"],
            "born": [1815, 1912, 1906],
            "tags": [["math"], ["logic", "[bold]"], None],
        }
    )
    with ef.connect(tmp_path / "x.duckdb") as store:
        assert store.upsert(ef.entities(frame, "person", id="id", content="bio"), progress=False).ok
        assert store.embed(ef.HashingEmbedder(16), progress=False).ok
        with ef.create_table(store, "people", frame.drop("tags"), key="id") as people:
            assert people.upsert(frame.drop("tags"), progress=False).ok
    (tmp_path / "rows.csv").write_text("email,born\n,1\nnew@example.org,2\n")
    return tmp_path


def people(folder: Path) -> list[str]:
    with ef.connect(folder / "x.duckdb", read_only=True) as store:
        return store.read("person")["id"].to_list()


COMMANDS = {
    "get": ("get", "--type", "person", "ada@example.org", "alan@example.org", "nobody"),
    "get one": ("get", "--type", "person", "alan@example.org"),
    "get a row": ("get", "--table", "people", "alan@example.org"),
    "exists": ("exists", "--type", "person", "ada@example.org"),
    "search": ("search", "wrote", "--mode", "text"),
    "stats": ("stats",),
    "jobs": ("jobs",),
    "spaces": ("spaces",),
    "tables": ("tables",),
    "failed rows": ("import", "rows.csv", "--type", "person", "--id", "email", "--no-progress"),
}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 120])
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_every_width(words: tuple[str, ...], columns: int, folder: Path) -> None:
    """No line of a table or a record is longer than the terminal is wide."""
    shown = in_terminal(*words, *STORE, cwd=folder, columns=columns)
    # A content is shown as it is.
    lines = [line for line in shown.splitlines() if not line.startswith(("asked", "1 row failed"))]
    assert max(map(len, lines)) <= columns, shown


@pytest.mark.slow
def test_a_table_or_records(folder: Path) -> None:
    """The columns are cut as far as they remain readable; numbers never are."""
    wide = in_terminal("search", "wrote", "--mode", "text", *STORE, cwd=folder, columns=120)
    assert wide.splitlines()[0].split() == ["rank", "score", "entity_type", "id", "passage"]
    narrow = in_terminal("search", "wrote", "--mode", "text", *STORE, cwd=folder, columns=40)
    assert [line.split()[0] for line in narrow.splitlines()[:4]] == ["rank", "score", "entity_type", "id"]
    assert "wrote the first" in narrow


@pytest.mark.slow
def test_one_entity_is_shown_for_reading(folder: Path) -> None:
    """Its metadata line by line, and its content with its lines."""
    shown = in_terminal("get", "--type", "person", "ada@example.org", *STORE, cwd=folder, columns=60).splitlines()
    assert shown[0] == "person/ada@example.org"
    assert [line.split()[0] for line in shown[1:3]] == ["created_at", "updated_at"]
    assert [line.split() for line in shown[4:6]] == [["born", "1815"], ["tags", '["math"]']]
    assert shown[7:] == ["wrote the first", "program"]
    shown = in_terminal("get", "--type", "person", "alan@example.org", *STORE, cwd=folder)
    assert '["logic", "[bold]"]' in shown
    assert "name" not in in_terminal("get", "--type", "person", "nobody", *STORE, cwd=folder)
    # Scripts get what they always got.
    assert run("get", "--type", "person", "ada@example.org", *STORE, cwd=folder).stdout.startswith(
        "entity_type,id,found"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "left"), [("n\n", 3), ("\n", 3), ("y\n", 1)])
@pytest.mark.parametrize("target", [("--type", "person"), ("--table", "people")], ids=" ".join)
def test_a_deletion_is_confirmed(target: tuple[str, str], typed: str, left: int, folder: Path) -> None:
    """With the number of what would be deleted; the default is no."""
    words = ("delete", *target, "--where", "born > 1900", *STORE)
    shown = in_terminal(*words, cwd=folder, typed=typed)
    assert "2 entities of type person match: delete them?" in shown or "2 rows of main.people match" in shown
    assert ("nothing was deleted" in shown, "2 deleted" in shown) == (left == 3, left == 1)
    exported = run("export", *(target[1:] if target[0] == "--type" else target), *STORE, "--json", cwd=folder).stdout
    assert len(exported.splitlines()) == left


def test_a_deletion_in_a_script_needs_yes(folder: Path) -> None:
    """Without it nothing is deleted, and the number is printed."""
    words = ("delete", "--type", "person", "--where", "born > 1900 AND id LIKE 'a%'", *STORE)
    code, out, errors = run(*words, cwd=folder)
    assert (code, out) == (2, "")
    assert "1 entity of type person matches; nothing was deleted\n  run it with --yes to delete it" in errors
    assert len(people(folder)) == 3
    code, out, errors = run(*words, "--yes", "--json", cwd=folder)
    assert (code, json.loads(out)["counts"]["deleted"]) == (0, 1)
    assert people(folder) == ["ada@example.org", "grace@example.org"]
    code, out, _ = run(*words, cwd=folder)
    assert (code, "0 ids" in out) == (0, True)
    assert run("delete", "--table", "people", "--where", "t.born < 1900", "--yes", *STORE, cwd=folder).returncode == 0
    assert run("exists", "--table", "people", "ada@example.org", *STORE, cwd=folder).returncode == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--type", "person", "--where", "nothing = 1"], 'unable to find column "nothing"'),
        (["--type", "person", "--where", "born ="], "--where 'born =' is no SQL"),
        (["--type", "prson", "--where", "true"], "no entities of type 'prson': the store has person"),
        (["--type", "person", "--where", "true", "ada@example.org"], "leave out the ids"),
        (["--type", "person", "--yes", "ada@example.org"], "--yes: only with --where"),
        (["--where", "true"], "no type"),
        (["--table", "people", "--where", "nothing = 1"], "nothing"),
    ],
)
def test_conditions_that_cannot_be_used(words: list[str], message: str, folder: Path) -> None:
    code, out, errors = run("delete", *words, *STORE, cwd=folder)
    assert (code, out, message in errors) == (2, "", True), errors
    assert len(people(folder)) == 3


def test_an_error_of_polars_is_no_defect(folder: Path) -> None:
    """It is two lines like any other: what happened, with the columns that there are, and what to do."""
    words = ("delete", "--type", "person", "--where", "nothing = 1", *STORE)
    happened, following = run(*words, cwd=folder).stderr.splitlines()
    assert happened.startswith('entityframes: unable to find column "nothing"; valid columns: ["id", ')
    assert following == "  use one of these columns; a name with other characters is quoted"


def test_quiet(folder: Path) -> None:
    """Nothing but errors, failed rows, and the data asked for; before or after the command."""
    words = ("rows.csv", "--type", "person", "--id", "email", *STORE)
    for command in (("-q", "import", *words), ("import", *words, "--quiet")):
        code, out, errors = run(*command, cwd=folder)
        assert (code, out) == (1, "")
        assert errors.startswith("1 row failed")
    assert run("-q", "verify", *STORE, cwd=folder) == (0, "", "")
    assert run("-q", "get", "--type", "person", "x", *STORE, cwd=folder)[0::2] == (1, "")
    assert "x,false" in run("-q", "exists", "--type", "person", "x", *STORE, cwd=folder).stdout
    assert run("-q", "export", "nobody", *STORE, cwd=folder).stderr.startswith("entityframes: no entities")


def test_verbose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: the log. Twice: also the traceback of an error."""
    monkeypatch.setenv("DATABASE_URL", f"duckdb:///{folder / 'x.duckdb'}")
    log = "x.duckdb is used (from $DATABASE_URL)"
    assert log not in run("stats", cwd=folder).stderr
    assert log in run("stats", "-v", cwd=folder).stderr
    assert "Traceback" not in run("-v", "export", "nobody", cwd=folder).stderr
    shown = in_terminal("-v", "export", "nobody", "-v", *STORE, cwd=folder)
    assert "Traceback (most recent call last)" in shown
    assert shown.splitlines()[-2].startswith("entityframes: no entities of type")


def test_a_defect_is_no_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with how to see more, and the status is that of a command that could not run."""

    def broken(self: object) -> pl.DataFrame:
        raise KeyError("surprise")

    monkeypatch.setattr(ef.EntityStore, "stats", broken)
    code, out, errors = run("stats", *STORE, cwd=folder)
    assert (code, out) == (2, "")
    assert errors.splitlines() == [
        "entityframes: a defect: KeyError: 'surprise'",
        "  run it again with -vv to see where it happened, and report that",
    ]
