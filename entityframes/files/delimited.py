"""CSV and TSV: records are parsed line by line, so that an unreadable record does not affect the others.

The parser is Python's `csv` in strict mode. The parsers of Polars and DuckDB were tried on the same malformed files:
one stops at the first bad line and reads codes as numbers; the other silently drops the end of a value after a closing
quote, and a value if line endings are mixed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from entityframes.errors import SchemaError
from entityframes.files.columns import ColumnStats
from entityframes.files.notes import Notes
from entityframes.files.opening import MAX_RECORD, CutLine, check_room, display_name, line_chunks, text_blocks
from entityframes.files.unread import Unread, is_text, why_not_text

#: Approximate number of characters of rows that are converted to columns at once.
PIECE = 8 << 20

#: Maximum characters of one value; this is also the limit of content in bytes.
MAX_VALUE = 64 << 20

#: Maximum number of columns: each is a field of the metadata.
MAX_COLUMNS = 20_000


@dataclass(frozen=True)
class Dialect:
    """The options for parsing delimited files."""

    separator: str
    #: None: quotes are part of the values.
    quote: str | None
    #: The character before a quote in a quoted value; None: a quote is doubled.
    escape: str | None = None
    columns: Sequence[str] | None = None
    nulls: Sequence[str] = ()
    encoding: str | None = None
    decimal_comma: bool = False


@dataclass
class TextRows:
    """Rows of files as columns of text, on disk."""

    names: list[str]
    #: The first file, which defines the columns.
    first: str
    files: list[str] = field(default_factory=list)
    stats: dict[str, ColumnStats] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0


#: A record: its first line number, its lines, its values (none for a blank line).
_Record = tuple[int, list[str], list[str]]


class _BackslashQuotes(Exception):  # noqa: N818
    """A file turned out to use ``\\"`` for a quote within a quoted value."""


def read_delimited(paths: Sequence[str], dialect: Dialect, spool: Path, unread: Unread, notes: Notes) -> TextRows:
    """Read files into columns of text, kept in `spool`.

    Args:
        paths: the files, which have the same columns.
        dialect: how to read them.
        spool: a folder for the rows.
        unread: collects the rows that cannot be read.
        notes: collects notes about how the files were interpreted.

    Raises:
        SchemaError: a file has no header line, too many columns, or different columns than the first file.
    """
    result: TextRows | None = None
    for number, path in enumerate(paths):
        before = (len(unread.rows), unread.seen)
        reader = _File(path, dialect, unread, notes, result)
        target = spool / f"text-{number}.arrow"
        try:
            result = reader.read(target)
        except _BackslashQuotes:
            unread.forget(*before)
            escaped = replace(dialect, escape="\\")
            result = _File(path, escaped, unread, notes, result).read(target)
            notes.add(
                "escape",
                f"{display_name(path)}: \\\" is read as a quote within a quoted value, as with --escape '\\'",
            )
    assert result is not None
    return result


