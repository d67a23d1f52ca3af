"""The last line of a run: all figures and the versions they were measured with, machine-readable and for the guide."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: The figures of a run, and their names in the summary.
NAMES = {
    "calls": "calls",
    "batches": "batches",
    "rows reported": "rows",
    "kills": "kills",
    "rows lost": "lost",
    "rows misreported": "misreported",
    "inconsistencies": "inconsistencies",
    "unexpected errors": "unexpected_errors",
}
EMBEDDING_NAMES = {
    "vectors": "vectors",
    "kills": "kills",
    "without a vector": "lost",
    "of older text": "misreported",
    "inconsistencies": "inconsistencies",
    "unexpected": "unexpected_errors",
}


def summary(
    run: str, seed: int, figures: dict[str, dict[str, Any]], names: dict[str, str], postgresql: str | None
) -> str:
    """One line of JSON.

    Args:
        run: The name of the run, `torture` or `torture.embedding`.
        seed: Its seed.
        figures: The figures of each engine.
        names: The figures to include, and their names in the summary.
        postgresql: The version of the server, if there was one.
    """
    of_engines = {
        engine: {name: _count(found[of]) for of, name in names.items() if of in found}
        for engine, found in figures.items()
    }
    total = {name: sum(found.get(name, 0) for found in of_engines.values()) for name in names.values()}
    versions = {"postgresql": postgresql, **{name: version(package) for name, package in _PACKAGES.items()}}
    return json.dumps(
        {"summary": run, "seed": seed, **total, "engines": of_engines, "versions": versions, "commit": commit()}
    )


_PACKAGES = {"duckdb": "duckdb", "polars": "polars", "adbc": "adbc-driver-postgresql"}


def _count(value: Any) -> int:
    return len(value) if isinstance(value, (list, dict)) else int(value)


def commit() -> str | None:
    """The state of the tree as `git describe` names it; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    except OSError:
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
