"""A target: what differs between the entities of a store and a table, for all that is written to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.writing.outcomes import Outcomes


@dataclass(frozen=True)
class Validated:
    """Rows of a batch, checked and in the one form that is compared and stored."""

    #: row, key, and what is written.
    rows: pl.DataFrame
    #: row, key and error of the rows that break a rule.
    invalid: pl.DataFrame
    #: What the target has to know of the rows to write them.
    known: Any = None


@dataclass(frozen=True)
class Attempt:
    """What of some rows is written now, in one transaction."""

    rows: pl.DataFrame
    #: row, key and conflict (Boolean) of rows of which nothing is written: stored as they are, or not as expected.
    same: pl.DataFrame | None = None
    #: row, key and error of rows that turned out to break a rule.
    invalid: pl.DataFrame | None = None
    #: Whether the rows were merged with what is stored, so that a conflict says that this has changed meanwhile.
    merged: bool = False


class Pending(Protocol):
    """Rows of a batch that have no outcome yet."""

    rows: pl.DataFrame
    #: The transaction of the next attempt.
    batch: Batch

    def attempt(self) -> Attempt:
        """What is to be written of them now; rows of which nothing is written are pending no more.

        Raises:
            DatabaseError: what is stored could not be read.
        """

    def keep(self, rows: pl.DataFrame, *, merge: bool) -> None:
        """These are still pending after an attempt; with `merge`, they are merged with what is stored first."""


class Target(Protocol):
    """What rows are written to. Used by several threads."""

    #: The columns that identify a row, in the order of the index.
    key: tuple[str, ...]
    outcomes: Outcomes

    def check(self, schema: Mapping[str, pl.DataType]) -> None:
        """Refuse a frame by its columns.

        Raises:
            SchemaError: it names those at fault.
        """

    def check_values(self, frame: pl.DataFrame) -> None:
        """Refuse a whole frame by what is in it.

        Raises:
            SchemaError: it names the columns.
        """

    def prepare(self, frame: pl.DataFrame, *, record: bool = True) -> pl.DataFrame:
        """A checked frame with the columns that `validate` wants; what has to be known of its dtypes is recorded.

        Args:
            frame: the caller's.
            record: False to only check that it could be.

        Raises:
            SchemaError: they do not go together with what is stored.
        """

    def validate(self, chunk: pl.DataFrame, *, record: bool = True) -> Validated:
        """Check the rows of a batch, which has a column ``row``.

        Raises:
            SchemaError, DatabaseError: the batch cannot be written; nothing of it has been.
        """

    def in_key_order(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows in the order in which the database locks them."""

    def pending(self, rows: pl.DataFrame, validated: Validated) -> Pending:
        """What has to be done to store rows of a validated batch.

        Raises:
            DatabaseError: what is stored could not be read.
        """

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows in one transaction; the engine's answer."""

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """The same, leaving out the rows that the database refuses."""

    def recovered(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """The answer of a batch whose COMMIT was not answered, None if it came to nothing."""

    def reconnected(self) -> None:
        """After a lost connection: see to it that the server still has what was recorded."""
