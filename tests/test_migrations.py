"""Stores of earlier formats, and of the shapes before their statements were pinned, are migrated completely."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines import queries
from entityframes.engines.base import FORMAT
from tests.conftest import ENGINES, execute

FOLDERS = {"duckdb": "duckdb", "postgresql": "postgres"}

#: SHA-256 of the statements of each migration, without their comments.
PINNED: dict[str, list[str]] = {
    "duckdb": [
        "6eeda87699c408e1a854d708658d30834818eeaff129a9475d23fda8bd3aa05b",
        "99ba1daa52e509a8640934902282611d66cb8fe98cb5933d3b16fcd4647f44d2",
        "ec8225fa4f61e38d70cdce57ca450999160d51b17e3d90bba0c00aeb9c41a177",
        "0c23b3656a99de3e2d3ef5fe321ce5e6bd6d790134cf08f0efe27ffe10ce6f0c",
        "b2a1c953306c3a3679113e5c80500d744fe98de59f1169d7f9b31220aece35e4",
        "0513d48444756d8fe260eb9f10e39258eedfffc5b3da53c801f3fb582ba8ea0c",
    ],
    "postgresql": [
        "3c7644715e261976ae333fec4d98a405d8710a8bed5c14ace9ecc756cbb6688a",
        "51398568f51f1733a710e5e5ef43ee26b6d9866c850006be7f4f1833c51bc9ea",
        "6960cec3a8ced3be938479b21f8856c043661d50b9ff1a7cff89c11b94f92620",
        "0c23b3656a99de3e2d3ef5fe321ce5e6bd6d790134cf08f0efe27ffe10ce6f0c",
        "2e59acfe943aa50888b6cb04391b62cb1b6540209a01e09624dddd9319395f0b",
        "83b1b805147aa9c4226738aa46568fa23005b7d9af72a3088e5ce067e03b383e",
    ],
}

#: The differences of a shape, as edits of the pinned statements: text to remove and text to insert instead.
_BEFORE_SPACES = {
    "duckdb": [
        ("    batch_id     UUID,\n    space        VARCHAR,\n", "    batch_id     UUID NOT NULL,\n"),
        ("    rescues      INTEGER NOT NULL DEFAULT 0,\n    fence        INTEGER NOT NULL DEFAULT 0,\n", ""),
        ("    worker       VARCHAR,\n    lease_until  TIMESTAMPTZ,\n", ""),
        (
            "embedded_at  TIMESTAMPTZ NOT NULL\n",
            "embedded_at  TIMESTAMPTZ NOT NULL,\n PRIMARY KEY (space, entity_type, id)\n",
        ),
    ],
    "postgresql": [
        ('    batch_id     uuid,\n    space        text COLLATE "C",\n', "    batch_id     uuid NOT NULL,\n"),
        ("    rescues      int4 NOT NULL DEFAULT 0,\n    fence        int4 NOT NULL DEFAULT 0,\n", ""),
        ("    worker       text,\n    lease_until  timestamptz,\n", ""),
        (
            "    vector       bytea,\n    PRIMARY KEY (entity_type, id, space)\n) PARTITION BY LIST (space)",
            "PRIMARY KEY (space, entity_type, id)\n)",
        ),
        ("CREATE INDEX open_jobs ON {schema}.embedding_jobs (created_at) WHERE state IN ('pending', 'running');\n", ""),
    ],
}
_BEFORE_DUE = {
    "duckdb": [
        ("    deleted    INTEGER NOT NULL,\n", "    deleted    INTEGER NOT NULL\n"),
        ("    due        INTEGER NOT NULL DEFAULT 0\n", ""),
    ],
    "postgresql": [
        ("    deleted    int4 NOT NULL,\n", "    deleted    int4 NOT NULL\n"),
        ("    due        int4 NOT NULL DEFAULT 0\n", ""),
    ],
}
_BEFORE_DEFAULTS = {
    "duckdb": [
        ("position    BIGINT NOT NULL,", "position    BIGINT NOT NULL DEFAULT nextval('{schema}.field_positions'),")
    ],
    "postgresql": [
        ("_at    timestamptz NOT NULL DEFAULT now()", "_at    timestamptz NOT NULL"),
        ("embedded_at  timestamptz NOT NULL DEFAULT now()", "embedded_at  timestamptz NOT NULL"),
        ("ALTER TABLE {schema}.embedding_jobs ALTER ids SET STORAGE EXTERNAL;\n", ""),
    ],
}

#: DuckDB's format 3 before keys were found by hash, and before the keys of jobs had a separate table.
_BEFORE_HASHES = [
    ("    key_hash      UBIGINT NOT NULL,\n", ""),
    ("SELECT *, hash(entity_type, id) AS key_hash FROM", "FROM"),
    ("CREATE TABLE {schema}.hashed_by (version VARCHAR NOT NULL);\n", ""),
    ("INSERT INTO {schema}.hashed_by VALUES (version());\n", ""),
]
_JOB_KEYS = """CREATE TABLE {schema}.job_keys (
    job_id      UUID NOT NULL,
    entity_type VARCHAR NOT NULL,
    id          VARCHAR NOT NULL
);
INSERT INTO {schema}.job_keys SELECT job_id, unnest(entity_types), unnest(ids) FROM {schema}.embedding_jobs;
"""
_JOB_TEXTS = [
    (_JOB_KEYS, ""),
    (
        "    -- The job under which its keys are listed; jobs of several spaces share them.\n    keys_of      UUID NOT NULL,\n",
        "    entity_types VARCHAR NOT NULL USING COMPRESSION zstd,\n    ids VARCHAR NOT NULL USING COMPRESSION zstd,\n",
    ),
    (
        "SELECT * EXCLUDE (entity_types, ids), job_id AS keys_of, ",
        "SELECT * REPLACE (array_to_string(entity_types, chr(0)) AS entity_types, array_to_string(ids, chr(0)) AS ids), ",
    ),
]
_JOB_LISTS = [
    (_JOB_KEYS, ""),
    ("CREATE TABLE {schema}.embedding_jobs_3 (", "CREATE TEMPORARY TABLE embedding_jobs_3 ("),
    ("INSERT INTO {schema}.embedding_jobs_3", "INSERT INTO embedding_jobs_3"),
    ("DROP TABLE {schema}.embedding_jobs;\nALTER TABLE {schema}.embedding_jobs_3 RENAME TO embedding_jobs;\n", ""),
]
_VECTORS_DEFAULT = ("ALTER TABLE {schema}.embeddings ALTER COLUMN embedded_at SET DEFAULT now();\n", "")

#: Name -> engine -> edits of each migration, and the format at which the store was created.
SHAPES = {
    "format 1": (1, {engine: {} for engine in ENGINES}),
    "format 2": (2, {engine: {} for engine in ENGINES}),
    "format 3": (3, {engine: {} for engine in ENGINES}),
    "format 4": (4, {engine: {} for engine in ENGINES}),
    "format 5": (5, {engine: {} for engine in ENGINES}),
    "the first": (
        1,
        {engine: {1: _BEFORE_SPACES[engine] + _BEFORE_DUE[engine] + _BEFORE_DEFAULTS[engine]} for engine in ENGINES},
    ),
    "with embeddings, without due": (1, {engine: {1: _BEFORE_DUE[engine]} for engine in ENGINES}),
    "with due, without embeddings": (1, {engine: {1: _BEFORE_SPACES[engine]} for engine in ENGINES}),
    "the first, at format 3": (
        3,
        {engine: {1: _BEFORE_SPACES[engine] + _BEFORE_DUE[engine] + _BEFORE_DEFAULTS[engine]} for engine in ENGINES},
    ),
    "vectors without default": (2, {"postgresql": {1: _BEFORE_DEFAULTS["postgresql"], 2: [_VECTORS_DEFAULT]}}),
    "job lists": (3, {"duckdb": {3: _BEFORE_HASHES + _JOB_LISTS}}),
    "job texts": (3, {"duckdb": {3: _BEFORE_HASHES + _JOB_TEXTS}}),
    "job texts and hashes": (3, {"duckdb": {3: _JOB_TEXTS}}),
}
CASES = [(name, engine) for name, (_, edits) in SHAPES.items() for engine in edits]
#: The shapes with the most changes, for tests that start processes; and those with all changes or only the last.
FEW = [case for case in CASES if case[0] in ("format 1", "format 2", "the first", "job lists")]
FEWEST = [case for case in FEW if case[0] in ("the first", "job lists")]


def _statements(engine: str, number: int, edits: list[tuple[str, str]]) -> list[str]:
    """The statements of a migration with some text replaced."""
    body = queries.Statements(FOLDERS[engine], "entityframes")[f"migrate_{number}"]
    for old, new in edits:
        old, new = (text.replace("{schema}", '"entityframes"') for text in (old, new))
        assert old in body, f"migrate_{number} of {engine} has no {old!r}"
        body = body.replace(old, new)
    return body.split(";\n")


def _run(url: str, *statements: str) -> None:
    if url.startswith("postgresql"):
        execute(url, *statements)
        return
    with duckdb.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)


def _first_rows(engine: str, spaces: bool, due: bool) -> list[str]:
    """Two entities, their batch, its pending job, and the vector of one of them, if there are spaces."""
    hash_of = "unhex(sha256({}))" if engine == "duckdb" else "sha256({}::bytea)"
    # PostgreSQL assigns the position of a field itself.
    place = ("position, ", "1, ") if engine == "duckdb" else ("", "")
    one, metadata = "'00000000-0000-0000-0000-000000000001'", "'{\"n\":1}'"
    entities = ", ".join(
        f"('note', '{key}', '{text}', {metadata}, {hash_of.format(repr(text))}, {hash_of.format(metadata)}, {one}, now(), now())"
        for key, text in (("a", "text of a"), ("b", "text of b"))
    )
    rows = [
        "INSERT INTO entityframes.batches (batch_id, run_id, written_at, created, updated, deleted"
        f"{', due' if due else ''}) VALUES ({one}, {one}, now(), 2, 0, 0{', 2' if due else ''})",
        "INSERT INTO entityframes.entities (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id, "
        f"created_at, updated_at) VALUES {entities}",
        f"INSERT INTO entityframes.metadata_fields (entity_type, field, {place[0]}dtype, declared) "
        f"VALUES ('note', 'n', {place[1]}'\"Int64\"', false)",
        "INSERT INTO entityframes.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at) "
        f"VALUES ({one}, {one}, ARRAY['note', 'note'], ARRAY['a', 'b'], now(), now())",
    ]
    return rows + (_vector(engine, hash_of.format("'text of a'")) if spaces else [])


def _vector(engine: str, content_hash: str) -> list[str]:
    vector = np.asarray(ef.HashingEmbedder(16).embed(["text of a"]), np.float32)[0]
    space = "'hashing-16', 'hashing-16', 16"
    row = f"'hashing-16', 'note', 'a', {content_hash}, now()"
    if engine == "duckdb":
        return [
            "ALTER TABLE entityframes.embeddings ADD COLUMN vector_16 FLOAT[16]",
            f"INSERT INTO entityframes.spaces (space, model, dim, activated_at, created_at) VALUES ({space}, now(), now())",
            "INSERT INTO entityframes.embeddings (space, entity_type, id, content_hash, embedded_at, vector_16) "
            f"VALUES ({row}, {vector.tolist()}::FLOAT[16])",
        ]
    wire = (16).to_bytes(2, "big") + bytes(2) + vector.astype(">f4").tobytes()
    return [
        "INSERT INTO entityframes.spaces (space, model, dim, storage, activated_at, created_at) "
        f"VALUES ({space}, 'vector', now(), now())",
        "CREATE TABLE entityframes.embeddings_1 PARTITION OF entityframes.embeddings FOR VALUES IN ('hashing-16')",
        "INSERT INTO entityframes.embeddings (space, entity_type, id, content_hash, embedded_at, vector) "
        f"VALUES ({row}, '\\x{wire.hex()}')",
    ]


def make(name: str, engine: str, url: str) -> None:
    """Create a store as an earlier version left it."""
    made_at, edits = SHAPES[name]
    of_one = edits[engine].get(1, [])
    spaces = of_one[: len(_BEFORE_SPACES[engine])] != _BEFORE_SPACES[engine]
    due = not set(_BEFORE_DUE[engine]) & set(of_one)
    _run(url, "CREATE SCHEMA entityframes")
    if engine == "duckdb" and set(_BEFORE_DEFAULTS[engine]) & set(of_one):
        _run(url, "CREATE SEQUENCE entityframes.field_positions")
    create_spaces = 'CREATE TABLE "entityframes".spaces'
    for number in range(1, made_at + 1):
        statements = _statements(engine, number, edits[engine].get(number, []))
        _run(url, *[text for text in statements if spaces or not text.startswith(create_spaces)])
        if number == 1:
            _run(url, *_first_rows(engine, spaces, due))
        if number == 2:
            zero = "'\\x00'" if engine == "postgresql" else "'\\x00'::BLOB"
            _run(
                url,
                "INSERT INTO entityframes.files VALUES "
                f"('/folder', 'note/a.md', 'note', 'a', 1, 1, {zero}, {zero}, {zero}, {zero}, now())",
            )


def check(url: str, tmp_path: Path) -> None:
    """All that the store contained is there, is consistent, and can be used."""
    with ef.connect(url) as store:
        assert store.verify().rows() == []
        assert store.read("note").sort("id")["content", "n"].rows() == [("text of a", 1), ("text of b", 1)]
        again = ef.entities(
            pl.DataFrame({"id": ["a", "b"], "t": ["text of a", "more"], "n": [1, 1]}), "note", id="id", content="t"
        )
        assert store.upsert(again, progress=False).outcomes["status"].to_list() == ["unchanged", "updated"]
        # Rows that are copied, and not merged, get missing values from the column defaults.
        many = pl.DataFrame({"entity_type": "new", "id": [f"{n}" for n in range(3_000)], "content": "x"})
        assert store.upsert(many, embed=False, progress=False).counts["created"] == 3_000
        store.embed(ef.HashingEmbedder(16), progress=False)
        assert store.search("text of a", entity_type="note", k=1)["id"].to_list() == ["a"]
        assert store.search("more", entity_type="note", mode="text")["id"].to_list() == ["b"]
        assert store.stats().filter(entity_type="note")["embedded", "due"].rows() == [(2, 0)]
        assert store.jobs().filter(~pl.col("state").is_in(["done"])).rows() == []
        store.delete(many)
        (tmp_path / "folder").mkdir(parents=True)
        assert ef.DirectorySync(store, tmp_path / "folder").export_files().counts["exported"] == 2
        assert store.delete(ef.ids("note", ["a"])).counts["deleted"] == 1
        assert store.verify().rows() == []


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The address of an empty database on an engine."""

    def of(engine: str) -> str:
        return str(tmp_path / "store.duckdb") if engine == "duckdb" else request.getfixturevalue("empty_postgres_url")

    return of


