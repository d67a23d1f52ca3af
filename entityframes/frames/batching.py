"""Splitting a source into batches by rows or bytes, with the position of each row in the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from entityframes.frames.schema import numbered

# Polars queries the version of NumPy on the first conversion, and a Ctrl-C at that moment would cause a panic.
pl.Series([0]).to_numpy()

#: Without a batch_size, a batch of a stream has about this many bytes of text, and at most this many rows.
BATCH_BYTES = 8 << 20
BATCH_ROWS = 50_000

#: A frame in memory is not split further to give every writer a batch, if batches would be smaller than this:
#: connecting takes longer than writing them.
LEAST_BYTES = 2 << 20


def chunks(frames: Iterable[pl.DataFrame], batch_size: int | None) -> Iterator[pl.DataFrame]:
    """Split frames into batches and join small ones; at most one batch and one frame are in memory at a time.

    Args:
        frames: the frames, in order.
        batch_size: rows per batch; None splits by bytes, where a row larger than a batch becomes a batch of its own.

    Yields:
        The rows in order, with their position in the whole input as ``row`` UInt32. A batch never contains frames
        with different columns or dtypes.
    """

    def cut(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
        if batch_size is not None:
            return frame.iter_slices(batch_size)
        return _cut(frame, _ends(frame), BATCH_BYTES, BATCH_ROWS)

    waiting: list[pl.DataFrame] = []
    start = 0
    for frame in frames:
        frame = numbered(frame, start)
        start += frame.height
        if waiting and waiting[-1].schema != frame.schema:
            yield from cut(pl.concat(waiting))
            waiting = []
        waiting.append(frame)
        if sum(one.height for one in waiting) > (batch_size or BATCH_ROWS) or (
            batch_size is None and sum(one.estimated_size() for one in waiting) > BATCH_BYTES
        ):
            *full, rest = cut(pl.concat(waiting))
            yield from full
            waiting = [rest]
    if waiting:
        yield from cut(pl.concat(waiting))


def shares(
    frame: pl.DataFrame,
    *,
    max_bytes: int,
    max_rows: int,
    writers: int,
    in_key_order: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> Iterator[pl.DataFrame]:
    """Split a frame in memory into batches of equal size, the same number for each writer, so that none is idle.

    Args:
        frame: a frame of rows.
        max_bytes: the approximate maximum of bytes of text in a batch; a larger row becomes a batch of its own.
        max_rows: the maximum number of rows in a batch.
        writers: the number of concurrent writers.
        in_key_order: sorts rows by key, to split by key rather than by position if there is more than one batch.

    Yields:
        The rows with their position in the frame as ``row`` UInt32, ordered by position or by key.
    """
    rows = numbered(frame)
    if rows.height == 1:
        # Fast path for a single entity.
        yield rows
        return
    ends = _ends(rows)
    total = int(ends[-1]) if len(ends) else 0
    if total >= writers * LEAST_BYTES:
        rounds = -(-total // (max_bytes * writers))
        longest = int(np.diff(ends, prepend=0).max())
        max_bytes = min(-(-total // (rounds * writers)) + longest, max_bytes)
    if in_key_order is not None and (total > max_bytes or rows.height > max_rows):
        rows = in_key_order(rows)
        ends = np.diff(ends, prepend=0)[rows["row"].to_numpy()].cumsum()
    yield from _cut(rows, ends, max_bytes, max_rows)


def _cut(frame: pl.DataFrame, ends: np.ndarray[Any, Any], max_bytes: int, max_rows: int) -> Iterator[pl.DataFrame]:
    start = 0
    while start < frame.height:
        before = ends[start - 1] if start else 0
        fits = int(np.searchsorted(ends, before + max_bytes, side="right"))
        stop = min(max(fits, start + 1), start + max_rows)
        yield frame[start:stop]
        start = stop


def _ends(frame: pl.DataFrame) -> np.ndarray[Any, Any]:
    """The approximate cumulative size of the rows in bytes of text; other columns count with their average size."""
    texts, others = cs.string() | cs.binary(), cs.exclude("row") - cs.string() - cs.binary()
    typed = int(frame.select(others).estimated_size()) // max(frame.height, 1)
    sizes = [texts.cast(pl.Binary).bin.size().fill_null(0).cast(pl.Int64)]
    return (
        frame.select(pl.sum_horizontal(*sizes, pl.repeat(typed, pl.len(), dtype=pl.Int64)).cum_sum())
        .to_series()
        .to_numpy()
    )
