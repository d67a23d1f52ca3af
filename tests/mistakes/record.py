"""The map of which tests touch which locations, recorded for each test file and cached outside the tree."""

from __future__ import annotations

import ast
import hashlib
import json
import queue
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.mistakes import touched
from tests.mistakes.running import ROOT, Copy

#: A test file that takes longer than this is not recorded.
_SECONDS = 1800


class Map:
    """The recorded map, stored in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self._seconds: dict[str, float] = {}
        self._by_mark: dict[str, set[str]] = {}
        self._index()

    def renew(self, server: str, *, all_files: bool = False, jobs: int = 1) -> None:
        """Record new and changed test files, `jobs` at a time; each is stored as soon as it is done."""
        hashes = {path.relative_to(ROOT).as_posix(): _hash(path) for path in sorted(ROOT.glob("tests/**/test_*.py"))}
        self._files = {file: known for file, known in self._files.items() if file in hashes}
        stale = [file for file, seen in hashes.items() if all_files or self._files.get(file, {}).get("hash") != seen]
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        made = [Copy(server) for _ in range(min(jobs, len(stale)))]
        for copy in made:
            touched.mark_package(copy.tree / "entityframes")
            copies.put(copy)
        self._path.parent.mkdir(parents=True, exist_ok=True)

        def record(file: str) -> tuple[str, dict[str, Any], str]:
            copy = copies.get()
            try:
                return file, *_recorded(copy, file)
            finally:
                copies.put(copy)

        try:
            with ThreadPoolExecutor(jobs) as pool:
                for number, (file, recorded, printed) in enumerate(pool.map(record, stale), 1):
                    self._files[file] = {"hash": hashes[file], **recorded}
                    self._path.write_text(json.dumps(self._files), "utf-8")
                    tests = recorded["tests"]
                    taken = sum(test["seconds"] for test in tests.values())
                    print(f"recorded {number}/{len(stale)} {file}: {len(tests)} tests, {taken:.0f} s", file=sys.stderr)
                    for name in recorded["failed"] or ([] if tests else [printed]):
                        print(f"  did not pass, skipped: {name}", file=sys.stderr)
        finally:
            for copy in made:
                copy.close()
        self._index()

    def _index(self) -> None:
        by_mark: dict[str, set[str]] = defaultdict(set)
        self._seconds = {}
        for known in self._files.values():
            for name, test in known["tests"].items():
                self._seconds[name] = test["seconds"]
                for number in test["touched"]:
                    by_mark[known["marks"][number]].add(name)
        self._by_mark = dict(by_mark)

    def touching(self, marks: Iterable[str], most: float, file: str, around: Iterable[str] = ()) -> list[str]:
        """The tests that touch one of these marks, up to `most` seconds in total.

        Tests that touch the most of the marks `around` are chosen first; of these, one set of parameters of each test;
        of these, the fastest, where tests of files with a name similar to `file` may take three times as long. They are
        ordered to notice a mistake early: three fast ones of each file, then file by file.
        """
        names = {name for mark in marks for name in self._by_mark.get(mark, ())}
        turns = _numbered(sorted(names, key=lambda name: (self._seconds[name], name)), lambda name: name.split("::")[0])
        chosen: list[str] = []
        related = {name for name in names if _words(name.split("::")[0]) & _words(file)}
        breadth = Counter(name for mark in around for name in self._by_mark.get(mark, ()))
        repeats = _numbered(
            sorted(names, key=lambda name: (-breadth[name], turns[name])), lambda name: name.split("[")[0]
        )
        cost = {name: self._seconds[name] / (3 if name in related else 1) for name in names}
        order = {name: (-breadth[name], repeats[name], cost[name], name) for name in names}
        for name in sorted(names, key=order.__getitem__):
            if not chosen or self._seconds[name] <= most:
                chosen.append(name)
                most -= self._seconds[name]
        early = {name for name in chosen if turns[name] < 3 and self._seconds[name] < 1}
        return sorted(early, key=lambda name: (self._seconds[name], name)) + sorted(
            set(chosen) - early, key=lambda name: (name.split("::")[0], self._seconds[name], name)
        )

    def seconds(self, tests: Iterable[str]) -> float:
        """The total duration of these tests."""
        return sum(self._seconds[name] for name in tests)

    def marks(self) -> set[str]:
        """All marks that some test touches."""
        return set(self._by_mark)


class Places:
    """The marks that represent a location in a file, the nearest first."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._statements: dict[str, str] = {}
        if file.endswith(".sql"):
            self._statements = _statements(text)
            others = [path.read_text("utf-8") for path in (ROOT / file).parent.glob("*.sql")]
            self._of_engine = {name: body for other in others for name, body in _statements(other).items()}
        else:
            tree = ast.parse(text)
            self._runs, self._functions = touched.runs(file, tree), list(touched.functions(tree))

    def marks(self, line: int, place: str) -> list[list[str]]:
        """For a line in the function or statement `place`: its own mark, those around it, those of the whole file."""
        if self._statements:
            mark = f"{touched.engine_of(self._file)}.sql::"
            return [[f"{mark}{place}"], [f"{mark}{name}" for name in self._users(place)]]
        around = [name for name, node in self._functions if node.lineno <= line <= (node.end_lineno or 0)]
        own = [run for run in self._runs if around and run.function == around[-1]]
        before = [run.mark for run in sorted(own, key=lambda run: run.line) if run.line <= line]
        return [before[-1:], [run.mark for run in own], [run.mark for run in self._runs]]

    def _users(self, part: str) -> set[str]:
        """The statements of the engine that include a part, directly or through another part."""
        users = {name for name, body in self._of_engine.items() if f"{{{part}}}" in body}
        return users.union(*(self._users(name) for name in users))


def _recorded(copy: Copy, file: str) -> tuple[dict[str, Any], str]:
    """What the tests of a file touch, and the last lines of the output."""
    folder = copy.folder / "touched"
    folder.mkdir()
    try:
        # Tests that run as another user write marks too.
        folder.chmod(0o777)
        run = copy.pytest([file], _SECONDS, ENTITYFRAMES_RECORD=str(folder))
        found = folder / "tests.json"
        none: dict[str, Any] = {"marks": [], "tests": {}, "failed": []}
        return json.loads(found.read_text("utf-8")) if found.exists() else none, run.output
    finally:
        shutil.rmtree(folder)


def _numbered(names: Iterable[str], group: Callable[[str], str]) -> dict[str, int]:
    """The position of each name among those of its group."""
    counts: Counter[str] = Counter()
    numbers = {}
    for name in names:
        numbers[name] = counts[group(name)]
        counts[group(name)] += 1
    return numbers


def _statements(text: str) -> dict[str, str]:
    """The statements and parts in a file of SQL by name."""
    pieces = re.split(r"^-- (?:name|part): (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _words(file: str) -> set[str]:
    """The words of a path that name its subject."""
    return set(re.split(r"[/_.]", file)) - {
        "tests",
        "test",
        "entityframes",
        "engines",
        "postgres",
        "duckdb",
        "py",
        "sql",
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
