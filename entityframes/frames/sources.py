"""Input sources as Polars frames: as a whole or in chunks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl

from entityframes.errors import SchemaError
from entityframes.frames.objects import is_record
from entityframes.frames.records import Expected, Records, Whole, are_records, unisolated
from entityframes.frames.values import Conversion, Path

#: Environment variables for the number of row groups (Parquet) and record batches (Arrow IPC) that Polars prefetches.
_PREFETCH = ("POLARS_ROW_GROUP_PREFETCH_SIZE", "POLARS_RECORD_BATCH_PREFETCH_SIZE")


def is_stream(source: Any) -> bool:
    """Whether to read a source in chunks, because it can be read only once or is not in memory."""
    if isinstance(source, pl.DataFrame | pl.Series):
        return False
    if isinstance(source, pl.LazyFrame):
        return True
    if hasattr(source, "__arrow_c_stream__"):
        # PyArrow tables and pandas frames are in memory; readers and relations are not.
        return not hasattr(source, "num_rows") and not hasattr(source, "iloc")
    return _is_iterable(source) and not are_records(source)


def _is_iterable(source: Any) -> bool:
    """Whether a source without an Arrow stream has items that are rows or frames."""
    # A dict has columns; a single record, such as a model or a named tuple, or a column of pandas may be iterable, too.
    is_one = isinstance(source, str | bytes) or is_record(source) or hasattr(source, "to_frame")
    return hasattr(source, "__iter__") and not is_one


def objects(source: Any, rows: int | None = None) -> Records | None:
    """The Python objects of a list or an iterator, for calls that report what became of each; None for other sources.

    Args:
        source: anything; an iterator may also turn out to consist of frames.
        rows: about how many objects of an iterator are converted at once.
    """
    is_frame = isinstance(source, pl.DataFrame | pl.LazyFrame) or hasattr(source, "__arrow_c_stream__")
    return None if is_frame or not _is_iterable(source) else Records(source, as_frame, rows)


def opened(source: Any, rows: int | None = None) -> pl.DataFrame | Iterator[pl.DataFrame] | Records:
    """A source as a frame in memory, as a stream of frames, or as Python objects.

    Args:
        source: as for `as_frame`.
        rows: about how many objects of an iterator are converted at once.

    Raises:
        SchemaError: as `as_frame`.
    """
    return objects(source, rows) or (iterate(source) if is_stream(source) else as_frame(source))


def as_frame(source: Any) -> pl.DataFrame:
    """Read a source as one DataFrame.

    Args:
        source: an object with the Arrow PyCapsule interface, of which the columns of a pandas index are dropped; a
            LazyFrame; a dict of columns; a list or an iterator of dicts, dataclasses, models or frames.

    Raises:
        SchemaError: `source` is none of these; it contains values that Arrow or Polars cannot represent; the values of
            a column are of different types, which the message names with row and column; or its frames differ in
            columns or dtypes.
    """
    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if not hasattr(source, "__arrow_c_stream__"):
        if isinstance(source, Mapping):
            return _from_columns(source)
        if _is_iterable(source):
            return unisolated(Records(source, as_frame).whole(_anything).frame)
        raise _no_frame(source)
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
    # Uses the original source, because a reader created from it can be read only once.
    _check_times(given, frame)
    return frame.drop([name for name in frame.columns if name.startswith("__index_level_")])


def _no_frame(source: Any) -> SchemaError:
    """The error for something that is neither a frame nor can be read as one."""
    name = type(source).__name__
    if is_record(source):
        return SchemaError(f"expected a frame, got one {name}", advice="wrap it in a list")
    if hasattr(source, "to_frame"):
        return SchemaError(f"expected a frame, got {name}", advice="pass its frame: to_frame()")
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if read := _READERS.get(os.path.splitext(path)[1]):
            return SchemaError(f"expected a frame, got {name}", advice=f"read the file first, as in {read}({path!r})")
    if isinstance(source, str):
        ids = "entityframes.ids(entity_type, ids) makes one of ids alone"
        return SchemaError(f"expected a frame, got {name}", advice=f"pass a frame or a list of dicts; {ids}")
    return SchemaError(
        f"expected a frame, got {name}",
        advice="pass a Polars, pandas or PyArrow frame, a LazyFrame, a dict of columns, or "
        "a list or an iterator of dicts, dataclasses, models or frames",
    )


#: The functions of Polars that read files, by their suffixes.
_READERS = {
    ".csv": "polars.read_csv", ".parquet": "polars.read_parquet", ".json": "polars.read_json",
    ".ndjson": "polars.read_ndjson", ".jsonl": "polars.read_ndjson", ".arrow": "polars.read_ipc",
    ".feather": "polars.read_ipc", ".xlsx": "polars.read_excel",
}  # fmt: skip


def _anything(records: Sequence[Mapping[str, Any]]) -> Expected:
    """Any columns are expected."""
    return Expected()


def _from_columns(columns: Mapping[str, Any]) -> pl.DataFrame:
    """Read a dict of columns: Series, arrays or lists of values, and single values that are the same in each row.

    Raises:
        SchemaError: there is no column, columns differ in length, or a column cannot be read; names it, and the row.
    """
    conversion = Conversion()
    made: dict[str, pl.Series] = {}
    single: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, Mapping) or not isinstance(name, str):
            raise SchemaError(f"column {name!r} is a dict", advice="pass a list of its values")
        if isinstance(values, list | tuple | range):
            path = Path(name)
            made[name] = conversion.column(path, list(values), range(len(values))).series(name)
        elif hasattr(values, "__array__") or hasattr(values, "__arrow_c_stream__"):
            try:
                made[name] = pl.Series(name, values)
            except (Exception, pl.exceptions.PanicException) as error:
                raise SchemaError(f"column {name!r} cannot be read: {error}") from error
        else:
            single[name] = values
    if not made:
        raise SchemaError(
            "expected a dict of columns, got single values only", advice="wrap the dict of one row in a list"
        )
    if len({len(series) for series in made.values()}) > 1:
        lengths = ", ".join(f"{name!r} has {len(series):,}" for name, series in made.items())
        raise SchemaError(f"the columns differ in their number of values: {lengths}")
    height = len(next(iter(made.values())))
    for name, value in single.items():
        column = conversion.column(Path(name), [value], range(1)).series(name)
        made[name] = column.new_from_index(0, height)
    if conversion.problems:
        row = min(conversion.problems)
        raise SchemaError(f"row {row}: {conversion.problems[row][1]}")
    return pl.DataFrame({name: made[name] for name in columns})


#: Names of Arrow types that Polars does not support, some of which make it panic.
_PANICS = ("interval", "dense_union", "sparse_union", "decimal256", "run_end_encoded", "list_view")


def _without_panics(source: Any) -> Any:
    """The source, or a reader of it, after checking that Polars supports all its types.

    A panic of Polars is not an Exception, and prints a backtrace before it can be caught.

    Raises:
        SchemaError: Polars does not support the type of a column; names the column, and what to cast it to.
    """
    if hasattr(source, "iloc"):
        return source
    import pyarrow as pa

    try:
        if not hasattr(source, "schema") or not isinstance(source.schema, pa.Schema):
            source = pa.RecordBatchReader.from_stream(source)
        schema = source.schema
    except (pa.ArrowException, TypeError, ValueError, AttributeError):
        # Polars raises a better message.
        return source
    unknown = [
        f"{each.name!r} is {each.type}" for each in schema if any(name in _type_names(each.type) for name in _PANICS)
    ]
    if unknown:
        raise SchemaError(
            f"columns with types that Polars does not support: {', '.join(unknown[:10])}",
            advice="cast them first, for example to text (DuckDB: CAST(c AS VARCHAR)), or leave them out",
        )
    return source


def _type_names(dtype: Any) -> str:
    """The names of an Arrow type and its nested types, without the names of its fields."""
    inner = [dtype.field(number).type for number in range(dtype.num_fields)]
    return " ".join([str(dtype).partition("<")[0], *map(_type_names, inner)])


def _check_arrow(source: Any) -> None:
    """Reject inconsistent Arrow data, such as offsets or indices out of bounds, whose rows cannot be trusted.

    Strings that are not UTF-8 are checked later, row by row.
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
    """Reject times outside of a day, such as DuckDB's 24:00:00, which Polars silently converts to nulls."""
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
        # It can be read only once.
        return
    for name in suspects:
        for chunk in table[name].chunks if name in table.column_names else ():
            if any(not _within_a_day(times) for times in _times(chunk)):
                raise SchemaError(
                    f"column {name!r} contains times outside 00:00:00 to 23:59:59.999999999, such as 24:00:00, "
                    "which would become nulls",
                    advice="correct them, or cast the column to text",
                )


