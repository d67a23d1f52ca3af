"""Draws random mistakes in a tree, spread over its files and over the kinds of mistakes, deterministic for a seed."""

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
    #: The lines before and after the change, without their indentation.
    was: str
    now: str
    #: The text of the whole changed file.
    text: str

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies the mistake, even if its line number changes."""
        return self.file, self.place, self.was, self.now

    def diff(self) -> str:
        """The change as a diff."""
        lines = [f"-{line}" for line in self.was.split("\n")] + [f"+{line}" for line in self.now.split("\n")]
        return "\n".join(lines)

    def entry(self, name: str) -> str:
        """The mistake as an entry of a TOML file."""
        values = {"file": self.file, "place": self.place, "was": self.was, "now": self.now, "reason": ""}
        return "\n".join([f"[[{name}]]", *(f"{key} = {_quoted(value)}" for key, value in values.items()), ""])


def _quoted(text: str) -> str:
    if "'" not in text and "\n" not in text:
        return f"'{text}'"
    return f"'''\n{text}'''" if "'''" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def listed(path: Path, name: str) -> dict[tuple[str, ...], str]:
    """The mistakes in a TOML file: their key, and the reason that is given for each."""
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8")).get(name, []) if path.exists() else []
    return {(entry["file"], entry["place"], entry["was"], entry["now"]): entry["reason"] for entry in entries}


def mistake(file: str, source: str, change: Change) -> Mistake | None:
    """The mistake that a change makes; None if the file becomes syntactically invalid or does not change."""
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
    """The text of all files in which mistakes are made; with `only`, of those whose path matches the pattern."""
    paths = sorted(path for ext in ("py", "sql") for path in ROOT.glob(f"entityframes/**/*.{ext}"))
    files = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    return {file: text for file, text in files.items() if only is None or fnmatch.fnmatch(file, f"*{only}*")}


def changes(file: str, source: str) -> list[Change]:
    """All changes of a file, without repetitions."""
    found = in_python.changes(source) if file.endswith(".py") else in_sql.changes(source)
    unique = {(change.start, change.end, change.new): change for change in found}
    return sorted(unique.values(), key=lambda change: (change.start, change.end, change.new))


def draw(files: dict[str, str], count: int, seed: int) -> list[Mistake]:
    """`count` mistakes, or all if there are fewer: from each file in proportion to its size, kinds in turn."""
    rng = random.Random(seed)
    pools = {file: changes(file, source) for file, source in files.items()}
    shares = _shares({file: len(pool) for file, pool in pools.items()}, count, rng)
    drawn = []
    for file, share in shares.items():
        candidates = (mistake(file, files[file], change) for change in _by_turns(pools[file], rng))
        drawn.extend(_first((found for found in candidates if found is not None), share))
    return drawn


def _shares(sizes: dict[str, int], count: int, rng: random.Random) -> dict[str, int]:
    """The number for each file: of equidistant positions in the concatenation of all, with a random start."""
    total = sum(sizes.values())
    count = min(count, total)
    start = rng.random()
    places = [int((number + start) * total / count) for number in range(count)]
    shares, before = {}, 0
    for file, size in sizes.items():
        shares[file] = sum(before <= place < before + size for place in places)
        before += size
    return shares


def _by_turns(pool: Iterable[Change], rng: random.Random) -> Iterator[Change]:
    """All changes in random order, alternating between kinds."""
    kinds: dict[str, list[Change]] = defaultdict(list)
    for change in pool:
        kinds[change.kind].append(change)
    for of_kind in kinds.values():
        rng.shuffle(of_kind)
    while kinds:
        names = list(kinds)
        rng.shuffle(names)
        for name in names:
            yield kinds[name].pop()
            if not kinds[name]:
                del kinds[name]


def _first(found: Iterator[Mistake], count: int) -> Iterator[Mistake]:
    for _ in range(count):
        if (one := next(found, None)) is not None:
            yield one


def again(entries: Iterable[tuple[str, ...]]) -> list[Mistake]:
    """The mistakes with these keys, as far as they still can be made."""
    keys = set(entries)
    found: dict[tuple[str, ...], Mistake] = {}
    for file, source in sources().items():
        for change in changes(file, source) if any(key[0] == file for key in keys) else ():
            one = mistake(file, source, change)
            if one is not None and one.key in keys:
                found.setdefault(one.key, one)
    return list(found.values())
