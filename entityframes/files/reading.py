"""Reading tabular files.

Rows are read exactly as they are in the file, or the difference is reported: unreadable rows are in `Rows.unread`, with
file, line and reason, and decisions about how the file was interpreted are in `Rows.notes`.
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
from entityframes.files.opening import copy, decompressed, display_name, expanded, is_compressed
from entityframes.files.pieces import arrow_pieces, in_pieces
from entityframes.files.unread import Unread
from entityframes.frames.schema import did_you_mean
from entityframes.metadata import dtypes


@dataclass(frozen=True)
class TextOptions:
    """Options for reading text files."""

    #: The columns of a file without a header line, in order.
    columns: Sequence[str] | None = None
    #: The separator between two values; None for a comma, or a tab in TSV.
    separator: str | None = None
    #: The character around values that contain a separator; empty: quotes are part of the values.
    quote: str = '"'
    #: The character before a quote within a quoted value; None: a quote is doubled.
    escape: str | None = None
    #: None for UTF-8, or the encoding given by a byte order mark.
    encoding: str | None = None
    #: Whether 1,5 is a number.
    decimal_comma: bool = False
    #: Strings that mean null, in addition to the empty string.
    nulls: Sequence[str] = ()
    #: Columns that are always read as text, such as ids with leading zeros.
    text: Sequence[str] = ()
    #: Columns that are read as numbers even if they do not round-trip, such as 1.10.
    numbers: Sequence[str] = ()


@dataclass
class Rows:
    """The rows of files: the readable rows, the unreadable ones, and notes about how the files were interpreted."""

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
        """Set the columns that are read as text and as numbers, regardless of their values.

        Args:
            text, numbers: the names of these columns.
            kept: other columns that must exist.

        Raises:
            SchemaError: a column does not exist.
        """
        if isinstance(self.source, JsonRows) and not self.source.rows:
            # No object could be read, so the keys are not known.
            for name in (*text, *numbers, *kept):
                self.source.root.fields.setdefault(name, Node())
        names = set(self.names)
        missing = [name for name in dict.fromkeys([*text, *numbers, *kept]) if name not in names]
        if missing:
            raise self._missing(missing)
        self.options = replace(self.options, text=text, numbers=numbers)

    def _missing(self, missing: list[str]) -> SchemaError:
        names = self.names
        found = ", ".join(map(repr, names[:50])) + (", ..." if len(names) > 50 else "")
        message = f"no column {', '.join(map(repr, missing))}; the file has {found}"
        if self.kind not in ("csv", "tsv"):
            return SchemaError(message, advice=did_you_mean(missing, names))
        other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
        if other:
            return SchemaError(f"{message}; its separator seems to be {other!r}", advice=f"use --separator {other!r}")
        if close := did_you_mean(missing, names):
            return SchemaError(message, advice=close)
        if self.options.columns:
            return SchemaError(message)
        return SchemaError(
            f"{message} in its first line", advice="name the columns with --columns if that is no header line"
        )

    def scan(self, known: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
        """The readable rows.

        Args:
            known: the dtypes of columns in the store, by name. Columns are read with these dtypes if no value is
                changed by that; a note reports values whose text is changed.
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
        """The dtype of a column of text; adds notes if it is not obvious."""
        stats = rows.stats[name]
        found = stats.dtype()
        if not stats.values:
            return known or found
        if name in self.options.numbers:
            if stats.number is None:
                what, place = stats.first.get("odd", ("true or false", "its first rows"))
                raise SchemaError(f"column {name!r} cannot be read as numbers: {what[:40]!r} ({place}) is not a number")
            found = stats.number
        elif isinstance(known, pl.String):
            if found != pl.String:
                self.notes.add("known", f"column {name!r} looks like {found} here, but remains text as in the store")
            return known
        elif known == pl.Float64 and stats.number is not None:
            if stats.altered:
                value, place = stats.first["altered"]
                self.notes.add(
                    "known",
                    f"column {name!r} is {known} in the store: {stats.altered:,} values are stored as numbers that do "
                    f"not round-trip to their text, such as {value[:40]!r} ({place})",
                )
            return known
        elif known is not None and known.is_numeric() and stats.odd and not stats.is_text:
            value, place = stats.first["odd"]
            self.notes.add(
                "known",
                f"column {name!r} is {known} in the store, but {value[:40]!r} ({place}) is not a number: correct it, "
                f"use --null {value[:40]!r} if it means null, or import the file as another type",
            )
        elif known is None:
            self._note_text(name, stats, found)
        if found == pl.Float64 and stats.whole and known is None:
            self.notes.add(
                "whole", f"column {name!r} has fractions and integers: all are stored as floats, so 1 becomes 1.0"
            )
        return found

    def _note_text(self, name: str, stats: Any, found: pl.DataType) -> None:
        """Add a note about a mostly numeric column that is read as text: the entity type will keep that dtype."""
        if found != pl.String or not (stats.altered or stats.odd or stats.large):
            return
        if stats.odd:
            if 20 * stats.odd > stats.values:
                return
            value, place = stats.first["odd"]
            count = "1 value is not a number" if stats.odd == 1 else f"{stats.odd:,} values are not numbers"
            self.notes.add(
                "text",
                f"column {name!r} is text, because {count}, such as {value[:40]!r} ({place}), and remains text: "
                f"correct the file, use --null {value[:40]!r} if it means null, or use "
                f"--text {name!r}",
            )
        elif stats.altered and not stats.booleans:
            value, place = stats.first["altered"]
            count = "1 value does" if stats.altered == 1 else f"{stats.altered:,} values do"
            self.notes.add(
                "text",
                f"column {name!r} is text, because {count} not round-trip as a number, such as {value[:40]!r} "
                f"({place}); to read numbers use --number {name!r}",
            )
        elif stats.large and stats.fractions:
            self.notes.add(
                "text", f"column {name!r} is text, because it has fractions and integers of more than 15 digits"
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
        # Strings that have another dtype in the store are parsed below.
        made = as_frame(rows, dtypes, changes, self.spool)
        return made.with_columns(_parsed(made, known))


def read_files(sources: Sequence[str], file_format: str | None, options: TextOptions, spool: Path) -> Rows:
    """Read files with the same format and the same columns.

    Args:
        sources: paths, patterns such as ``data/*.csv.gz``, or ``-`` for standard input.
        file_format: one of `FORMATS`; None to infer it from the name.
        options: options for text files.
        spool: a folder for decompressed and parsed data; it must exist as long as the rows are used.

    Raises:
        SchemaError: a pattern matches nothing; the formats differ or cannot be inferred; a file is empty, damaged, in
            another format, or has different columns than the first.
    """
    paths = expanded(sources, file_format, spool)
    formats = {file_format or format_of(path) for path in paths}
    if len(formats - {"json"} or formats) > 1 or ("json" in formats and not formats <= {"json", "ndjson"}):
        raise SchemaError(
            f"the files have different formats ({', '.join(sorted(formats))})", advice="import them one by one"
        )
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
            "can have",
            advice="split it into files with fewer columns, or turn columns into rows",
        )
    return rows