@pytest.mark.parametrize("engine", ENGINES)
def test_a_released_migration_is_not_edited(engine: str) -> None:
    """Stores were created with it: any change is a separate migration."""
    statements = queries.Statements(FOLDERS[engine], "entityframes")
    landed = [hashlib.sha256(statements[f"migrate_{n}"].encode()).hexdigest() for n in range(1, FORMAT + 1)]
    for number, (now, pinned) in enumerate(itertools.zip_longest(landed, PINNED[engine]), 1):
        assert pinned is not None, f"migrate_{number} is new: pin {now} in this test"
        assert now == pinned, (
            f"migrate_{number} of {FOLDERS[engine]} was edited. Existing stores would silently differ from new "
            f"ones: restore it, and add migrate_{FORMAT + 1} with the change"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), CASES)
def test_stores_of_earlier_shapes_are_migrated(name: str, engine: str, place, tmp_path: Path) -> None:
    """Their contents are kept, and all features of the store work."""
    url = place(engine)
    make(name, engine, url)
    ef.connect(url).close()
    check(url, tmp_path)
    rows = "SELECT version FROM entityframes.format ORDER BY version"
    if engine == "postgresql":
        versions = execute(url, rows)
    else:
        with duckdb.connect(url) as connection:
            versions = connection.execute(rows).fetchall()
    assert versions == [(number,) for number in range(1, FORMAT + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_vectors_of_entities_become_those_of_texts(engine: str, place) -> None:
    """Nothing is embedded again: equal texts share a vector, failures and indexes stay, older contents stay due."""
    url = place(engine)
    make("format 5", engine, url)
    digest = "unhex(sha256({}))" if engine == "duckdb" else "sha256({}::bytea)"
    key_hash = (", key_hash", ", hash('note', '{}')") if engine == "duckdb" else ("", "")
    one = "'00000000-0000-0000-0000-000000000001'"
    vector = "vector_16" if engine == "duckdb" else "vector"
    texts = {"equal": "text of a", "failed": "bad text", "changed": "new text", "gone": None}
    embedded = {"equal": "text of a", "failed": "bad text", "changed": "old text", "gone": "text of b"}
    for id, text in texts.items():
        if text is not None:
            _run(
                url,
                "INSERT INTO entityframes.entities (entity_type, id, content, metadata, content_hash, metadata_hash, "
                f"batch_id, created_at, updated_at{key_hash[0]}) SELECT entity_type, '{id}', '{text}', metadata, "
                f"{digest.format(repr(text))}, metadata_hash, batch_id, now(), now(){key_hash[1].format(id)} "
                "FROM entityframes.entities WHERE id = 'a'",
            )
        error, value = ("'it fails'", "NULL") if id == "failed" else ("NULL", vector)
        _run(
            url,
            f"INSERT INTO entityframes.embeddings (space, entity_type, id, content_hash, error, embedded_at, {vector}) "
            f"SELECT space, entity_type, '{id}', {digest.format(repr(embedded[id]))}, {error}, now(), {value} "
            "FROM entityframes.embeddings WHERE id = 'a'",
        )
    _run(url, f"UPDATE entityframes.batches SET created = 5, due = 0 WHERE batch_id = {one}")
    if engine == "postgresql":
        _run(
            url,
            "CREATE EXTENSION IF NOT EXISTS vector",
            "ALTER TABLE entityframes.embeddings ADD COLUMN pgvector vector",
            "UPDATE entityframes.embeddings SET pgvector = ARRAY(SELECT 1 FROM generate_series(1, 16))::real[]::vector "
            "WHERE error IS NULL",
            "UPDATE entityframes.spaces SET storage = 'pgvector'",
            "CREATE INDEX nearest_1 ON entityframes.embeddings_1 USING hnsw ((pgvector::vector(16)) vector_ip_ops)",
        )
    with ef.connect(url) as store:
        assert store.verify().is_empty()
        # b has no vector yet.
        assert store.stats().select("entities", "embedded", "due", "failed").row(0) == (5, 2, 2, 1)
        assert store.search([1.0] * 16, k=5)["id"].to_list() == ["a", "equal"]
        assert store.enqueue("note") == 3
        assert store.embed(ef.HashingEmbedder(16), progress=False).counts["embedded"] == 3
        assert store.stats().select("embedded", "due", "failed").row(0) == (5, 0, 0)
        # The one of the older text; that of a text that was deleted serves another entity.
        assert store.vacuum() == 1
        assert store.verify().is_empty()
    if engine == "postgresql":
        assert execute(url, "SELECT count(*) FROM pg_indexes WHERE indexname = 'nearest_1'") == [(1,)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["the first", "the first, at format 3"])
def test_another_store_in_the_database(name: str, engine: str, place, tmp_path: Path) -> None:
    """A store of the current format in another namespace is not mistaken for the one that is migrated."""
    url = place(engine)
    with ef.connect(url, namespace="other") as store:
        store.upsert(ef.ids("note", ["a"]).with_columns(content=pl.lit("text")), progress=False)
        store.embed(ef.HashingEmbedder(16), progress=False)
    make(name, engine, url)
    check(url, tmp_path)
    with ef.connect(url, namespace="other") as store:
        assert store.verify().rows() == []
        assert store.search("text", k=1)["id"].to_list() == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), FEW)
