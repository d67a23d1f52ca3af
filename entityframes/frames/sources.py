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
    given = source
    source = _without_panics(source)
    try:
        _check_arrow(source)
        frame = pl.DataFrame(source)
    except SchemaError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        _check_repeated(source)
        frame = _from_pandas_bytes(source, error)
    # What was given can be read again where the reader in its place cannot.
    _check_times(given, frame)
    return frame.drop([name for name in frame.columns if name.startswith("__index_level_")])


#: Arrow types, by their names, that make Polars panic or that it does not know.
_PANICS = ("interval", "dense_union", "sparse_union", "decimal256", "run_end_encoded", "list_view")


def _without_panics(source: Any) -> Any:
    """The source, or a reader in its place, once it is known that Polars knows all its types.

    A panic of Polars is no Exception, and prints a page of its own before anybody can catch it.

    Raises:
        SchemaError: a column has a type that Polars does not have; names it, and what to cast it to.
    """
    if hasattr(source, "iloc"):
        return source
    import pyarrow as pa

    try:
        if not hasattr(source, "schema") or not isinstance(source.schema, pa.Schema):
            source = pa.RecordBatchReader.from_stream(source)
        schema = source.schema
    except (pa.ArrowException, TypeError, ValueError, AttributeError):
        # Polars says better what is wrong.
        return source
    unknown = [
        f"{each.name!r} is {each.type}" for each in schema if any(name in _type_names(each.type) for name in _PANICS)
    ]
    if unknown:
        raise SchemaError(
            f"columns with types that Polars does not have: {', '.join(unknown[:10])}: cast them before, for example "
            "to text (DuckDB: CAST(c AS VARCHAR)), or leave them out"
        )
    return source


def _type_names(dtype: Any) -> str:
    """The names of an Arrow type and of those within it, without those of its fields."""
    inner = [dtype.field(number).type for number in range(dtype.num_fields)]
    return " ".join([str(dtype).partition("<")[0], *map(_type_names, inner)])


def _check_arrow(source: Any) -> None:
    """Refuse Arrow data that contradicts itself, such as offsets or indices that point outside: no row of it is sure.

    Texts that are not UTF-8 are looked at later, row by row.
    """
    if not hasattr(source, "validate") or not hasattr(source, "num_rows"):
        return
    try:
        source.validate()
        if "dictionary<" in str(source.schema):
            source.validate(full=True)
    except ValueError as error:
        if "UTF8" not in str(error):
            raise SchemaError(f"the frame is not valid Arrow data: {error}") from None


def _check_times(source: Any, frame: pl.DataFrame) -> None:
    """Refuse times that no clock shows, such as DuckDB's 24:00:00: Polars makes nulls of them without a word."""
    suspects = [
        column.name
        for column in frame.get_columns()
        if "Time" in str(column.dtype) and (column.dtype.is_nested() or column.null_count())
    ]
    if not suspects:
        return
    import pyarrow as pa

    try:
        table = pa.table(source) if not hasattr(source, "iloc") else pa.Table.from_pandas(source[suspects])
    except (pa.ArrowException, TypeError, ValueError):
        # It can be read once only.
        return
    for name in suspects:
        for chunk in table[name].chunks if name in table.column_names else ():
            if any(not _on_a_clock(times) for times in _times(chunk)):
                raise SchemaError(
                    f"column {name!r} holds times that are not from 00:00:00 to 23:59:59.999999999, such as 24:00:00, "
                    "which would become nulls: correct them, or cast the column to text"
                )


def _times(array: Any) -> Iterator[Any]:
    """The times in an Arrow array, at every depth."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_time(kind):
        yield array
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _times(array.flatten())
    elif pa.types.is_struct(kind):
        for part in array.flatten():
            yield from _times(part)


def _on_a_clock(times: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    per_day = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}[times.type.unit]
    ends = pc.min_max(times.view(pa.int32() if times.type.bit_width == 32 else pa.int64())).as_py()
    return ends["min"] is None or (ends["min"] >= 0 and ends["max"] < per_day)


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
    except (Exception, pl.exceptions.PanicException) as again:
        for name in encoded.columns:
            try:
                pl.DataFrame(encoded[[name]])
            except (Exception, pl.exceptions.PanicException) as wrong:
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

        for batch in _without_panics(pa.RecordBatchReader.from_stream(source)):
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