def _times(array: Any) -> Iterator[Any]:
    """The arrays of times in an Arrow array, at every depth."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_time(kind):
        yield array
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _times(array.flatten())
    elif pa.types.is_struct(kind):
        for part in array.flatten():
            yield from _times(part)


def _within_a_day(times: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    per_day = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}[times.type.unit]
    ends = pc.min_max(times.view(pa.int32() if times.type.bit_width == 32 else pa.int64())).as_py()
    return ends["min"] is None or (ends["min"] >= 0 and ends["max"] < per_day)


def _check_repeated(source: Any) -> None:
    """Reject duplicate column names, which Arrow and pandas allow."""
    # The column names are in the schema in PyArrow, and in `columns` in pandas and DuckDB.
    names = source.schema.names if hasattr(source, "schema") else getattr(source, "columns", [])
    repeated = [name for name, times in Counter(map(str, names)).items() if times > 1]
    if repeated:
        raise SchemaError(f"duplicate column names: {', '.join(map(repr, repeated))}")


def _from_pandas_bytes(source: Any, error: Exception) -> pl.DataFrame:
    """Read a pandas frame with strings that Arrow rejects (lone surrogates) as bytes, which are validated later."""
    if hasattr(source, "to_frame"):
        raise _no_frame(source) from error
    if not hasattr(source, "map") or not hasattr(source, "columns"):
        raise SchemaError(f"the frame cannot be read through Arrow: {error}") from error
    encoded = source.map(lambda value: value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)
    try:
        return pl.DataFrame(encoded)
    except (Exception, pl.exceptions.PanicException) as again:
        for name in encoded.columns:
            try:
                pl.DataFrame(encoded[[name]])
            except (Exception, pl.exceptions.PanicException):
                raise SchemaError(
                    f"column {name!r} cannot be read through Arrow: {_why_not(source[[name]])}",
                    advice="make its values of one type, as in astype(str), or pass frame.to_dict('records'), of which "
                    "only the rows fail that do not fit",
                ) from again
        raise SchemaError(f"the frame cannot be read through Arrow: {error}") from again


def _why_not(source: Any) -> str:
    """Why Arrow does not take a pandas frame."""
    try:
        pl.DataFrame(source)
    except (Exception, pl.exceptions.PanicException) as error:
        return str(error)
    return "its text is not valid Unicode, and other values are no text"


#: The lines in the plan of a count that is read from the metadata of Parquet files.
_COUNTED = re.compile(
    r"SELECT \[len\(\)\]|Parquet SCAN .*|PROJECT 0/\d+ COLUMNS|ESTIMATED ROWS: \d+|SLICE: .*|ROW INDEX .*"
)


def count(source: Any) -> int | None:
    """The number of rows of a scan of Parquet files, from their metadata; None for other streams, which are not run."""
    if not isinstance(source, pl.LazyFrame):
        return None
    counting = source.select(pl.len())
    try:
        plan = counting.explain()
        if not all(_COUNTED.fullmatch(line.strip()) for line in plan.splitlines()):
            return None
        return int(counting.collect().item())
    except Exception:
        # It is raised again, with its cause, when the rows are read.
        return None


def collect(source: Any) -> pl.DataFrame:
    """All rows of a source, also of a stream, as one DataFrame; see `as_frame`."""
    return as_frame(source)


def iterate(source: Any, rows: int = 25_000) -> Iterator[pl.DataFrame]:
    """The frames of a streaming source, with one frame in memory at a time.

    Args:
        source: a LazyFrame, a reader of Arrow batches, or an iterable of frames, or of objects as for `as_frame`.
        rows: about how many rows of a LazyFrame a frame has.
    """
    if isinstance(source, pl.LazyFrame):
        batches = source.collect_batches(chunk_size=rows, maintain_order=True, lazy=True)
        # The scan starts with the first batch.
        with _limited_prefetch():
            first = next(batches, None)
        if first is not None:
            yield first
            yield from batches
    elif hasattr(source, "__arrow_c_stream__"):
        import pyarrow as pa

        for batch in _without_panics(pa.RecordBatchReader.from_stream(source)):
            yield as_frame(batch)
    else:
        frames = Records(source, as_frame).read(_anything)
        yield from map(unisolated, [frames.frame] if isinstance(frames, Whole) else frames)


@contextmanager
def _limited_prefetch() -> Iterator[None]:
    """Make scans that start in this context prefetch one chunk of their file, unless the user has set a number.

    By default Polars keeps more of a Parquet file in memory than all batches in flight.
    """
    added = [name for name in _PREFETCH if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
