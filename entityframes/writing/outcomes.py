"""The outcomes of the rows of a batch, built from the result of the engine or from the error that ended the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.errors import ClosedError, DatabaseError, EntityFramesError
from entityframes.results import UPSERT_STATUSES, OutcomeLog, outcome_schema, outcomes
from entityframes.retry import CommitUnknownError

#: The columns of the result of an engine, which may omit some. It has the rows that were written or rejected, and those
#: whose entity does not have the expected hashes; with a column ``again``, also those that may lack stored fields.
RESULT_SCHEMA = {
    "position": pl.UInt32,
    "created": pl.Boolean,
    "due": pl.Boolean,
    "conflict": pl.Boolean,
    "error": pl.String,
    "rule": pl.String,
    "sqlstate": pl.String,
    "other_type": pl.String,
    "other_id": pl.String,
}

#: The result if nothing was written.
NOTHING_WRITTEN = pl.DataFrame(schema={"position": pl.UInt32})

#: The columns of the result of an engine that rejected no row.
_ACCEPTED = {"position", "created", "due"}

_REJECTED = pl.col("error").is_not_null()
_COMMITTED: dict[str, Any] = {
    "status": pl.when(_REJECTED)
    .then(pl.lit("failed"))
    .when("conflict")
    .then(pl.lit("conflict"))
    .when(pl.col("created").is_null())
    .then(pl.lit("unchanged"))
    .when("created")
    .then(pl.lit("created"))
    .otherwise(pl.lit("updated")),
    "error_kind": pl.when(_REJECTED).then(pl.lit("database")),
    "error": pl.when(~_REJECTED & pl.col("other_id").is_not_null())
    .then(pl.format("a database trigger stored the row under another key: {}/{}", "other_type", "other_id"))
    .otherwise("error"),
}


@dataclass(frozen=True)
class Outcomes:
    """Builds the outcomes of the rows of one call: frames with the columns of `outcome_schema`."""

    #: The columns that identify a row.
    key: tuple[str, ...]
    #: Returns row and key of rows that were not validated, as displayable text.
    displayable: Callable[[pl.DataFrame], pl.DataFrame]
    #: The possible statuses.
    statuses: tuple[str, ...] = UPSERT_STATUSES
    #: The dtypes of the key columns; None if they are all String.
    dtypes: tuple[pl.DataType, ...] | None = None
    #: The names of the key columns in outcomes, if they are not those within a run.
    labels: tuple[str, ...] | None = None
    #: Whether rows have embedding jobs.
    jobs: bool = True
    #: The error of rows in conflict.
    conflict: str = "the stored entity does not have the expected hash: another writer changed, created or deleted it"

    @cached_property
    def schema(self) -> pl.Schema:
        """The columns and dtypes of the outcomes."""
        return self._schema_with(self.labels or self.key)

    def _schema_with(self, names: tuple[str, ...]) -> pl.Schema:
        dtypes = self.dtypes or (pl.String(),) * len(self.key)
        return outcome_schema(self.statuses, tuple(zip(names, dtypes, strict=True)), self.jobs)

    @cached_property
    def none(self) -> pl.DataFrame:
        """An empty frame of outcomes."""
        return pl.DataFrame(schema=self.schema)

    def log(self) -> OutcomeLog:
        """A new log that collects the outcomes."""
        return OutcomeLog(self.statuses, schema=self.schema)

    def of(self, rows: pl.DataFrame, **columns: Any) -> pl.DataFrame:
        """Outcomes of `rows` (row, key, any outcome columns); other columns are taken from `columns` or null."""
        if rows.is_empty():
            return self.none.clone()
        found = outcomes(rows, self._schema_with(self.key), **columns)
        return found if self.labels is None else found.rename(dict(zip(self.key, self.labels, strict=True)))

    def unprocessed(self, rows: pl.DataFrame, status: str = "cancelled") -> pl.DataFrame:
        """Outcomes of rows that were not validated."""
        return self.of(self.displayable(rows), status=status)

    def committed(self, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Outcomes of a batch that was committed.

        Args:
            rows: the rows of the batch.
            written: the result of the engine, with some of the columns of `RESULT_SCHEMA`. Rows that are not in it are
                unchanged.
            batch: the batch.
        """
        if rows.height == 1 and _ACCEPTED.issuperset(written.columns):
            return self._committed_one(rows, written, batch)
        written = pl.concat([pl.DataFrame(schema=RESULT_SCHEMA), written], how="diagonal")
        combined = rows[["row", *self.key]].with_row_index("position")
        combined = combined.join(written, on="position", how="left", maintain_order="left")
        job_id = pl.when(pl.col("due") & ~_REJECTED).then(pl.lit(batch.job_id))
        error = pl.when("conflict").then(pl.lit(self.conflict)).otherwise(_COMMITTED["error"])
        columns = {**_COMMITTED, "error": error, "job_id": job_id}
        return self.of(combined, batch_id=batch.batch_id, **columns)

    def _committed_one(self, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """`committed` for a single row. The joins and expressions for many would take longer than its write."""
        values: dict[str, Any] = {name: rows[name][0] for name in ("row", *self.key)}
        created, due = (name in written.columns and written.height and written[name][0] for name in ("created", "due"))
        if written.is_empty() or created is None:
            values["status"] = "unchanged"
        else:
            values["status"] = "created" if created else "updated"
        values |= {"batch_id": batch.batch_id, "job_id": batch.job_id if due else None}
        names = self._schema_with(self.key)
        return pl.DataFrame([tuple(values.get(name) for name in names)], self.schema, orient="row")

    def rolled_back(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None) -> pl.DataFrame:
        """Outcomes of a batch that was rolled back, or whose COMMIT got no response."""
        if isinstance(error, CommitUnknownError):
            status, message = "unknown", f"the connection was lost during COMMIT: {error}"
        else:
            status, message = "failed", f"the batch was rolled back: {error}"
        if isinstance(error, DatabaseError):
            kind, sqlstate, rule = error.kind, error.sqlstate, error.rule
        elif isinstance(error, ClosedError):
            kind, sqlstate, rule = "connection", None, "closed"
        else:
            kind, sqlstate, rule = "validation", None, "rolled_back"
        return self.of(
            rows,
            status=status,
            batch_id=batch.batch_id if batch else None,
            error_kind=kind,
            rule=rule,
            error=message,
            sqlstate=sqlstate,
        )


def subset(rows: pl.DataFrame, written: pl.DataFrame, mask: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of a batch where `mask` is true, and the result of the engine for them."""
    result = written.filter(mask[written["position"]])
    # The position of each row within the subset.
    positions = (mask.cum_sum() - 1).cast(pl.UInt32)
    return rows.filter(mask), result.with_columns(positions[result["position"]].alias("position"))
