"""Python objects as rows: dicts, dataclasses, models, named tuples and database rows, in lists or from iterators.

The objects of an iterator are gathered into pages, and each page becomes a frame. An object that cannot be a row does
not end the stream: the frame has a row for it, with nulls, and a column `RECORD` that says what is wrong. That column
also has what the other columns cannot express: which keys a row lacks, as opposed to keys that are None. It is internal
to the package: the functions at the end of this module take it apart.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from entityframes.errors import SchemaError
from entityframes.frames.objects import as_record, is_record
from entityframes.frames.values import JSON, Conversion, Document, Leaf, Object, Path, is_text, struct
from entityframes.metadata import dtypes
from entityframes.rejected import Inputs

#: The column with what is special about each row of a frame that was made from objects: a Struct with ``rule`` and
#: ``error`` (why the object cannot be a row, null for others) and ``absent`` (a Struct of Booleans: the columns whose
#: key the object lacks). If the column `Expected.fields` was made from dicts, also ``keys`` (a JSON array of the keys
#: of each dict) and ``fields`` (nulls of the dtype List(Struct), which has the dtypes of the dict's values).
RECORD = "__entityframes_record__"

#: The maximum number of objects in a page, and of characters of text in it.
PAGE_ROWS = 5_000
#: The default number of rows of a batch. The objects of the batches in flight are in memory, so these are smaller than
#: those of frames; and smaller than a page, so that the first batch starts when the first page has been read.
BATCH_ROWS = 4_000
#: A page that shall be small has this many objects nevertheless, since the dtypes of the columns are found in it.
LEAST_PAGE_ROWS = 1_000
PAGE_CHARACTERS = 8 << 20


@dataclass(frozen=True)
class Expected:
    """What the rows are written to: the dtypes that it has, the columns that it may have."""

    #: The dtypes of some columns; `JSON` for one whose values become JSON text, whatever they are.
    dtypes: Mapping[str, pl.DataType] = field(default_factory=dict)
    #: The columns that rows may have; None for any.
    columns: Collection[str] | None = None
    #: The column whose dicts become JSON text with the dtypes of their fields.
    fields: str | None = None


#: Returns what is expected of a page, given its records.
Expecting = Callable[[Sequence[Mapping[str, Any]]], Expected]


@dataclass(frozen=True)
class Whole:
    """All rows of a source as one frame."""

    frame: pl.DataFrame
    #: The objects from which they were made, and the frame then has the column `RECORD`; None if they were frames.
    objects: Sequence[Any] | None = None

    @property
    def height(self) -> int:
        """The number of rows."""
        return self.frame.height


class Records:
    """Objects that become rows: those of a list, or of an iterator, which is read page by page.

    Args:
        source: a list or tuple of objects, or of lists of objects; or any other iterable of objects, lists of objects,
            or frames. The first item decides whether it consists of frames.
        as_frame: makes a DataFrame of an item that is a frame.
        rows: about how many objects a page shall have.
    """

    def __init__(self, source: Iterable[Any], as_frame: Callable[[Any], pl.DataFrame], rows: int | None = None) -> None:
        self._source, self._as_frame = source, as_frame
        self._rows = min(max(rows or PAGE_ROWS, LEAST_PAGE_ROWS), PAGE_ROWS)
        self._list = list(_flat(source)) if are_records(source) else None
        #: The objects of an iterator that were read so far.
        self.inputs = Inputs()
        #: The default number of rows of a batch; None for frames, and until `read` is called.
        self.batch_rows: int | None = None

    @property
    def height(self) -> int | None:
        """The number of objects; None if they come from an iterator."""
        return None if self._list is None else len(self._list)

    def read(self, expecting: Expecting) -> Whole | Iterator[pl.DataFrame]:
        """The rows of a list, or the frames of an iterator, with the column `RECORD`.

        Frames that the iterator itself consists of have no such column. Waits for the first item of an iterator.

        Raises:
            SchemaError: objects cannot be converted to columns at all, or the items are neither objects nor frames.
        """
        if self._list is not None:
            return self.whole(expecting)
        items, are_frames = _items(self._source)
        if are_frames:
            return map(self._as_frame, items)
        self.batch_rows = BATCH_ROWS
        return self._pages(items, expecting)

    def whole(self, expecting: Expecting) -> Whole:
        """All rows, also those of an iterator.

        Raises:
            SchemaError: as `read`, or the iterator consists of frames whose columns or dtypes differ.
        """
        objects = self._list
        if objects is None:
            items, are_frames = _items(self._source)
            if are_frames:
                return Whole(_concatenated([self._as_frame(item) for item in items]))
            objects = list(_flat(items))
        if not objects:
            return Whole(_concatenated([]))
        return Whole(_converted([record for _, record in _each_object(objects)], expecting), objects)

    def _pages(self, items: Iterable[Any], expecting: Expecting) -> Iterator[pl.DataFrame]:
        before: Mapping[str, pl.DataType] = {}
        for records in self._gathered(items):
            frame = _converted(records, expecting, before)
            before = frame.schema
            yield frame

    def _gathered(self, items: Iterable[Any]) -> Iterator[list[dict[str, Any] | _NoRecord]]:
        """The records of one page after the other. If the iterator raises, the page before that comes first."""
        objects: list[Any] = []
        records: list[dict[str, Any] | _NoRecord] = []
        size = 0
        failure: Exception | None = None
        each = _each_object(items)
        while True:
            try:
                item, record = next(each, (None, None))
            except Exception as error:
                failure, record = error, None
            if record is not None:
                # What is kept of a dict is the copy, since the iterator may change it.
                objects.append(record if type(item) is dict else item)
                records.append(record)
                size += _characters(record)
            if records and (record is None or len(records) == self._rows or size >= PAGE_CHARACTERS):
                self.inputs.add(objects)
                yield records
                objects, records, size = [], [], 0
            if failure is not None:
                raise failure
            if record is None:
                return


def _concatenated(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """The frames of an iterator as one.

    Raises:
        SchemaError: they differ in columns or dtypes.
    """
    try:
        return pl.concat(frames) if frames else pl.DataFrame(schema=dict.fromkeys(_COLUMNS, pl.String))
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"the frames of an iterator must have the same columns here: {error}") from error


#: The columns of an empty entity frame.
_COLUMNS = ("entity_type", "id", "content")


def are_records(source: Any) -> bool:
    """Whether this is a list or tuple of objects that become rows, or of lists of them."""
    return isinstance(source, list | tuple) and is_record(next(_flat(source), None))


class _NoRecord(str):
    """Why an object is not a row."""

    __slots__ = ()


def _flat(items: Iterable[Any]) -> Iterator[Any]:
    """The items, and those of the lists among them."""
    for item in items:
        if isinstance(item, list) or (isinstance(item, tuple) and not is_record(item)):
            yield from item
        else:
            yield item


def _each_object(items: Iterable[Any]) -> Iterator[tuple[Any, dict[str, Any] | _NoRecord]]:
    """The objects, those of lists included, each with its fields, or with the reason why it has none.

    Raises:
        SchemaError: an item is a frame.
    """
    for item in _flat(items):
        try:
            record = as_record(item)
        except Exception as error:
            yield item, _NoRecord(f"the fields of the {type(item).__name__} cannot be read: {error}")
            continue
        if record is None and hasattr(item, "__arrow_c_stream__"):
            raise SchemaError("an iterator has to consist either of frames, or of dicts, dataclasses or models")
        yield item, record if record is not None else _NoRecord(f"{_EXPECTED}, got {type(item).__name__}")


_EXPECTED = "expected a dict, dataclass or model"


def _items(source: Iterable[Any]) -> tuple[Iterator[Any], bool]:
    """The items of an iterator, and whether they are frames; reads up to the first item that is not an empty list.

    Raises:
        SchemaError: this item is neither a frame, nor an object that becomes a row, nor a list of them.
    """
    items, read = iter(source), []
    for item in items:
        read.append(item)
        inner = next(_flat([item]), None) if isinstance(item, list | tuple) else item
        if inner is not None or not isinstance(item, list | tuple):
            if not is_record(inner):
                return itertools.chain(read, items), True
            break
    return itertools.chain(read, items), False


def _characters(record: Mapping[str, Any] | _NoRecord) -> int:
    """About how much text a record has: in its values, and in those of dicts."""
    size = 0
    for value in () if isinstance(record, _NoRecord) else record.values():
        if type(value) is str:
            size += len(value)
        elif type(value) is dict:
            size += sum([len(inner) for inner in value.values() if type(inner) is str])
    return size


def _converted(
    records: list[dict[str, Any] | _NoRecord], expecting: Expecting, before: Mapping[str, pl.DataType] | None = None
) -> pl.DataFrame:
    """The frame of a page.

    If all objects of a page lack a key that the page before had, the frame has that column nevertheless: it is not
    another kind of page, and if the key is needed, its absence fails the rows.

    Args:
        records: the fields of each object.
        expecting: returns what is expected of the records.
        before: the schema of the frame of the page before.
    """
    conversion = Conversion()
    for row, record in enumerate(records):
        if isinstance(record, _NoRecord):
            conversion.problem(row, "not_a_record", record)
    given = [None if isinstance(record, _NoRecord) else record for record in records]
    expected = expecting([record for record in given if record is not None])
    _refuse_unknown(given, expected.columns, conversion)
    before = before or {}
    known = {name: dtype for name, dtype in before.items() if _stays(dtype)} | dict(expected.dtypes)
    if expected.fields and _are_texts([record.get(expected.fields) for record in given if record is not None]):
        # It is JSON text already.
        del known[expected.fields]
    height = len(given)
    made = conversion.objects(Path(""), given, range(height), known)
    columns, absent = made.fields, made.absent
    for name, dtype in before.items():
        if name not in columns and name not in (expected.fields, RECORD):
            columns[name] = Leaf(_repeated(None, dtype, height))
            absent[name] = _repeated(True, pl.Boolean(), height)
    names = dict.fromkeys([*(name for name in before if name in columns), *columns])
    details = [*_reasons(conversion, height), _absent(names, absent, height)]
    dicts = columns.get(expected.fields) if expected.fields else None
    if expected.fields and isinstance(dicts, Object):
        columns[expected.fields] = Leaf(dicts.text())
        nulls = _repeated(None, pl.List(_widened(known[expected.fields], dicts)), height)
        details += [dicts.keys().alias("keys"), nulls.alias("fields")]
    series = {name: columns[name].series(name) for name in names}
    return pl.DataFrame({**series, RECORD: pl.DataFrame(details).to_struct(RECORD)})


def _stays(dtype: pl.DataType) -> bool:
    """Whether the values of later pages have to have this dtype; numbers and nested values may get a wider one."""
    return not (dtype.is_numeric() or dtype.is_nested() or isinstance(dtype, pl.Null))


def _widened(known: pl.DataType, dicts: Object) -> pl.DataType:
    """The dtypes of the fields of dicts and of known fields, without those that are `JSON`."""
    typed = pl.Struct({name: column.dtype for name, column in dicts.fields.items() if not isinstance(column, Document)})
    fields = known.fields if isinstance(known, pl.Struct) else []
    known = pl.Struct([each for each in fields if each.dtype != JSON])
    return dtypes.widened(known, typed) or typed


def _repeated(value: Any, dtype: pl.DataType, height: int) -> pl.Series:
    return pl.Series([value], dtype=dtype).new_from_index(0, height)


def _reasons(conversion: Conversion, height: int) -> list[pl.Series]:
    """The fields ``rule`` and ``error`` of the column `RECORD`."""
    problems = [conversion.problems.get(row, (None, None)) for row in range(height)]
    return [
        pl.Series("rule", [rule for rule, _ in problems], dtype=pl.String),
        pl.Series("error", [error for _, error in problems], dtype=pl.String),
    ]


def _absent(names: Iterable[str], absent: Mapping[str, pl.Series], height: int) -> pl.Series:
    """The field ``absent`` of the column `RECORD`."""
    no = _repeated(False, pl.Boolean(), height)
    return struct({name: absent.get(name, no) for name in names}, "absent", height)


def _are_texts(values: list[Any]) -> bool:
    """Whether most values are strings."""
    return 2 * sum(isinstance(value, str) for value in values) > sum(value is not None for value in values)


def _refuse_unknown(
    records: list[dict[str, Any] | None], columns: Collection[str] | None, conversion: Conversion
) -> None:
    """Refuse rows with unknown columns, unless most rows have them."""
    if columns is None:
        return
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        for name in record.keys() - columns if record is not None else ():
            rows.setdefault(name, []).append(row)
    for name, where in rows.items():
        if 2 * len(where) < len(records):
            for row in where:
                conversion.problem(row, "unknown_column", f"{name!r} is not a column: expected {', '.join(columns)}")
                record = records[row] or {}
                records[row] = {key: value for key, value in record.items() if key != name}


def texts(values: Iterable[str]) -> pl.Series:
    """Those of the values that are valid text."""
    return pl.Series([value for value in values if is_text(value)], dtype=pl.String)


# Frames with the column `RECORD`.


def unisolated(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame without its column `RECORD`, for calls that do not report what became of each row.

    Raises:
        SchemaError: an object cannot be a row; names the first one.
    """
    if RECORD not in frame.columns:
        return frame
    wrong = frame[RECORD].struct.unnest().with_row_index("row").filter(pl.col("error").is_not_null())
    if wrong.height:
        more = f" (and {wrong.height - 1:,} more rows)" if wrong.height > 1 else ""
        raise SchemaError(f"row {wrong['row'][0]}: {wrong['error'][0]}{more}")
    return frame.drop(RECORD)