class _File:
    """One file of delimited values."""

    def __init__(self, path: str, dialect: Dialect, unread: Unread, notes: Notes, result: TextRows | None) -> None:
        self.path, self.dialect, self.unread, self.notes = path, dialect, unread, notes
        self.name = display_name(path)
        self.result = result
        #: The columns in the order of this file; None before its first record.
        self.names: list[str] | None = None
        #: The line number after the last chunk.
        self.line = 1
        #: Lines up to this one followed an unclosed quote, and are read as separate rows.
        self.suspect = 0
        #: Blank lines that were followed by a row, and those at the end so far: number and first line.
        self.blank = (0, 0)
        self.blank_last = (0, 0)
        #: Lines with too few values: number, first line, and its number of values.
        self.short = (0, 0, 0)
        #: Lines with empty values beyond the last column: number and first line.
        self.wide = (0, 0)

    def read(self, target: Path) -> TextRows:
        """All rows of the file, written to `target`."""
        import pyarrow as pa

        height = 0
        stats: dict[str, ColumnStats] = {}
        with _long_values(), ExitStack() as stack:
            writer = None
            for starts, rows in self._chunks():
                frame = self._frame(rows)
                for name in frame.columns:
                    counted = stats.setdefault(name, ColumnStats(self.dialect.decimal_comma))
                    counted.update(frame[name], self.name, starts)
                table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                if writer is None:
                    options = pa.ipc.IpcWriteOptions(compression="lz4")
                    writer = stack.enter_context(pa.ipc.new_file(str(target), table.schema, options=options))
                writer.write_table(table)
                height += frame.height
                self._result().bytes += table.nbytes
                check_room(target, self.name)
        result = self._result()
        result.rows += height
        if height:
            result.files.append(str(target))
        for name, counted in stats.items():
            result.stats[name].merge(counted)
        self._add_notes()
        return result

    def _result(self) -> TextRows:
        """The rows of all files so far; created by the first file with a header."""
        if self.result is None:
            if self.names is None:
                raise SchemaError(f"{self.name} is empty: it does not have a header line")
            self.result = TextRows(list(self.names), self.name)
            self.result.stats = {name: ColumnStats(self.dialect.decimal_comma) for name in self.names}
        return self.result

    def _frame(self, rows: list[list[str]]) -> pl.DataFrame:
        """Rows as columns of text, in the order of the first file."""
        assert self.names is not None
        result = self._result()
        columns = dict(zip(self.names, zip(*rows, strict=True), strict=True))
        nulls = pl.Series(["", *self.dialect.nulls], dtype=pl.String)
        # A dict, because with a list of Series a column with an empty name is renamed.
        frame = pl.DataFrame({name: pl.Series(list(columns[name]), dtype=pl.String) for name in result.names})
        return frame.with_columns(pl.when(~pl.all().is_in(nulls.implode())).then(pl.all()))

    def _chunks(self) -> Iterator[tuple[list[int], list[list[str]]]]:
        """Rows in chunks, with the line number of each."""
        starts: list[int] = []
        rows: list[list[str]] = []
        size = 0
        for start, row in self._rows():
            starts.append(start)
            rows.append(row)
            size += sum(map(len, row)) + 8 * len(row)
            if size >= PIECE:
                yield starts, rows
                starts, rows, size = [], [], 0
        if rows:
            yield starts, rows

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The readable rows, with as many values as there are columns."""
        for start, lines, row in self._records():
            if not row or (len(row) == 1 and not row[0].strip() and not lines[0].strip(" \r\n")):
                self.blank_last = (self.blank_last[0] + 1, self.blank_last[1] or start)
                continue
            if self.blank_last[0]:
                # Blank lines at the end of a file are not reported.
                self.blank = (self.blank[0] + self.blank_last[0], self.blank[1] or self.blank_last[1])
                self.blank_last = (0, 0)
            if self.names is None:
                self._begin(start, row)
                if self.dialect.columns is None:
                    continue
            assert self.names is not None
            if not all(map(str.isascii, lines)) and not all(map(is_text, lines)):
                self._refuse(start, why_not_text("".join(lines), self.dialect.encoding), lines)
            elif len(row) > len(self.names) and any(row[len(self.names) :]):
                what = "the first line has" if self.dialect.columns is None else "--columns names"
                reason = f"{len(row)} values, but {what} {len(self.names)}"
                if self.dialect.quote and self.dialect.quote in "".join(lines):
                    reason += "; a value that contains a separator must be quoted as a whole"
                self._refuse(start, reason, lines, row)
            elif start <= self.suspect and (len(row) < len(self.names) or self._has_quote(row, lines)):
                self._refuse(start, "within a value whose quote is not closed", lines)
            else:
                if len(row) < len(self.names):
                    self.short = (self.short[0] + 1, self.short[1] or start, self.short[2] or len(row))
                    row = row + [""] * (len(self.names) - len(row))
                elif len(row) > len(self.names):
                    self.wide = (self.wide[0] + 1, self.wide[1] or start)
                    row = row[: len(self.names)]
                self.unread.take(self.name, start)
                yield start, row

    def _has_quote(self, row: list[str], lines: list[str]) -> bool:
        """Whether a value that is not quoted contains a quote."""
        quote = self.dialect.quote or ""
        return any(quote in value for value in row) and '""' not in "".join(lines)

    def _refuse(self, start: int, reason: str, lines: Sequence[str], row: list[str] | None = None) -> None:
        self.unread.add(self.name, start, reason, "".join(lines), row)

    def _begin(self, start: int, row: list[str]) -> None:
        """Read the header from the first record, or check its number of values if the column names are given."""
        given = self.dialect.columns
        if given is not None:
            if len(given) != len(row):
                raise SchemaError(
                    f"the file {self.name} has {len(row)} columns, but {len(given)} names were given for them"
                )
            names = list(given)
        else:
            if not all(map(is_text, row)):
                raise SchemaError(f"{self.name}, line {start} (the header): {why_not_text(''.join(row), None)}")
            if any("\0" in name for name in row):
                raise SchemaError(f"{self.name}, line {start}: a column name contains a NUL character (U+0000)")
            names = _distinct(row, self.name, self.notes)
        if len(names) > MAX_COLUMNS:
            raise SchemaError(
                f"{self.name} has {len(names):,} columns, more than the {MAX_COLUMNS:,} that an entity can have",
                advice="split it into files with fewer columns, or turn columns into rows",
            )
        if self.result is not None and set(names) != set(self.result.names):
            raise SchemaError(
                f"{self.name} has different columns than {self.result.first}{_unlike(self.result.names, names)}",
                advice="import files with the same columns together, or name the columns of files without a header "
                "line",
            )
        self.names = names

    def _records(self) -> Iterator[_Record]:
        """The records of the file."""
        carry: list[str] = []
        want = 0
        for chunk in line_chunks(text_blocks(self.path, self.dialect.encoding)):
            carry += chunk
            if sum(map(len, carry)) < want:
                continue
            left = yield from self._parsed(carry, final=False)
            # An incomplete record is parsed again once twice as much of it has been read.
            want = 2 * sum(map(len, left))
            self.line += len(carry) - len(left)
            carry = left
        if carry:
            yield from self._parsed(carry, final=True)

    def _parsed(self, lines: list[str], final: bool) -> Generator[_Record, None, list[str]]:
        """The records in `lines`; returns the lines at the end that are not a complete record yet."""
        position = 0
        while position < len(lines):
            cut = next((n for n in range(position, len(lines)) if type(lines[n]) is CutLine), len(lines))
            if cut == position:
                self._refuse(self.line + cut, f"the line is longer than {MAX_RECORD >> 20} MiB", [lines[cut]])
                position += 1
                continue
            whole = final or cut < len(lines)
            position = yield from self._segment(lines, position, cut, whole)
            if position < cut:
                return lines[position:]
        return []

    def _segment(self, lines: list[str], begin: int, end: int, whole: bool) -> Generator[_Record, None, int]:
        """The records in ``lines[begin:end]``; returns the position of the first record that needs more lines."""
        if self.dialect.quote is None:
            for position in range(begin, end):
                text = lines[position].rstrip("\r\n")
                yield self.line + position, [lines[position]], text.split(self.dialect.separator) if text else []
            return end
        if self.dialect.escape is not None:
            return (yield from self._escaped(lines, begin, end, whole))
        while begin < end:
            reader = csv.reader(
                islice(lines, begin, end), delimiter=self.dialect.separator, quotechar=self.dialect.quote, strict=True
            )
            at = begin
            try:
                for row in reader:
                    following = begin + reader.line_num
                    yield self.line + at, lines[at:following], row
                    at = following
                return end
            except csv.Error as error:
                following = begin + reader.line_num
                open_end = "unexpected end" in str(error)
                if open_end and not whole and sum(map(len, lines[at:end])) <= MAX_RECORD:
                    return at
                if self._may_have_backslashes(lines[at : min(end, at + 1_000)]) and not whole and end - at < 1_000:
                    return at
                self._refuse(self.line + at, self._why(open_end, error), lines[at : at + 1])
                if following > at + 1:
                    self.suspect = max(self.suspect, self.line + following - 1)
                begin = at + 1
        return end

    def _why(self, open_end: bool, error: csv.Error) -> str:
        if "field larger" in str(error):
            what = f"a value is longer than {MAX_VALUE >> 20} MiB, or a quote is not closed"
        else:
            what = "a quote is not closed" if open_end else "a quote within a quoted value is not doubled"
        return f"{what}; use --no-quote if quotes are part of the values, or --escape '\\' if \\\" stands for a quote"

    def _may_have_backslashes(self, lines: list[str]) -> bool:
        """Whether more lines are needed to decide if a record has backslashes before its quotes.

        Raises:
            _BackslashQuotes: it has, and the file must be read again with backslash escapes.
        """
        if self.dialect.quote is None or self.names is None or f"\\{self.dialect.quote}" not in "".join(lines):
            return False
        text = ""
        for line in lines:
            text += line
            row = _split_escaped(text, self.dialect.separator, self.dialect.quote, "\\")
            if isinstance(row, _Values) and len(row.values) == len(self.names):
                raise _BackslashQuotes
            if row is not None:
                return False
        return True

    def _escaped(self, lines: list[str], begin: int, end: int, whole: bool) -> Generator[_Record, None, int]:
        """As `_segment`, for files with an escape character before quotes within quoted values."""
        quote, escape = self.dialect.quote or '"', self.dialect.escape or "\\"
        while begin < end:
            following = begin + 1
            row = _split_escaped(lines[begin], self.dialect.separator, quote, escape)
            step = 1
            while row is None and following < end:
                following = min(end, following + step)
                step *= 2
                row = _split_escaped("".join(lines[begin:following]), self.dialect.separator, quote, escape)
            if isinstance(row, _Values):
                # The parsed piece may be longer than the record.
                length, following = row.length, begin
                while length > 0:
                    length -= len(lines[following])
                    following += 1
                yield self.line + begin, lines[begin:following], row.values
                begin = following
            elif row is None and not whole and sum(map(len, lines[begin:end])) <= MAX_RECORD:
                return begin
            else:
                what = "a quote is not closed" if row is None else row
                self._refuse(
                    self.line + begin,
                    f"{what}; use --no-quote if quotes are part of the values",
                    lines[begin : begin + 1],
                )
                if following > begin + 1:
                    self.suspect = max(self.suspect, self.line + following - 1)
                begin += 1
        return end

    def _add_notes(self) -> None:
        lines, line, values = self.short
        if lines:
            self.notes.add(
                "short",
                f"{self.name}: {lines:,} {'line has' if lines == 1 else 'lines have'} fewer values than there are "
                f"columns, such as line {line:,} ({values} of {len(self.names or [])}); missing values are null",
            )
        lines, line = self.wide
        if lines:
            count = "1 line has" if lines == 1 else f"{lines:,} lines have"
            self.notes.add(
                "wide",
                f"{self.name}: {count} empty values beyond the last column, such as line {line:,}: they are ignored",
            )
        lines, line = self.blank
        if lines:
            count = "1 blank line is" if lines == 1 else f"{lines:,} blank lines are"
            self.notes.add("blank", f"{self.name}: {count} ignored, such as line {line:,}")
        if self.suspect:
            self.notes.add(
                "quote",
                f"{self.name}: lines after an unclosed quote are read as rows (up to line {self.suspect:,})",
            )


_LINE_END = re.compile(r"\r\n|\n|\r|\Z")


class _Values(NamedTuple):
    """The values of a record with escaped quotes."""

    values: list[str]
    #: Its length in characters, including the line ending.
    length: int


def _split_escaped(text: str, separator: str, quote: str, escape: str) -> _Values | str | None:
    """The first record of a text; None if a quote is not closed at its end, or a string that describes the error."""
    q, e, s = re.escape(quote), re.escape(escape), re.escape(separator)
    values = []
    position = 0
    quoted = re.compile(f"{q}((?:[^{q}{e}]|{e}.|{q}{q})*)({q})?", re.DOTALL)
    plain = re.compile(f"[^{s}\r\n]*")
    unescape = re.compile(f"{e}([{q}{e}])|{q}{q}")
    while True:
        if text.startswith(quote, position):
            found = quoted.match(text, position)
            assert found is not None
            if found[2] is None:
                return None
            values.append(unescape.sub(lambda each: each[1] or quote, found[1]))
        else:
            found = plain.match(text, position)
            assert found is not None
            values.append(found[0])
        position = found.end()
        if text.startswith(separator, position):
            position += len(separator)
            continue
        end = _LINE_END.match(text, position)
        if end is None:
            return "a quote within a quoted value is not escaped"
        return _Values(values if values != [""] else [], end.end())


def _distinct(names: list[str], file: str, notes: Notes) -> list[str]:
    """Unique column names; a repeated name gets a number."""
    taken = set(names)
    seen: dict[str, int] = {}
    result = []
    for name in names:
        if name not in seen:
            seen[name] = 0
            result.append(name)
            continue
        while (other := f"{name}_duplicated_{seen[name]}") in taken:
            seen[name] += 1
        taken.add(other)
        result.append(other)
        notes.add("names", f"{file}: duplicate column name {name!r} in the header; it is renamed to {other!r}")
    return result


def _unlike(known: list[str], names: list[str]) -> str:
    parts = []
    if more := [name for name in names if name not in known]:
        parts.append(f"has {', '.join(map(repr, more[:5]))}")
    if less := [name for name in known if name not in names]:
        parts.append(f"lacks {', '.join(map(repr, less[:5]))}")
    return f" ({', '.join(parts)})"


@contextmanager
def _long_values() -> Iterator[None]:
    """Raise the parser's limit on the length of a value."""
    before = csv.field_size_limit(MAX_VALUE)
    try:
        yield
    finally:
        csv.field_size_limit(before)
