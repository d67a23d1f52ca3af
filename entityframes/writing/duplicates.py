"""Duplicate keys in a frame: which row of each key is written."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import polars.selectors as cs

from entityframes.errors import DuplicateError
from entityframes.writing.options import OnDuplicate

#: Makes keys that are equal have equal values.
Comparable = Callable[[pl.DataFrame], pl.DataFrame]


class Superseded:
    """The superseded rows of a call: those that are not written because another row has the same key.

    Args:
        key: the columns that identify a row.
        policy: which row of a key is written.
        comparable: applied to rows before their keys are compared; None if they can be compared as they are.
    """

    def __init__(self, key: tuple[str, ...], policy: OnDuplicate, comparable: Comparable | None = None) -> None:
        self._key, self._policy, self._comparable = key, policy, comparable or (lambda rows: rows)
        #: ``row`` of each superseded row of a frame in memory. None for a stream, whose batches are checked separately.
        self._rows: pl.Series | None = None

    def find(self, valid: pl.DataFrame | None) -> None:
        """Find the superseded rows of a frame in memory.

        Args:
            valid: its valid rows with repeated keys; None if no key is repeated.

        Raises:
            DuplicateError: a row is superseded and the policy is "error".
        """
        self._rows = pl.Series("row", dtype=pl.UInt32) if valid is None else self._find(valid)

    def split(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split a batch into the rows to write and the superseded rows.

        Raises:
            DuplicateError: a row is superseded and the policy is "error".
        """
        found = self._find(rows) if self._rows is None else self._rows
        if found.is_empty():
            return rows, rows.clear()
        is_superseded = rows["row"].is_in(found.implode())
        return rows.filter(~is_superseded), rows.filter(is_superseded)

    def _find(self, rows: pl.DataFrame) -> pl.Series:
        return superseded(rows, self._comparable(rows), self._key, self._policy)


def bytes_of(key: tuple[str, ...]) -> pl.Expr:
    """The key for comparison, text as bytes."""
    columns = cs.by_name(*key)
    return pl.struct((columns & cs.string()).cast(pl.Binary), columns - cs.string())


def disjoint(left: pl.DataFrame, right: pl.DataFrame, key: tuple[str, ...]) -> bool:
    """Whether two frames have no key in common."""
    left_keys, right_keys = (rows.select(key=bytes_of(key)) for rows in (left, right))
    return left_keys.join(right_keys, on="key", how="semi").is_empty()


def superseded(rows: pl.DataFrame, keys: pl.DataFrame, key: tuple[str, ...], policy: OnDuplicate) -> pl.Series:
    """``row`` of each row that is superseded by another row with the same key.

    Args:
        rows: the rows.
        keys: their keys; equal ones have equal values.
        key: the columns of the key.
        policy: which row of a key is written.

    Raises:
        DuplicateError: a row is superseded and the policy is "error".
    """
    key_bytes = bytes_of(key)
    kept = key_bytes.is_first_distinct() if policy == "first" else key_bytes.is_last_distinct()
    found = rows.filter(~keys.select(kept).to_series())
    if policy == "error" and found.height:
        repeated = found.select(key).unique(maintain_order=True).head(5).iter_rows()
        shown = ", ".join("/".join(map(str, values)) for values in repeated)
        raise DuplicateError(
            f"{found.height:,} {'row repeats' if found.height == 1 else 'rows repeat'} the key of another row "
            f"({shown}{', ...' if found.height > 5 else ''})",
            advice="make the ids unique, or set on_duplicate to 'last' or 'first'",
        )
    return found["row"]
