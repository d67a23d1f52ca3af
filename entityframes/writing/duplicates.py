"""Rows of one frame with the same key: which one is written."""

from __future__ import annotations

import polars as pl

from entityframes.errors import DuplicateError
from entityframes.writing.options import OnDuplicate


class Superseded:
    """The rows that give way to another one with their key.

    Args:
        key: the columns that identify a row.
        policy: which one is written.
    """

    def __init__(self, key: tuple[str, ...], policy: OnDuplicate) -> None:
        self._key, self._policy = key, policy
        #: The ``row`` of each, once they are known for a whole frame; until then each batch looks for its own.
        self._rows: pl.Series | None = None

    def find(self, valid: pl.DataFrame | None) -> None:
        """Take the rows of a whole frame that compete, or None if no key stands twice in it.

        Raises:
            DuplicateError: there are any, and the policy is "error".
        """
        self._rows = pl.Series("row", dtype=pl.UInt32) if valid is None else superseded(valid, self._key, self._policy)

    def split(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of a batch that are written, and those that are superseded.

        Raises:
            DuplicateError: there are any, and the policy is "error".
        """
        found = superseded(rows, self._key, self._policy) if self._rows is None else self._rows
        if found.is_empty():
            return rows, rows.clear()
        superseding = ~rows["row"].is_in(found.implode())
        return rows.filter(superseding), rows.filter(~superseding)


def bytes_of(key: tuple[str, ...]) -> pl.Expr:
    """The key, compared by bytes."""
    return pl.struct(pl.col(key).cast(pl.Binary))


def superseded(rows: pl.DataFrame, key: tuple[str, ...], policy: OnDuplicate) -> pl.Series:
    """The ``row`` of each row that gives way to another one with its key.

    Raises:
        DuplicateError: there are any, and the policy is "error".
    """
    each = bytes_of(key)
    kept = each.is_first_distinct() if policy == "first" else each.is_last_distinct()
    found = rows.filter(~kept)
    if policy == "error" and found.height:
        keys = found.select(key).unique(maintain_order=True).head(5).iter_rows()
        shown = ", ".join("/".join(map(str, one)) for one in keys)
        raise DuplicateError(
            f"{found.height:,} {'row repeats' if found.height == 1 else 'rows repeat'} the key of another row "
            f"({shown}{', ...' if found.height > 5 else ''}): "
            "make the ids unique, or choose on_duplicate='last' or 'first'"
        )
    return found["row"]