def visible_schema(schema: Mapping[str, pl.DataType], json_column: str | None = None) -> Mapping[str, pl.DataType]:
    """The schema without the column `RECORD`, and with the Struct of which the column with JSON text was made."""
    if RECORD not in schema:
        return schema
    details = {each.name: each.dtype for each in schema[RECORD].fields}  # type: ignore[attr-defined]
    shown = {name: dtype for name, dtype in schema.items() if name != RECORD}
    if json_column is not None and json_column in shown and "fields" in details:
        shown[json_column] = details["fields"].inner
    return shown


def with_details(made: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """A frame that was made from another one, row by row, with its column `RECORD`, if that has one."""
    if RECORD not in frame.columns or RECORD in made.columns:
        return made
    return made.hstack([frame[RECORD]])


def split(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """The rows of objects that could be converted, and the others with ``rule`` and ``error``; None without any."""
    if RECORD not in frame.columns:
        return frame, None
    errors = frame[RECORD].struct.field("error")
    if errors.null_count() == frame.height:
        return frame, None
    refused = frame.filter(errors.is_not_null())
    reasons = refused[RECORD].struct.unnest().select("rule", "error")
    return frame.filter(errors.is_null()), refused.drop(RECORD).hstack(reasons.get_columns())


def lacking(frame: pl.DataFrame, column: str) -> pl.Series | None:
    """Whether the object of each row lacks the key of a column (Boolean); None if none does."""
    if RECORD not in frame.columns or column not in (absent := frame[RECORD].struct.field("absent")).struct.fields:
        return None
    lacks = absent.struct.field(column)
    return lacks if lacks.any() else None


def is_of_dicts(frame: pl.DataFrame) -> bool:
    """Whether the column `Expected.fields` was made from dicts."""
    return RECORD in frame.columns and "keys" in frame[RECORD].struct.fields


def absences(frame: pl.DataFrame) -> pl.DataFrame | None:
    """Whether the object of each row lacks the key of each column that some of them lack; None if they lack none."""
    if RECORD not in frame.columns:
        return None
    flags = frame[RECORD].struct.field("absent").struct.unnest()
    lacked = [name for name in flags.columns if flags[name].any()]
    return flags.select(lacked) if lacked else None


def keys_of_dicts(frame: pl.DataFrame) -> list[tuple[str, ...]] | None:
    """The keys of the dict of each row in the column `Expected.fields`; None if that was not made from dicts."""
    if not is_of_dicts(frame):
        return None
    texts = frame[RECORD].struct.field("keys").to_list()
    names = {text: tuple(json.loads(text)) for text in set(texts)}
    return [names[text] for text in texts]
