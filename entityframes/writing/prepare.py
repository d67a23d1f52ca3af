"""The beginning of a call that writes: prepare -> split, of a whole frame at once, of a stream frame by frame.

Columns are checked, rows numbered, duplicates found, dtypes recorded, and the rows cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from entityframes.engines.base import Engine
from entityframes.frames.batching import chunks, shares
from entityframes.frames.schema import numbered
from entityframes.writing.duplicates import Superseded, bytes_of
from entityframes.writing.target import Target


class Whole:
    """A frame in memory as batches: refused or accepted as a whole, before anything is written.

    Raises:
        SchemaError: it cannot be stored.
    """

    error: Exception | None = None

    def __init__(
        self, frame: pl.DataFrame, target: Target, superseded: Superseded, engine: Engine, batch_size: int | None
    ) -> None:
        target.check(frame.schema)
        target.check_values(frame)
        self._frame, self._target, self._superseded = frame, target, superseded
        self._engine, self._batch_size = engine, batch_size
        self.left = [numbered(frame)]

    def __iter__(self) -> Iterator[pl.DataFrame]:
        find_superseded(self._frame, self._target, self._superseded)
        frame = self._target.prepare(self._frame)
        if self._batch_size is not None:
            self.left = list(chunks([frame], self._batch_size))
        else:
            # A stream may be larger than memory, a whole frame is in it already.
            engine = self._engine
            sizes = {"max_bytes": engine.batch_bytes, "max_rows": engine.batch_rows}
            self.left = list(shares(frame, **sizes, writers=engine.writers, by_key=engine.by_key))
        while self.left:
            yield self.left[0]

    def begun(self) -> None:
        del self.left[0]


class Stream:
    """Frames as batches; an error ends them, and is raised when what came before it is written."""

    def __init__(self, frames: Iterator[pl.DataFrame], target: Target, batch_size: int | None) -> None:
        self._frames, self._target, self._batch_size = frames, target, batch_size
        self.error: Exception | None = None
        self.left: list[pl.DataFrame] = []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for chunk in chunks(self._prepared(), self._batch_size):
            self.left.append(chunk)
            yield chunk

    def begun(self) -> None:
        del self.left[0]

    def _prepared(self) -> Iterator[pl.DataFrame]:
        """The frames, each checked and its dtypes recorded before its rows are written."""
        try:
            for frame in self._frames:
                self._target.check(frame.schema)
                yield self._target.prepare(frame)
        except Exception as error:
            self.error = error


def find_superseded(frame: pl.DataFrame, target: Target, superseded: Superseded) -> None:
    """Decide which row of each key of a whole frame is written, before any of it is.

    Raises:
        DuplicateError: a key stands twice, and that is an error.
    """
    # Values of the last column that are all different take a quarter of the time to tell than keys that are.
    last = target.key[-1]
    if frame[last].n_unique() == frame.height:
        superseded.find(None)
        return
    rows = numbered(target.prepare(frame, record=False))
    twice = rows.filter(bytes_of(target.key).is_duplicated())
    # Only valid rows compete: a bad row does not push out a good one.
    superseded.find(target.validate(twice, record=False).rows if twice.height else None)
