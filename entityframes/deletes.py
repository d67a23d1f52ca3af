"""Deleting in batches, each one transaction with its ledger row."""

from __future__ import annotations

import time
from typing import Any

import polars as pl

from entityframes import frames, sources
from entityframes.attempts import RETRIED, Attempts, FateUnknownError, check_replicated, confirm, from_ledger
from entityframes.engines import Batch, CtrlC, Engine, Interrupt
from entityframes.errors import ConnectionLostError, DatabaseError, RowError
from entityframes.frames import KEY
from entityframes.results import DELETE_STATUSES, DeleteResult, OutcomeLog, outcomes

DELETE_ROWS = 50_000


class DeleteRun:
    """One call of `delete`."""

    def __init__(self, engine: Engine, run_id: str, *, unchanged: bool = False) -> None:
        """A run; with `unchanged` it deletes only entities that have the hashes given in content_hash and metadata_hash
        (Binary) still, and takes others as missing.
        """
        self._engine = engine
        self._run_id = run_id
        self._asked = [*KEY, "content_hash", "metadata_hash"] if unchanged else list(KEY)
        self._log = OutcomeLog(DELETE_STATUSES)
        self._batches = 0
        self._started = time.perf_counter()
        self._losses = engine.losses

    def result(self) -> DeleteResult:
        """What has happened so far."""
        return DeleteResult(dict(self._log.counts), self._batches, time.perf_counter() - self._started, self._log)

    def execute(self, ids: Any) -> DeleteResult:
        """Delete what an id frame names.

        Raises:
            SchemaError: it is no id frame.
            DatabaseError: the database refused a batch; `result` tells which ids it could not delete.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight; `result` tells what was done.
        """
        given = sources.as_frame(ids)
        frames.check_id_schema(given.schema)
        with CtrlC() as ctrl_c:
            left = self._possible(frames.numbered(given))
            try:
                while left.height:
                    ctrl_c.check()
                    rows, left = left[:DELETE_ROWS], left[DELETE_ROWS:]
                    self._delete_isolated(rows)
            finally:
                self._log.append(outcomes(left, DELETE_STATUSES, status="cancelled"))
                confirm(self._engine, self._log, self._losses, stop := Interrupt(), lambda: _fire(stop, ctrl_c))
                check_replicated(self._engine, self._log, time.perf_counter() - self._started, stop)
        return self.result()

    def _possible(self, given: pl.DataFrame) -> pl.DataFrame:
        """The ids to look for, each once; the others are accounted for."""
        keys = given.select("row", *self._asked).with_columns(frames.usable_ids(given).get_columns())
        self._log.append(outcomes(keys.filter(~pl.col("usable")), DELETE_STATUSES, status="missing"))
        possible = keys.filter("usable").drop("usable")
        again = ~possible.select(pl.struct(KEY).is_first_distinct()).to_series()
        self._log.append(outcomes(possible.filter(again), DELETE_STATUSES, status="duplicate"))
        return possible.filter(~again)

    def _delete_isolated(self, rows: pl.DataFrame) -> None:
        """Delete in one transaction; where the database refuses a row, in smaller ones, down to that row."""
        parts = [rows]
        try:
            while parts:
                rows = parts.pop()
                try:
                    self._log.append(self._delete(rows))
                except RowError as error:
                    if rows.height == 1:
                        self._log.append(_not_deleted(rows, Batch(self._run_id, Interrupt()), error))
                    else:
                        half = rows.height // 2
                        parts += [rows[half:], rows[:half]]
        finally:
            for part in parts:
                self._log.append(outcomes(part, DELETE_STATUSES, status="cancelled"))

    def _delete(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Delete in one transaction, tried again where that helps, and the outcomes of the rows."""
        batch = Batch(self._run_id, Interrupt())
        self._batches += 1
        attempts = Attempts(batch.interrupt)
        lost: ConnectionLostError | None = None
        try:
            while True:
                try:
                    gone = self._engine.delete(rows.select(self._asked), batch)
                    break
                except RowError:
                    # Its ledger row is there already.
                    if lost is None or not self._committed(batch, lost):
                        raise
                    gone = lost.answer
                    break
                except RETRIED as error:
                    if isinstance(error, ConnectionLostError) and error.committing:
                        lost = error
                        if self._committed(batch, error):
                            gone = error.answer
                            break
                    attempts.again(error)
            # The first COMMIT may have been on its way still when the ledger was asked.
            if lost is not None and gone.is_empty() and self._committed(batch, lost):
                gone = lost.answer
        except RowError:
            raise
        except BaseException as error:
            self._log.append(_not_deleted(rows, batch, error))
            raise
        rows = rows.with_row_index("position").join(_with_error(gone), on="position", how="left", maintain_order="left")
        kept = pl.col("error").is_not_null()
        status = pl.when(kept).then(pl.lit("failed")).when("gone").then(pl.lit("deleted")).otherwise(pl.lit("missing"))
        kind = pl.when(kept).then(pl.lit("database"))
        return outcomes(rows, DELETE_STATUSES, status=status, batch_id=batch.batch_id, error_kind=kind)

    def _committed(self, batch: Batch, lost: ConnectionLostError) -> bool:
        """After a COMMIT that was not answered: whether the ledger has the batch.

        Raises:
            FateUnknownError: it cannot be asked.
        """
        return from_ledger(lambda: self._engine.deleted_by(batch), lost, batch.interrupt) is not None


def _with_error(gone: pl.DataFrame) -> pl.DataFrame:
    """What an engine answers, with the columns that it may leave out, and gone for every row of it."""
    error = pl.col("error") if "error" in gone.columns else pl.lit(None, pl.String)
    return gone.select(pl.col("position").cast(pl.UInt32), error.alias("error"), gone=pl.lit(True))


def _fire(interrupt: Interrupt, ctrl_c: CtrlC) -> None:
    if ctrl_c.pressed:
        interrupt.fire()


def _not_deleted(rows: pl.DataFrame, batch: Batch, error: BaseException) -> pl.DataFrame:
    """Outcomes of a batch that ended in an error."""
    if not isinstance(error, DatabaseError):
        return outcomes(rows, DELETE_STATUSES, status="cancelled", batch_id=batch.batch_id)
    return outcomes(
        rows,
        DELETE_STATUSES,
        status="unknown" if isinstance(error, FateUnknownError) else "failed",
        batch_id=batch.batch_id,
        error_kind=error.kind,
        error=str(error),
        sqlstate=error.sqlstate,
    )
