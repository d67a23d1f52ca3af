"""The options of an upsert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl

from entityframes.frames.schema import KEY

OnDuplicate = Literal["last", "first", "error"]
OnError = Literal["isolate", "rollback", "raise"]
Absent = Literal["keep", "clear"]
Nulls = Literal["write", "keep"]
OnMatch = Literal["update", "skip", "fail"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every upsert."""

    batch_size: int | None = None
    on_duplicate: OnDuplicate = "last"
    on_error: OnError = "isolate"
    #: What a null means.
    nulls: Nulls = "write"

    def __post_init__(self) -> None:
        if self.batch_size is not None and not _is_positive_int(self.batch_size):
            raise ValueError(f"batch_size must be a positive integer or None, got {self.batch_size!r}")
        _check("on_duplicate", self.on_duplicate, OnDuplicate)
        _check("on_error", self.on_error, OnError)
        _check("nulls", self.nulls, Nulls)


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """The options of an upsert of entities."""

    embed: bool = True
    #: The columns with the expected hashes (hex) of the stored entity; see `EntityStore.upsert`.
    expected_hash: str | None = None
    expected_metadata_hash: str | None = None
    #: What happens to stored content and metadata fields that a frame does not have.
    absent: Absent = "keep"
    #: Whether the store had no entities when the run began of which this call is a part.
    initial: bool = False

    @property
    def expected(self) -> list[str]:
        """The columns with expected hashes."""
        return [name for name in (self.expected_hash, self.expected_metadata_hash) if name is not None]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("absent", self.absent, Absent)

    @property
    def merging(self) -> bool:
        """Whether rows may have to be merged with stored entities."""
        return self.absent == "keep" or self.nulls == "keep"

    def with_expected(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with its expected hashes, if any, in the columns ``expected`` and ``expected_metadata``."""
        if self.expected_hash is None:
            return frame
        hashes = (self.expected_hash, self.expected_metadata_hash)
        return frame.select(
            *(name for name in (*KEY, "content", "metadata") if name in frame.columns),
            *(
                (pl.lit(None) if name is None else pl.col(name)).cast(pl.String).alias(alias)
                for name, alias in zip(hashes, ("expected", "expected_metadata"), strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class TableOptions(RunOptions):
    """The options of an upsert into a table."""

    #: What happens to a row whose key is stored.
    on_match: OnMatch = "update"
    #: The columns that are written but do not count as a difference.
    ignore: tuple[str, ...] = ()
    #: The column of a soft delete; a row that is written is undeleted.
    undelete: str | None = None
    #: Whether the frame has the state of each row when a plan was made; see `TablePlan`.
    expecting: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("on_match", self.on_match, OnMatch)


def _check(name: str, value: object, allowed: object) -> None:
    """Check that an option has one of the values of its Literal.

    Raises:
        ValueError: naming the values that it may have.
    """
    values = get_args(allowed)
    if value not in values:
        *others, last = map(repr, values)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
