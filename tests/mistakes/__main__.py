"""``python -m tests.mistakes``: plants mistakes, runs the tests that touch them, and prints which went unnoticed.

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
    """The tests that touch the place of a mistake; if none does, those of its function or else of its file."""
    for marks in Places(mistake.file, source).marks(mistake.line, mistake.place):
        if tests := map.touching(marks, most, mistake.file):
            return tests
    return []


def plant(
    mistakes: list[Mistake], map: Map, server: str, jobs: int, most: float, tried: float | None = None
) -> dict[Mistake, str]:
    """How the tests took each: noticed, survived, or untouched if no test comes there.

    Args:
        mistakes, map, server, jobs: what is planted, the tests, where they run, and how many at a time.
        most: how many seconds the tests of a mistake take.
        tried: those that were run already, with this as `most`, are not run again.
    """
    originals = sources()
    copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    made = [Copy(server) for _ in range(jobs)]
    for copy in made:
        copies.put(copy)

    def judge(number: int) -> str:
        mistake, began = mistakes[number], time.perf_counter()
        tests = choose(map, mistake, originals[mistake.file], most)
        verdict, said = "survived" if tests else "untouched", ""
        if tried is not None:
            before = set(choose(map, mistake, originals[mistake.file], tried))
            tests = [name for name in tests if name not in before]
        if tests:
            copy = copies.get()
            try:
                copy.write(mistake.file, mistake.text)
                how, said = copy.run(tests, map.seconds(tests))
                verdict = "survived" if how == "passed" else "noticed"
            finally:
                copy.write(mistake.file, originals[mistake.file])
                copies.put(copy)
        seconds = time.perf_counter() - began
        said = next((line for line in reversed(said.splitlines()) if line.startswith(("FAILED", "ERROR"))), "")[:150]
        print(
            f"{number + 1}/{len(mistakes)} {verdict} {mistake.file}:{mistake.line} {mistake.kind} "
            f"({len(tests)} tests, {seconds:.0f} s) {said}", file=sys.stderr, flush=True,
        )  # fmt: skip
        return verdict

    try:
        with ThreadPoolExecutor(jobs) as pool:
            return dict(zip(mistakes, pool.map(judge, range(len(mistakes))), strict=True))
    finally:
        for copy in made:
            copy.close()


def report(verdicts: dict[Mistake, str]) -> bool:
    """Print the survivors and the scores; whether they are as high as wanted."""
    for mistake, verdict in verdicts.items():
        if verdict != "noticed":
            print(f"\n{mistake.file}:{mistake.line} in {mistake.place}: {verdict} ({mistake.kind})\n{mistake.diff()}")
    planted = Counter(mistake.file for mistake in verdicts)
    noticed = Counter(mistake.file for mistake, verdict in verdicts.items() if verdict == "noticed")
    print("\n noticed  module")
    good = True
    for file, count in sorted(planted.items(), key=lambda item: (noticed[item[0]] / item[1], item[0])):
        low = count >= FEW and noticed[file] < WANTED_OF_MODULE * count
        good &= not low
        print(f"{noticed[file]:4}/{count:<4} {file}{'  too few' if low else ''}")
    share = noticed.total() / max(planted.total(), 1)
    print(f"{noticed.total():4}/{planted.total():<4} over all: {share:.0%} noticed, {WANTED:.0%} wanted")
    return good and share >= WANTED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mistakes", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=400, help="how many mistakes are drawn")
    parser.add_argument("--only", metavar="PATTERN", help="of files that fit, such as embedding or 'engines/*.sql'")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at a time")
    parser.add_argument("--seconds", type=float, default=30, help="how long the tests of a mistake take at first")
    parser.add_argument("--thorough", type=float, default=900, help="and if they do not notice it")
    parser.add_argument("--again", type=Path, metavar="FILE", help="those of a file of --survivors, instead of a draw")
    parser.add_argument("--survivors", type=Path, metavar="FILE", help="write down what went unnoticed")
    parser.add_argument(
        "--map", type=Path, default=_MAP, metavar="FILE", help="which test touches what, kept for later runs"
    )
    parser.add_argument("--record", action="store_true", help="record all of the map, not only test files that changed")
    parser.add_argument("--list", action="store_true", help="print what is drawn, and run nothing")
    given = parser.parse_args()
    if given.again:
        drawn = again(listed(given.again, "survivor"))
    else:
        drawn = draw(sources(given.only), given.count, given.seed)
    equivalents = listed(EQUIVALENTS, "equivalent")
    mistakes = [mistake for mistake in drawn if mistake.key not in equivalents]
    print(f"{len(mistakes)} mistakes; {len(drawn) - len(mistakes)} others drawn change nothing", file=sys.stderr)
    if given.list:
        for mistake in mistakes:
            print(f"\n{mistake.file}:{mistake.line} in {mistake.place} ({mistake.kind})\n{mistake.diff()}")
        return 0
    with postgres() as server:
        map = Map(given.map)
        map.renew(server, all_files=given.record, jobs=given.jobs)
        verdicts = plant(mistakes, map, server, given.jobs, given.seconds)
        if left := [mistake for mistake, verdict in verdicts.items() if verdict == "survived"]:
            print(f"{len(left)} went unnoticed so far; now with more of their tests", file=sys.stderr)
            verdicts |= plant(left, map, server, given.jobs, given.thorough, given.seconds)
    if given.survivors:
        left = [mistake.entry("survivor") for mistake, verdict in verdicts.items() if verdict != "noticed"]
        given.survivors.write_text("\n".join(left), "utf-8")
    return 0 if report(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
