"""Records which test touches which part of the package, with marks that are inserted into a copy of it.

A mark is inserted before each straight-line sequence of statements. A test appends the marks to a separate file, at
once and from all of its processes, so that nothing is lost when a process is killed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Becomes a module of the marked package; it has no dependencies.
RECORDER = """\
import os

_seen, _told = set(), None


def touch(mark):
    global _seen, _told
    path = os.environ.get("ENTITYFRAMES_TOUCHED")
    if path != _told:
        _seen, _told = set(), path
    if path and mark not in _seen:
        _seen.add(mark)
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:
            return
        try:
            os.write(file, f"{mark}\\n".encode())
        finally:
            os.close(file)


def statement(engine, name):
    touch(f"{engine}.sql::{name}")
"""
_COMPOUND = (
    ast.If, ast.For, ast.While, ast.Try, ast.TryStar, ast.With, ast.Match, ast.FunctionDef, ast.ClassDef,
)  # fmt: skip


class Run(NamedTuple):
    """Consecutive statements, from `index` on in the list `body`."""

    body: list[ast.stmt]
    index: int
    line: int
    function: str
    mark: str


def functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions with their qualified names, each before its inner functions."""
    for node in ast.iter_child_nodes(tree):
        name = f"{outer}{node.name}." if isinstance(node, ast.FunctionDef | ast.ClassDef) else outer
        if isinstance(node, ast.FunctionDef):
            yield name[:-1], node
        yield from functions(node, name)


def runs(file: str, tree: ast.Module) -> list[Run]:
    """The runs that get a mark. The number of a run does not depend on changes in other functions."""
    found: list[Run] = []
    for name, function in functions(tree):
        starts = list(_starts(function.body, function.lineno))
        found.extend(
            Run(body, index, line, name, f"{file}::{name}@{number}")
            for number, (body, index, line) in enumerate(starts)
        )
    return found


def _starts(body: list[ast.stmt], line: int) -> Iterator[tuple[list[ast.stmt], int, int]]:
    """The first statement of a list, and each statement after a compound statement."""
    first = True
    for index, statement in enumerate(body):
        text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if first and not (text and index == 0 and len(body) > 1):
            yield body, index, line if line is not None else statement.lineno
            first = False
        elif index and isinstance(body[index - 1], _COMPOUND):
            yield body, index, statement.lineno
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        for inner in ("body", "orelse", "finalbody"):
            if nested := getattr(statement, inner, None):
                yield from _starts(nested, nested[0].lineno)
        for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
            start = part.lineno if isinstance(part, ast.ExceptHandler) else part.pattern.lineno
            yield from _starts(part.body, start)


def engine_of(file: str) -> str:
    """The engine whose statements a file contains or uses."""
    return "duckdb" if "duckdb" in file else "postgres"


#: Where statements are looked up by name; the lookup leaves a mark of its own.
_LOOKUPS = {"entityframes/engines/queries.py": ("Statements.__getitem__", "Statements.format")}


def marked(file: str, source: str) -> str:
    """The text of a module with marks in it."""
    tree = ast.parse(source)
    for run in reversed(runs(file, tree)):
        run.body.insert(run.index, ast.Expr(ast.Call(ast.Name("_mark", ast.Load()), [ast.Constant(run.mark)], [])))
    for name, function in functions(tree):
        if name in _LOOKUPS.get(file, ()):
            function.body[:0] = ast.parse("_mark_statement(self._engine, name)").body
    names = [ast.alias("touch", "_mark"), ast.alias("statement", "_mark_statement")]
    after = 0
    for index, statement in enumerate(tree.body):
        text = index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if text or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__"):
            after = index + 1
    tree.body.insert(after, ast.ImportFrom("entityframes._touched", names, 0))
    return ast.unparse(ast.fix_missing_locations(tree))


def mark_package(package: Path) -> None:
    """Insert marks into a copy of the package."""
    for path in package.rglob("*.py"):
        path.write_text(marked(path.relative_to(package.parent).as_posix(), path.read_text("utf-8")), "utf-8")
    (package / "_touched.py").write_text(RECORDER, "utf-8")
