"""A LazyFrame over chunks of a file, with one chunk in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source


def in_pieces(read: Callable[[list[str] | None], Iterator[pl.DataFrame]], schema: pl.Schema, name: str) -> pl.LazyFrame:
    """A LazyFrame of the frames that `read` yields for some columns, or for all (None); it may be collected repeatedly.

    Unlike this, the scans of Polars map their files into memory, and keep as much of them there as fits.
    """

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = n_rows
        for frame in read(None if predicate is not None else with_columns):
            if left is not None:
                frame = frame.head(left)
                left -= frame.height
            if predicate is not None:
                frame = frame.filter(predicate)
            yield frame if with_columns is None else frame.select(with_columns)
            if left == 0:
                return

    return register_io_source(source, schema=schema, explain_name=name)


def arrow_pieces(paths: Sequence[str | Path], columns: list[str] | None) -> Iterator[pl.DataFrame]:
    """The record batches of Arrow IPC files as frames."""
    import pyarrow as pa

    for path in paths:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                yield pl.DataFrame(batch if columns is None else batch.select(columns))