def _dialect(options: TextOptions, kind: str) -> Dialect:
    separator = {"\\t": "\t", None: "\t" if kind == "tsv" else ","}.get(options.separator, options.separator)
    if not separator or any(mark in "\r\n" for mark in separator):
        raise SchemaError(f"--separator {separator!r}", advice="give the character between two values")
    if len(separator) > 1 and options.quote:
        raise SchemaError(f"--separator {separator!r}: more than one character is supported only with --no-quote")
    if len(options.quote) > 1 or options.quote == separator:
        raise SchemaError(f"--quote {options.quote!r}", advice="give one character that differs from the separator")
    if options.escape is not None and (len(options.escape) != 1 or options.escape in (separator, options.quote)):
        raise SchemaError(
            f"--escape {options.escape!r}", advice="give one character that differs from separator and quote"
        )
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
    """The path of a file, decompressed if necessary."""
    if not is_compressed(path):
        return path
    target = spool / f"decompressed-{number}"
    with decompressed(path) as stream, target.open("wb") as file:
        copy(stream, file, display_name(path))
    return str(target)


def _tables(paths: list[str], names: Sequence[str], kind: str) -> list[pl.LazyFrame]:
    """Scans of Parquet or Arrow IPC files, cast to dtypes that fit the values of all of them."""
    word = "Parquet" if kind == "parquet" else "Arrow IPC"
    scan: Any = pl.scan_parquet if kind == "parquet" else pl.scan_ipc
    scans: list[pl.LazyFrame] = []
    wide: dict[str, pl.DataType] = {}
    for path, name in zip(paths, names, strict=True):
        if not os.path.getsize(path):
            raise SchemaError(f"{display_name(name)} is empty: it is not a valid {word} file")
        with reading_errors([name], word):
            rows = scan(path, glob=False)
            schema = dict(rows.collect_schema())
        if scans and set(schema) != set(wide):
            raise SchemaError(
                f"{display_name(name)} has different columns than {display_name(names[0])}"
                f"{_differing(list(wide), list(schema))}",
                advice="import files with the same columns together",
            )
        for column, dtype in schema.items():
            held = dtypes.widened(wide.get(column, pl.Null()), dtype)
            if held is None:
                raise SchemaError(
                    f"column {column!r} is {dtype} in {display_name(name)} and {wide[column]} in "
                    f"{display_name(names[0])}",
                    advice="use the same dtype in all files, or import them one by one",
                )
            wide[column] = held
        scans.append(rows)
    common: Any = wide
    return [rows.select(list(wide)).cast(common) for rows in scans] if len(scans) > 1 else scans


