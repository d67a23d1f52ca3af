"""What becomes of the rows of a batch: out of the database's own answer, or of the error that ended it."""

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

#: What an engine answers of the rows that it wrote, refused, or found other than expected; with ``again`` also of those
#: that it left alone because they may lack something of what is stored.
ANSWER = {
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

#: The answer of an engine that wrote nothing.
NOTHING = pl.DataFrame(schema={"position": pl.UInt32})

_REFUSED = pl.col("error").is_not_null()
_COMMITTED: dict[str, Any] = {
    "status": pl.when(_REFUSED)
    .then(pl.lit("failed"))
    .when("conflict")
    .then(pl.lit("conflict"))
    .when(pl.col("created").is_null())
    .then(pl.lit("unchanged"))
    .when("created")
    .then(pl.lit("created"))
    .otherwise(pl.lit("updated")),
    "error_kind": pl.when(_REFUSED).then(pl.lit("database")),
    "error": pl.when("conflict")
    .then(pl.lit("the stored entity is not the one that was expected: somebody else changed, made or deleted it"))
    .when(~_REFUSED & pl.col("other_id").is_not_null())
    .then(pl.format("a trigger in the database stores it under another key: {}/{}", "other_type", "other_id"))
    .otherwise("error"),
}


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of the rows of one call, as frames with the columns of `outcome_schema`."""

    #: The columns that identify a row.
    key: tuple[str, ...]
    #: row and key of rows that were not validated, as texts that can be shown.
    shown: Callable[[pl.DataFrame], pl.DataFrame]
    #: What can become of a row.
    statuses: tuple[str, ...] = UPSERT_STATUSES

    @cached_property
    def schema(self) -> pl.Schema:
        """Columns and dtypes."""
        return outcome_schema(self.statuses, self.key)

    @cached_property
    def none(self) -> pl.DataFrame:
        """No rows."""
        return pl.DataFrame(schema=self.schema)

    def log(self) -> OutcomeLog:
        """Collects them."""
        return OutcomeLog(self.statuses, schema=self.schema)

    def of(self, rows: pl.DataFrame, **columns: Any) -> pl.DataFrame:
        """Outcomes of rows (row, key and any outcome columns), the rest from `columns` or null."""
        return outcomes(rows, self.schema, **columns) if rows.height else self.none.clone()

    def unseen(self, rows: pl.DataFrame, status: str = "cancelled") -> pl.DataFrame:
        """Outcomes of rows as they were given."""
        return self.of(self.shown(rows), status=status)

    def committed(self, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Outcomes of a batch that was committed.

        Args:
            rows: its rows.
            written: what the engine answered, with some of the columns of `ANSWER`; rows that it does not name are
                unchanged.
            batch: the batch.
        """
        written = pl.concat([pl.DataFrame(schema=ANSWER), written], how="diagonal")
        answered = rows[["row", *self.key]].with_row_index("position")
        answered = answered.join(written, on="position", how="left", maintain_order="left")
        job_id = pl.when(pl.col("due") & ~_REFUSED).then(pl.lit(batch.job_id))
        return self.of(answered, batch_id=batch.batch_id, job_id=job_id, **_COMMITTED)

    def rolled_back(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None) -> pl.DataFrame:
        """Outcomes of a batch that was rolled back, or of whose COMMIT nobody knows."""
        if isinstance(error, CommitUnknownError):
            status, message = "unknown", f"lost during COMMIT: {error}"
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


def part(rows: pl.DataFrame, written: pl.DataFrame, wanted: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Some rows of a batch (where `wanted` is true), and what the engine answered of them."""
    mine = written.filter(wanted[written["position"]])
    # The place of each among the wanted rows.
    places = (wanted.cum_sum() - 1).cast(pl.UInt32)
    return rows.filter(wanted), mine.with_columns(places[mine["position"]].alias("position"))
