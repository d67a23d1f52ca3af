"""What updates make of a DuckDB file, and what its process makes of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef

#: A row group of DuckDB has 122,880 rows, so all of these share one.
DOCUMENTS = 20_000


def documents(version: int) -> pl.DataFrame:
    """Documents of 600 characters, which are of no use to a compression."""
    rng = random.Random(version)
    ids = [f"d{number}" for number in range(DOCUMENTS)]
    texts = [rng.randbytes(300).hex() for _ in ids]
    return ef.entities(pl.DataFrame({"id": ids, "text": texts}), "document", id="id", content="text")


def upserted(path: Path, frame: pl.DataFrame) -> int:
    """The size of the file after an upsert of a process of its own, in bytes."""
    with ef.connect(path) as store:
        assert store.upsert(frame, progress=False).ok
    return path.stat().st_size


def test_one_edit_does_not_write_the_other_documents_again(tmp_path: Path) -> None:
    """What is in the same row group as the edited document stays as it is in the file."""
    path = tmp_path / "store.duckdb"
    whole = upserted(path, documents(0))
    assert whole > 300 * DOCUMENTS
    for version in range(1, 4):
        edited = upserted(path, documents(version)[[version]])
        assert edited < 1.5 * whole
    with ef.connect(path) as store:
        assert store.get(ef.ids("document", ["d1"]))["content"].item() == documents(1)["content"][1]


def test_room_of_former_versions_is_used_again(tmp_path: Path) -> None:
    """Updating everything again and again does not make the file larger and larger."""
    path = tmp_path / "store.duckdb"
    sizes = [upserted(path, documents(version)) for version in range(6)]
    assert sizes[-1] < 3 * sizes[0]
    with ef.connect(path) as store:
        assert store.read("document").height == DOCUMENTS
        assert store.verify().is_empty()


def test_a_time_zone_that_polars_does_not_know(tmp_path: Path) -> None:
    """Times come in UTC, whatever the machine's time zone is called."""
    script = """
import sys
import entityframes as ef
with ef.connect(sys.argv[1]) as store:
    store.upsert_entity("note", "a", "text")
    store.upsert_entity("note", "a", "newer text")
    print(store.get_entity("note", "a")["created_at"].tzinfo, store.jobs()["created_at"].dtype.time_zone)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "store.duckdb")]
    run = subprocess.run(command, env={**os.environ, "TZ": "GMT+3"}, capture_output=True, text=True)
    assert run.stdout == "UTC UTC\n", run.stderr


def test_one_file_under_two_names(tmp_path: Path) -> None:
    """DuckDB would take a hard link for another file, and one would write over the other."""
    path, link = tmp_path / "store.duckdb", tmp_path / "link.duckdb"
    with ef.connect(path) as store:
        store.upsert_entity("note", "a", "text")
        os.link(path, link)
        with pytest.raises(ef.ConnectError, match=r"link\.duckdb is open in this process as .*store\.duckdb"):
            ef.connect(link)
        with ef.connect(path) as again:
            assert again.entity_exists("note", "a")
    with ef.connect(link) as other:
        assert other.entity_exists("note", "a")
