"""The last line of a run: all of its figures and what they were measured with, for machines and for the guide."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: Figures of a run, and what they are called in the summary.
NAMES = {
    "calls": "calls",
    "batches": "batches",
    "rows told": "rows",
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
        run: What was run, `torture` or `torture.embedding`.
        seed: Its seed.
        figures: Of each engine.
        names: The figures that count, and what they are called here.
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
    """What git calls the state of the tree; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    except OSError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None
