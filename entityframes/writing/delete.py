"""A delete: split -> delete -> recover -> outcomes. Each batch is one transaction with a ledger entry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.database import Recorder
from entityframes.errors import ConnectionLostError, DatabaseError, RowError
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import DeleteResult, concat_outcomes
from entityframes.retry import CommitUnknownError, Transaction
from entityframes.threads import Submit
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.run import Run

#: The number of ids in a batch.
DELETE_ROWS = 50_000


class Deletion(Protocol):
    """What is deleted: what differs between entities and rows of a table."""

    @property
    def engine(self) -> Recorder:
        """The engine of the store, or of tables."""

    #: The columns that identify a row, and all columns that are needed to delete it.
    key: tuple[str, ...]
    columns: list[str]
    outcomes: Outcomes

    def keys(self, given: pl.DataFrame) -> pl.DataFrame:
        """row, the columns, and usable (Boolean): whether such a key can be stored at all.

        Raises:
            SchemaError: a column is missing or has the wrong dtype.
        """

    def comparable(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The columns of the key of usable rows, so that equal keys have equal values."""

    def delete(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Delete rows in one transaction; position of each that was stored, and error and rule if it was refused."""

    def recovered(self, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None) -> pl.DataFrame | None:
        """The result of a batch whose COMMIT got no response; None if it was not committed."""


class Delete:
    """One call of `delete`.

    Args:
        deletion: what is deleted.
        interrupt: stops the run.
        run_id: as for `Run`.
    """

    def __init__(self, deletion: Deletion, interrupt: Interrupt, run_id: str | None = None) -> None:
        self._deletion, self._outcomes = deletion, deletion.outcomes
        self._run = Run(deletion.engine, interrupt, self._outcomes, concurrency=1, run_id=run_id)

    def result(self) -> DeleteResult:
        """The outcomes so far."""
        run = self._run
        return DeleteResult(dict(run.log.counts), run.batches, run.elapsed, run.log)

    def execute(self, given: pl.DataFrame, reporter: Reporter, submit: Submit) -> None:
        """Delete the rows of a frame of keys.

        Raises:
            SchemaError: `given` is no frame of keys.
            DatabaseError: a batch could not be deleted; `result` has the outcomes.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back; `result` has the outcomes.
        """
        keys = self._distinct(self._deletion.keys(given), reporter)
        self._run.execute(_IdBatches(keys), self._process, reporter, submit)

    def _distinct(self, keys: pl.DataFrame, reporter: Reporter) -> pl.DataFrame:
        """The usable keys, each once; logs the outcomes of the others."""
        invalid = keys.filter(~pl.col("usable"))
        valid = keys.filter("usable").drop("usable")
        compared = self._deletion.comparable(valid)
        repeated = ~compared.select(pl.struct(self._deletion.key).is_first_distinct()).to_series()
        self._run.log.append(self._outcomes.of(invalid, status="missing"))
        self._run.log.append(self._outcomes.of(valid.filter(repeated), status="duplicate"))
        valid = valid.filter(~repeated)
        if keys.height > valid.height:
            reporter.advance(keys.height - valid.height)
        return valid

    def _process(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self._run.stopping:
            return self._outcomes.unprocessed(rows)
        return concat_outcomes(self._isolate(rows))

    def _isolate(self, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Delete rows in one transaction; if the database rejects a row, bisect until only that row fails."""
        parts = [rows]
        while parts:
            rows = parts.pop()
            batch = Batch(self._run.run_id, self._run.interrupt)
            try:
                yield self._delete(rows, batch)
            except RowError as error:
                if rows.height == 1:
                    yield self._failed(rows, batch, error)
                else:
                    half = rows.height // 2
                    parts += [rows[half:], rows[:half]]
                    self._run.batches += 2
            except DatabaseError as error:
                yield self._failed(rows, batch, error)
                yield from (self._outcomes.of(part, status="cancelled") for part in parts)
                if not self._run.interrupt.requested:
                    self._run.abort(error)
                return

    def _delete(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Delete rows in one transaction, with retries, and return their outcomes."""

        def recovered(lost: ConnectionLostError, later: pl.DataFrame | None) -> pl.DataFrame | None:
            if later is not None and later.height:
                # The retry found the rows, so the first attempt was not committed.
                return None
            return self._deletion.recovered(batch, lost, later)

        transaction: Transaction[pl.DataFrame] = Transaction(
            f"run {batch.run_id}, batch {batch.batch_id}", recovered, batch.interrupt
        )
        result = transaction.run(lambda: self._deletion.delete(rows.select(self._deletion.columns), batch))
        rows = rows.with_row_index("position").join(_complete(result), on="position", how="left", maintain_order="left")
        rejected = pl.col("error").is_not_null()
        status = (
            pl.when(rejected).then(pl.lit("failed")).when("found").then(pl.lit("deleted")).otherwise(pl.lit("missing"))
        )
        kind = pl.when(rejected).then(pl.lit("database"))
        return self._outcomes.of(rows, status=status, batch_id=batch.batch_id, error_kind=kind)

    def _failed(self, rows: pl.DataFrame, batch: Batch, error: DatabaseError) -> pl.DataFrame:
        """Outcomes of a batch that failed."""
        status = "unknown" if isinstance(error, CommitUnknownError) else "failed"
        if self._run.interrupt.requested and status == "failed":
            return self._outcomes.of(rows, status="cancelled", batch_id=batch.batch_id)
        return self._outcomes.of(
            rows,
            status=status,
            batch_id=batch.batch_id,
            error_kind=error.kind,
            rule=error.rule,
            error=str(error),
            sqlstate=error.sqlstate,
        )


class _IdBatches:
    """Ids, split into batches."""

    error: Exception | None = None
    read = True

    def __init__(self, keys: pl.DataFrame) -> None:
        self.remaining = list(keys.iter_slices(DELETE_ROWS)) if keys.height else []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        while self.remaining:
            yield self.remaining[0]


def _complete(result: pl.DataFrame) -> pl.DataFrame:
    """The result of the engine with the columns that it may omit, and ``found``, true in every row."""
    errors = [
        pl.col(name) if name in result.columns else pl.lit(None, pl.String).alias(name) for name in ("error", "rule")
    ]
    return result.select("position", *errors, found=pl.lit(True))
