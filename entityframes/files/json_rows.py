"""NDJSON and JSON: all objects are inspected before the dtypes are chosen, so that no value is truncated.

Objects are checked with Python's `json` (duplicate keys, lone surrogates, numbers that exceed the precision of a
double), and then parsed by Polars with dtypes that fit all of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from entityframes.errors import SchemaError
from entityframes.files.kinds import EXACT, MAX_DEPTH, Change, Node, json_text
from entityframes.files.notes import Notes
from entityframes.files.opening import BLOCK, MAX_RECORD, CutLine, check_room, display_name, line_chunks, text_blocks
from entityframes.files.pieces import in_pieces
from entityframes.files.unread import Unread, is_text, why_not_text

#: Maximum number of combinations of keys and types that are cached, so that similar objects are not inspected again.
MAX_SHAPES = 100_000

#: Bytes of objects that are converted to columns at once.
PIECE = 8 << 20

#: An escaped surrogate.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Raw(str):
    """A number as a string, because it does not round-trip through a double."""

    __slots__ = ()


class _BadObject(ValueError):  # noqa: N818
    """A valid JSON object that cannot be stored."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise _BadObject(f"duplicate key {duplicate[:100]!r} in an object")
    return found


def _constant(name: str) -> Any:
    raise _BadObject(f"{name} is not a JSON number; omit the field or use null")


def _fraction(text: str) -> Any:
    """A double, or the number as a string if the double would be a different number."""
    number = float(text)
    if math.isinf(number):
        raise _BadObject(f"the number {text[:40]} is beyond the range of a double")
    return number if len(text) <= 16 or Decimal(text) == Decimal(repr(number)) else Raw(text)


_exact = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_fraction)
#: Keeps numbers as strings.
_digits = json.JSONDecoder(parse_int=Raw, parse_float=Raw)


@dataclass
class JsonRows:
    """The objects of files on disk, one per line, and a summary of their values."""

    path: Path
    root: Node = field(default_factory=Node)
    rows: int = 0
    bytes: int = 0

    @property
    def names(self) -> list[str]:
        """The keys of all objects, in order of first occurrence."""
        return list(self.root.fields)


def read_json(paths: Sequence[str], encoding: str | None, spool: Path, unread: Unread, notes: Notes) -> JsonRows:
    """Read files of JSON objects: one per line, as elements of an array, or concatenated.

    Args:
        paths: the files.
        encoding: None for UTF-8, or the encoding given by a byte order mark.
        spool: a folder for the rows.
        unread: collects the rows that cannot be read.
        notes: collects notes about how the files were interpreted.

    Raises:
        SchemaError: there is no object, or most objects cannot be read.
    """
    result = JsonRows(spool / "rows.ndjson")
    shapes: set[Any] = set()
    with result.path.open("w", encoding="utf-8", newline="") as file:
        for path in paths:
            name = display_name(path)
            for line, text, whole in _objects(path, encoding):
                if not whole:
                    unread.add(name, line, text if isinstance(text, str) else "", "")
                    continue
                kept = _checked(text, name, line, encoding, unread, result.root, shapes)
                if kept is not None:
                    file.write(kept)
                    file.write("\n")
                    result.rows += 1
                    result.bytes += len(kept)
                    if result.rows % 10_000 == 0:
                        check_room(result.path, name)
    if not unread.seen:
        names = ", ".join(map(display_name, paths[:5]))
        raise SchemaError(f"{names} {'is' if len(paths) == 1 else 'are'} empty: no JSON object found")
    return result


