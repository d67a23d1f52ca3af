"""A folder of odd files is imported and exported; an independent reader finds no unreported difference."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

import entityframes as ef
from entityframes.files import write_file
from tests.command import Ran, run
from tests.files.odd import Odd, files

FILES = files()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store into which each file is imported, as a type of its own."""
    return tmp_path_factory.mktemp("odd")


def imported(odd: Odd, folder: Path) -> Ran:
    """What the import of a file printed."""
    (folder / odd.name).write_bytes(odd.content)
    words = [word for name in odd.id for word in ("--id", name)]
    return run("import", odd.name, "--type", odd.name, *words, *odd.options, "--json", cwd=folder)


def stored(odd: Odd, folder: Path) -> str:
    """The export of a file: as CSV, or as NDJSON if the file is JSON or CSV cannot represent it."""
    target = folder / ("out.ndjson" if "json" in odd.name else "out.csv")
    with ef.connect(folder / "entities.duckdb") as store:
        write_file(store.read(odd.name), target)
    return target.read_bytes().decode()


def test_there_are_many() -> None:
    """No two have one name."""
    assert len({odd.name for odd in FILES}) == len(FILES) >= 60


@pytest.mark.parametrize("odd", FILES, ids=lambda odd: odd.name)
def test_an_odd_file(odd: Odd, folder: Path) -> None:
    """FAULTS 57 and 58: values are exported as they were imported, or the difference is reported; bad lines are failed rows."""
    code, out, errors = imported(odd, folder)
    assert odd.message in out + errors
    if odd.rows is None:
        assert (code, out) == (2, "")
        assert odd.name in errors or "no column" in errors
        return
    assert code == (1 if odd.failed else 0), errors
    report = json.loads(out)
    failures = [failure["error"] for failure in report["failed"]]
    named = [int(found[1]) for error in failures if (found := re.search(r", line ([\d,]+):", error))]
    assert len(failures) == len(odd.failed)
    assert sorted(named) == sorted(odd.failed) or "NUL" in odd.message
    found = _exported(odd, stored(odd, folder))
    expected = {_key(odd, row): row for row in odd.rows}
    assert found.keys() == expected.keys()
    differing = {
        name
        for key, row in expected.items()
        for name, value in row.items()
        if name not in odd.id and not _same(value, found[key].get(name), "json" in odd.name)
    }
    extra = {name for row in found.values() for name in row} - {name for row in odd.rows for name in row}
    assert extra <= {"id", "content"}
    unreported = {name for name in differing if not any(repr(name)[1:-1] in note for note in report.get("notes", []))}
    assert not unreported, (unreported, report)


def _key(odd: Odd, row: dict[str, Any]) -> str:
    """The expected id of a row."""
    parts = [str(row[name]) for name in odd.id]
    if len(parts) == 1:
        return parts[0]
    return "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)


def _exported(odd: Odd, text: str) -> dict[str, dict[str, Any]]:
    ours = ("content_hash", "created_at", "updated_at")
    if "json" in odd.name:
        rows = [json.loads(line) for line in text.splitlines() if line]
    else:
        rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(io.StringIO(text, newline=""))]
    return {row["id"]: {name: value for name, value in row.items() if name not in ours} for row in rows}


def _same(given: Any, found: Any, is_json: bool) -> bool:
    """Whether a value was exported as it was imported; in JSON a missing key is null."""
    if not is_json:
        return bool(given == found)
    if isinstance(given, dict) and isinstance(found, dict):
        return all(_same(given.get(name), found.get(name), True) for name in given.keys() | found.keys())
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(_same(a, b, True) for a, b in zip(given, found, strict=True))
    return type(given) is type(found) and bool(given == found)
