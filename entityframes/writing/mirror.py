"""A mirror: upsert the rows of a frame, and delete what is stored in a scope and not in the frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import polars as pl

from entityframes.errors import SchemaError, ValidationError
from entityframes.results import MIRROR_STATUSES, DeleteResult, UpsertResult

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
        raise SchemaError("the frame has no rows, so that everything would be deleted; to delete rows, call delete")


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
            f"max_delete={max_delete:g} allows; nothing was written. Check the frame and the scope, or set max_delete "
            f"to {absent:,}"
        )


def with_deletions(
    upserted: UpsertResult,
    absent: pl.DataFrame,
    unprocessed: Callable[[pl.DataFrame], pl.DataFrame],
    delete: Callable[[], DeleteResult],
    *,
    complete: bool,
    stopped: bool,
    compared: bool = False,
) -> UpsertResult:
    """Delete the absent rows after an upsert, and add their outcomes to its result.

    Args:
        upserted: the result of the upsert.
        absent: the keys of the rows to delete.
        unprocessed: makes outcomes of keys that are not deleted.
        delete: deletes the rows.
        complete: whether the keys of all rows of the frame are known; if not, nothing is deleted.
        stopped: whether the upsert was stopped, so that nothing is deleted either.
        compared: whether a row that was not found may have been changed since a plan was made.
    """
    if absent.is_empty():
        return upserted
    batches, elapsed = upserted.batches, upserted.elapsed
    if stopped or not complete:
        outcomes = unprocessed(absent)
        if not stopped:
            outcomes = outcomes.with_columns(error=pl.lit(_UNKNOWN_KEYS), rule=pl.lit("unknown_key"))
    else:
        deleted = delete()
        outcomes, missing = deleted.outcomes, pl.col("status") == "missing"
        if compared:
            status, error = pl.col("status").cast(pl.String), pl.lit(_CHANGED)
            outcomes = outcomes.with_columns(
                pl.when(missing).then(pl.lit("conflict")).otherwise(status).alias("status"),
                pl.when(missing).then(error).otherwise("error").alias("error"),
            )
        else:
            # A row that another writer has deleted meanwhile needs no outcome.
            outcomes = outcomes.filter(~missing)
        batches, elapsed = batches + deleted.batches, elapsed + deleted.elapsed
    outcomes = outcomes.with_columns(
        pl.lit(None, pl.UInt32).alias("row"), pl.col("status").cast(pl.String).cast(pl.Enum(MIRROR_STATUSES))
    )
    log = upserted._log
    log.append(outcomes)
    return replace(upserted, counts=dict(log.counts), batches=batches, elapsed=elapsed)
