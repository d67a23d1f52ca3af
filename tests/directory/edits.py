"""Random edits on both sides of a folder, synced in between: no edit may be lost.

`python -m tests.directory.edits --scripts 200 [--tree DIR] [--url URL]` runs many scripts on copies of a folder; the
default tests run a few.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl

import entityframes as ef
from entityframes.directory import markdown

POLICIES = ("report", "files", "store", "newer")
#: Deletions are made by the script itself, so they are intended.
MANY = 10_000


class Script:
    """A random sequence of edits of one folder and one store."""

    def __init__(self, store: ef.EntityStore, root: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.store = store
        self.root = root
        self.folder = ef.DirectorySync(store, root)
        self.written = 0
        #: Bodies written since the last sync, by where: "file" and path, or "entity" and key.
        self.fresh: dict[tuple[str, str], str] = {}
        self.clock = 2_000_000_000_000_000_000

    def run(self, rounds: int) -> None:
        """Edit and sync, and compare the result with what was written."""
        self.folder.import_files(progress=False).raise_for_failures()
        for _ in range(rounds):
            self.fresh.clear()
            for _ in range(self.chance.randrange(1, 8)):
                self.chance.choice(self.edits())()
            self.sync()
        self.sync_until_stable()

    def edits(self) -> list[Callable[[], None]]:
        return [
            self.edit_file, self.edit_file, self.create_file, self.delete_file, self.move_file, self.break_file,
            self.edit_entity, self.edit_entity, self.create_entity, self.delete_entity, self.move_entity,
        ]  # fmt: skip

    # What people do to files.

    def body(self) -> str:
        self.written += 1
        return f"\nversion {self.seed}.{self.written} of something\n"

    def put(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.clock += 1_000_000_000
        os.utime(path, ns=(self.clock, self.clock))

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*.md") if path.is_file())

    def key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def edit_file(self) -> None:
        path = self.chance.choice(self.files())
        header, body = _parts(path.read_bytes())[0], self.body()
        if self.chance.random() < 0.3:
            header = b"---\ntitle: 'anew'\n---\n"
        self.put(path, header + body.encode())
        self.fresh["file", self.key(path)] = body

    def create_file(self) -> None:
        body = self.body()
        path = self.root / self.chance.choice(["note", "docs", "docs/deep"]) / f"new {self.written}.md"
        self.put(path, b"---\nnew: true\n---\n" + body.encode())
        self.fresh["file", self.key(path)] = body

    def delete_file(self) -> None:
        path = self.chance.choice(self.files())
        path.unlink()
        self.fresh.pop(("file", self.key(path)), None)

    def move_file(self) -> None:
        path = self.chance.choice(self.files())
        self.written += 1
        new = path.parent.parent if path.parent != self.root and self.chance.random() < 0.3 else path.parent
        new = new / f"moved {self.written}.md"
        path.rename(new)
        if (body := self.fresh.pop(("file", self.key(path)), None)) is not None:
            self.fresh["file", self.key(new)] = body

    def break_file(self) -> None:
        path = self.chance.choice(self.files())
        body = self.body()
        self.put(path, b"---\nbroken: [\n---\n" + body.encode())
        self.fresh["file", self.key(path)] = body

    # What programs do to entities.

    def entities(self) -> list[tuple[str, str]]:
        return self.store.scan().select("entity_type", "id").sort("entity_type", "id").collect().rows()

    def edit_entity(self) -> None:
        key = self.chance.choice(self.entities())
        body = self.body()
        metadata = self.store.get_entity(*key)["metadata"]
        if self.chance.random() < 0.3:
            metadata["edited"] = self.written
        self.store.upsert_entity(*key, body, metadata)
        self.fresh["entity", "/".join(key)] = body

    def create_entity(self) -> None:
        body = self.body()
        key = (self.chance.choice(["note", "docs"]), f"made {self.written}")
        self.store.upsert_entity(*key, body, {"made": self.written})
        self.fresh["entity", "/".join(key)] = body

    def delete_entity(self) -> None:
        key = self.chance.choice(self.entities())
        self.store.delete_entity(*key)
        self.fresh.pop(("entity", "/".join(key)), None)

    def move_entity(self) -> None:
        key = self.chance.choice(self.entities())
        entity = self.store.get_entity(*key)
        self.written += 1
        new = (key[0], f"renamed {self.written}")
        self.store.upsert_entity(*new, entity["content"], entity["metadata"])
        self.store.delete_entity(*key)
        if (body := self.fresh.pop(("entity", "/".join(key)), None)) is not None:
            self.fresh["entity", "/".join(new)] = body

    # Invariants.

    def sync(self) -> None:
        policy = self.chance.choice(POLICIES)
        delete = self.chance.random() < 0.6
        planned = self.folder.plan(on_conflict=policy, delete=delete, max_delete=MANY)
        result = self.folder.sync(on_conflict=policy, delete=delete, max_delete=MANY, progress=False)
        outcomes = result.outcomes
        assert outcomes["path"].to_list() == planned["path"].to_list()
        assert outcomes["action"].to_list() == planned["action"].to_list(), "the plan was another"
        assert result.counts["cancelled"] == result.counts["unknown"] == 0
        left = self.bodies()
        lost = {where: body for where, body in self.fresh.items() if body not in left}
        assert not lost, f"seed {self.seed}: lost {lost}; {outcomes.filter(pl.col('status') != 'unchanged')}"

    def bodies(self) -> set[str]:
        """All bodies in files of any name, and in the store."""
        found = {_parts(path.read_bytes())[1] for path in self.root.rglob("*") if path.is_file()}
        return found | set(self.store.scan().select("content").collect()["content"])

    def sync_until_stable(self) -> None:
        """At the end, sync until both sides are equal, and verify the store."""
        for path in self.files():
            if b"broken: [" in path.read_bytes():
                path.unlink()
        self.folder.sync(on_conflict="newer", delete=True, max_delete=MANY, progress=False)
        result = self.folder.sync(on_conflict="newer", delete=True, max_delete=MANY, progress=False)
        assert result.counts["unchanged"] == result.rows, result.outcomes.filter(pl.col("status") != "unchanged")
        assert self.store.verify().is_empty()
        in_files = {_parts(path.read_bytes())[1] for path in self.files()}
        assert in_files == set(self.store.scan().select("content").collect()["content"])


def _parts(data: bytes) -> tuple[bytes, str]:
    try:
        document = markdown.parse(data)
    except markdown.MarkdownError:
        body = data.rpartition(b"---\n")[2]
        return data.removesuffix(body), body.decode()
    return document.header, document.content


def make_tree(root: Path, seed: int) -> None:
    """A folder of some thirty notes with front matter."""
    chance = random.Random(seed)
    for number in range(30):
        path = root / chance.choice(["note", "docs", "docs/deep/er", "."]) / f"file {number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        front = f"---\ntitle: 'Number {number}'  # kept\ntags: [a, b]\n---\n" if number % 5 else ""
        path.write_text(f"{front}\nbody {seed}.{number}\n" * (1 if front else 2))


def main() -> None:
    """Run many scripts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--url", help="PostgreSQL; without it DuckDB")
    given = parser.parse_args()
    written = 0
    for seed in range(given.seed, given.seed + given.scripts):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            shutil.copytree(given.tree, root) if given.tree else root.mkdir()
            if not given.tree:
                make_tree(root, seed)
            namespace = f"edits_{seed}"
            with ef.connect(given.url or Path(folder) / "store.duckdb", namespace=namespace) as store:
                script = Script(store, root, seed)
                script.run(given.rounds)
                written += script.written
                if given.url:
                    store._engine.drop()
    print(f"{given.scripts:,} scripts, {written:,} versions written, none lost")


if __name__ == "__main__":
    main()
