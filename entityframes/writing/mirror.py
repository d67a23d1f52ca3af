"""A mirror: upsert the rows of a frame, and delete what is stored in a scope and not in the frame."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from entityframes.errors import SchemaError, ValidationError
from entityframes.frames.records import Whole
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import MIRROR_STATUSES, UpsertResult
from entityframes.threads import Submit
from entityframes.writing.delete import Delete, Deletion
from entityframes.writing.upsert import Upsert

#: The error of rows that were not deleted because the frame has rows whose key is not known.
_UNKNOWN_KEYS = "not deleted, because the frame has rows with an invalid key, which may be this one"
_CHANGED = "not deleted, because another writer has changed or deleted it since the plan was made"


def check_max_delete(max_delete: float) -> None:
    """Check an option of `mirror`.

    Raises:
        ValueError: it is neither a share of the stored rows (0 to 1) nor a number of rows.
    """
    valid = isinstance(max_delete, int | float) and not isinstance(max_delete, bool) and max_delete >= 0
    if not valid or (max_delete > 1 and max_delete != int(max_delete)):
        raise ValueError(f"max_delete must be a share below 1 or a number of rows, got {max_delete!r}")


def check_not_empty(frame: pl.DataFrame) -> None:
    """Check that a mirror would not delete everything.

    Raises:
        SchemaError: the frame has no rows.
    """
    if frame.is_empty():
        raise SchemaError(
            "the frame has no rows, so that everything would be deleted", advice="to delete rows, call delete"
        )


def check_deletions(absent: int, stored: int, max_delete: float) -> None:
    """Check that not more rows would be deleted than the caller expects.

    Args:
        absent: the number of rows that would be deleted.
        stored: the number of stored rows in the scope.
        max_delete: the maximum as a share of the stored rows if it is below 1, otherwise as a number of rows.

    Raises:
        ValidationError: more rows would be deleted.
    """
    most = max_delete * stored if max_delete < 1 else max_delete
    if absent > most:
        raise ValidationError(
            f"{absent:,} of {stored:,} stored rows are not in the frame and would be deleted, which is more than "
            f"max_delete={max_delete:g} allows; nothing was written",
            advice=f"check the frame and the scope, or set max_delete to {absent:,}",
        )


class Mirror:
    """One call of `mirror`: upsert -> delete -> outcomes.

    Args:
        upsert: the upsert of the frame, whose statuses are those of a mirror.
        deletion: deletes what the frame lacks.
        absent: the keys of what the frame lacks.
        interrupt: stops the run.
        complete: whether the keys of all rows of the frame are valid; if not, nothing is deleted.
        compared: whether a row that is not found may have been changed since a plan was made.
    """

    def __init__(
        self,
        upsert: Upsert,
        deletion: Deletion,
        absent: pl.DataFrame,
        interrupt: Interrupt,
        *,
        complete: bool,
        compared: bool = False,
    ) -> None:
        self._upsert, self._deletion, self._absent, self._interrupt = upsert, deletion, absent, interrupt
        self._complete, self._compared = complete, compared
        self._delete: Delete | None = None

    def result(self) -> UpsertResult:
        """The outcomes so far; those of deletions are added when `execute` ends."""
        upserted = self._upsert.result()
        if self._delete is None:
            return upserted
        deleted = self._delete.result()
        return replace(upserted, batches=upserted.batches + deleted.batches, elapsed=upserted.elapsed + deleted.elapsed)

    def execute(self, given: Whole, reporter: Reporter, submit: Submit) -> None:
        """Upsert the rows of a frame, and delete what it lacks. `result` is complete even if an exception is raised.

        Raises:
            KeyboardInterrupt, SchemaError, DuplicateError, ValidationError, DatabaseError: as `Upsert.execute` and
                `Delete.execute`. Nothing is deleted if the upsert raises an exception or is stopped.
        """
        try:
            self._upsert.execute(given, reporter, submit)
            if self._complete and not self._interrupt.requested and self._absent.height:
                self._delete = Delete(self._deletion, self._interrupt, self._upsert.result().run_id)
                self._delete.execute(self._absent, reporter, submit)
        finally:
            self._upsert.add_outcomes(self._deletions())
            reporter.track(self._upsert.counts, alone=True)

    def _deletions(self) -> pl.DataFrame:
        """The outcomes of what the frame lacks, with a null ``row``."""
        if self._delete is not None:
            outcomes = self._delete.result().outcomes
        else:
            keys = self._deletion.keys(self._absent)
            unknown = None if self._complete else pl.lit(_UNKNOWN_KEYS)
            rule = None if self._complete else pl.lit("unknown_key")
            outcomes = self._deletion.outcomes.of(keys, status="cancelled", error=unknown, rule=rule)
        status, missing = pl.col("status").cast(pl.String), pl.col("status") == "missing"
        if self._compared:
            status = pl.when(missing).then(pl.lit("conflict")).otherwise(status)
            outcomes = outcomes.with_columns(error=pl.when(missing).then(pl.lit(_CHANGED)).otherwise("error"))
        else:
            # A row that another writer has deleted meanwhile needs no outcome.
            outcomes = outcomes.filter(~missing)
        return outcomes.with_columns(row=pl.lit(None, pl.UInt32), status=status.cast(pl.Enum(MIRROR_STATUSES)))
