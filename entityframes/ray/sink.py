"""A sink of Ray Data: the blocks of a dataset are upserted where they are."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl
import pyarrow as pa
from ray.data import Datasink
from ray.data.block import BlockAccessor

from entityframes.distributed import core
from entityframes.distributed.core import Entities, Rows, upsert_partition
from entityframes.distributed.result import Collector, DistributedResult
from entityframes.errors import ConnectError, TransientError
from entityframes.ray import address
from entityframes.ray.address import RemoteAddress
from entityframes.ray.upsert import BACKOFF, check_target


class EntitySink(Datasink[pa.Table]):
    """Upserts a dataset of Ray Data into PostgreSQL, with `ray.data.Dataset.write_datasink`.

    Each write task is a partition. A task whose process dies is run again by Ray Data, and one that loses its
    connection tries again by itself; the counts of entities are those of a run without faults. Rows go from the tasks
    that read them to those that write, which takes longer than `entityframes.ray.upsert`: use that for files.

    Args:
        url: as for `entityframes.ray.upsert`.
        target: `Entities` or `Rows`; None for entities with all defaults.
        transform: makes an entity frame, or a frame with columns of the table, of the LazyFrame of a block.
        retries: how often a task that has lost its connection tries again.

    Attributes:
        result: the DistributedResult of the last write that was completed, else None. A partition is called by the
            number of its task, and ``row`` is the position among the rows of the task.

    Raises:
        ConnectError, TypeError: as for `entityframes.ray.upsert`.

    Examples:
        A dataset that something else has made; `url` is the address of a store on PostgreSQL:

        >>> import ray
        >>> from entityframes.ray import EntitySink
        >>> sink = EntitySink(url)
        >>> ray.data.from_arrow(ef.ids("note", ["a", "b"]).to_arrow()).write_datasink(sink)
        >>> sink.result.counts["created"]
        2
    """

    def __init__(
        self,
        url: RemoteAddress = None,
        *,
        target: Entities | Rows | None = None,
        transform: Callable[[pl.LazyFrame], Any] | None = None,
        retries: int = 3,
    ) -> None:
        address.check(url)
        self._url, self._target, self._transform, self._retries = url, target or Entities(), transform, retries
        self._run_id, self._initial = str(uuid.uuid4()), False
        self.result: DistributedResult | None = None

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Open the database once, before any task does."""
        self._initial = check_target(self._url, self._target)
        self._run_id = str(uuid.uuid4())

    def write(self, blocks: Iterable[Any], ctx: Any) -> pa.Table:
        """Write the blocks of a task; called by Ray Data."""
        frames = [pl.DataFrame(BlockAccessor.for_block(block).to_arrow()) for block in blocks]
        rows = pl.concat(frames, how="diagonal") if frames else pl.DataFrame()
        try:
            return self._write(rows, f"{ctx.task_idx:06}")
        finally:
            core.close()

    def _write(self, rows: pl.DataFrame, partition: str) -> pa.Table:
        for attempt in range(self._retries + 1):
            try:
                return upsert_partition(
                    rows,
                    self._url,
                    target=self._target,
                    run_id=self._run_id,
                    partition=partition,
                    transform=self._transform,
                    initial=self._initial and attempt == 0,
                )
            except (TransientError, ConnectError):
                if attempt == self._retries:
                    raise
                time.sleep(BACKOFF * 2**attempt * random.uniform(0.5, 1.5))
        raise AssertionError

    def on_write_complete(self, write_result: Any) -> None:
        """Put the outcomes of the tasks together as `result`."""
        collector = Collector(self._run_id)
        for table in write_result.write_returns:
            collector.add(table)
        self.result = collector.result()

    def get_name(self) -> str:
        """The name of the write tasks."""
        return "EntitySink"
