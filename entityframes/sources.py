"""What callers hand in, as Polars frames: whole, or piece by piece."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl

from entityframes.errors import SchemaError

#: What an entity frame without rows has.
_COLUMNS = ("entity_type", "id", "content")

#: How many pieces Polars reads ahead, of Parquet and of Arrow IPC.
_READ_AHEAD = ("POLARS_ROW_GROUP_PREFETCH_SIZE", "POLARS_RECORD_BATCH_PREFETCH_SIZE")


def is_stream(source: Any) -> bool:
    """Whether a source is to be read piece by piece: what can be read only once, or is not in memory."""
    if isinstance(source, pl.DataFrame | pl.Series):
        return False
    if isinstance(source, pl.LazyFrame):
        return True
    if hasattr(source, "__arrow_c_stream__"):
        # Tables and pandas frames know their length; readers and relations do not hold their rows.
        return not hasattr(source, "num_rows") and not hasattr(source, "iloc")
    return hasattr(source, "__iter__") and not isinstance(source, str | bytes | Mapping)


def as_frame(source: Any) -> pl.DataFrame:
    """Read anything that offers an Arrow stream, whole, as a DataFrame; the columns of a pandas index are left out.

    Raises:
        SchemaError: `source` offers none, or holds something that Arrow or Polars cannot represent.
    """
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if not hasattr(source, "__arrow_c_stream__"):
        raise SchemaError(
            f"expected a frame, got {type(source).__name__}: pass a Polars, pandas or PyArrow frame, a LazyFrame, "
            "or an iterator of frames"
        )
    try:
        frame = pl.DataFrame(source)
    except Exception as error:
        _check_repeated(source)
        frame = _from_pandas_bytes(source, error)
    return frame.drop([name for name in frame.columns if name.startswith("__index_level_")])


def _check_repeated(source: Any) -> None:
    """Refuse columns of one name, which Arrow and pandas allow."""
    # PyArrow has its names in the schema, pandas and DuckDB under columns.
    names = source.schema.names if hasattr(source, "schema") else getattr(source, "columns", [])
    repeated = [name for name, times in Counter(map(str, names)).items() if times > 1]
    if repeated:
        raise SchemaError(
            f"columns {', '.join(map(repr, repeated))} come more than once: rename them, so that each can be told"
        )


def _from_pandas_bytes(source: Any, error: Exception) -> pl.DataFrame:
    """Second try for a pandas frame whose text Arrow refuses (lone surrogates): its bytes, judged row by row later."""
    if not hasattr(source, "map") or not hasattr(source, "columns"):
        raise SchemaError(f"the frame cannot be read through Arrow: {error}") from error
    encoded = source.map(lambda value: value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)
    try:
        return pl.DataFrame(encoded)
    except Exception as again:
        for name in encoded.columns:
            try:
                pl.DataFrame(encoded[[name]])
            except Exception as wrong:
                raise SchemaError(f"column {name!r} cannot be read through Arrow: {wrong}") from again
        raise SchemaError(f"the frame cannot be read through Arrow: {error}") from again


def collect(source: Any) -> pl.DataFrame:
    """A frame, or the frames of an iterable as one.

    Raises:
        SchemaError: it is no frame, or the frames have other columns or dtypes than the first.
    """
    if isinstance(source, pl.DataFrame | pl.LazyFrame) or hasattr(source, "__arrow_c_stream__"):
        return as_frame(source)
    if not hasattr(source, "__iter__") or isinstance(source, str | bytes | Mapping):
        return as_frame(source)
    pieces = [as_frame(piece) for piece in source]
    try:
        return pl.concat(pieces) if pieces else pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.String))
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"the frames of a plan must have the same columns: {error}") from error


def iterate(source: Any, rows: int = 25_000) -> Iterator[pl.DataFrame]:
    """The frames of a streaming source, a LazyFrame or an iterable of frames, without holding more than one."""
    if isinstance(source, pl.LazyFrame):
        batches = source.collect_batches(chunk_size=rows, maintain_order=True, lazy=True)
        # The scan begins with the first batch.
        with _little_read_ahead():
            first = next(batches, None)
        if first is not None:
            yield first
            yield from batches
    elif hasattr(source, "__arrow_c_stream__"):
        import pyarrow as pa

        for batch in pa.RecordBatchReader.from_stream(source):
            yield as_frame(batch)
    else:
        for frame in source:
            yield as_frame(frame)


@contextmanager
def _little_read_ahead() -> Iterator[None]:
    """Let scans that begin now read one piece of their file ahead, unless the user has said how many.

    Without it Polars holds more of a Parquet file than all batches in flight do.
    """
    ours = [name for name in _READ_AHEAD if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "1"))
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
