"""A folder of markdown imported into a database with vectors: DirectorySync, a loop over its files, and CocoIndex."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import data
from benchmarks.directory_methods import front_matter
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server
from entityframes.bench.wire import WireProxy

DEFAULT_ROWS = (2_500,)
#: From this number of files on, PostgreSQL is reached with added latency, and the cost of a sync is measured too.
LARGE = 10_000
LATENCY_MS = 1.0
#: Number of files in the tree in which one file goes bad.
FEW = 20

_HERE = Path(__file__).parents[1]
_SCHEMAS = ("folder", "peer", "coco")


class Contestant(NamedTuple):
    """An implementation that imports a folder into a database."""

    name: str
    database: str
    #: The name of a function in `directory_methods`.
    method: str
    #: The tables of entities and of vectors that it creates.
    entities: str
    vectors: str
    #: It is not run with this number of files or more.
    max_files: int = 10**9


CONTESTANTS = (
    Contestant(OURS, "postgresql", "entityframes_import", "folder.entities", "folder.passages"),
    Contestant("loop with psycopg", "postgresql", "psycopg_loop", "peer.entities", "peer.embeddings"),
    Contestant("CocoIndex", "postgresql", "cocoindex", "coco.files", "coco.files", LARGE),
    Contestant(OURS, "duckdb", "entityframes_import", "folder.entities", "folder.passages"),
    Contestant("loop with DuckDB", "duckdb", "duckdb_loop", "peer.entities", "peer.embeddings"),
)

#: The name of the phase, whether the tree was imported before, and a function that makes a file bad.
Mishap = tuple[str, bool, Callable[[Path], None]]


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Import, import again, and import after 1 % of the files were edited; each in a separate process."""
    contestants = [contestant for contestant in CONTESTANTS if chosen(contestant.name, only)]
    if not find_spec("cocoindex"):
        contestants = [contestant for contestant in contestants if contestant.method != "cocoindex"]
        print("skipping CocoIndex: not installed")
    with server(postgres) as url:
        for size in rows or DEFAULT_ROWS:
            latency = LATENCY_MS if size >= LARGE else None
            selected = [contestant for contestant in contestants if size < contestant.max_files]
            for turn in range(repeat):
                with _bench(url, latency, measurements.seed, size) as bench:
                    bench.phases(measurements, selected[:: 1 if turn % 2 == 0 else -1])
                    if size >= LARGE:
                        bench.syncs(measurements, [contestant for contestant in selected if contestant.name == OURS])
        for phase, imported, spoil in _mishaps():
            for contestant in contestants:
                with _bench(url, 0.0, measurements.seed, FEW) as bench:
                    bench.mishap(measurements, contestant, phase, imported, spoil)


