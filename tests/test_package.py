"""The package itself: its names, what importing it costs, and which way its modules depend on each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import entityframes as ef
from entityframes.engines import queries

PACKAGE = Path(ef.__file__).parent

#: Lower layers know nothing of higher ones.
LAYERS = [
    {"errors", "wire", "utf8", "visible"},
    {"types", "canonical", "progress", "sources", "forks", "rowwise"},
    {"frames", "conforming"},
    {"validation", "chunks"},
    {"results", "single", "options", "threads", "merging"},
    {"engines"},
    {"fields", "attempts"},
    {"scan", "judge", "answers", "narrow"},
    {"batches", "deletes", "reads"},
    {"plans", "verify", "embedding_calls"},
    {"store"},
    {"embedding"},
    {"directory"},
    {"files", "bench", "reports"},
    {"cli"},
    {"__init__", "__main__"},
]


def test_public_names() -> None:
    """What the package offers is what it says."""
    assert sorted(ef.__all__) == ef.__all__
    assert {"connect", "entities", "ids", "EntityStore", "UpsertResult", "EntityFramesError"} <= set(ef.__all__)
    for name in ef.__all__:
        assert getattr(ef, name).__doc__


def test_every_error_is_of_our_tree() -> None:
    """One root catches all of them."""
    errors = [getattr(ef, name) for name in ef.__all__ if name.endswith("Error")]
    assert all(issubclass(error, ef.EntityFramesError) for error in errors)


def test_import_is_light() -> None:
    """Importing the package loads no driver and nothing of the command line."""
    heavy = ("pathspec", "adbc_driver_postgresql", "duckdb", "rich", "click", "pyarrow", "tqdm", "pandas")
    script = f"import sys, entityframes; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "", run.stdout + run.stderr


def _imports(path: Path) -> set[str]:
    """First-party modules that a file imports when it is loaded."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "entityframes":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_arrows_point_one_way() -> None:
    """A module imports only from layers below its own."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = parts[0]
        for imported in _imports(path) - {module}:
            assert layer[imported] < layer[module], f"{module} imports {imported}"


def test_modules_and_functions_stay_short() -> None:
    """A module is under 700 lines and a function under 70."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        assert text.count("\n") < 700, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"


def test_both_engines_answer_the_same_methods() -> None:
    """What one engine can be asked, the other can."""
    from entityframes.engines.duckdb import DuckDBEngine
    from entityframes.engines.duckdb_directory import DuckDBDirectory
    from entityframes.engines.duckdb_embedding import DuckDBEmbedding
    from entityframes.engines.duckdb_text import DuckDBText
    from entityframes.engines.postgres import PostgresEngine
    from entityframes.engines.postgres_directory import PostgresDirectory
    from entityframes.engines.postgres_embedding import PostgresEmbedding
    from entityframes.engines.postgres_text import PostgresText

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(DuckDBEngine) == public(PostgresEngine)
    assert public(DuckDBEmbedding) == public(PostgresEmbedding)
    assert public(DuckDBDirectory) == public(PostgresDirectory)
    assert public(DuckDBText) == public(PostgresText)


@pytest.mark.parametrize(
    "file",
    [f"{engine}{part}.sql" for engine in ("duckdb", "postgres") for part in ("", "_checks", "_embedding", "_text")],
)
def test_every_statement_is_described_and_used(file: str) -> None:
    """Each named statement has a line that says what it does, and code that runs it."""
    text = (PACKAGE / "engines" / file).read_text("utf-8")
    modules = (PACKAGE / "engines").glob(file.replace("_checks", "").replace(".sql", "*.py"))
    code = "".join(module.read_text("utf-8") for module in modules)
    for name in queries.names(file):
        assert f"-- name: {name}\n-- " in text, f"{name} has no description"
        listed = name.startswith(("migrate_", "find_", "mend_"))
        assert f'"{name}"' in code or listed, f"{name} is not used"


def test_both_engines_make_the_same_checks() -> None:
    """What is found on one engine is found on the other, and what is mended on one is mended there.

    Only DuckDB keeps a hash of each key, because it has no index of them.
    """
    checks = [
        [name for name in queries.names(f"{engine}_checks.sql") if name.startswith(("find_", "mend_"))]
        for engine in ("duckdb", "postgres")
    ]
    assert [name for name in checks[0] if not name.endswith("key_hash")] == checks[1]
