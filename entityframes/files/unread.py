"""Rows that a reader cannot take: each with its file, its line and the reason, and where those are that it can."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import NamedTuple

from entityframes.errors import SchemaError
from entityframes.frames.utf8 import printable

#: Characters of unread rows that are kept; of those beyond only place and reason are.
MAX_RAW = 64 << 20
#: More rows than this that cannot be read, and more than can: the file is not what it is taken for.
MAX_UNREAD = 100_000


class UnreadRow(NamedTuple):
    """A row that could not be read."""

    #: Its position among all rows of the input, counted from 0.
    row: int
    #: Where it is and why it cannot be read.
    error: str
    #: The row as it is in the file; bytes that are no text as ``\\xe9``.
    raw: str | None
    #: Its values, where it has some that belong to columns.
    values: list[str] | None


#: Of so many rows that do not begin on the line after the one before it is kept where they are.
MAX_PLACES = 5_000_000


class Unread:
    """The rows that could not be read, how many rows there have been, and on which lines of which files."""

    def __init__(self) -> None:
        self.rows: list[UnreadRow] = []
        #: Rows so far, those that could not be read among them.
        self.seen = 0
        self._kept = 0
        self._files: list[str] = []
        # Of each row that does not begin on the line after the one before: its position, its file, its line.
        self._places = array("q"), array("i"), array("q")
        self._next: tuple[str, int] | None = None

    def add(self, file: str, line: int, reason: str, raw: str, values: list[str] | None = None) -> None:
        """Count a row that cannot be read.

        Raises:
            SchemaError: nearly nothing of the input can be read.
        """
        self._kept += len(raw)
        shown = printable(raw).rstrip("\r\n") if self._kept <= MAX_RAW else None
        values = [printable(value) for value in values] if values is not None and shown is not None else None
        self.rows.append(UnreadRow(self.seen, f"{file}, line {line:,}: {reason}", shown, values))
        self.take(file, line)
        if len(self.rows) > MAX_UNREAD and len(self.rows) > self.seen // 2:
            raise SchemaError(
                "most lines cannot be read, so that the file may be of another format; the first is "
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
        """The file and the line of a row; None where they are not known."""
        rows, files, lines = self._places
        at = bisect_right(rows, row) - 1
        if at < 0 or len(rows) == MAX_PLACES:
            return None
        return f"{self._files[files[at]]}, line {lines[at] + row - rows[at]:,}"

    def forget(self, rows: int, seen: int) -> None:
        """Go back to when there were so many unread rows, and rows in all."""
        del self.rows[rows:]
        kept = bisect_right(self._places[0], seen - 1)
        for places in self._places:
            del places[kept:]
        self.seen, self._next = seen, None


def is_text(text: str) -> bool:
    """Whether a text holds nothing that could not be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why_not_text(text: str, encoding: str | None) -> str:
    """The reason of a row that holds bytes which could not be decoded."""
    bad = next((ord(letter) - 0xDC00 for letter in text if 0xDC80 <= ord(letter) <= 0xDCFF), None)
    which = "" if bad is None else f" (byte 0x{bad:02X})"
    if encoding is not None:
        return f"not {encoding}{which}: say the file's encoding with --encoding, or correct the line"
    return f"not UTF-8{which}: say the file's encoding, for example --encoding cp1252, or save the file as UTF-8"
