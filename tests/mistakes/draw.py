"""Draws mistakes of a tree by a seed, spread over its files and over the kinds of mistakes."""

from __future__ import annotations

import ast
import fnmatch
import random
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.mistakes import in_python, in_sql
from tests.mistakes.change import Change
from tests.mistakes.running import ROOT

EQUIVALENTS = Path(__file__).with_name("equivalents.toml")


class Mistake(NamedTuple):
    """A change of a file of the package."""

    file: str
    line: int
    kind: str
    place: str
    #: The lines that go and those that come, without their indentation.
    was: str
    now: str
    #: The whole file.
    text: str

    @property
    def key(self) -> tuple[str, ...]:
        """By what it is known again, also when it has another line."""
        return self.file, self.place, self.was, self.now

    def diff(self) -> str:
        """What it changes."""
        lines = [f"-{line}" for line in self.was.split("\n")] + [f"+{line}" for line in self.now.split("\n")]
        return "\n".join(lines)

    def entry(self, name: str) -> str:
        """As an entry of a TOML file."""
        values = {"file": self.file, "place": self.place, "was": self.was, "now": self.now, "reason": ""}
        return "\n".join([f"[[{name}]]", *(f"{key} = {_quoted(value)}" for key, value in values.items()), ""])


def _quoted(text: str) -> str:
    if "'" not in text and "\n" not in text:
        return f"'{text}'"
    return f"'''\n{text}'''" if "'''" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def listed(path: Path, name: str) -> dict[tuple[str, ...], str]:
    """The mistakes of a TOML file by their key, with the reason that is given for each."""
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8")).get(name, []) if path.exists() else []
    return {(entry["file"], entry["place"], entry["was"], entry["now"]): entry["reason"] for entry in entries}


def mistake(file: str, source: str, change: Change) -> Mistake | None:
    """The mistake that a change makes; none where the file could not be read any more or stays the same."""
    text = change.apply(source)
    if text == source:
        return None
    if file.endswith(".py"):
        try:
            ast.parse(text)
        except SyntaxError:
            return None
    first = change.line(source) - 1
    before, after = source.split("\n"), text.split("\n")
    rest = source.encode()[change.end :].count(b"\n")
    was = [line.strip() for line in before[first : len(before) - rest]]
    now = [line.strip() for line in after[first : len(after) - rest]]
    return Mistake(file, change.line(source), change.kind, change.place, "\n".join(was), "\n".join(now), text)


def sources(only: str | None = None) -> dict[str, str]:
    """The files in which mistakes are made, with their text; `only` those whose path fits a pattern."""
    paths = sorted(path for ext in ("py", "sql") for path in ROOT.glob(f"entityframes/**/*.{ext}"))
    files = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    return {file: text for file, text in files.items() if only is None or fnmatch.fnmatch(file, f"*{only}*")}


def changes(file: str, source: str) -> list[Change]:
    """All changes of a file, each of them once."""
    found = in_python.changes(source) if file.endswith(".py") else in_sql.changes(source)
    unique = {(change.start, change.end, change.new): change for change in found}
    return sorted(unique.values(), key=lambda change: (change.start, change.end, change.new))


def draw(files: dict[str, str], count: int, seed: int) -> list[Mistake]:
    """`count` mistakes, or all there are; of each file as many as is its share, of each kind in turn."""
    chance = random.Random(seed)
    pools = {file: changes(file, source) for file, source in files.items()}
    shares = _shares({file: len(pool) for file, pool in pools.items()}, count, chance)
    drawn = []
    for file, share in shares.items():
        candidates = (mistake(file, files[file], change) for change in _by_turns(pools[file], chance))
        drawn.extend(_first((found for found in candidates if found is not None), share))
    return drawn


def _shares(sizes: dict[str, int], count: int, chance: random.Random) -> dict[str, int]:
    """How many of each: at equal distances on the row of all, which starts at a place drawn by lot."""
    total = sum(sizes.values())
    count = min(count, total)
    start = chance.random()
    places = [int((number + start) * total / count) for number in range(count)]
    shares, before = {}, 0
    for file, size in sizes.items():
        shares[file] = sum(before <= place < before + size for place in places)
        before += size
    return shares


def _by_turns(pool: Iterable[Change], chance: random.Random) -> Iterator[Change]:
    """All of them in an order drawn by lot, in which kinds take turns."""
    kinds: dict[str, list[Change]] = defaultdict(list)
    for change in pool:
        kinds[change.kind].append(change)
    for of_kind in kinds.values():
        chance.shuffle(of_kind)
    while kinds:
        names = list(kinds)
        chance.shuffle(names)
        for name in names:
            yield kinds[name].pop()
            if not kinds[name]:
                del kinds[name]


def _first(found: Iterator[Mistake], count: int) -> Iterator[Mistake]:
    for _ in range(count):
        if (one := next(found, None)) is not None:
            yield one


def again(entries: Iterable[tuple[str, ...]]) -> list[Mistake]:
    """The mistakes of these keys, as far as they can be made still."""
    keys = set(entries)
    found: dict[tuple[str, ...], Mistake] = {}
    for file, source in sources().items():
        for change in changes(file, source) if any(key[0] == file for key in keys) else ():
            one = mistake(file, source, change)
            if one is not None and one.key in keys:
                found.setdefault(one.key, one)
    return list(found.values())
