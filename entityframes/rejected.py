"""The Python objects of the rows that failed, so that they can be corrected and passed again.

The objects of an iterator are held while the outcome of their row is not known. Those of failed rows are kept, beyond
`KEEP` in a temporary file.
"""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

import numpy as np
import polars as pl

#: The number of objects that are kept in memory.
KEEP = 10_000


class Inputs:
    """The objects that the rows of a run are made from, until the outcome of their row is known."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        #: The pages with rows without an outcome: the first row, the objects, the number of rows without an outcome.
        self._pages: list[tuple[int, Sequence[Any], int]] = []
        self._next = 0
        self._failed: dict[int, Any] = {}
        self._spilled: _Spilled | None = None

    def add(self, objects: Sequence[Any]) -> None:
        """Hold the objects of the next rows."""
        if not objects:
            return
        self._pages.append((self._next, objects, len(objects)))
        self._next += len(objects)

    def resolve(self, outcomes: pl.DataFrame) -> None:
        """Keep the objects of rows that failed, and let go of the others.

        Args:
            outcomes: the outcomes of some rows; each row has one.
        """
        if not self._pages:
            return
        starts = np.array([start for start, _, _ in self._pages])
        for row in outcomes.filter(pl.col("status").cast(pl.String) == "failed")["row"]:
            start, objects, _ = self._pages[int(np.searchsorted(starts, row, side="right")) - 1]
            self._add_failed(row, objects[row - start])
        places = np.searchsorted(starts, outcomes["row"].to_numpy(), side="right") - 1
        resolved = np.bincount(places, minlength=len(self._pages))
        pages = zip(self._pages, resolved.tolist(), strict=True)
        self._pages = [(start, objects, left - n) for (start, objects, left), n in pages if left > n]

    def finish(self) -> None:
        """Let go of the objects of rows that have no outcome, since the run has ended."""
        self._pages = []

    def of(self, row: int | None) -> Any:
        """The object of a row that failed; None if it was not kept, or for a deletion."""
        if row is None:
            return None
        if row in self._failed or self._spilled is None:
            return self._failed.get(row)
        return self._spilled.get(row)

    def _add_failed(self, row: int, item: Any) -> None:
        if len(self._failed) >= self._keep:
            self._spilled = self._spilled or _Spilled()
            if self._spilled.put(row, item):
                return
        self._failed[row] = item


class _Spilled:
    """Objects in a temporary file that has no name, so that it is gone when it is closed."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._rows, self._offsets = array("q"), array("q")
        self._size = 0
        #: The positions of the rows in ascending order.
        self._order = np.array([], dtype=np.int64)

    def put(self, row: int, item: Any) -> bool:
        """Add an object; False if it cannot be pickled."""
        try:
            data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except Exception:
            return False
        with self._lock:
            self._file.seek(self._size)
            self._file.write(data)
            self._rows.append(row)
            self._offsets.append(self._size)
            self._size += len(data)
        return True

    def get(self, row: int) -> Any:
        """The object of a row; None if there is none."""
        with self._lock:
            rows = np.array(self._rows)
            if len(self._order) < len(rows):
                self._order = np.argsort(rows)
            place = int(np.searchsorted(rows, row, sorter=self._order))
            if place == len(rows) or self._rows[self._order[place]] != row:
                return None
            self._file.seek(self._offsets[self._order[place]])
            # Only this process can have written to the file.
            return pickle.load(self._file)  # noqa: S301


class Rejected(Sequence[dict[str, Any]]):
    """The rows that failed, in input order, each as a dict with ``row``, ``value``, ``rule`` and ``error``.

    A read-only sequence; values in the temporary file are read when they are accessed.
    """

    def __init__(self, failed: pl.DataFrame, inputs: Inputs | None) -> None:
        self._failed, self._inputs = failed.select("row", "rule", "error"), inputs

    def __len__(self) -> int:
        return self._failed.height

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self):,} rejected rows")
        row, rule, error = self._failed.row(index)
        value = None if self._inputs is None else self._inputs.of(row)
        return {"row": row, "value": value, "rule": rule, "error": error}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        more = f", ... {len(self) - 3:,} more" if len(self) > 3 else ""
        return f"[{', '.join(map(repr, self[:3]))}{more}]"
