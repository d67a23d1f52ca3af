"""A plugin of pytest: runs the tests that it is given, in that order; or writes down what each test touches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_passed: dict[str, float] = {}
_failed: set[str] = set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the file of $ENTITYFRAMES_CHOSEN, in its order."""
    if path := os.environ.get("ENTITYFRAMES_CHOSEN"):
        place = {name: number for number, name in enumerate(json.loads(Path(path).read_text("utf-8")))}
        chosen = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in place])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Give each test a file of its own for its marks."""
    folder = os.environ.get("ENTITYFRAMES_RECORD")
    if folder:
        os.environ["ENTITYFRAMES_TOUCHED"] = f"{folder}/{item.session.items.index(item)}"
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """How long a test took with its fixtures, and whether it passed."""
    _passed[report.nodeid] = _passed.get(report.nodeid, 0.0) + report.duration
    if report.failed or (report.skipped and not hasattr(report, "wasxfail")):
        _failed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Put together what was recorded."""
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