def test_a_migration_that_is_killed_is_repeated(name: str, engine: str, place, tmp_path: Path) -> None:
    """Case 66: after SIGKILL at its first or last statement nothing is changed; after its COMMIT everything is."""
    url = place(engine)
    make(name, engine, url)
    for when in ("first", "last", "committed"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, url, engine, when], capture_output=True, text=True, timeout=120
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    if engine == "duckdb":
        # The migration is in the log; a copy is replayed from it.
        for suffix in ("", ".wal"):
            if Path(f"{url}{suffix}").exists():
                shutil.copy(f"{url}{suffix}", tmp_path / f"copy.duckdb{suffix}")
        check(str(tmp_path / "copy.duckdb"), tmp_path / "of_copy")
    check(url, tmp_path)


#: Connects, and is killed at the first or last statement of the migration, or when it is committed.
KILLED = """
import os, signal, sys
import entityframes as ef
from entityframes.engines import migrations
from entityframes.engines.base import FORMAT
url, engine, when = sys.argv[1:]
last = f"version) VALUES ({FORMAT})"

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if engine == "postgresql":
    from entityframes.engines.postgres.session import Session
else:
    from entityframes.engines.duckdb.session import Session
real = Session.execute
def run(self, name, *parameters, **more):
    migrates = name.startswith(("reshape_", "migrate_"))
    if migrates and when == "first" and engine == "postgresql" and name != f"migrate_{FORMAT}":
        head, _, _ = self._statement(name, None).partition(";\\n")
        self.connection.script(head)
        die()
    changed = real(self, name, *parameters, **more)
    if when == "first" and migrates or when == "last" and name == f"migrate_{FORMAT}":
        die()
    return changed
Session.execute = run
store = ef.connect(url)
assert when == "committed", when
die()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "engine"), FEWEST)
def test_two_processes_migrate_at_once(name: str, engine: str, place, tmp_path: Path) -> None:
    """Both find it migrated, once; on DuckDB one process at a time has the file, and the other reports that."""
    url = place(engine)
    make(name, engine, url)
    script = (
        "import entityframes as ef, sys\nsys.stdin.read()\n"
        "try:\n    ef.connect(sys.argv[1]).stats()\nexcept ef.ConnectError as error:\n    print(error)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], outputs
    refusals = [out for out, _ in outputs if out]
    assert all("another process" in out for out in refusals), outputs
    assert len(refusals) < 3, outputs
    assert engine == "duckdb" or not refusals, outputs
    check(url, tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shape_that_no_version_made_is_refused(engine: str, place) -> None:
    """The error names what is missing, and the store is left as it is."""
    url = place(engine)
    make("format 2", engine, url)
    _run(url, "ALTER TABLE entityframes.renames DROP COLUMN batch_id", "DROP TABLE entityframes.folders")
    for _ in range(2):
        with pytest.raises(ef.FormatError, match=r"lacks .*folders\.holder.*renames\.batch_id"):
            ef.connect(url)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_without_a_format_is_refused(engine: str, place) -> None:
    """It is not considered a new store."""
    url = place(engine)
    make("format 3", engine, url)
    _run(url, "DELETE FROM entityframes.format")
    with pytest.raises(ef.FormatError, match="has no format number"):
        ef.connect(url)
