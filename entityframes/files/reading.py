"""Reading files of rows.

A file comes in as it is, or the difference is said: a row that cannot be read is one of `Rows.unread`, with file, line
and reason, and what was done that the file does not say is one of `Rows.notes`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from entityframes.errors import SchemaError
from entityframes.files.delimited import MAX_COLUMNS, Dialect, TextRows, read_delimited
from entityframes.files.formats import format_of
from entityframes.files.json_rows import JsonRows, as_frame, read_json
from entityframes.files.kinds import Change, Node, resolve
from entityframes.files.notes import Notes
from entityframes.files.opening import copy, display_name, expanded, is_packed, unpacked
from entityframes.files.pieces import arrow_pieces, in_pieces
from entityframes.files.unread import Unread
from entityframes.metadata import dtypes


@dataclass(frozen=True)
class TextOptions:
    """How to read files of text."""

    #: The columns of a file without a header line, in order.
    columns: Sequence[str] | None = None
    #: What stands between two values; None is a comma, or a tab in TSV.
    separator: str | None = None
    #: What stands around a value that holds a separator; empty: quotes are part of the values.
    quote: str = '"'
    #: What stands before a quote within a quoted value; None: it is doubled.
    escape: str | None = None
    #: None is UTF-8, or what a byte order mark says.
    encoding: str | None = None
    #: Whether 1,5 is a number.
    decimal_comma: bool = False
    #: Texts that stand for null, besides the empty one.
    nulls: Sequence[str] = ()
    #: Columns that are kept as text whatever they look like, such as ids with leading zeros.
    text: Sequence[str] = ()
    #: Columns that are numbers also where the text of a number would not come back, as that of 1.10.
    numbers: Sequence[str] = ()


@dataclass
class Rows:
    """Rows of files: what could be read, what could not, and what was done that the files do not say."""

    kind: str
    files: list[str]
    options: TextOptions
    spool: Path
    source: TextRows | JsonRows | list[pl.LazyFrame]
    unread: Unread = field(default_factory=Unread)
    notes: Notes = field(default_factory=Notes)
    bytes: int = 0

    @property
    def names(self) -> list[str]:
        """The columns."""
        if isinstance(self.source, list):
            return self.source[0].collect_schema().names()
        return self.source.names

    def choose(self, text: Sequence[str], numbers: Sequence[str] = (), kept: Sequence[str] = ()) -> None:
        """Say which columns are text, and which are numbers, whatever they look like.

        Args:
            text, numbers: these.
            kept: other columns that have to be there.

        Raises:
            SchemaError: a column is not there.
        """
        if isinstance(self.source, JsonRows) and not self.source.rows:
            # No object could be read, so that nothing is known of its keys.
            for name in (*text, *numbers, *kept):
                self.source.root.fields.setdefault(name, Node())
        names = set(self.names)
        missing = [name for name in dict.fromkeys([*text, *numbers, *kept]) if name not in names]
        if missing:
            raise SchemaError(self._not_there(missing))
        self.options = replace(self.options, text=text, numbers=numbers)

    def _not_there(self, missing: list[str]) -> str:
        names = self.names
        found = ", ".join(map(repr, names[:50])) + (", ..." if len(names) > 50 else "")
        said = f"no column {', '.join(map(repr, missing))}; the file has {found}"
        if self.kind not in ("csv", "tsv"):
            return said
        if not self.options.columns:
            said += " in its first line; a file without a header line needs --columns"
        other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
        return f"{said}; {other!r} seems to stand between its values: say --separator {other!r}" if other else said

    def scan(self, known: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
        """The rows that could be read.

        Args:
            known: the dtypes that columns of these names have in the store: they are read so where that takes nothing
                from a value, and a note says where a value becomes another text.
        """
        known = known or {}
        if isinstance(self.source, TextRows):
            return self._typed_text(self.source, known)
        if isinstance(self.source, JsonRows):
            return self._typed_json(self.source, known)
        rows = self.source[0] if len(self.source) == 1 else pl.concat(self.source)
        return rows.cast(_as_known(rows, known))  # type: ignore[arg-type]

    def _typed_text(self, rows: TextRows, known: Mapping[str, pl.DataType]) -> pl.LazyFrame:
        texts = pl.Schema(dict.fromkeys(rows.names, pl.String))
        made = in_pieces(lambda columns: arrow_pieces(rows.files, columns), texts, "text")
        for kind in ("text", "known", "whole"):
            self.notes.drop(kind)
        chosen = {*self.options.text}
        columns = []
        for name in rows.names:
            if name in chosen or not rows.files:
                columns.append(pl.col(name))
                continue
            dtype = self._dtype_of_text(rows, name, known.get(name))
            stats = rows.stats[name]
            columns.append(
                pl.lit(None, dtype).alias(name)
                if not stats.values
                else pl.col(name)
                if dtype == pl.String
                else stats.expression(name, dtype)
            )
        typed = made.select(columns)
        others = {name: known[name] for name in rows.names if name in known and name not in chosen}
        return typed.with_columns(_parsed(typed, others))

    def _dtype_of_text(self, rows: TextRows, name: str, known: pl.DataType | None) -> pl.DataType:
        """The dtype of a column of text; what is not plain about it is a note."""
        stats = rows.stats[name]
        found = stats.dtype()
        if not stats.values:
            return known or found
        if name in self.options.numbers:
            if stats.number is None:
                what, place = stats.first.get("odd", ("true or false", "its first rows"))
                raise SchemaError(f"column {name!r} cannot be numbers: {what[:40]!r} ({place}) is none")
            found = stats.number
        elif isinstance(known, pl.String):
            if found != pl.String:
                self.notes.add(
                    "known", f"column {name!r} looks like {found} here, and stays text as it is in the store"
                )
            return known
        elif known == pl.Float64 and stats.number is not None:
            if stats.altered:
                value, place = stats.first["altered"]
                self.notes.add(
                    "known",
                    f"column {name!r} is {known} in the store: {stats.altered:,} values are numbers there and not the "
                    f"text that they are here, such as {value[:40]!r} ({place})",
                )
            return known
        elif known is not None and known.is_numeric() and stats.odd and not stats.is_text:
            value, place = stats.first["odd"]
            self.notes.add(
                "known",
                f"column {name!r} is {known} in the store, and {value[:40]!r} ({place}) is no number: correct it, say "
                f"--null {value[:40]!r} if it stands for no value, or import the file as another type",
            )
        elif known is None:
            self._note_text(name, stats, found)
        if found == pl.Float64 and stats.whole and known is None:
            self.notes.add(
                "whole", f"column {name!r} has fractions and whole numbers: all are fractions, and 1 comes out as 1.0"
            )
        return found

    def _note_text(self, name: str, stats: Any, found: pl.DataType) -> None:
        """Say why a column that is mostly numbers is text: the type will keep that dtype."""
        if found != pl.String or not (stats.altered or stats.odd or stats.large):
            return
        if stats.odd:
            if 20 * stats.odd > stats.values:
                return
            value, place = stats.first["odd"]
            said = "1 value is no number" if stats.odd == 1 else f"{stats.odd:,} values are no numbers"
            self.notes.add(
                "text",
                f"column {name!r} is text, because {said}, such as {value[:40]!r} ({place}); a type keeps its dtypes "
                f"while it has entities: correct the file, say --null {value[:40]!r} if it stands for no value, or "
                f"--text {name!r}",
            )
        elif stats.altered and not stats.booleans:
            value, place = stats.first["altered"]
            said = "1 value" if stats.altered == 1 else f"{stats.altered:,} values"
            self.notes.add(
                "text",
                f"column {name!r} is text, because {said} would be another text as a number, such as {value[:40]!r} "
                f"({place}); for numbers say --number {name!r}",
            )
        elif stats.large and stats.fractions:
            self.notes.add(
                "text", f"column {name!r} is text, because it has fractions and whole numbers of more than 15 digits"
            )

    def _typed_json(self, rows: JsonRows, known: Mapping[str, pl.DataType]) -> pl.LazyFrame:
        self.notes.drop("text")
        dtypes: dict[str, pl.DataType] = {}
        changes: dict[str, Change] = {}
        for name, node in rows.root.fields.items():
            wanted = pl.String() if name in self.options.text and set(node.kinds) != {"str"} else known.get(name)
            dtype, change = resolve(
                node,
                name,
                wanted,
                name in self.options.numbers,
                (lambda text: None) if name in self.options.text else lambda text: self.notes.add("text", text),
            )
            dtypes[name] = dtype
            if change is not None:
                changes[name] = change
        # What is written as a text and another dtype in the store is parsed below.
        made = as_frame(rows, dtypes, changes, self.spool)
        return made.with_columns(_parsed(made, known))


def read_files(sources: Sequence[str], file_format: str | None, options: TextOptions, spool: Path) -> Rows:
    """Read files of one kind.

    Args:
        sources: paths, patterns such as ``data/*.csv.gz``, or ``-`` for standard input.
        file_format: one of `FORMATS`; None tells it by the name.
        options: how to read text.
        spool: a folder for what is unpacked and parsed; the rows are there until they are no longer wanted.

    Raises:
        SchemaError: a pattern matches nothing; the formats differ or are not known; a file is empty, damaged, not of
            its format, or has other columns than the first.
    """
    paths = expanded(sources, file_format, spool)
    formats = {file_format or format_of(path) for path in paths}
    if len(formats - {"json"} or formats) > 1 or ("json" in formats and not formats <= {"json", "ndjson"}):
        raise SchemaError(f"the files have different formats ({', '.join(sorted(formats))}): import them one by one")
    kind = sorted(formats)[0]
    rows = Rows(kind, paths, options, spool, [])
    if kind in ("csv", "tsv"):
        rows.source = read_delimited(paths, _dialect(options, kind), spool, rows.unread, rows.notes)
        rows.bytes = rows.source.bytes
    elif kind in ("ndjson", "json"):
        rows.source = read_json(paths, options.encoding, spool, rows.unread, rows.notes)
        rows.bytes = rows.source.bytes
    else:
        plain = [_plain(path, number, spool) for number, path in enumerate(paths)]
        rows.source = _tables(plain, paths, kind)
        rows.bytes = sum(_decoded_size(path, kind) for path in plain)
    if len(rows.names) > MAX_COLUMNS:
        raise SchemaError(
            f"{display_name(paths[0])} has {len(rows.names):,} columns, more than the {MAX_COLUMNS:,} that an entity "
            "can have: cut it into files of fewer columns, or turn columns into rows"
        )
    return rows


def _dialect(options: TextOptions, kind: str) -> Dialect:
    separator = {"\\t": "\t", None: "\t" if kind == "tsv" else ","}.get(options.separator, options.separator)
    if not separator or any(mark in "\r\n" for mark in separator):
        raise SchemaError(f"--separator {separator!r}: give the character that stands between two values")
    if len(separator) > 1 and options.quote:
        raise SchemaError(f"--separator {separator!r}: more than one character can be read only with --no-quote")
    if len(options.quote) > 1 or options.quote == separator:
        raise SchemaError(f"--quote {options.quote!r}: give one character, another one than the separator")
    if options.escape is not None and (len(options.escape) != 1 or options.escape in (separator, options.quote)):
        raise SchemaError(f"--escape {options.escape!r}: give one character, another one than separator and quote")
    return Dialect(
        separator,
        options.quote or None,
        options.escape,
        options.columns,
        options.nulls,
        options.encoding,
        options.decimal_comma,
    )


def _plain(path: str, number: int, spool: Path) -> str:
    """The path of a file, unpacked."""
    if not is_packed(path):
        return path
    target = spool / f"unpacked-{number}"
    with unpacked(path) as stream, target.open("wb") as file:
        copy(stream, file, display_name(path))
    return str(target)


def _tables(paths: list[str], names: Sequence[str], kind: str) -> list[pl.LazyFrame]:
    """Parquet and Arrow files with the dtypes that hold the values of all of them."""
    word = "Parquet" if kind == "parquet" else "Arrow IPC"
    scan: Any = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
    scans: list[pl.LazyFrame] = []
    wide: dict[str, pl.DataType] = {}
    for path, name in zip(paths, names, strict=True):
        if not os.path.getsize(path):
            raise SchemaError(f"{display_name(name)} is empty: it is no {word} file")
        with reading_errors([name], word):
            rows = scan(path, glob=False)
            schema = dict(rows.collect_schema())
        if scans and set(schema) != set(wide):
            raise SchemaError(
                f"{display_name(name)} has other columns than {display_name(names[0])}"
                f"{_differing(list(wide), list(schema))}: import files of one kind at a time"
            )
        for column, dtype in schema.items():
            held = dtypes.widened(wide.get(column, pl.Null()), dtype)
            if held is None:
                raise SchemaError(
                    f"column {column!r} is {dtype} in {display_name(name)} and {wide[column]} in "
                    f"{display_name(names[0])}: give it one dtype in all files, or import them one by one"
                )
            wide[column] = held
        scans.append(rows)
    common: Any = wide
    return [rows.select(list(wide)).cast(common) for rows in scans] if len(scans) > 1 else scans


#: Bytes of one table up to which it is counted.
_ENOUGH = 1 << 30


def _decoded_size(path: str, kind: str) -> int:
    """About how many bytes a table has in memory, which may be a thousand times those of its file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = os.path.getsize(path)
    try:
        if kind == "parquet":
            table = pq.read_metadata(path)
            groups = [table.row_group(number) for number in range(table.num_row_groups)]
            return int(
                max(size, sum(group.total_byte_size for group in groups), 8 * table.num_rows * table.num_columns)
            )
        decoded = 0
        with pa.OSFile(path) as file, pa.ipc.open_file(file) as reader:
            for number in range(reader.num_record_batches):
                decoded += reader.get_batch(number).nbytes
                if decoded > _ENOUGH:
                    break
        return int(max(size, decoded))
    except (pa.ArrowException, OSError):
        # Polars reads what it can.
        return size


def _differing(known: list[str], names: list[str]) -> str:
    more = [f"has {name!r}" for name in names if name not in known]
    less = [f"lacks {name!r}" for name in known if name not in names]
    return f" ({', '.join([*more, *less][:5])})"


@contextmanager
def reading_errors(paths: Sequence[str], word: str = "") -> Iterator[None]:
    """Name the files that turn out not to be what they are called.

    Raises:
        SchemaError: Polars cannot read them.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        names = ", ".join(map(display_name, paths[:5])) + (", ..." if len(paths) > 5 else "")
        raise SchemaError(
            f"{names} cannot be read{f' as {word}' if word else ''}: truncated, damaged, or of another format "
            "(--format says which)"
        ) from error


def _as_known(rows: pl.LazyFrame, known: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The columns that can have the dtype they are known with, and have not: whole numbers, and columns of nulls."""
    schema = rows.collect_schema()
    other = {name: dtype for name, dtype in known.items() if name in schema and schema[name] != dtype}
    whole = {name: dtype for name, dtype in other.items() if schema[name].is_integer() and dtype.is_float()}
    texts = [name for name, dtype in other.items() if schema[name] == pl.String and not dtype.is_nested()]
    if not texts:
        return whole
    values = rows.select(pl.col(texts).count()).collect().row(0, named=True)
    return whole | {name: other[name] for name in texts if not values[name]}


#: Dtypes whose values may come out of CSV and JSON as texts.
_AS_TEXT = (pl.Date, pl.Datetime, pl.Time, pl.Duration, pl.Decimal, pl.Enum, pl.Categorical, pl.UInt64, pl.Int128)


def _parsed(rows: pl.LazyFrame, known: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """Columns of text, and of numbers, that are all values of another dtype in the store, as that dtype."""
    schema = rows.collect_schema()

    def may_be(name: str, dtype: pl.DataType) -> bool:
        if schema[name].is_numeric() and (dtype.is_integer() or dtype.is_float()):
            return True
        return isinstance(dtype, _AS_TEXT) and (schema[name] == pl.String or schema[name].is_numeric())

    wanted = {
        name: dtype for name, dtype in known.items() if name in schema and schema[name] != dtype and may_be(name, dtype)
    }
    if not wanted:
        return []
    values = {name: _value(pl.col(name).cast(pl.String), dtype) for name, dtype in wanted.items()}
    whole = rows.select(
        (value.is_not_null() | pl.col(name).is_null()).all().alias(name) for name, value in values.items()
    )
    fine = whole.collect().row(0, named=True)
    return [value.alias(name) for name, value in values.items() if fine[name]]


_FRACTION = {"ms": 3, "us": 6, "ns": 9}


def _value(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Values of a dtype out of the texts that they have in files; null where a text is none, or says more."""
    if isinstance(dtype, pl.Date):
        return text.str.to_date("%Y-%m-%d", strict=False)
    if isinstance(dtype, pl.Time):
        return text.str.to_time("%H:%M:%S%.f", strict=False)
    if isinstance(dtype, pl.Datetime):
        digits = _FRACTION[dtype.time_unit]
        fits = pl.when(~text.str.contains(rf"\.\d{{{digits + 1}}}")).then(text.str.replace(" ", "T", literal=True))
        if dtype.time_zone is None:
            return fits.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit=dtype.time_unit, strict=False)
        zoned = fits.str.replace(r"(Z| ?UTC)$", "+0000").str.replace(r"([+-]\d\d):(\d\d)$", "${1}${2}")
        parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit=dtype.time_unit, strict=False)
        return parsed.dt.convert_time_zone(dtype.time_zone)
    if isinstance(dtype, pl.Duration):
        return text.cast(pl.Int64, strict=False).cast(dtype)
    if isinstance(dtype, pl.Decimal):
        return pl.when(~text.str.contains(rf"\.\d{{{dtype.scale + 1}}}")).then(text.cast(dtype, strict=False))
    if dtype.is_float():
        number = text.cast(dtype, strict=False)
        same = number.cast(pl.String).str.strip_suffix(".0") == text.str.strip_suffix(".0")
        return pl.when(same).then(number)
    return text.cast(dtype, strict=False)
