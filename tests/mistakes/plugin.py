"""A pytest plugin: runs the given tests in the given order, or records what each test touches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_passed: dict[str, float] = {}
_failed: set[str] = set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the tests listed in the file $ENTITYFRAMES_CHOSEN, in its order."""
    if path := os.environ.get("ENTITYFRAMES_CHOSEN"):
        place = {name: number for number, name in enumerate(json.loads(Path(path).read_text("utf-8")))}
        chosen = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in place])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Give each test a separate file for its marks."""
    folder = os.environ.get("ENTITYFRAMES_RECORD")
    if folder:
        os.environ["ENTITYFRAMES_TOUCHED"] = f"{folder}/{item.session.items.index(item)}"
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the duration of a test including its fixtures, and whether it passed."""
    _passed[report.nodeid] = _passed.get(report.nodeid, 0.0) + report.duration
    if report.failed or (report.skipped and not hasattr(report, "wasxfail")):
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Combine the records of all tests."""
    if folder := os.environ.get("ENTITYFRAMES_RECORD"):
        number = {item.nodeid: n for n, item in enumerate(session.items)}
        places: dict[str, int] = {}
        tests = {}
        for name in _passed.keys() - _failed:
            touched = Path(folder, str(number[name]))
            marks = set(touched.read_text("utf-8").splitlines()) if touched.exists() else set()
            numbers = sorted(places.setdefault(mark, len(places)) for mark in marks)
            tests[name] = {"seconds": round(_passed[name], 3), "touched": numbers}
        recorded = {"marks": list(places), "tests": tests, "failed": sorted(_failed)}
        Path(folder, "tests.json").write_text(json.dumps(recorded), "utf-8")
