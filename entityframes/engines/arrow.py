"""Parameters and results of the drivers, as Arrow."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

#: An explicitly empty set of parameters: with it ADBC for PostgreSQL needs two round trips per statement instead of
#: three or four. Created from buffers, because `pa.array` imports pandas if it is installed.
NO_PARAMETERS = pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), 1, [None]))


def one_row(parameters: tuple[Any, ...]) -> pa.RecordBatch:
    """Parameters as a single Arrow row. A Series becomes an array, so that the statement runs only once."""
    if not parameters:
        return NO_PARAMETERS
    columns = [_array(value) if isinstance(value, pl.Series) else _scalar(value) for value in parameters]
    return pa.record_batch(columns, names=[f"p{number}" for number in range(len(columns))])


def _array(values: pl.Series) -> pa.Array:
    flat = values.to_arrow()
    if values.dtype not in (pl.String, pl.Binary, pl.Boolean):
        flat = flat.cast(pa.string())
    return pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)


def _scalar(value: Any) -> pa.Array:
    return pa.array([value], pa.bool_() if isinstance(value, bool) else pa.string())


def to_frame(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """The result of a driver as a frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
