"""The package itself: its names, the cost of importing it, and the dependencies between its modules."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import entityframes as ef
from entityframes.engines import queries

PACKAGE = Path(ef.__file__).parent

#: Lower layers do not depend on higher ones; a layer is a folder or a module of the package.
LAYERS = [
    {"statuses"},
    {"errors", "visible", "tracebacks"},
    {"interrupt", "forks", "threads", "progress", "views"},
    {"rejected"},
    {"retry", "results", "metadata"},
    {"frames"},
    {"files", "engines"},
    {"writing", "reading"},
    {"embedding"},
    {"tables"},
    {"store"},
    {"directory", "bench", "distributed"},
    {"cli", "ray"},
    {"__init__", "__main__"},
]


def test_public_names() -> None:
    """The package exports exactly these names."""
    assert sorted(ef.__all__) == ef.__all__
    assert {"connect", "entities", "ids", "EntityStore", "UpsertResult", "EntityFramesError"} <= set(ef.__all__)
    for name in ef.__all__:
        assert getattr(ef, name).__doc__


@pytest.mark.parametrize("module", ["entityframes", "entityframes.embedding", "entityframes.distributed"])
def test_completion_offers_public_names_only(module: str) -> None:
    """Names that are loaded later are offered too; modules and what a module imports are not."""
    script = (
        "import importlib, sys\n"
        f"module = importlib.import_module({module!r})\n"
        "before = dir(module)\n"
        "for name in module.__all__: getattr(module, name)\n"
        "assert dir(module) == before\n"
        "print(*before)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    offered = run.stdout.split()
    assert offered, run.stderr
    public = [name for name in offered if not name.startswith("__")]
    assert public == importlib.import_module(module).__all__
    assert all(name.endswith("__") for name in set(offered) - set(public))
    assert "__doc__" in offered
    assert ("__version__" in offered) == (module == "entityframes")


def test_every_error_has_our_base_class() -> None:
    """One base class catches all of them."""
    errors = [getattr(ef, name) for name in ef.__all__ if name.endswith("Error")]
    assert all(issubclass(error, ef.EntityFramesError) for error in errors)


def test_import_is_light() -> None:
    """Importing the package loads neither Polars nor a driver, and nothing of the command line."""
    heavy = (
        "polars",
        "numpy",
        "pathspec",
        "adbc_driver_postgresql",
        "duckdb",
        "rich",
        "click",
        "pyarrow",
        "tqdm",
        "pandas",
        "ray",
    )
    script = f"import sys, entityframes; print(*[name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "", run.stdout + run.stderr


def _module(path: Path) -> str:
    """The dotted module name of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py")}


def _imports(module: str) -> set[str]:
    """Modules of the package that a file imports, also inside functions; except those for type checking only."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            # from entityframes.frames import sources
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(MODULES)) or {node.module}
    return found - {module}


def test_layers_depend_in_one_direction() -> None:
    """A module imports only from layers below its own."""
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}

    def room(module: str) -> str:
        return module.split(".")[1] if "." in module else "__init__"

    for module in MODULES:
        for imported in _imports(module):
            same = room(module) == room(imported)
            assert same or layer[room(imported)] < layer[room(module)], f"{module} imports {imported}"


def test_no_circular_imports() -> None:
    """There is an order in which every module comes after those that it imports."""
    TopologicalSorter({module: _imports(module) for module in MODULES}).prepare()


def test_both_engines_have_the_same_methods() -> None:
    """Both engines have the same public methods."""
    from entityframes.engines.duckdb.directory import DuckDBDirectory
    from entityframes.engines.duckdb.embedding import DuckDBEmbedding
    from entityframes.engines.duckdb.engine import DuckDBEngine
    from entityframes.engines.duckdb.tables import DuckDBTables
    from entityframes.engines.duckdb.text import DuckDBText
    from entityframes.engines.postgres.directory import PostgresDirectory
    from entityframes.engines.postgres.embedding import PostgresEmbedding
    from entityframes.engines.postgres.engine import PostgresEngine
    from entityframes.engines.postgres.tables import PostgresTables
    from entityframes.engines.postgres.text import PostgresText

    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(DuckDBEngine) == public(PostgresEngine)
    assert public(DuckDBEmbedding) == public(PostgresEmbedding)
    assert public(DuckDBDirectory) == public(PostgresDirectory)
    assert public(DuckDBText) == public(PostgresText)
    assert public(DuckDBTables) == public(PostgresTables)


@pytest.mark.parametrize(
    "file",
    [f"{engine}/{part}.sql" for engine in ("duckdb", "postgres") for part in ("engine", "checks", "embedding", "text")],
)
def test_every_statement_is_described_and_used(file: str) -> None:
    """Each named statement has a description and is executed somewhere."""
    text = (PACKAGE / "engines" / file).read_text("utf-8")
    modules = [*(PACKAGE / "engines" / file).parent.glob("*.py"), *(PACKAGE / "engines").glob("*.py")]
    code = "".join(module.read_text("utf-8") for module in modules)
    for name in queries.names(file):
        assert f"-- name: {name}\n-- " in text, f"{name} has no description"
        listed = name.startswith(("find_", "repair_"))
        assert f'"{name}"' in code or listed, f"{name} is not used"


def test_both_engines_make_the_same_checks() -> None:
    """An inconsistency that is found or repaired on one engine is found or repaired on the other.

    Only DuckDB stores a hash of each key, because it has no index of them.
    """
    checks = [
        [name for name in queries.names(f"{engine}/checks.sql") if name.startswith(("find_", "repair_"))]
        for engine in ("duckdb", "postgres")
    ]
    assert [name for name in checks[0] if not name.endswith("key_hash")] == checks[1]
