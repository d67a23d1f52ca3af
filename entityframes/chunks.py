"""Cutting a source into batches by rows or by bytes, each numbered by its place in the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import polars as pl

from entityframes.frames import KEY, numbered

#: With no batch_size, a batch of a stream holds about this many bytes of text, and at most this many rows.
BATCH_BYTES = 8 << 20
BATCH_ROWS = 50_000


def chunks(
    frames: Iterable[pl.DataFrame],
    batch_size: int | None,
    *,
    max_bytes: int = BATCH_BYTES,
    max_rows: int = BATCH_ROWS,
) -> Iterator[pl.DataFrame]:
    """Cut frames into batches, joining small ones; at most one batch and one frame are held at a time.

    Args:
        frames: entity frames, in order.
        batch_size: rows in a batch; None cuts by bytes.
        max_bytes: about how many bytes of text a batch has if it is cut by bytes; a longer row is a batch of its own.
        max_rows: how many rows it then has at most.

    Yields:
        The rows in order with their position in the whole input as ``row`` UInt32; a batch never mixes frames
        whose metadata have different dtypes.
    """
    cut = partial(_cut, batch_size=batch_size, max_bytes=max_bytes, max_rows=max_rows)
    waiting: list[pl.DataFrame] = []
    start = 0
    for frame in frames:
        frame = numbered(frame, start)
        start += frame.height
        if waiting and waiting[-1].schema != frame.schema:
            yield from cut(pl.concat(waiting))
            waiting = []
        waiting.append(frame)
        if sum(one.height for one in waiting) > (batch_size or max_rows) or (
            batch_size is None and sum(one.estimated_size() for one in waiting) > max_bytes
        ):
            *full, rest = cut(pl.concat(waiting))
            yield from full
            waiting = [rest]
    if waiting:
        yield from cut(pl.concat(waiting))


def _cut(frame: pl.DataFrame, batch_size: int | None, max_bytes: int, max_rows: int) -> Iterator[pl.DataFrame]:
    if batch_size is not None:
        yield from frame.iter_slices(batch_size)
        return
    ends = frame.select(_bytes(frame).cum_sum()).to_series().to_numpy()
    start = 0
    while start < frame.height:
        before = ends[start - 1] if start else 0
        fits = int(np.searchsorted(ends, before + max_bytes, side="right"))
        stop = min(max(fits, start + 1), start + max_rows)
        yield frame[start:stop]
        start = stop


def _bytes(frame: pl.DataFrame) -> pl.Expr:
    """About how many bytes each row's texts have; typed metadata counts with its average."""
    texts = [name for name in (*KEY, "content", "metadata") if frame.schema.get(name) in (pl.String, pl.Binary)]
    typed = (
        frame["metadata"].estimated_size() // max(frame.height, 1)
        if "metadata" not in texts and "metadata" in frame.columns
        else 0
    )
    sizes = [pl.col(name).cast(pl.Binary).bin.size().fill_null(0).cast(pl.Int64) for name in texts]
    return pl.sum_horizontal(*sizes, pl.lit(typed, pl.Int64))
