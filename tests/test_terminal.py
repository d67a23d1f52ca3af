"""Data on a terminal: control characters are shown as escapes, and scripts get the exact data."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes.visible import visible, visible_json
from tests.command import run

#: Escape, the one-character form of its sequences, a title set by OSC and ended by a bell, carriage return, backspace,
#: line ends, delete, overrides of direction, zero width, a tag, and the separators of lines and paragraphs.
EVIL = (
    "\x1b[31mred\x1b[0m\x9b2J\x1b]0;title\x07\rb\x08\n\x7f\u202eevil\u2066\u200b\u200f\ufeff\U000e0041\u2028\u2029\x85."
)


def acted_on(text: str) -> set[str]:
    """The characters of a text that a terminal would interpret, except for its own line endings."""
    rest = text.replace("\r\n", "")
    return {one for one in rest if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def in_terminal(*words: object, cwd: Path, columns: int = 200, typed: str = "") -> str:
    """The output of a command whose streams are a terminal, in which something is typed."""
    main, other = pty.openpty()
    os.write(main, typed.encode())
    environment = os.environ | {"TERM": "dumb", "COLUMNS": str(columns), "PYTHONUTF8": "1", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-m", "entityframes", *map(str, words)],
        stdin=other, stdout=other, stderr=other, cwd=cwd, env=environment,
    )  # fmt: skip
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(main, 65_536)
        except OSError:
            # Linux raises this once the other end is closed.
            break
        if not piece:
            break
        shown += piece
    os.close(main)
    process.wait(timeout=120)
    return shown.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of such data, files of it, and notes with such names."""
    frame = pl.DataFrame(
        {
            "entity_type": ["note", f"t{EVIL}"],
            "id": [f"a{EVIL}", f"b{EVIL}"],
            "content": [f"some words {EVIL}"] * 2,
            "metadata": [{f"f{EVIL}": f"v{EVIL}"}] * 2,
        }
    )
    with ef.connect(tmp_path / "x.duckdb") as store:
        assert store.upsert(frame, progress=False).ok
        assert store.embed(ef.HashingEmbedder(16), progress=False).ok
        with store._engine.database.file.cursor() as cursor:
            cursor.execute("UPDATE entityframes.embedding_jobs SET error = $1", [EVIL])
    pl.DataFrame({"id": [f"a{EVIL}", None], "text": [f"{EVIL}", f"{EVIL}\0"]}).write_ndjson(tmp_path / "rows.ndjson")
    (tmp_path / "notes").mkdir()
    name = EVIL.replace("/", "")
    (tmp_path / "notes" / f"{name}.md").write_text("---\n- no mapping\n---\n")
    (tmp_path / "notes" / f"_{name}").mkdir()
    return tmp_path


IMPORT = ("import", "rows.ndjson", "--type", f"t{EVIL}", "--id", "id", "--content", "text", "--no-progress")
COMMANDS = {
    "get": ("get", "--type", "note", f"a{EVIL}", f"not{EVIL}"),
    "get as JSON": ("get", "--type", "note", f"a{EVIL}", "--json"),
    "exists": ("exists", "--type", f"t{EVIL}", f"b{EVIL}"),
    "export": ("export", "note"),
    "export as TSV": ("export", "note", "--format", "tsv"),
    "export as JSON": ("export", "note", "--json"),
    "export to a file": ("export", "note", "--out", f"out{EVIL}.csv"),
    "search": ("search", "some words", "--mode", "text"),
    "search as JSON": ("search", "some words", "--mode", "text", "--json"),
    "stats": ("stats",),
    "jobs": ("jobs",),
    "spaces": ("spaces",),
    "verify": ("verify",),
    "import": IMPORT,
    "import as JSON": (*IMPORT, "--json"),
    "import --dry-run": (*IMPORT, "--dry-run"),
    "sync": ("sync", "notes", "--no-progress"),
    "sync --dry-run": ("sync", "notes", "--dry-run"),
    "delete": ("delete", "--type", "note", f"a{EVIL}"),
    "an unknown option": ("get", f"--no{EVIL}"),
    "an unknown file": ("import", f"no{EVIL}.csv", "--type", "t", "--id", "id"),
    "a namespace": ("stats", "--namespace", EVIL),
    "a folder that is not there": ("sync", f"no{EVIL}"),
    "an unknown space": ("spaces", "--activate", EVIL),
}