def _checked(
    text: str, file: str, line: int, encoding: str | None, unread: Unread, root: Node, shapes: set[Any]
) -> str | None:
    """The object as one line if it can be stored; otherwise None, and it is added to `unread`."""
    reason: str | None = None
    try:
        if not text.isascii() and not is_text(text):
            reason = why_not_text(text, encoding)
        else:
            value = _exact.decode(text)
            reason = _why_not_object(value, text)
    except _BadObject as error:
        reason = str(error)
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = f"not valid JSON: {error}".replace(": line 1 column", ": column")
    if reason is not None:
        unread.add(file, line, reason, text)
        return None
    unread.take(file, line)
    types = tuple(map(type, value.values()))
    if int in types and not all(-EXACT <= each <= EXACT for each in value.values() if type(each) is int):
        root.add(value, file, line)
    elif (shape := (tuple(value), types)) not in shapes:
        root.add(value, file, line)
        if list not in types and dict not in types and len(shapes) < MAX_SHAPES:
            shapes.add(shape)
    return text.replace("\n", " ").replace("\r", " ").strip() if "\n" in text or "\r" in text else text


def _why_not_object(value: Any, text: str) -> str | None:
    if type(value) is not dict:
        words = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
        return f"not a JSON object but {words.get(type(value), 'a number')}"
    depth = text.count("[") + text.count("{")
    if depth > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "a lone surrogate (such as \\ud800), which is not a character"
    if "\\u0000" in text and _has_nul_key(value):
        return "a key contains a NUL character (U+0000)"
    return None


def _has_nul_key(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in name or _has_nul_key(inner) for name, inner in value.items())
    return isinstance(value, list) and any(map(_has_nul_key, value))


def _depth(value: Any) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        each, depth = todo.pop()
        deepest = max(deepest, depth)
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        todo += [(item, depth + 1) for item in inner if isinstance(item, dict | list)]
    return deepest


