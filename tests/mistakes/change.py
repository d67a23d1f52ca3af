"""One change of a text."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """Replaces the bytes from `start` to `end` by `new`; `place` is the enclosing function or statement."""

    kind: str
    place: str
    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        """The text with the change applied."""
        data = text.encode()
        return (data[: self.start] + self.new.encode() + data[self.end :]).decode()

    def line(self, text: str) -> int:
        """The line in which the change starts."""
        return text.encode()[: self.start].count(b"\n") + 1
