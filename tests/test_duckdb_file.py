"""How updates affect the size of a DuckDB file, and properties of the process that has it open."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

import entityframes as ef

#: A row group of DuckDB has 122,880 rows, so all of these share one.
DOCUMENTS = 20_000


def documents(version: int) -> pl.DataFrame:
    """Documents of 600 characters that do not compress."""
    rng = random.Random(version)
    ids = [f"d{number}" for number in range(DOCUMENTS)]
    texts = [rng.randbytes(300).hex() for _ in ids]
    return ef.entities(pl.DataFrame({"id": ids, "text": texts}), "document", id="id", content="text")


def upserted(path: Path, frame: pl.DataFrame) -> int:
    """The size of the file in bytes after an upsert by a separate process."""
    with ef.connect(path) as store:
        assert store.upsert(frame, progress=False).ok
    return path.stat().st_size


def test_one_edit_does_not_rewrite_other_documents(tmp_path: Path) -> None:
    """Other documents in the row group of the edited document are not rewritten."""
    path = tmp_path / "store.duckdb"
    whole = upserted(path, documents(0))
    assert whole > 300 * DOCUMENTS
    for version in range(1, 4):
        edited = upserted(path, documents(version)[[version]])
        assert edited < 1.5 * whole
    with ef.connect(path) as store:
        assert store.get(ef.ids("document", ["d1"]))["content"].item() == documents(1)["content"][1]


@pytest.mark.slow
def test_space_of_old_versions_is_reused(tmp_path: Path) -> None:
    """Repeated updates of all rows do not make the file larger each time."""
    path = tmp_path / "store.duckdb"
    sizes = [upserted(path, documents(version)) for version in range(6)]
    assert sizes[-1] < 3 * sizes[0]
    with ef.connect(path) as store:
        assert store.read("document").height == DOCUMENTS
        assert store.verify().is_empty()


def test_a_time_zone_that_polars_does_not_know(tmp_path: Path) -> None:
    """Times are returned in UTC, whatever the name of the machine's time zone."""
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
    """DuckDB would consider a hard link another file, and one connection would overwrite the other's changes."""
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


class Noise:
    """Vectors of random numbers."""

    name, dim, max_batch = "noise", 32, 5_000

    def embed(self, texts: Sequence[str], /) -> Any:
        return np.random.default_rng(0).normal(size=(len(texts), self.dim))


def test_vectors_are_not_compressed(tmp_path: Path) -> None:
    """Reading compressed vectors would take twice as long as comparing them."""
    path = str(tmp_path / "s.duckdb")
    numbers = pl.int_range(3_000).cast(pl.String)
    rows = pl.select(entity_type=pl.lit("t"), id=numbers).with_columns(content="id")
    with ef.connect(path) as store:
        store.upsert(rows, progress=False)
        store.embed(Noise(), progress=False)
    with duckdb.connect(path) as connection:
        info = "pragma_storage_info('entityframes.embeddings')"
        found = connection.execute(f"SELECT DISTINCT compression FROM {info} WHERE segment_type = 'FLOAT'").fetchall()
    assert found == [("Uncompressed",)]
