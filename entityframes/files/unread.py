"""Unreadable rows, each with its file, line and reason, and the positions of the readable rows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import NamedTuple

from entityframes.errors import SchemaError
from entityframes.frames.utf8 import printable

#: Maximum characters of unreadable rows that are kept; beyond that, only position and reason are kept.
MAX_RAW = 64 << 20
#: With more unreadable rows than this, and more than readable ones, the file is assumed to be in another format.
MAX_UNREAD = 100_000


class UnreadRow(NamedTuple):
    """A row that could not be read."""

    #: Its position among all rows of the input, counted from 0.
    row: int
    #: File, line, and reason.
    error: str
    #: The row as it is in the file, with undecodable bytes as ``\\xe9``.
    raw: str | None
    #: Its values, if they can be assigned to columns.
    values: list[str] | None


#: Maximum number of rows whose position is recorded because they do not begin on the line after the previous row.
MAX_PLACES = 5_000_000


class Unread:
    """Collects unreadable rows, and the number and the positions of all rows."""

    def __init__(self) -> None:
        self.rows: list[UnreadRow] = []
        #: Number of rows so far, including unreadable ones.
        self.seen = 0
        self._kept = 0
        self._files: list[str] = []
        # For each row that does not begin on the line after the previous row: its position, its file, its line.
        self._places = array("q"), array("i"), array("q")
        self._next: tuple[str, int] | None = None

    def add(self, file: str, line: int, reason: str, raw: str, values: list[str] | None = None) -> None:
        """Add an unreadable row.

        Raises:
            SchemaError: most of the input cannot be read.
        """
        self._kept += len(raw)
        shown = printable(raw).rstrip("\r\n") if self._kept <= MAX_RAW else None
        values = [printable(value) for value in values] if values is not None and shown is not None else None
        self.rows.append(UnreadRow(self.seen, f"{file}, line {line:,}: {reason}", shown, values))
        self.take(file, line)
        if len(self.rows) > MAX_UNREAD and len(self.rows) > self.seen // 2:
            raise SchemaError(
                f"most lines cannot be read, so the file may be in another format; the first error is "
                f"{self.rows[0].error}"
            )

    def take(self, file: str, line: int) -> None:
        """Count a row that begins on this line."""
        if self._next != (file, line) and len(self._places[0]) < MAX_PLACES:
            if not self._files or self._files[-1] != file:
                self._files.append(file)
            for places, value in zip(self._places, (self.seen, len(self._files) - 1, line), strict=True):
                places.append(value)
        self._next = (file, line + 1)
        self.seen += 1

    def place(self, row: int) -> str | None:
        """The file and the line of a row; None if not known."""
        rows, files, lines = self._places
        at = bisect_right(rows, row) - 1
        if at < 0 or len(rows) == MAX_PLACES:
            return None
        return f"{self._files[files[at]]}, line {lines[at] + row - rows[at]:,}"

    def forget(self, rows: int, seen: int) -> None:
        """Reset to a previous number of unreadable rows and of rows."""
        del self.rows[rows:]
        kept = bisect_right(self._places[0], seen - 1)
        for places in self._places:
            del places[kept:]
        self.seen, self._next = seen, None


def is_text(text: str) -> bool:
    """Whether a text contains no undecodable bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why_not_text(text: str, encoding: str | None) -> str:
    """The reason for a row with undecodable bytes."""
    bad = next((ord(letter) - 0xDC00 for letter in text if 0xDC80 <= ord(letter) <= 0xDCFF), None)
    which = "" if bad is None else f" (byte 0x{bad:02X})"
    if encoding is not None:
        return f"not {encoding}{which}: give the encoding of the file with --encoding, or correct the line"
    return f"not UTF-8{which}: give the encoding of the file, such as --encoding cp1252, or save the file as UTF-8"
