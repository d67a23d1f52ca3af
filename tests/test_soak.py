"""The soak runs work and distinguish growth from noise; only long runs measure how flat the package is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ENGINES
from tests.soak import COUNTED, verdict
from tests.torture.summary import EMBEDDING_NAMES, NAMES, summary


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_short_soak(engine: str) -> None:
    """Each part ends by itself and reports the growth of each figure."""
    command = ["--connects", "4", "--watch-minutes", "0.02", "--pause", "0.1", "--engine", engine]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.soak", *command], capture_output=True, text=True, timeout=300
    )
    reports = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [(line["soak"], line["engine"]) for line in reports] == [("connects", engine), ("watch", engine)], run.stderr
    for line in reports:
        assert line["growth"].keys() == {"rss_mb", "descriptors", "threads", "connections"}
    # In a few seconds only the number of connections is stable enough to check; a backend may end a moment later.
    assert reports[0]["growth"]["connections"] <= COUNTED
    assert run.returncode == int(not all(line["flat"] for line in reports)), run.stderr


@pytest.mark.parametrize("grown", ["rss_mb", "descriptors", "threads", "connections", None])
def test_growth_is_detected(grown: str | None) -> None:
    """A higher start and a fluctuating figure are flat; a steady increase is not."""
    rows = [
        {
            name: level + (turn % 2) + (20.0 if turn == 0 else 0.0) + (5.0 * turn if name == grown else 0.0)
            for name, level in (("rss_mb", 100.0), ("descriptors", 20.0), ("threads", 10.0), ("connections", 4.0))
        }
        for turn in range(20)
    ]
    found = verdict(rows)
    assert found["flat"] == (grown is None)
    assert all((growth > 2) == (name == grown) for name, growth in found["growth"].items())


def test_the_summary_of_a_torture_run_adds_up() -> None:
    """One line with the sum of the engines, and the versions it was measured with."""
    figures = {engine: {name: number for number, name in enumerate(NAMES, 1)} | {"statuses": {}} for engine in ENGINES}
    line = json.loads(summary("torture", 7, figures, NAMES, "18.0"))
    assert [line[name] for name in NAMES.values()] == [2 * number for number in range(1, len(NAMES) + 1)]
    assert line["seed"] == 7
    assert line["versions"].keys() == {"postgresql", "duckdb", "polars", "adbc"}
    assert line["engines"].keys() == set(ENGINES)
    counted = {"kills": 3, "vectors": 9, "unexpected": ["one"], "without a vector": 0, "of older text": 0}
    line = json.loads(summary("torture.embedding", 7, {"duckdb": counted}, EMBEDDING_NAMES, None))
    assert (line["kills"], line["unexpected_errors"], line["lost"]) == (3, 1, 0)
