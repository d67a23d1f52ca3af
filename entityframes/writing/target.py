"""The Protocol of a target: what the write path needs to know about the rows that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError
from entityframes.frames.records import Expected
from entityframes.writing.outcomes import Outcomes


@dataclass(frozen=True)
class Validated:
    """The rows of a batch after validation, in canonical form."""

    #: row, key, and the columns to write.
    rows: pl.DataFrame
    #: row, key, rule and error of invalid rows.
    invalid: pl.DataFrame
    #: What the target needs, besides the rows, to write them.
    context: Any = None


@dataclass(frozen=True)
class Attempt:
    """The pending rows that are written next, in one transaction, and those that are not written."""

    #: The rows to write.
    rows: pl.DataFrame
    #: row, key and conflict (Boolean) of rows that are not written: unchanged, or in conflict with their expected hash.
    skipped: pl.DataFrame | None = None
    #: row, key, rule and error of rows that are invalid once merged.
    invalid: pl.DataFrame | None = None
    #: Whether the rows were merged with stored entities; a conflict then means that the entity has changed meanwhile.
    merged: bool = False


class Pending(Protocol):
    """The rows of a batch without an outcome so far."""

    rows: pl.DataFrame
    #: The batch (transaction) of the next attempt.
    batch: Batch

    def attempt(self) -> Attempt:
        """The next attempt; rows that it does not write are no longer pending.

        Raises:
            DatabaseError: the stored entities could not be read.
        """

    def keep(self, rows: pl.DataFrame, *, merge: bool) -> None:
        """Keep only these rows pending; with `merge`, merge them with the stored entities before the next attempt."""


class Target(Protocol):
    """What rows are written to. Methods are called from several threads."""

    #: The columns that identify a row, in the order of the index.
    key: tuple[str, ...]
    outcomes: Outcomes

    def expected(self, rows: Sequence[Mapping[str, Any]]) -> Expected:
        """What is expected of rows of Python objects, given their fields.

        Raises:
            DatabaseError: the dtypes could not be read.
        """

    def check(self, schema: Mapping[str, pl.DataType]) -> None:
        """Check the columns of a frame.

        Raises:
            SchemaError: the frame cannot be stored; the message names the columns.
        """

    def check_values(self, frame: pl.DataFrame) -> None:
        """Check the values of a frame in memory.

        Raises:
            SchemaError: the frame cannot be stored; the message names the columns.
        """

    def renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A frame that `check` has accepted, with the names that columns have within the run."""

    def comparable(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns of the key, at least, of a frame returned by `renamed`, so that equal keys have equal values."""

    def disjoint(self, left: pl.DataFrame, right: pl.DataFrame) -> bool:
        """Whether two frames returned by `prepare` certainly have no key in common."""

    def prepare(self, frame: pl.DataFrame, *, record: bool = True) -> pl.DataFrame:
        """Record the dtypes of a frame and return it with the columns that `validate` expects.

        Args:
            frame: a frame returned by `renamed`.
            record: False to only check whether the dtypes could be recorded.

        Raises:
            SchemaError: the dtypes are incompatible with those in the store.
        """

    def validate(self, chunk: pl.DataFrame, *, record: bool = True) -> Validated:
        """Validate the rows of a batch with a ``row`` column.

        Args:
            chunk: rows of a frame returned by `prepare`.
            record: False to not record the fields found in JSON text.

        Raises:
            SchemaError, DatabaseError: the batch cannot be written; nothing of it was written.
        """

    def in_key_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows in key order, in which all writers lock them, to prevent deadlocks."""

    def pending(self, rows: pl.DataFrame, validated: Validated) -> Pending:
        """The rows of a validated batch as pending rows.

        Raises:
            DatabaseError: the stored entities could not be read.
        """

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows in one transaction and return the result of the engine."""

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Like `write`, but skip rows that the database rejects."""

    def recovered(
        self, rows: pl.DataFrame, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None
    ) -> pl.DataFrame | None:
        """The result of a batch whose COMMIT got no response; None if it was not committed.

        Args:
            rows: the rows of the batch.
            batch: the batch.
            lost: the error of the COMMIT; its ``answer`` is what the engine would have returned, if it knows.
            later: the result of a later attempt to write the batch; None before it.
        """

    def restore_records(self) -> None:
        """After a lost connection, record the dtypes again that the server no longer has."""
