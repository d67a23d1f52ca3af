"""The command that inserts mistakes: the changes it finds in a text, and the mistakes it draws."""

from __future__ import annotations

import ast

import pytest

from tests.mistakes import in_python, in_sql, touched
from tests.mistakes.draw import Mistake, draw, listed, mistake, sources

MODULE = '''\
"""A module that is not empty, and not full."""

from __future__ import annotations

Kind = int | str


def kept(rows: Frame | None, most: int = 10) -> bool:
    """Not all, and not none."""
    if rows is None or not most:
        raise ValueError(f"{most + 1} is not enough" + str(most == 2))
    if most < 3 and (rows.height > 4):
        return False
    found = rows.sort("id").join(other, on=["type", "id"], how="left")
    file.flush()
    log(found, most)
    try:
        return found.any()
    except (ValueError, KeyError):
        return 0.5
'''
STATEMENTS = """\
-- name: probe
-- What is found WHERE nothing is lost.
SELECT e.id FROM {schema}.entities AS e LEFT JOIN t ON e.type = t.type AND e.id = t.id
WHERE e.a IS DISTINCT FROM t.a AND (t.b <> 'x AND y' OR t.c) ORDER BY e.id, e.type LIMIT 5 FOR UPDATE OF e

-- name: write
CREATE TABLE x (created_at int4 DEFAULT 7);
UPDATE x SET a = 1, updated_at = now() WHERE CASE WHEN b THEN c END = $1
"""


def made(file: str, source: str) -> list[tuple[str, str, str]]:
    """The changes of a text: their kind and lines before and after."""
    finder = in_python if file.endswith(".py") else in_sql
    found = [mistake(file, source, change) for change in finder.changes(source)]
    return [(one.kind, one.was, one.now) for one in found if one is not None]


@pytest.mark.parametrize(
    ("kind", "now"),
    [
        ("comparison", "if rows is not None or not most:"),
        ("boolean", "if rows is None and not most:"),
        ("operand", "if not most:"),
        ("operand", "if rows is None:"),
        ("operand", "if most < 3:"),
        ("operand", "if (rows.height > 4):"),
        ("not", "if rows is None or most:"),
        ("comparison", "if most < 3 and (rows.height >= 4):"),
        ("constant", "if most < 4 and (rows.height > 4):"),
        ("constant", "return True"),
        ("guard", "pass"),
        ("call", "pass"),
        ("dropped call", 'found = rows.join(other, on=["type", "id"], how="left")'),
        ("columns", 'found = rows.sort("id").join(other, on=["type"], how="left")'),
        ("keyword", 'found = rows.sort("id").join(other, on=["type", "id"], how="inner")'),
        ("swapped", "log(most, found)"),
        ("exchanged", "return found.all()"),
        ("except", "except (ValueError):"),
    ],
)
def test_mistakes_in_python(kind: str, now: str) -> None:
    """Each kind is found."""
    assert now in [after for of_kind, _, after in made("a.py", MODULE) if of_kind == kind]


def test_left_out_in_python() -> None:
    """Docstrings, messages, annotations and durations are not changed."""
    lines = {was for _, was, _ in made("a.py", MODULE)}
    assert not any(part in line for line in lines for part in ('"""', "Kind", "0.5", "import"))
    assert {(now) for _, was, now in made("a.py", MODULE) if was.startswith("raise")} == {"pass"}
    assert "(most: int" not in {now for _, was, now in made("a.py", MODULE) if "Frame" not in now}


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("join", " e JOIN t ON"),
        ("join", "ON true AND e.id = t.id"),
        ("join", "ON e.type = t.type AND true"),
        ("where", "WHERE true AND (t.b"),
        ("where", "FROM t.a AND true ORDER"),
        ("comparison", "e.a = t.a"),
        ("comparison", "t.b = 'x AND y'"),
        ("exchanged", "'x AND y' AND t.c"),
        ("order", "OR t.c)  LIMIT 5"),
        ("limit", "e.type  FOR UPDATE"),
        ("lock", "LIMIT 5"),
        ("constant", "LIMIT 6"),
        ("assignment", "SET updated_at = now()"),
        ("assignment", "SET a = 1 WHERE"),
        ("exchanged", "created_at = now()"),
        ("where", "WHERE true"),
    ],
)
def test_mistakes_in_sql(kind: str, part: str) -> None:
    """Each kind is found; comments, string literals and table definitions are not changed."""
    found = made("a.sql", STATEMENTS)
    assert any(part in now and (kind != "lock" or now.endswith(part)) for of_kind, _, now in found if of_kind == kind)
    assert not any(was.startswith(("--", "CREATE")) for _, was, _ in found)


@pytest.mark.slow
def test_a_draw_is_the_same_for_a_seed_and_spread_over_modules() -> None:
    """Each module has its share, each mistaken file is valid Python, and each mistake is identified by its entry."""
    files = {file: text for file, text in sources().items() if "engines/postgres" in file}
    drawn = draw(files, 150, 3)
    assert drawn == draw(files, 150, 3)
    assert drawn != draw(files, 150, 4)
    assert len({one.key for one in drawn}) == len(drawn) == 150
    assert {one.file for one in drawn} >= {file for file, text in files.items() if len(text) > 5000}
    for one in drawn:
        assert one.text != files[one.file]
        if one.file.endswith(".py"):
            ast.parse(one.text)


def test_an_entry_reads_back(tmp_path) -> None:
    """The entry that is written for a survivor has the key that identifies an equivalent mistake."""
    odd = Mistake("a.sql", 3, "where", "probe", "it's 'one'\ntwo", "x \\ '''", "")
    plain = Mistake("b.py", 1, "constant", "module", "x = 1", "x = 2", "")
    path = tmp_path / "entries.toml"
    path.write_text(odd.entry("survivor") + "\n" + plain.entry("survivor"))
    assert set(listed(path, "survivor")) == {odd.key, plain.key}


def test_marks_change_nothing_but_what_is_recorded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A marked function behaves the same, and records the marks of the executed statements."""
    source = 'def f(n):\n    """Doc."""\n    if n:\n        return 1\n    return 2\n'
    recorder: dict = {}
    exec(touched.RECORDER, recorder)
    scope = {"_mark": recorder["touch"]}
    text = touched.marked("f.py", source)
    exec("\n".join(line for line in text.splitlines() if "import" not in line), scope)
    monkeypatch.setenv("ENTITYFRAMES_TOUCHED", str(tmp_path / "marks"))
    assert scope["f"](0) == 2
    assert (tmp_path / "marks").read_text().split() == ["f.py::f@0", "f.py::f@2"]
    assert scope["f"].__doc__ == "Doc."
