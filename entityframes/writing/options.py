"""The options of an upsert."""

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
    """The options of an upsert."""

    batch_size: int | None = None
    embed: bool = True
    on_duplicate: OnDuplicate = "last"
    on_error: OnError = "isolate"
    #: The columns with the expected hashes (hex) of the stored entity; see `EntityStore.upsert`.
    expected_hash: str | None = None
    expected_metadata_hash: str | None = None
    #: What happens to stored content and metadata fields that a frame does not have, and what a null means.
    absent: Absent = "keep"
    nulls: Nulls = "write"

    @property
    def expected(self) -> list[str]:
        """The columns with expected hashes."""
        return [name for name in (self.expected_hash, self.expected_metadata_hash) if name is not None]

    def __post_init__(self) -> None:
        if self.batch_size is not None and not _is_positive_int(self.batch_size):
            raise ValueError(f"batch_size must be a positive integer or None, got {self.batch_size!r}")
        if self.on_duplicate not in ("last", "first", "error"):
            raise ValueError(f"on_duplicate must be 'last', 'first' or 'error', got {self.on_duplicate!r}")
        if self.on_error not in ("isolate", "rollback", "raise"):
            raise ValueError(f"on_error must be 'isolate', 'rollback' or 'raise', got {self.on_error!r}")
        if self.absent not in ("keep", "clear"):
            raise ValueError(f"absent must be 'keep' or 'clear', got {self.absent!r}")
        if self.nulls not in ("write", "keep"):
            raise ValueError(f"nulls must be 'write' or 'keep', got {self.nulls!r}")

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


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
