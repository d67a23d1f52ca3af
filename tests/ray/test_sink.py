"""Datasets of Ray Data, written through the sink."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from tests.distributed.test_partition import notes

# Ray Data warns about its own settings when it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture
def data(cluster: Any) -> Any:
    """`ray.data`."""
    data = pytest.importorskip("ray.data", reason="Ray Data needs pandas")
    data.DataContext.get_current().enable_progress_bars = False
    return data


def counted(result: Any) -> dict[str, int]:
    return {status: count for status, count in result.counts.items() if count}


def test_a_dataset_is_written(data: Any, store_url: str, tmp_path: Path) -> None:
    """Each task is a partition; a bad row is named; a second write changes nothing."""
    from entityframes.ray import EntitySink

    for number in range(3):
        rows = notes(range(100 * number, 100 * number + 100))
        bad = pl.DataFrame({"entity_type": ["note"], "id": [None], "content": ["x"]}, schema=rows.schema)
        pl.concat([rows, bad]).write_parquet(tmp_path / f"{number}.parquet")
    sink = EntitySink(store_url)
    assert sink.result is None
    data.read_parquet(str(tmp_path)).write_datasink(sink)
    assert counted(sink.result) == {"created": 300, "failed": 3}
    assert sink.result.failed["rule"].to_list() == ["null_key"] * 3
    data.read_parquet(str(tmp_path)).write_datasink(sink)
    assert counted(sink.result) == {"unchanged": 300, "failed": 3}
    with ef.connect(store_url) as store:
        assert store.count("note") == 300
        assert store.runs().height == 1


def test_a_write_task_is_killed(data: Any, store_url: str, tmp_path: Path) -> None:
    """Ray Data runs it again, and the counts are those of a run without faults."""
    from entityframes.distributed import Entities
    from entityframes.ray import EntitySink

    marker = str(tmp_path / "killed")

    def deadly(rows: pl.LazyFrame) -> Any:
        """Frames of 100 rows; the process is killed once some of them are written."""
        for number, piece in enumerate(rows.collect().iter_slices(100)):
            if number == 6 and not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

    with ef.connect(store_url) as store:
        store.upsert(notes(range(300)))
    frame = pl.concat([notes(range(100)), notes(range(100, 900), "new")])
    sink = EntitySink(store_url, transform=deadly, target=Entities(batch_size=100))
    data.from_arrow(frame.to_arrow()).write_datasink(sink)
    assert os.path.exists(marker)
    assert counted(sink.result) == {"created": 600, "unchanged": 100, "updated": 200}
    assert sink.result.partitions["resumed"][0] >= 1