#: Bytes after which the size of a table is not counted any further.
_ENOUGH = 1 << 30


def _decoded_size(path: str, kind: str) -> int:
    """Approximate size of a table in memory in bytes, which may be a thousand times the size of its file."""
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
        # Polars may still be able to read it.
        return size


def _differing(known: list[str], names: list[str]) -> str:
    more = [f"has {name!r}" for name in names if name not in known]
    less = [f"lacks {name!r}" for name in known if name not in names]
    return f" ({', '.join([*more, *less][:5])})"


@contextmanager
def reading_errors(paths: Sequence[str], word: str = "") -> Iterator[None]:
    """Convert errors raised while reading files to SchemaError with the names of the files.

    Raises:
        SchemaError: Polars cannot read the files.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        names = ", ".join(map(display_name, paths[:5])) + (", ..." if len(paths) > 5 else "")
        raise SchemaError(
            f"{names} cannot be read{f' as {word}' if word else ''}: truncated, damaged, or in another format "
            "(see --format)"
        ) from error


def _as_known(rows: pl.LazyFrame, known: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """Casts to the dtypes in the store that are always safe: of integers to floats, and of columns of nulls."""
    schema = rows.collect_schema()
    other = {name: dtype for name, dtype in known.items() if name in schema and schema[name] != dtype}
    whole = {name: dtype for name, dtype in other.items() if schema[name].is_integer() and dtype.is_float()}
    texts = [name for name, dtype in other.items() if schema[name] == pl.String and not dtype.is_nested()]
    if not texts:
        return whole
    values = rows.select(pl.col(texts).count()).collect().row(0, named=True)
    return whole | {name: other[name] for name in texts if not values[name]}


#: Dtypes whose values may be strings in CSV and JSON.
_AS_TEXT = (pl.Date, pl.Datetime, pl.Time, pl.Duration, pl.Decimal, pl.Enum, pl.Categorical, pl.UInt64, pl.Int128)


def _parsed(rows: pl.LazyFrame, known: Mapping[str, pl.DataType]) -> list[pl.Expr]:
    """Expressions for columns whose values can all be parsed as the dtype that they have in the store."""
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
    """Values of a dtype parsed from strings; null if a string is not valid, or has more digits than the dtype."""
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
