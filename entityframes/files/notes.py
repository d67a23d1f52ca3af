"""Notes about how files were interpreted, collected while reading and printed once."""

from __future__ import annotations

from collections.abc import Iterator

#: Maximum number of notes of one kind that are shown; the others are counted.
SHOWN = 5


class Notes:
    """Differences between the files and the rows read from them, by kind, in order of occurrence."""

    def __init__(self) -> None:
        self._notes: dict[str, dict[str, None]] = {}

    def add(self, kind: str, text: str) -> None:
        """Add a note; duplicates are ignored.

        Args:
            kind: the kind of difference, such as ``text`` (a column kept as text) or ``short`` (short lines).
            text: the difference, with the column or file, the number of values, an example, and the option to use.
        """
        self._notes.setdefault(kind, {})[text] = None

    def drop(self, kind: str) -> None:
        """Remove the notes of a kind."""
        self._notes.pop(kind, None)

    def all(self) -> list[str]:
        """All notes."""
        return [text for notes in self._notes.values() for text in notes]

    def lines(self) -> Iterator[str]:
        """The notes for display: the first few of each kind, and the number of the others."""
        for notes in self._notes.values():
            listed = list(notes)
            yield from listed[:SHOWN]
            if len(listed) > SHOWN:
                yield f"and {len(listed) - SHOWN:,} more like this (--json lists all)"