@pytest.mark.slow
@pytest.mark.duckdb
@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_nothing_reaches_the_terminal(words: tuple[str, ...], folder: Path) -> None:
    """Case 54: ids, types, contents, metadata, errors, names of fields, files, folders, spaces and namespaces."""
    if words[0] == "verify":
        with ef.connect(folder / "x.duckdb") as store, store._engine.database.file.cursor() as cursor:
            cursor.execute("UPDATE entityframes.entities SET content_hash = ''")
    shown = in_terminal(*words, "--store", "x.duckdb", cwd=folder)
    assert shown
    assert "Traceback" not in shown
    # The separator of a TSV is a tab.
    assert acted_on(shown) <= ({"\t"} if "tsv" in words else set()), shown


@pytest.mark.slow
@pytest.mark.duckdb
def test_a_terminal_shows_what_is_there(folder: Path) -> None:
    """Escapes, on one line each; and JSON with the same values."""
    shown = in_terminal("export", "note", "--store", "x.duckdb", cwd=folder)
    assert "a\\x1b[31mred\\x1b[0m\\x9b2J" in shown
    assert "true" in in_terminal("exists", "--type", "note", f"a{EVIL}", "--store", "x.duckdb", cwd=folder)
    shown = in_terminal("get", "--type", "note", f"a{EVIL}", "--json", "--store", "x.duckdb", cwd=folder)
    assert json.loads(shown)["id"] == f"a{EVIL}"
    # A search shows a table on a terminal, and prints CSV to a pipe.
    search = ("search", "words", "--mode", "text", "--store", "x.duckdb")
    assert "rank,score,entity_type" in run(*search, cwd=folder).stdout
    assert "rank,score" not in in_terminal(*search, cwd=folder)
    assert "cannot be printed to a terminal" in in_terminal(
        "export", "note", "--format", "parquet", "--store", "x.duckdb", cwd=folder
    )


@pytest.mark.slow
@pytest.mark.duckdb
def test_a_format_of_json_lines_is_json_on_a_terminal_too(folder: Path) -> None:
    """Control characters are escaped as JSON has it, as with --json."""
    shown = in_terminal("export", "note", "--format", "ndjson", "--store", "x.duckdb", cwd=folder)
    assert json.loads(shown)["content"] == f"some words {EVIL}"


@pytest.mark.duckdb
def test_scripts_get_it_exactly(folder: Path) -> None:
    """JSON and CSV to a pipe, and files."""
    store = ("--store", "x.duckdb")
    assert json.loads(run("get", "--type", "note", f"a{EVIL}", "--json", *store, cwd=folder).stdout)["id"] == f"a{EVIL}"
    [line] = run("export", "note", "--json", *store, cwd=folder).stdout.split("\n")[:-1]
    assert json.loads(line)["content"] == f"some words {EVIL}"
    _, row = csv.reader(io.StringIO(run("export", "note", *store, cwd=folder).stdout, newline=""))
    assert row[:2] == [f"a{EVIL}", f"some words {EVIL}"]
    run("export", "note", "--out", "out.parquet", *store, cwd=folder)
    assert pl.read_parquet(folder / "out.parquet")["id"].to_list() == [f"a{EVIL}"]
    report = json.loads(run(*IMPORT, "--json", *store, cwd=folder).stdout)
    assert [row["entity_type"] for row in report["failed"]] == [f"t{EVIL}"]


@pytest.mark.duckdb
def test_results_and_their_html() -> None:
    """The repr of failed rows, and the view in a notebook."""
    with ef.connect(":memory:") as store:
        rows = pl.DataFrame({"entity_type": "note", "id": [f"<b>{EVIL}"], "content": ["nul\0"]})
        result = store.upsert(rows, progress=False)
        plan = store.plan(rows)
    with pytest.raises(ef.EntityFramesError) as caught:
        result.raise_for_failures()
    for text in (repr(result), str(caught.value), plan.summary(), result._repr_html_()):
        assert acted_on(text.replace("\n", "")) == set()
        assert "\\u202e" in text
    assert "<b>" not in result._repr_html_()


def test_what_is_readable_stays() -> None:
    """Letters of every script, emoji and blanks are unchanged; JSON keeps its meaning."""
    for text in ("plain", "größe", "日本語", "עברית", "naïve\u00a0x", "👍🏽"):
        assert visible(text) == text
    assert visible(None) == ""
    assert visible("a\nb\tc", keep="\n\t") == "a\nb\tc"
    assert json.loads(visible_json(json.dumps({"k": EVIL}, ensure_ascii=False))) == {"k": EVIL}
