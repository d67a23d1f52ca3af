"""``python -m tests.mistakes``: inserts mistakes, runs the tests that touch them, and prints which went unnoticed.

Exit status 1 if fewer than 85 % were noticed, or fewer than 70 % in a module with at least 5 of them.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mistakes.draw import EQUIVALENTS, Mistake, again, draw, listed, sources
from tests.mistakes.record import Map, Places
from tests.mistakes.running import Copy, postgres

WANTED, WANTED_OF_MODULE, FEW = 0.85, 0.7, 5
_MAP = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entityframes" / "touched.json"


def choose(map: Map, mistake: Mistake, source: str, most: float) -> list[str]:
    """The tests that touch the line of a mistake; if there are none, those of its function, or else of its file."""
    own, around, *others = Places(mistake.file, source).marks(mistake.line, mistake.place)
    for marks in (own, around, *others):
        if tests := map.touching(marks, most, mistake.file, around):
            return tests
    return []


def insert_mistakes(
    mistakes: list[Mistake], map: Map, server: str, jobs: int, most: float, tried: float | None = None
) -> dict[Mistake, str]:
    """The result for each mistake: noticed, survived, or untouched if no test reaches it.

    Args:
        mistakes: the mistakes to insert.
        map: the tests that touch each location.
        server: the URL of the PostgreSQL server for the tests.
        jobs: how many mistakes are tested at a time.
        most: the maximum duration of the tests of one mistake, in seconds.
        tried: the value of `most` in an earlier run, whose tests are not run again.
    """
    originals = sources()
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    made = [Copy(server) for _ in range(jobs)]
    for copy in made:
        copies.put(copy)

    def check(number: int) -> str:
        mistake, began = mistakes[number], time.perf_counter()
        tests = choose(map, mistake, originals[mistake.file], most)
        verdict, output = "survived" if tests else "untouched", ""
        if tried is not None:
            before = set(choose(map, mistake, originals[mistake.file], tried))
            tests = [name for name in tests if name not in before]
        if tests:
            copy = copies.get()
            try:
                copy.write(mistake.file, mistake.text)
                result, output = copy.run(tests, map.seconds(tests))
                verdict = "survived" if result == "passed" else "noticed"
            finally:
                copy.write(mistake.file, originals[mistake.file])
                copies.put(copy)
        seconds = time.perf_counter() - began
        failures = [line[:150] for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        print(
            f"{number + 1}/{len(mistakes)} {verdict} {mistake.file}:{mistake.line} {mistake.kind} "
            f"({len(tests)} tests, {seconds:.0f} s) {failures[-1] if failures else ''}", file=sys.stderr, flush=True,
        )  # fmt: skip
        return verdict

    try:
        with ThreadPoolExecutor(jobs) as pool:
            return dict(zip(mistakes, pool.map(check, range(len(mistakes))), strict=True))
    finally:
        for copy in made:
            copy.close()


def report(verdicts: dict[Mistake, str]) -> bool:
    """Print the survivors and the scores. Returns whether the scores are high enough."""
    for mistake, verdict in verdicts.items():
        if verdict != "noticed":
            print(f"\n{mistake.file}:{mistake.line} in {mistake.place}: {verdict} ({mistake.kind})\n{mistake.diff()}")
    inserted = Counter(mistake.file for mistake in verdicts)
    noticed = Counter(mistake.file for mistake, verdict in verdicts.items() if verdict == "noticed")
    print("\n noticed  module")
    good = True
    for file, count in sorted(inserted.items(), key=lambda item: (noticed[item[0]] / item[1], item[0])):
        low = count >= FEW and noticed[file] < WANTED_OF_MODULE * count
        good &= not low
        print(f"{noticed[file]:4}/{count:<4} {file}" + (f"  below {WANTED_OF_MODULE:.0%}" if low else ""))
    share = noticed.total() / max(inserted.total(), 1)
    print(f"{noticed.total():4}/{inserted.total():<4} in total: {share:.0%} noticed, {WANTED:.0%} required")
    return good and share >= WANTED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mistakes", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=400, help="number of mistakes to draw")
    parser.add_argument(
        "--only", metavar="PATTERN", help="only in matching files, such as embedding or 'engines/*.sql'"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of mistakes to test at a time")
    parser.add_argument("--seconds", type=float, default=30, help="maximum duration of the tests of a mistake")
    parser.add_argument("--thorough", type=float, default=900, help="the same in a second round for unnoticed mistakes")
    parser.add_argument("--again", type=Path, metavar="FILE", help="use the mistakes in a file written by --survivors")
    parser.add_argument("--survivors", type=Path, metavar="FILE", help="write the unnoticed mistakes to a file")
    parser.add_argument("--map", type=Path, default=_MAP, metavar="FILE", help="cache of which test touches what")
    parser.add_argument("--record", action="store_true", help="record all test files, not only changed ones")
    parser.add_argument("--list", action="store_true", help="print the drawn mistakes without running tests")
    given = parser.parse_args()
    if given.again:
        drawn = again(listed(given.again, "survivor"))
    else:
        drawn = draw(sources(given.only), given.count, given.seed)
    equivalents = listed(EQUIVALENTS, "equivalent")
    mistakes = [mistake for mistake in drawn if mistake.key not in equivalents]
    print(f"{len(mistakes)} mistakes; {len(drawn) - len(mistakes)} equivalent ones were skipped", file=sys.stderr)
    if given.list:
        for mistake in mistakes:
            print(f"\n{mistake.file}:{mistake.line} in {mistake.place} ({mistake.kind})\n{mistake.diff()}")
        return 0
    with postgres() as server:
        map = Map(given.map)
        map.renew(server, all_files=given.record, jobs=given.jobs)
        verdicts = insert_mistakes(mistakes, map, server, given.jobs, given.seconds)
        if left := [mistake for mistake, verdict in verdicts.items() if verdict == "survived"]:
            print(f"{len(left)} went unnoticed so far; trying more of their tests", file=sys.stderr)
            verdicts |= insert_mistakes(left, map, server, given.jobs, given.thorough, given.seconds)
    if given.survivors:
        left = [mistake.entry("survivor") for mistake, verdict in verdicts.items() if verdict != "noticed"]
        given.survivors.write_text("\n".join(left), "utf-8")
    return 0 if report(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
