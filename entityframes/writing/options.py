"""What the caller of an upsert decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from entityframes.frames.schema import KEY

OnDuplicate = Literal["last", "first", "error"]
OnError = Literal["isolate", "rollback", "raise"]
Absent = Literal["keep", "clear"]
Nulls = Literal["write", "keep"]


@dataclass(frozen=True)
class Options:
    """What the caller of an upsert decides."""

    batch_size: int | None = None
    embed: bool = True
    on_duplicate: OnDuplicate = "last"
    on_error: OnError = "isolate"
    #: Columns with the hashes, in hex, that the stored entity is expected to have; see `EntityStore.upsert`.
    expected_hash: str | None = None
    expected_metadata_hash: str | None = None
    #: What becomes of content and metadata fields that a frame does not carry, and what a null in it means.
    absent: Absent = "keep"
    nulls: Nulls = "write"

    @property
    def expected(self) -> list[str]:
        """The columns with expected hashes."""
        return [name for name in (self.expected_hash, self.expected_metadata_hash) if name is not None]

    def __post_init__(self) -> None:
        if self.batch_size is not None and (not _is_count(self.batch_size)):
            raise ValueError(f"batch_size is {self.batch_size!r}: it is a number of rows, at least 1, or None")
        if self.on_duplicate not in ("last", "first", "error"):
            raise ValueError(f"on_duplicate is {self.on_duplicate!r}: it is 'last', 'first' or 'error'")
        if self.on_error not in ("isolate", "rollback", "raise"):
            raise ValueError(f"on_error is {self.on_error!r}: it is 'isolate', 'rollback' or 'raise'")

        if self.absent not in ("keep", "clear"):
            raise ValueError(f"absent is {self.absent!r}: it is 'keep' or 'clear'")
        if self.nulls not in ("write", "keep"):
            raise ValueError(f"nulls is {self.nulls!r}: it is 'write' or 'keep'")

    @property
    def merging(self) -> bool:
        """Whether something of a stored entity may have to be kept."""
        return self.absent == "keep" or self.nulls == "keep"

    def expecting(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with what the caller expects under names of our own."""
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


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
