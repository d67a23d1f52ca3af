"""Rows that a reader cannot take: each with its file, its line and the reason, beside those that it can."""

from __future__ import annotations

from typing import NamedTuple

from entityframes.errors import SchemaError
from entityframes.utf8 import printable

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


class Unread:
    """The rows that could not be read, and how many rows there have been."""

    def __init__(self) -> None:
        self.rows: list[UnreadRow] = []
        #: Rows so far, those that could not be read among them.
        self.seen = 0
        self._kept = 0

    def add(self, file: str, line: int, reason: str, raw: str, values: list[str] | None = None) -> None:
        """Count a row that cannot be read.

        Raises:
            SchemaError: nearly nothing of the input can be read.
        """
        self._kept += len(raw)
        shown = printable(raw).rstrip("\r\n") if self._kept <= MAX_RAW else None
        values = [printable(value) for value in values] if values is not None and shown is not None else None
        self.rows.append(UnreadRow(self.seen, f"{file}, line {line:,}: {reason}", shown, values))
        self.seen += 1
        if len(self.rows) > MAX_UNREAD and len(self.rows) > self.seen // 2:
            raise SchemaError(
                "most lines cannot be read, so that the file may be of another format; the first is "
                f"{self.rows[0].error}"
            )


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
