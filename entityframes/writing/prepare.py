"""The first steps of a write: prepare -> split. A frame in memory is prepared as a whole, a stream frame by frame.

Columns are checked, rows are numbered, duplicate keys are found, dtypes are recorded, and rows are split into batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from entityframes.engines.database import Recorder
from entityframes.frames.batching import chunks, shares
from entityframes.frames.schema import numbered
from entityframes.writing.duplicates import Superseded, bytes_of
from entityframes.writing.target import Target


class FrameBatches:
    """The batches of a frame in memory, which is checked as a whole before anything is written.

    Raises:
        SchemaError: the frame cannot be stored.
    """

    error: Exception | None = None
    read = True

    def __init__(
        self, frame: pl.DataFrame, target: Target, superseded: Superseded, engine: Recorder, batch_size: int | None
    ) -> None:
        target.check(frame.schema)
        target.check_values(frame)
        frame = target.renamed(frame)
        self._frame, self._target, self._superseded = frame, target, superseded
        self._engine, self._batch_size = engine, batch_size
        self.remaining = [numbered(frame)]

    def __iter__(self) -> Iterator[pl.DataFrame]:
        find_superseded(self._frame, self._target, self._superseded)
        frame = self._target.prepare(self._frame)
        if self._batch_size is not None:
            self.remaining = list(chunks([frame], self._batch_size))
        else:
            # A stream may be larger than memory; this frame is in memory already, so its batches may be large.
            database = self._engine.database
            sizes = {"max_bytes": database.batch_bytes, "max_rows": database.batch_rows}
            order = self._target.in_key_order if database.by_key else None
            self.remaining = list(shares(frame, **sizes, writers=database.writers, in_key_order=order))
        while self.remaining:
            yield self.remaining[0]


class StreamBatches:
    """The batches of a stream. An error of the stream ends it and is raised once the rows before it are written."""

    def __init__(self, frames: Iterator[pl.DataFrame], target: Target, batch_size: int | None) -> None:
        self._frames, self._target, self._batch_size = frames, target, batch_size
        self.error: Exception | None = None
        self.remaining: list[pl.DataFrame] = []
        self.read = False

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for chunk in chunks(self._prepared(), self._batch_size):
            self.remaining.append(chunk)
            yield chunk

    def _prepared(self) -> Iterator[pl.DataFrame]:
        """Check each frame and record its dtypes before its rows are written."""
        try:
            for frame in self._frames:
                self._target.check(frame.schema)
                yield self._target.prepare(self._target.renamed(frame))
            self.read = True
        except Exception as error:
            self.error = error


class OneBatch:
    """Rows that need no preparation, as a single batch."""

    error: Exception | None = None
    read = True

    def __init__(self, rows: pl.DataFrame) -> None:
        self.remaining = [rows]

    def __iter__(self) -> Iterator[pl.DataFrame]:
        yield from self.remaining[:1]


def find_superseded(frame: pl.DataFrame, target: Target, superseded: Superseded) -> None:
    """Find the superseded rows of a frame in memory before any row is written.

    Raises:
        DuplicateError: a key is repeated and the policy is "error".
    """
    # Fast path: checking that the last key column is unique takes a quarter of the time of checking the whole key.
    keys = target.comparable(frame)
    if keys[target.key[-1]].n_unique() == frame.height:
        superseded.find(None)
        return
    rows = numbered(target.prepare(frame, record=False))
    repeated = rows.filter(keys.select(bytes_of(target.key).is_duplicated()).to_series())
    # Only valid rows are compared: an invalid row must not supersede a valid one.
    superseded.find(target.validate(repeated, record=False).rows if repeated.height else None)