def _objects(path: str, encoding: str | None) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, text, True) for each object, and (line, reason, False) for text that cannot be split."""
    first, lines = _first_lines(path, encoding)
    if first.startswith("[") or (first.startswith("{") and not _is_json(first)):
        # An array, or objects that span several lines.
        values = _Values(text_blocks(path, encoding), first.startswith("["))
        # A broken first line of NDJSON does not mean that objects span several lines.
        if first.startswith("[") or values.begins_with_value():
            yield from values
            return
        lines = _lines(path, encoding)
    for number, line in lines:
        if type(line) is CutLine:
            yield number, f"the line is longer than {MAX_RECORD >> 20} MiB", False
        elif stripped := line.strip(" \t\r\n"):
            yield number, stripped, True


def _lines(path: str, encoding: str | None) -> Iterator[tuple[int, str]]:
    number = 0
    for chunk in line_chunks(text_blocks(path, encoding)):
        for line in chunk:
            number += 1
            yield number, line


def _first_lines(path: str, encoding: str | None) -> tuple[str, Iterator[tuple[int, str]]]:
    """The first line that is not blank, and all lines."""
    for _, line in _lines(path, encoding):
        if stripped := line.strip(" \t\r\n"):
            return stripped, _lines(path, encoding)
    return "", iter(())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        # A value may be invalid, or it may continue on the next line.
        return not _open_end(text)
    return True


def _open_end(text: str) -> bool:
    """Whether a text ends within an object or array."""
    return _end_of_value(text, 0) is None


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)


def _end_of_value(text: str, begin: int) -> int | None:
    """The position after the bracket that closes the one at `begin`; None if it is not closed."""
    depth = 0
    for token in _TOKEN.finditer(text, begin):
        mark = token[0]
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
            if depth <= 0:
                return token.end()
        elif mark == '"':
            return None
    return None


class _Values:
    """The elements of an array, or concatenated values, of a text that is read in blocks."""

    def __init__(self, blocks: Iterator[str], array: bool) -> None:
        self._blocks = blocks
        self._array = array
        self._text = ""
        self._at = 0
        self._line = 1
        self._over = False

    def begins_with_value(self) -> bool:
        """Whether the first value is complete and valid."""
        if self._next() is None:
            return False
        while len(self._text) - self._at <= MAX_RECORD:
            try:
                json.JSONDecoder().raw_decode(self._text, self._at)
                return True
            except (ValueError, RecursionError):
                if _end_of_value(self._text, self._at) is not None or not self._more(2 * len(self._text)):
                    return False
        return False

    def __iter__(self) -> Iterator[tuple[int, str, bool]]:
        if self._array:
            self._skip("[")
        while self._next() is not None:
            if self._array and self._text[self._at] == "]":
                self._move(self._at + 1)
                if (rest := self._next()) is not None:
                    yield self._line, f"text after the end of the array: {self._text[rest : rest + 40]!r}", False
                return
            line = self._line
            end = self._value()
            if end is None:
                if len(self._text) - self._at <= MAX_RECORD:
                    yield line, "the file ends within a value: it may be truncated", False
                else:
                    yield line, f"a value is longer than {MAX_RECORD >> 20} MiB, or is not closed", False
                return
            text = self._text[self._at : end]
            self._move(end)
            yield line, text, True
            if self._array and not self._separated():
                if self._next() is None:
                    yield self._line, "the array is not closed with ]: the file may be truncated", False
                    return
                if self._text[self._at] != "]":
                    yield self._line, "a comma is missing between two values of the array", False

    def _separated(self) -> bool:
        begin = self._next()
        if begin is not None and self._text[begin] == ",":
            self._move(begin + 1)
            return True
        return False

    def _skip(self, mark: str) -> None:
        begin = self._next()
        if begin is not None and self._text[begin] == mark:
            self._move(begin + 1)

    def _move(self, to: int) -> None:
        self._line += _line_ends(self._text, self._at, to)
        self._at = to

    def _next(self) -> int | None:
        """Move to the next non-blank character; returns its position, or None at the end."""
        while True:
            found = re.compile(r"[^\s]").search(self._text, self._at)
            if found is not None:
                self._move(found.start())
                return self._at
            self._move(len(self._text))
            if not self._more():
                return None

    def _value(self) -> int | None:
        """The end of the value that begins here, reading more as needed; text before it is then discarded."""
        while True:
            end = self._end(self._at)
            if end is not None and (end < len(self._text) or self._over):
                return end
            if len(self._text) - self._at > MAX_RECORD:
                return None
            if not self._more(2 * (len(self._text) - self._at)):
                return self._end(self._at)

    def _end(self, begin: int) -> int | None:
        try:
            return json.JSONDecoder().raw_decode(self._text, begin)[1]
        except (ValueError, RecursionError):
            if self._text[begin] in "[{":
                return _end_of_value(self._text, begin)
            found = re.compile(r"[,\]\n]").search(self._text, begin + 1)
            return None if found is None else found.start()

    def _more(self, least: int = BLOCK) -> bool:
        """Read at least this many more characters; returns whether there were any."""
        pieces = [self._text[self._at :]]
        self._at = 0
        size = 0
        while size < least and not self._over:
            block = next(self._blocks, None)
            if block is None:
                self._over = True
            else:
                pieces.append(block)
                size += len(block)
        self._text = "".join(pieces)
        return size > 0


def _line_ends(text: str, begin: int, end: int) -> int:
    ends = text.count("\n", begin, end)
    return ends if ends else text.count("\r", begin, end)


def as_frame(rows: JsonRows, dtypes: dict[str, pl.DataType], changes: dict[str, Change], spool: Path) -> pl.LazyFrame:
    """The rows as a LazyFrame with these dtypes.

    Args:
        rows: the result of `read_json`.
        dtypes: the dtype of each key.
        changes: for keys with values that are converted to strings, the conversion (see `kinds.resolve`).
        spool: a folder for the converted rows.
    """
    path = rows.path
    if changes:
        path = spool / f"texts-{len(list(spool.iterdir()))}.ndjson"
        with (
            rows.path.open(encoding="utf-8", newline="\n") as given,
            path.open("w", encoding="utf-8", newline="") as file,
        ):
            for line in given:
                value = _digits.decode(line)
                for name, change in changes.items():
                    if value.get(name) is not None:
                        value[name] = change(value[name])
                file.write(json_text(value))
                file.write("\n")
    schema = pl.Schema(dtypes)
    return in_pieces(lambda columns: _parsed_pieces(path, schema), schema, "json")


def _parsed_pieces(path: Path, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    with path.open("rb") as file:
        while lines := file.readlines(PIECE):
            yield pl.read_ndjson(b"".join(lines), schema=schema)
