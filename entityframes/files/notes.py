"""What a reader did with a file that the file does not say by itself: collected in one place, and printed once."""

from __future__ import annotations

from collections.abc import Iterator

#: Notes of one kind that are shown; the others are counted.
SHOWN = 5


class Notes:
    """Differences between what files hold and what is handed on, by kind, in the order in which they were found."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, None]] = {}

    def add(self, kind: str, text: str) -> None:
        """Keep a note; a text that is there already is kept once.

        Args:
            kind: what sort of difference it is, such as ``text`` (a column kept as text) or ``short`` (short lines).
            text: the difference, with what it concerns, how many values, an example, and the option that helps.
        """
        self._texts.setdefault(kind, {})[text] = None

    def drop(self, kind: str) -> None:
        """Forget the notes of a kind."""
        self._texts.pop(kind, None)

    def all(self) -> list[str]:
        """Every note."""
        return [text for texts in self._texts.values() for text in texts]

    def lines(self) -> Iterator[str]:
        """The notes as they are shown to a person: a few of each kind, and how many more there are."""
        for texts in self._texts.values():
            listed = list(texts)
            yield from listed[:SHOWN]
            if len(listed) > SHOWN:
                yield f"and {len(listed) - SHOWN:,} more like this (--json lists all)"