class _Bench:
    """A tree of files, and a target for each contestant."""

    def __init__(self, folder: Path, url: str, reached: str, latency: float | None, files: int) -> None:
        self.tree = folder / "tree"
        self._folder = folder
        self._url = url
        self._reached = reached
        self._latency = latency
        self._files = files

    def phases(self, measurements: Measurements, contestants: list[Contestant]) -> None:
        for phase in ("first import", "nothing changed", "1 % changed"):
            if phase == "1 % changed":
                for path in sorted(self.tree.rglob("*.md"))[::100]:
                    data.edit_note(path, 1)
            expected = self._expected()
            for contestant in contestants:
                report, process_seconds = self._process(contestant)
                if (stored := self.stored(contestant)) != expected:
                    raise AssertionError(f"{contestant.name} stored {stored}, expected {expected}")
                measurements.add(
                    contestant.name, database=contestant.database, phase=phase, rows=self._files,
                    latency_ms=self._latency_of(contestant), process_seconds=process_seconds, **report,
                )  # fmt: skip

    def syncs(self, measurements: Measurements, contestants: list[Contestant]) -> None:
        """The cost of a sync compared with a bare walk through the same folder, in the same process."""
        for contestant in contestants:
            report, _ = self._process(contestant._replace(method="entityframes_sync"))
            names = {"nothing to do": OURS, "one file edited": f"{OURS}, one file edited", "bare walk": "bare walk"}
            for step, seconds in report["seconds"].items():
                measurements.add(
                    names[step], database=contestant.database, phase="sync", rows=self._files,
                    latency_ms=self._latency_of(contestant), seconds=median(seconds), peak_mb=report["peak_mb"],
                )  # fmt: skip

    def mishap(
        self, measurements: Measurements, contestant: Contestant, phase: str, imported: bool,
        spoil: Callable[[Path], None],
    ) -> None:  # fmt: skip
        """What happens to one bad file, and to the others."""
        bad = sorted(self.tree.rglob("*.md"))[FEW // 2]
        if imported:
            self._process(contestant)
            data.edit_note(bad, 1)
        spoil(bad)
        started = time.perf_counter()
        done = self._popen(contestant, "respect file modes")
        seconds = time.perf_counter() - started
        others = self.stored(contestant)[0] if self._exists(contestant) else 0
        kept = self._content_of(contestant, bad) if others else None
        others -= kept is not None
        reported = "reported" if bad.name in done.stdout + done.stderr else "not reported"
        fate = "not stored" if kept is None else "stored with U+FFFD" if "\ufffd" in kept else "kept as it was"
        if imported and kept is None:
            fate = "deleted"
        aborted = "" if done.returncode == 0 else "aborted, "
        outcome = f"{aborted}{reported}, {fate}; {others} of {FEW - 1} others stored"
        measurements.add(
            contestant.name, database=contestant.database, phase=phase, rows=FEW, seconds=seconds, outcome=outcome
        )

    def stored(self, contestant: Contestant) -> tuple[int, int, int]:
        """The number of entities, the total bytes of their contents, and the number of vectors."""
        size = "octet_length(content)" if contestant.database == "postgresql" else "strlen(content)"
        ((count, held, vectors),) = self._ask(
            contestant,
            f"SELECT count(*), coalesce(sum({size}), 0), (SELECT count(*) FROM {contestant.vectors}) "
            f"FROM {contestant.entities}",
        )
        return int(count), int(held), int(vectors)

    def _expected(self) -> tuple[int, int, int]:
        contents = [front_matter(path.read_bytes().decode())[1] for path in self.tree.rglob("*.md")]
        return len(contents), sum(len(content.encode()) for content in contents), len(contents)

    def _exists(self, contestant: Contestant) -> bool:
        schema, table = contestant.entities.split(".")
        return bool(
            self._ask(
                contestant,
                f"SELECT 1 FROM information_schema.tables WHERE table_schema = '{schema}' AND table_name = '{table}'",
            )
        )

    def _content_of(self, contestant: Contestant, path: Path) -> str | None:
        kind, _, key = path.relative_to(self.tree).with_suffix("").as_posix().partition("/")
        found = self._ask(
            contestant, f"SELECT content FROM {contestant.entities} WHERE entity_type = '{kind}' AND id = '{key}'"
        )
        return str(found[0][0]) if found else None

    def _target(self, contestant: Contestant, url: str) -> str:
        return url if contestant.database == "postgresql" else str(self._folder / f"{contestant.method[:6]}.duckdb")

    def _latency_of(self, contestant: Contestant) -> float:
        return self._latency or 0.0 if contestant.database == "postgresql" else 0.0

    def _process(self, contestant: Contestant) -> tuple[dict[str, Any], float]:
        """The report that the process of a contestant prints, and the seconds that the process took in total."""
        started = time.perf_counter()
        done = self._popen(contestant)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise AssertionError(f"{contestant.name} failed: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1]), seconds

    def _popen(self, contestant: Contestant, *more: str) -> subprocess.CompletedProcess[str]:
        target = self._target(contestant, self._reached)
        words = [contestant.method, str(self.tree), target, str(self._folder / "state"), *more]
        # Let Python cache bytecode, as it does for installed packages.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.directory_methods", *words],
            cwd=_HERE, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    def _ask(self, contestant: Contestant, sql: str) -> list[Any]:
        if contestant.database == "postgresql":
            import psycopg

            with psycopg.connect(self._url) as connection:
                return connection.execute(sql).fetchall()
        import duckdb

        with duckdb.connect(self._target(contestant, self._url)) as connection:
            return connection.execute(sql).fetchall()


@contextmanager
def _bench(url: str, latency: float | None, seed: int, files: int) -> Iterator[_Bench]:
    """A new tree and empty databases; PostgreSQL is reached directly if no latency is given."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for schema in _SCHEMAS:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    with tempfile.TemporaryDirectory() as name, _through(url, latency) as reached:
        folder = Path(name)
        data.notes(folder / "tree", files, seed=seed)
        yield _Bench(folder, url, reached, latency, files)


@contextmanager
def _through(url: str, latency: float | None) -> Iterator[str]:
    if latency is None:
        yield url
        return
    with WireProxy(url, latency_ms=latency) as proxy:
        yield proxy.url


def _mishaps() -> list[Mishap]:
    return [
        ("not UTF-8", False, lambda path: path.write_bytes(path.read_bytes() + "d\xe9j\xe0 vu".encode("latin-1"))),
        ("unreadable since", True, partial(os.chmod, mode=0)),
    ]
