"""Methods to import a folder into a database: `python -m benchmarks.directory_methods METHOD TREE TARGET STATE`.

Each runs in its own process and prints the seconds from connecting to the end as JSON, excluding package imports.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.data import DigestEmbedder, edit_note, front_matter
from benchmarks.measure import peak_mb

#: How often each step of a sync is measured in one process.
STEPS = 7

_TABLES = (
    "CREATE SCHEMA IF NOT EXISTS peer",
    "CREATE TABLE IF NOT EXISTS peer.entities (entity_type text, id text, content text, metadata {json}, "
    "PRIMARY KEY (entity_type, id))",
    "CREATE TABLE IF NOT EXISTS peer.embeddings (entity_type text, id text, vector {vector}, "
    "PRIMARY KEY (entity_type, id))",
)
_FIND = "SELECT content, metadata FROM peer.entities WHERE entity_type = %s AND id = %s"
_INSERT = "INSERT INTO peer.entities (entity_type, id, content, metadata) VALUES (%s, %s, %s, %s)"
_UPDATE = "UPDATE peer.entities SET content = %s, metadata = %s WHERE entity_type = %s AND id = %s"
_EMBED = (
    "INSERT INTO peer.embeddings (entity_type, id, vector) VALUES (%s, %s, %s) "
    "ON CONFLICT (entity_type, id) DO UPDATE SET vector = EXCLUDED.vector"
)


def entityframes_import(tree: Path, target: str, state: Path) -> float:
    """This package: import the folder, then embed what is due."""
    import entityframes as ef

    _load(target)
    started = time.perf_counter()
    with ef.connect(target, namespace="folder") as store:
        result = ef.DirectorySync(store, tree).import_files(progress=False)
        store.embed(DigestEmbedder(), progress=False)
    seconds = time.perf_counter() - started
    for failed in result.failed.iter_rows(named=True):
        print(f"{failed['path']}: {failed['error']}", file=sys.stderr)
    return seconds


def entityframes_sync(tree: Path, target: str, state: Path) -> dict[str, list[float]]:
    """A sync with nothing to do, a sync after one file was edited, and a bare walk, in turn on one connection."""
    import entityframes as ef

    files = sorted(tree.rglob("*.md"))
    seconds: dict[str, list[float]] = {}
    with ef.connect(target, namespace="folder") as store:
        folder = ef.DirectorySync(store, tree)

        def sync() -> dict[str, int]:
            return {status: count for status, count in folder.sync(progress=False).counts.items() if count}

        steps = {
            "bare walk": (lambda: _walk(tree), len(files)),
            "nothing to do": (sync, {"unchanged": len(files)}),
            "one file edited": (sync, {"unchanged": len(files) - 1, "updated": 1}),
        }
        # The files may have been edited for another phase.
        sync()
        for turn in range(STEPS):
            for step, (do, expected) in steps.items():
                if step == "one file edited":
                    edit_note(files[turn * len(files) // STEPS], int(time.time()))
                started = time.perf_counter()
                done = do()
                seconds.setdefault(step, []).append(time.perf_counter() - started)
                if done != expected:
                    raise AssertionError(f"{step}: {done}, expected {expected}")
    return seconds


def psycopg_loop(tree: Path, target: str, state: Path) -> float:
    """The loop on PostgreSQL."""
    import psycopg
    import yaml  # noqa: F401

    started = time.perf_counter()
    with psycopg.connect(target, autocommit=True) as connection:
        _loop(tree, connection.execute, {"json": "jsonb", "vector": "real[]"})
    return time.perf_counter() - started


def duckdb_loop(tree: Path, target: str, state: Path) -> float:
    """The same loop on DuckDB."""
    import duckdb
    import yaml  # noqa: F401

    started = time.perf_counter()
    with duckdb.connect(target) as connection:

        def execute(sql: str, values: Sequence[Any] = ()) -> Any:
            return connection.execute(sql.replace("%s", "?"), values)

        _loop(tree, execute, {"json": "JSON", "vector": "FLOAT[64]"})
    return time.perf_counter() - started


def _loop(tree: Path, execute: Callable[..., Any], types: dict[str, str]) -> None:
    """For each file: read it, select its entity, insert or update it if it differs, embed it, write the vector."""
    embedder = DigestEmbedder()
    for statement in _TABLES:
        execute(statement.format_map(types))
    for path in sorted(tree.rglob("*.md")):
        kind, _, key = path.relative_to(tree).with_suffix("").as_posix().partition("/")
        metadata, content = front_matter(path.read_bytes().decode())
        found = execute(_FIND, (kind, key)).fetchone()
        if found is None:
            execute(_INSERT, (kind, key, content, json.dumps(metadata)))
        elif found[0] != content or _plain(found[1]) != metadata:
            execute(_UPDATE, (content, json.dumps(metadata), kind, key))
        else:
            continue
        execute(_EMBED, (kind, key, embedder.embed([content])[0].tolist()))


def cocoindex(tree: Path, target: str, state: Path) -> float:
    """CocoIndex, which keeps its state in a separate folder."""
    os.environ["COCOINDEX_DB"] = str(state)
    return float(import_module("benchmarks.directory_cocoindex").update(tree, target))


def _plain(metadata: Any) -> Any:
    return json.loads(metadata) if isinstance(metadata, str) else metadata


def _load(target: str) -> None:
    """Import the lazily imported modules and load the driver's library, as psycopg does on import."""
    modules = ["entityframes.directory", "entityframes.embedding.calls", "pyarrow"]
    if target.startswith("postgresql:"):
        modules += ["entityframes.engines.postgres.engine", "adbc_driver_postgresql.dbapi"]
    else:
        modules += ["entityframes.engines.duckdb.engine"]
    for module in modules:
        import_module(module)
    if target.startswith("postgresql:"):
        ctypes.CDLL(sys.modules["adbc_driver_postgresql"]._driver_path())


def _walk(tree: Path) -> int:
    """Read only the name, size and time of every file."""
    found, folders = 0, [str(tree)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    found += 1
    return found


def _respect_file_modes() -> None:
    """Make file modes apply to root too (Linux)."""
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        # Version 3, this process; effective, permitted and inheritable capabilities, the lower 32 bits, then the upper.
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, sets)
        sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.capset(header, sets)


METHODS = {
    method.__name__: method for method in (entityframes_import, entityframes_sync, psycopg_loop, duckdb_loop, cocoindex)
}  # fmt: skip

if __name__ == "__main__":
    name, tree, target, state, *more = sys.argv[1:]
    if more:
        _respect_file_modes()
    seconds = METHODS[name](Path(tree), target, Path(state))
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))
