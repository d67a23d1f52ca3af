"""The recipes of the guide for other engines, where these are installed, on a real PostgreSQL."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes import distributed

PAGE = Path(__file__).parents[2] / "notebooks" / "guide" / "recipe" / "other-engines.md"

pytestmark = [
    pytest.mark.slow,
    # These engines warn about themselves.
    pytest.mark.filterwarnings("ignore"),
]


def recipes() -> dict[str, Any]:
    """What the Python blocks of the page define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


@pytest.fixture
def paths(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four files, and the address of a store in the environment."""
    monkeypatch.setenv("ENTITYFRAMES_URL", postgres_url)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    files = [tmp_path / f"{number}.parquet" for number in range(4)]
    for number, file in enumerate(files):
        pl.DataFrame({"id": [f"{number}-{row}" for row in range(100)], "text": "text"}).write_parquet(file)
    return list(map(str, files))


def installed(name: str) -> Any:
    """An engine, or skip the test."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


def check(result: distributed.DistributedResult, partitions: int) -> None:
    assert result.counts["created"] == result.rows == 400
    assert result.partitions.height == partitions
    distributed.close()
    with ef.connect() as store:
        assert store.count("note") == 400
        assert store.verify().is_empty()


def test_dask(paths: list[str]) -> None:
    """Each file is a task of a cluster of two processes."""
    with (
        installed("dask.distributed").LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        cluster.get_client() as client,
    ):
        check(recipes()["with_dask"](client, paths), 4)


def test_daft(paths: list[str]) -> None:
    """Each file is a value of a column."""
    installed("daft")
    check(recipes()["with_daft"](paths), 4)


def test_spark(paths: list[str]) -> None:
    """Each partition of a frame is a task."""
    sql = installed("pyspark.sql")
    spark = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        check(recipes()["with_spark"](spark.read.parquet(*paths).repartition(3)), 3)
    finally:
        spark.stop()
