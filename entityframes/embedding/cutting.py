"""Where a text is cut into passages.

A text that is too long for one passage is cut in two, and so is each part, until every part fits. The place is the
best one in the part: of the strongest rank (`Rank`), and of these the one with the highest hash of the characters that
follow it. Nothing depends on how far a place is from the beginning, so an edit changes only the parts that contain it,
and elsewhere the best place is still the best. Cutting from front to back, by contrast, moves all later boundaries of a
text whose lines have one length.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

#: A longer line that looks like a heading is text, since it would not fit in front of other passages.
LONGEST_HEADING = 200
#: The characters after a place that are hashed.
_WINDOW = 32
#: How far from the middle of a long line words are looked for: each character of it may be a place.
_REACH = 1 << 17

_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}(?=[^`]*\Z)|~{3,})")
_FENCE_END = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t]*")
_ITEM = re.compile(r"([ \t]*)(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)")
_MARKUP = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])|`+|\*\*|[ \t]*\{[:#.][^}]*\}[ \t]*$")

# These match one character where a run of them would do: a long run that is not followed by the rest would be read
# again from each of its characters.
#: The end of a sentence, with the spaces after it; in scripts without spaces there need not be any.
_SENTENCE = re.compile(r"[.!?…؟۔।॥։።][\"'”’»)\]]{0,8}\s+(?=\S)|[。！？｡][」』”’）]{0,8}\s*(?=[^\s。！？｡」』”’）])")
_WORD = re.compile(r"\s(?=\S)")
_PUNCTUATION = re.compile(r"[,;:/|)}\]、，；：・](?=[^\s,;:/|)}\]、，；：・])")
_BLANK = re.compile(r"(?:[^\S\r\n]*[\r\n]+)*")
_VISIBLE = re.compile(r"\S")


class Rank(IntEnum):
    """What is at a place where a text can be cut; the first is the best."""

    H1, H2, H3, H4, H5, H6 = range(6)
    #: A paragraph, a table or a code block, after a blank line.
    BLOCK = 6
    #: A list item, or an indented block.
    ITEM = 7
    #: A nested list item, a table row, or a line that does not continue the sentence of the line before.
    LINE = 8
    SENTENCE = 9
    #: A line within a sentence.
    WRAP = 10
    #: Within a code block that fits into a passage, or after the header of a table.
    INSIDE = 11
    WORD = 12
    PUNCTUATION = 13
    CHARACTER = 14


_HEADINGS = (Rank.H1, Rank.H2, Rank.H3, Rank.H4, Rank.H5, Rank.H6)
_INNER = (Rank.ITEM, Rank.LINE, Rank.SENTENCE, Rank.WRAP)
#: The order in which places are looked for: the rank, and which share of a passage has to be on either side.
_ORDER = (
    *((rank, 0.0) for rank in _HEADINGS),
    (Rank.BLOCK, 1 / 8),
    *((rank, 1 / 4) for rank in _INNER),
    *((rank, 0.0) for rank in (Rank.BLOCK, *_INNER)),
    *((Rank.INSIDE, share) for share in (1 / 4, 0.0)),
    *((rank, share) for rank in (Rank.WORD, Rank.PUNCTUATION) for share in (1 / 4, 1 / 16)),
    *((Rank.CHARACTER, share) for share in (1 / 4, 0.0)),
)


class Places(NamedTuple):
    """Places of one rank between two characters."""

    start: int
    end: int
    #: int64, ascending.
    positions: Any
    #: uint64 for each position.
    hashes: Any


class Heading(NamedTuple):
    """A heading and where it stands."""

    start: int
    end: int
    level: int
    title: str


class Cutter:
    """One text, and how it is cut.

    Args:
        content: the text.
        title: what each passage begins with, in one line.
        size: the maximum length of what is embedded.
        overlap: the maximum number of characters that are repeated.
        markdown: whether headings, lists, code blocks and tables are recognized.
    """

    def __init__(self, content: str, title: str, size: int, overlap: int, markdown: bool) -> None:
        self._content, self._overlap = content, overlap
        self._size = size - overlap
        self._title = title[: self._size // 8].strip()
        self._codes = np.frombuffer(content.encode("utf-32-le", "surrogatepass"), "<u4")
        structure = Structure(content, self._size, markdown)
        self._headings, self._paths = structure.headings, structure.paths()
        self._starts = [heading.start for heading in self._headings]
        self._structure = structure.places
        #: What has been looked for so far.
        self._places: dict[Rank, Places] = {}

    def pieces(self) -> Iterator[tuple[int, int, str, str]]:
        """Start, end, heading and embedded text of each passage, in order."""
        first = _BLANK.match(self._content)
        waiting = [(first.end() if first else 0, len(self._content))]
        while waiting:
            start, end = waiting.pop()
            end = self._trimmed(start, end)
            if start == end:
                continue
            if self._fits(start, end):
                yield self._piece(start, end)
            else:
                place = self._best(start, end)
                waiting += [(place, end), (start, place)]

    def _trimmed(self, start: int, end: int) -> int:
        while end > start and self._content[end - 1].isspace():
            end -= 1
        return end

    def _fits(self, start: int, end: int) -> bool:
        # Headings at the beginning are not repeated in the text, but there is an end to them.
        if end - start > self._size + 6 * LONGEST_HEADING:
            return False
        _, before, body = self._context(start, end)
        return len(before) + (end - body) + bool(before and end > body) <= self._size

    def _piece(self, start: int, end: int) -> tuple[int, int, str, str]:
        heading, before, body = self._context(start, end)
        if self._overlap:
            start, body = self._overlapping(start, body)
        text = "\n".join(part for part in (before, self._content[body:end]) if part)
        return start, end, heading, text

    def _context(self, start: int, end: int) -> tuple[str, str, int]:
        """The heading of a part, what is embedded in front of it, and where its text begins after that."""
        number = bisect_right(self._starts, start) - 1
        leading = []
        if number >= 0 and self._starts[number] == start:
            leading.append(number)
            while self._leads(number, end):
                number += 1
                leading.append(number)
        inner = self._headings[number + 1 : bisect_left(self._starts, end)]
        level = min((heading.level for heading in inner), default=7)
        path = [heading for heading in self._paths[number] if heading.level < level] if number >= 0 else []
        heading = " > ".join(title for title in (heading.title for heading in path) if title)
        shown = self._shortened(path)
        body = start
        if " > ".join(shown) == heading:
            body = max((heading.end for heading in path if heading.start >= start), default=start)
            blank = _BLANK.match(self._content, body, end)
            body = min(blank.end() if blank and body > start else body, end)
        title = "" if shown and shown[0].casefold() == self._title.casefold() else self._title
        before = "\n".join(part for part in (title, " > ".join(shown)) if part)
        return heading, before, body

    def _leads(self, number: int, end: int) -> bool:
        """Whether a heading is followed at once by one below it, before the end of the part."""
        if number + 1 == len(self._headings):
            return False
        one, other = self._headings[number : number + 2]
        visible = _VISIBLE.search(self._content, one.end)
        return other.level > one.level and other.start < end and visible is not None and visible.start() >= other.start

    def _shortened(self, path: list[Heading]) -> list[str]:
        """The titles of the innermost headings that are embedded with a passage."""
        room = self._size // 4
        titles = [heading.title for heading in path if heading.title]
        while len(titles) > 1 and len(" > ".join(titles)) > room:
            del titles[0]
        return titles if len(" > ".join(titles)) <= room else [titles[0][:room]] if room else []

    def _overlapping(self, start: int, body: int) -> tuple[int, int]:
        """Where a passage begins, and its text, if the end of the one before is repeated."""
        number = bisect_right(self._starts, start) - 1
        floor = self._headings[number].end if number >= 0 else 0
        if start <= floor or body != start:
            return start, body
        earliest = max(floor, start - self._overlap)
        word = _WORD.search(self._content, max(earliest - 1, 0), start)
        if word:
            return word.end(), word.end()
        places = self._characters(earliest, start)
        first = int(places[0]) if len(places) else start
        return first, first

    def _best(self, start: int, end: int) -> int:
        """The place where a part is cut."""
        middle, reach = (start + end) // 2, max(_REACH, 2 * self._size)
        for rank, share in _ORDER:
            margin = max(int(self._size * share), 1)
            if rank is Rank.WORD and end - start > 4 * reach:
                start, end = middle - reach, middle + reach
            found = self._of_rank(rank, start, end)
            first, last = np.searchsorted(found.positions, [start + margin, end - margin + 1])
            if first < last:
                hashes = found.hashes[first:last]
                best = first + np.flatnonzero(hashes == hashes.max())
                # Among equal places, such as equal lines, the one in the middle.
                return int(found.positions[best[np.abs(found.positions[best] - middle).argmin()]])
        return middle

    def _of_rank(self, rank: Rank, start: int, end: int) -> Places:
        found = self._places.get(rank)
        if found is None or not (found.start <= start and end <= found.end):
            if rank in self._structure:
                start, end, positions = 0, len(self._content), np.array(sorted(self._structure[rank]), np.int64)
            else:
                # The parts of this part follow, and find their places here.
                positions = self._within(rank, start, end)
            found = self._places[rank] = self._hashed(start, end, positions)
        return found

    def _within(self, rank: Rank, start: int, end: int) -> Any:
        if rank is Rank.CHARACTER:
            return self._characters(start, end)
        pattern = _WORD if rank is Rank.WORD else _PUNCTUATION
        return np.fromiter((match.end() for match in pattern.finditer(self._content, start, end)), np.int64)

    def _characters(self, start: int, end: int) -> Any:
        """The places between two characters as a reader sees them: marks, joiners and modifiers are not cut off."""
        codes = self._codes[start:end]
        distinct, which = np.unique(codes, return_inverse=True)
        joined = np.array([_continues(chr(code)) for code in distinct], bool)[which]
        joining = np.array([_joins(chr(code)) for code in distinct], bool)[which]
        joined[1:] |= joining[:-1]
        flags = np.flatnonzero((codes >= 0x1F1E6) & (codes <= 0x1F1FF))
        for number in range(1, len(flags)):
            # Two regional indicators are one flag.
            if flags[number] == flags[number - 1] + 1 and not joined[flags[number - 1]]:
                joined[flags[number]] = True
        return start + np.flatnonzero(~joined)

    def _hashed(self, start: int, end: int, positions: Any) -> Places:
        hashes = np.zeros(len(positions), np.uint64)
        padded = np.concatenate([self._codes[start : end + _WINDOW], np.zeros(_WINDOW, np.uint32)])
        for first in range(0, len(positions), 1 << 16):
            some = slice(first, first + (1 << 16))
            windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[positions[some] - start]
            hashes[some] = _mixed(windows.astype(np.uint64) @ _FACTORS)
        return Places(start, end, positions, hashes)


#: Odd factors, powers of the one of Knuth's generator MMIX.
_FACTORS = np.cumprod(np.full(_WINDOW, 6364136223846793005, np.uint64))


def _mixed(sums: Any) -> Any:
    """The finalizer of SplitMix64: each bit depends on all."""
    sums = (sums ^ (sums >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    sums = (sums ^ (sums >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return sums ^ (sums >> np.uint64(31))


def _continues(character: str) -> bool:
    """Whether a character belongs to the one before: marks, joiners, emoji modifiers, Hangul vowels, LF after CR."""
    code = ord(character)
    return (
        unicodedata.category(character)[0] == "M"
        or code in {0x0A, 0x200C, 0x200D, 0x0E33, 0x0EB3}
        or 0x1F3FB <= code <= 0x1F3FF
        or 0x1160 <= code <= 0x11FF
        or 0xD7B0 <= code <= 0xD7FF
        or 0xE0020 <= code <= 0xE007F
    )


def _joins(character: str) -> bool:
    """Whether a character belongs to the next one: joiners, viramas, Thai and Lao vowels that are written first."""
    code = ord(character)
    leading = 0x0E40 <= code <= 0x0E44 or 0x0EC0 <= code <= 0x0EC4
    return code == 0x200D or leading or unicodedata.combining(character) == 9


class Structure:
    """The headings of a text, and its places of the ranks from H1 to INSIDE."""

    def __init__(self, content: str, size: int, markdown: bool) -> None:
        self.headings: list[Heading] = []
        self.places: dict[Rank, list[int]] = {rank: [] for rank in Rank if rank < Rank.WORD}
        self._content, self._size, self._markdown = content, size, markdown
        #: The parts in which no sentences are looked for: headings, code blocks and table rows.
        self._solid: list[tuple[int, int]] = []
        #: For each fence character, the shortest fence that is known not to be closed from here on.
        self._unclosed: dict[str, int] = {}
        #: Whether the line before, blank ones aside, is a heading. What follows is not separated from it.
        self._headed = False
        spans = [match.span() for match in _LINES.finditer(content)]
        self._spans = [span for span in spans if span[0] < span[1]]
        self._lines = [content[start:end].rstrip("\r\n") for start, end in self._spans]
        self._read()
        self._sentences()

    def paths(self) -> list[list[Heading]]:
        """For each heading, the headings above it and itself."""
        found: list[list[Heading]] = []
        for heading in self.headings:
            above = [other for other in (found[-1] if found else []) if other.level < heading.level]
            found.append([*above, heading])
        return found

    def _read(self) -> None:
        number = 0
        while number < len(self._lines):
            line = self._lines[number]
            if not line.strip():
                number += 1
            elif self._markdown and (after := self._heading(number)):
                number, self._headed = after, True
            else:
                block = (self._fence(number) or self._table(number)) if self._markdown else None
                number, self._headed = block or self._text(number), False

    def _heading(self, number: int) -> int | None:
        line = self._lines[number]
        if len(line) > LONGEST_HEADING:
            return None
        if line.lstrip()[:1] == "#" and (match := _HEADING.fullmatch(line)):
            return self._add_heading(number, number + 1, len(match[1]), match[2] or "")
        below = self._lines[number + 1] if number + 1 < len(self._lines) else ""
        alone = self._blank(number - 1) or (bool(self.headings) and self.headings[-1].end == self._spans[number][0])
        plain = alone and not _ITEM.match(line) and line.lstrip()[:1] not in "|>#" and line[:4].strip()
        if plain and (match := _UNDERLINE.fullmatch(below)) and not _UNDERLINE.fullmatch(line):
            return self._add_heading(number, number + 2, 1 if match[1][0] == "=" else 2, line)
        return None

    def _add_heading(self, number: int, after: int, level: int, title: str) -> int:
        start, end = self._spans[number][0], self._spans[after - 1][1]
        if not (self._headed and self.headings[-1].level < level):
            self._place(Rank(level - 1), start)
        self.headings.append(Heading(start, end, level, " ".join(_MARKUP.sub(r"\1", title).split())))
        self._solid.append((start, end))
        return after

    def _fence(self, number: int) -> int | None:
        opening = _FENCE.match(self._lines[number])
        if not opening:
            return None
        last = self._closing(number, opening[1])
        if last is None:
            return None
        start, end = self._spans[number][0], self._spans[last][1]
        whole = end - start <= self._size
        self._solid.append((start, end))
        self._place(self._rank(number), start)
        for inner in range(number + 1, last + 1):
            if self._lines[inner].strip():
                kept = whole or inner in {number + 1, last}
                rank = Rank.INSIDE if kept else Rank.ITEM if self._blank(inner - 1) else Rank.LINE
                self._place(rank, self._spans[inner][0])
        return last + 1

    def _closing(self, number: int, fence: str) -> int | None:
        """The line that closes the code block that begins in this one; None if another one begins before."""
        if len(fence) >= self._unclosed.get(fence[0], len(fence) + 1):
            return None
        for later in range(number + 1, len(self._lines)):
            found = _FENCE.match(self._lines[later])
            if found and found[1].startswith(fence):
                # CommonMark ends a block at a bare fence only. A block that nobody closed, as while a page is being
                # written, would then turn all blocks below it inside out.
                return later if _FENCE_END.fullmatch(self._lines[later]) else None
        self._unclosed[fence[0]] = len(fence)
        return None

    def _table(self, number: int) -> int | None:
        """The rows of a table: lines that begin with a bar, or that stand around a line of bars and dashes."""
        ruled = number + 1 < len(self._lines) and _is_rule(self._lines[number + 1])
        after = number
        while after < len(self._lines) and (
            self._lines[after].lstrip()[:1] == "|" or (ruled and "|" in self._lines[after])
        ):
            start, end = self._spans[after]
            header = ruled and number < after <= number + 2
            rank = self._rank(after) if after == number else Rank.INSIDE if header else Rank.LINE
            self._place(rank, start)
            if end - start <= self._size:
                self._solid.append((start, end))
            after += 1
        return after if after > number else None

    def _text(self, number: int) -> int:
        self._place(self._rank(number), self._spans[number][0])
        return number + 1

    def _rank(self, number: int) -> Rank | None:
        """The rank of the place in front of a line; None below a heading."""
        line = self._lines[number]
        if self._headed:
            return None
        item = _ITEM.match(line) if self._markdown else None
        if item:
            return Rank.ITEM if len(item[1]) < 2 else Rank.LINE
        if self._blank(number - 1):
            return Rank.ITEM if line[0] in " \t" else Rank.BLOCK
        return Rank.WRAP if _is_wrapped(self._lines[number - 1], line) else Rank.LINE

    def _blank(self, number: int) -> bool:
        return number < 0 or not self._lines[number].strip()

    def _place(self, rank: Rank | None, position: int) -> None:
        if rank is not None and position:
            self.places[rank].append(position)

    def _sentences(self) -> None:
        starts = [start for start, _ in self._solid]
        lines = [start for start, _ in self._spans]
        taken = {position for found in self.places.values() for position in found}
        for match in _SENTENCE.finditer(self._content):
            place = match.end()
            number = bisect_right(starts, place) - 1
            if (number >= 0 and place < self._solid[number][1]) or place in taken:
                continue
            line = lines[bisect_right(lines, match.start()) - 1]
            # A number such as "1." begins an item; a lower-case letter continues the sentence.
            numbered = match.start() - line <= 20 and self._content[line : match.start()].strip().isdigit()
            if not numbered and not self._content[place].islower():
                self.places[Rank.SENTENCE].append(place)


def _is_rule(line: str) -> bool:
    characters = set(line.strip())
    return {"|", "-"} <= characters <= set("|-: \t")


def _is_wrapped(above: str, line: str) -> bool:
    """Whether a line continues the sentence of the one above."""
    before, first = above.rstrip()[-1], line[0]
    continues = unicodedata.category(before)[0] in "LM" or before in ",-–—、，"
    return continues and (unicodedata.category(first)[0] == "L" or first in "\"'(`*_[“‘«")
