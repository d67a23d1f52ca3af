"""Deleting in batches, each one transaction with its ledger row."""

from __future__ import annotations

import time
from typing import Any

import polars as pl

from entityframes import frames
from entityframes.engines import Batch, Engine, Interrupt
from entityframes.frames import KEY
from entityframes.results import DELETE_STATUSES, DeleteResult, OutcomeLog, outcomes

DELETE_ROWS = 50_000


class DeleteRun:
    """One call of `delete`."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self._engine = engine
        self._run_id = run_id
        self._log = OutcomeLog(DELETE_STATUSES)
        self._batches = 0
        self._started = time.perf_counter()

    def result(self) -> DeleteResult:
        """What has happened so far."""
        return DeleteResult(dict(self._log.counts), self._batches, time.perf_counter() - self._started, self._log)

    def execute(self, ids: Any) -> DeleteResult:
        """Delete what an id frame names.

        Raises:
            SchemaError: it is no id frame.
            DatabaseError: the database refused a batch; nothing of that batch was deleted.
        """
        given = frames.as_frame(ids)
        frames.check_id_schema(given.schema)
        given = frames.numbered(given)
        keys = frames.check_ids(given).with_columns(given["row"])
        possible = keys.drop_nulls()
        impossible = given.join(possible, on="row", how="anti", maintain_order="left")
        self._log.append(outcomes(frames.readable_keys(impossible), DELETE_STATUSES, status="missing"))
        again = ~possible.select(pl.struct(KEY).is_first_distinct()).to_series()
        self._log.append(outcomes(possible.filter(again), DELETE_STATUSES, status="duplicate"))
        for rows in possible.filter(~again).iter_slices(DELETE_ROWS):
            self._delete(rows)
        return self.result()

    def _delete(self, rows: pl.DataFrame) -> None:
        batch = Batch(self._run_id, Interrupt())
        self._batches += 1
        gone = self._engine.delete(rows.select(KEY), batch)["position"].cast(pl.Int64)
        was_there = pl.int_range(rows.height).is_in(gone.implode())
        status = pl.when(was_there).then(pl.lit("deleted")).otherwise(pl.lit("missing"))
        self._log.append(outcomes(rows, DELETE_STATUSES, status=status, batch_id=batch.batch_id))
