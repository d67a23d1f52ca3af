"""Verifying: every kind of corruption, made without the package, is found and, where possible, repaired."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import polars as pl
import pytest

import entityframes as ef
from entityframes.reading.verify import CHECKS, VERIFY_SCHEMA
from tests.command import run

Sql = Callable[..., list]


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    """A store with a history: batches, updates, deletions, typed and JSON metadata, rows without a job."""
    notes = pl.DataFrame(
        {
            "entity_type": "note",
            "id": [f"n{n}" for n in range(40)],
            "content": [f"text {n}" if n % 5 else "" for n in range(40)],
            "metadata": [json.dumps({"n": n, "x": n / 2, "s": "é", "b": None, "mixed": n if n % 2 else [n]}) for n in range(40)],
        }
    )  # fmt: skip
    store.upsert(notes, batch_size=10)
    store.upsert(notes[:15].with_columns(content=pl.lit("changed")), batch_size=4)
    store.upsert(notes[15:25].with_columns(metadata=pl.lit('{"n": 1}')))
    store.delete(notes[30:35])
    store.upsert(notes[33:34].with_columns(content=pl.lit("again")))
    typed = pl.DataFrame({"k": ["a", "b"], "day": ["2026-01-01", "2026-01-02"], "big": [2**60, -1]})
    store.upsert(ef.entities(typed.with_columns(pl.col("day").str.to_date()), "typed", id="k"))
    store.upsert(ef.entities(pl.DataFrame({"k": ["a"], "c": ["no job"]}), "quiet", id="k", content="c"), embed=False)
    return store


def test_a_consistent_store(filled: ef.EntityStore, store: ef.EntityStore) -> None:
    """No rows, and the documented columns; an empty store is consistent too."""
    found = filled.verify()
    assert found.schema == VERIFY_SCHEMA
    assert found.rows() == []
    assert filled.verify(repair=True).rows() == []


def test_an_empty_store_is_consistent(store: ef.EntityStore, sql: Sql) -> None:
    """Before the first batch, and when nothing is left of it."""
    assert store.verify().rows() == []
    store.upsert_entity("note", "a", "text")
    store.delete_entity("note", "a")
    assert store.verify().rows() == []
    sql("DELETE FROM entityframes.batches", "DELETE FROM entityframes.embedding_jobs")
    assert store.verify().rows() == []


def test_what_was_expected_and_found(filled: ef.EntityStore, sql: Sql) -> None:
    """Of entities the hashes of what is stored, and the stored ones."""
    content, metadata = hashlib.sha256(b"tampered").hexdigest(), hashlib.sha256(b'{"n":7}').hexdigest()
    before = filled.get(ef.ids("note", ["n1", "n2"]))
    sql(
        "UPDATE entityframes.entities SET content = 'tampered' WHERE id = 'n1'",
        """UPDATE entityframes.entities SET metadata = '{"n":7}' WHERE id = 'n2'""",
    )
    found = filled.verify().select(pl.col("check").cast(pl.String), "id", "expected", "found").sort("id")
    assert found.rows()[0] == ("content_hash", "n1", content, before["content_hash"][0])
    assert found.rows()[1][:3] == ("metadata_hash", "n2", metadata)
    assert len(found.rows()[1][3]) == 64
    assert found.rows()[1][3] not in (metadata, before["content_hash"][1])


def test_fields_are_in_order(store: ef.EntityStore, sql: Sql) -> None:
    """By type and name, however many there are."""
    names = [f"f{n:02}" for n in range(40)]
    for entity_type in ("z", "a"):
        rows = [{"id": "1", "metadata": json.dumps(dict.fromkeys(reversed(names), "text"))}]
        store.upsert(pl.DataFrame(rows).with_columns(entity_type=pl.lit(entity_type)), progress=False)
    sql("""UPDATE entityframes.metadata_fields SET dtype = '"Int64"'""")
    found = store.verify().select("entity_type", "field", pl.col("check").cast(pl.String)).rows()
    assert found == [(entity_type, name, "field_kind") for entity_type in "az" for name in names]


def test_vectors_of_a_space_beside_another(filled: ef.EntityStore, sql: Sql) -> None:
    """Only those of the space that is gone are found, and deleted."""
    filled.embed(ef.HashingEmbedder(8), progress=False)
    filled.embed(ef.HashingEmbedder(16), space="other", progress=False)
    embedded = dict(filled.spaces().select(pl.col("space") == "other", "embedded").rows())
    # Equal texts have one vector.
    vectors = filled.read("note")["content"].n_unique() - 1
    sql("DELETE FROM entityframes.spaces WHERE space <> 'other'")
    found = filled.verify(repair=True)
    assert found["check"].cast(pl.String).to_list() == ["vector_space"]
    assert found["found"].to_list() == [f"{vectors} vectors, {embedded[False]} passages without one"]
    assert filled.verify().rows() == []
    assert filled.spaces()["embedded"].to_list() == [embedded[True]]


ONE_JOB = """(SELECT j.job_id::text FROM entityframes.embedding_jobs AS j
    JOIN entityframes.entities AS e ON e.batch_id = j.batch_id WHERE e.id = 'n39')"""

#: Corruptions in SQL (for PostgreSQL, and for DuckDB where it differs), and the checks that find them.
CORRUPTIONS: dict[str, tuple[str, str | None, set[str]]] = {
    "content": ("UPDATE entityframes.entities SET content = 'tampered' WHERE id = 'n1'", None, {"content_hash"}),
    "content hash": (
        "UPDATE entityframes.entities SET content_hash = '\\x00'::bytea WHERE id IN ('n1', 'n2')",
        "UPDATE entityframes.entities SET content_hash = '\\x00'::BLOB WHERE id IN ('n1', 'n2')",
        {"content_hash"},
    ),
    "metadata": (
        """UPDATE entityframes.entities SET metadata = '{"n":7}' WHERE id = 'n2'""", None, {"metadata_hash"}
    ),
    "a batch": (
        "DELETE FROM entityframes.batches WHERE batch_id = (SELECT batch_id FROM entityframes.entities WHERE id = 'n39')",
        None,
        {"ledger", "ledger_balance", "job_batch"},
    ),
    "counts": ("UPDATE entityframes.batches SET created = 0 WHERE created > 0", None, {"ledger_count", "ledger_balance"}),
    "counts of updates": ("UPDATE entityframes.batches SET updated = 0 WHERE updated > 0", None, {"ledger_count"}),
    "a deletion": ("DELETE FROM entityframes.entities WHERE id = 'n7'", None, {"ledger_balance"}),
    "a job": (f"DELETE FROM entityframes.embedding_jobs WHERE job_id::text = {ONE_JOB}", None, {"job_missing"}),
    "a job's lists": (
        f"UPDATE entityframes.embedding_jobs SET ids = ids[1:1] WHERE job_id::text = {ONE_JOB}",
        f"DELETE FROM entityframes.job_keys WHERE id <> 'n1' AND job_id::text = {ONE_JOB}",
        {"job_members", "job_missing"},
    ),
    "a job of no batch": (
        "INSERT INTO entityframes.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at) "
        "SELECT gen_random_uuid(), gen_random_uuid(), entity_types, ids, now(), now() "
        f"FROM entityframes.embedding_jobs WHERE job_id::text = {ONE_JOB}",
        "INSERT INTO entityframes.embedding_jobs (job_id, batch_id, keys_of, entities, created_at, updated_at) "
        "SELECT gen_random_uuid(), gen_random_uuid(), keys_of, entities, now(), now() "
        f"FROM entityframes.embedding_jobs WHERE job_id::text = {ONE_JOB}",
        {"job_batch"},
    ),
    "a vector of no entity": (
        "INSERT INTO entityframes.passages (space, entity_type, id, content_hash, position, start_char, heading, text_hash) "
        "SELECT space, 'note', 'gone', content_hash, 0, 0, '', text_hash FROM entityframes.passages WHERE id = 'n1'",
        None,
        {"passage_entity"},
    ),
    "passages of no vector": ("DELETE FROM entityframes.embeddings WHERE text_hash = (SELECT content_hash FROM "
        "entityframes.entities WHERE id = 'n39')", None, {"passages"}),
    "half of the passages": (
        "UPDATE entityframes.passages SET position = 1 WHERE id IN ('n1', 'n2')", None, {"passages"}
    ),
    "a space": ("DELETE FROM entityframes.spaces", None, {"vector_space"}),
    "a field": ("DELETE FROM entityframes.metadata_fields WHERE field = 's'", None, {"field_missing"}),
    "an inferred dtype": (
        """UPDATE entityframes.metadata_fields SET dtype = '"Int64"' WHERE field = 'x'""", None, {"field_kind"}
    ),
    "an unreadable dtype": (
        "UPDATE entityframes.metadata_fields SET dtype = 'nonsense' WHERE field = 'n'", None, {"field_record"}
    ),
    "a dtype without its parts": (
        """UPDATE entityframes.metadata_fields SET dtype = '{"Array":[]}' WHERE field = 'n'""", None, {"field_record"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_corruption_is_found_and_repaired(filled: ef.EntityStore, sql: Sql, engine: str, what: str) -> None:
    """The first run finds it and changes nothing, --repair repairs it, and then the store is consistent and usable."""
    statement, on_duckdb, expected = CORRUPTIONS[what]
    if expected & {"passage_entity", "passages", "vector_space"}:
        filled.embed(ef.HashingEmbedder(16), progress=False)
    before = filled.stats().rows()
    sql(on_duckdb if engine == "duckdb" and on_duckdb else statement)
    found = filled.verify()
    assert set(found["check"].cast(pl.String)) == expected, found
    assert found["repairable"].all()
    assert not found["repaired"].any()
    assert filled.verify().equals(found)

    assert filled.verify(repair=True)["repaired"].all()
    assert filled.verify().rows() == []
    after = filled.stats().rows()
    assert (
        expected == {"vector_space"}
        or expected == {"passages"}
        or [row[:1] + row[2:3] for row in after] == [row[:1] + row[2:3] for row in before]
    )
    assert filled.upsert_entity("note", "n1", "and on it goes")["status"] == "updated"
    assert set(filled.read("note").columns) >= {"n", "x", "s", "mixed"}
    assert filled.verify().rows() == []


def test_a_key_that_has_two_rows(filled: ef.EntityStore, sql: Sql, engine: str) -> None:
    """DuckDB has no index that prevents it, and an index of PostgreSQL may be corrupt; the last written row is kept."""
    if engine == "postgresql":
        sql("ALTER TABLE entityframes.entities DROP CONSTRAINT entities_pkey")
    key_hash = "key_hash, " if engine == "duckdb" else ""

    def insert(id: str, content: str, updated: str) -> None:
        digest = f"'{hashlib.sha256(content.encode()).hexdigest()}'"
        sql(
            f"INSERT INTO entityframes.entities ({key_hash}entity_type, id, content, metadata, content_hash, "
            f"metadata_hash, batch_id, created_at, updated_at) SELECT {key_hash}entity_type, id, '{content}', metadata, "
            f"{f'unhex({digest})' if engine == 'duckdb' else f'decode({digest}, $$hex$$)'}, "
            f"metadata_hash, batch_id, created_at, updated_at {updated} "
            f"FROM entityframes.entities WHERE id = '{id}' AND content = 'changed'"
        )

    insert("n1", "later", "+ INTERVAL '1 hour'")
    insert("n1", "earlier", "- INTERVAL '1 hour'")
    insert("n2", "earlier", "- INTERVAL '1 hour'")
    insert("n2", "later", "+ INTERVAL '1 hour'")
    insert("n3", "later", "+ INTERVAL '1 hour'")
    found = filled.verify().filter(pl.col("check") == "duplicate_key").sort("id")
    assert found.select("entity_type", "id", "expected", "found").rows() == [
        ("note", "n1", "1 row", "3 rows"), ("note", "n2", "1 row", "3 rows"), ("note", "n3", "1 row", "2 rows")
    ]  # fmt: skip
    filled.verify(repair=True)
    assert filled.verify().rows() == []
    assert [filled.get_entity("note", id)["content"] for id in ("n1", "n2", "n3")] == ["later"] * 3


def test_a_missing_job_next_to_others(store: ef.EntityStore, sql: Sql) -> None:
    """Entities of other types with the same id and content, embedded or in a job, do not hide it or repeat it."""
    store.upsert_entity("embedded", "a", "text")
    store.embed(ef.HashingEmbedder(16), progress=False)
    for kind in ("queued", "lost", "queued too"):
        store.upsert_entity(kind, "a", "text")
    sql(
        "DELETE FROM entityframes.embedding_jobs WHERE batch_id = "
        "(SELECT batch_id FROM entityframes.entities WHERE entity_type = 'lost')"
    )
    found = store.verify()
    assert found.select(pl.col("check").cast(pl.String), "entity_type", "id").rows() == [("job_missing", "lost", "a")]
    assert store.verify(repair=True)["repaired"].all()
    assert store.embed(ef.HashingEmbedder(16), progress=False).counts["embedded"] == 3


def test_what_cannot_be_derived_is_reported(filled: ef.EntityStore, sql: Sql) -> None:
    """Metadata that is not an object, and a value that does not fit its declared dtype, need a human decision."""
    day = '{"big":1,"day":"yesterday"}'
    sql(
        "UPDATE entityframes.entities SET metadata = '[1]' WHERE id = 'n3'",
        f"UPDATE entityframes.entities SET metadata = '{day}' WHERE entity_type = 'typed' AND id = 'b'",
    )
    found = filled.verify(repair=True)
    assert found.select(pl.col("check").cast(pl.String), "id", "field", "repaired").rows() == [
        ("metadata_hash", "n3", None, True),
        ("metadata_hash", "b", None, True),
        ("metadata", "n3", None, False),
        ("field_value", "b", "day", False),
    ]
    assert set(filled.verify()["check"].cast(pl.String)) == {"metadata", "field_value"}


def test_every_check_is_tested(engine: str) -> None:
    """Every check has a corruption that it finds, and every repair has something to repair.

    The one for key_hash, which exists on DuckDB only, is in test_duckdb_keys.py.
    """
    tried = set().union(*(checks for _, _, checks in CORRUPTIONS.values()))
    assert tried | {"metadata", "field_value", "duplicate_key", "key_hash"} == set(CHECKS)
    assert {name for name, can in CHECKS.items() if not can} == {"metadata", "field_value"}


def test_the_command_line(filled: ef.EntityStore, sql: Sql, url: str) -> None:
    """Exit status 0 if the store is consistent, 1 while something is inconsistent; --json for scripts."""

    def verify(*words: str) -> tuple[int, str]:
        if not url.startswith("postgresql:"):
            filled.close()
        ended = run("verify", *words, "--store", url)
        return ended.returncode, ended.stdout + ended.stderr

    sql("UPDATE entityframes.entities SET content = 'tampered' WHERE id = 'n1'")
    code, output = verify("--json")
    assert code == 1
    report = json.loads(output)
    assert (report["ok"], report["counts"], report["inconsistencies"][0]["id"]) == (False, {"content_hash": 1}, "n1")
    code, output = verify()
    assert (code, "1 inconsistency: 1 content_hash" in output, "note/n1" in output) == (1, True, True), output
    code, output = verify("--repair")
    assert (code, "1 repaired" in output) == (0, True), output
    assert verify()[0] == 0
    assert json.loads(verify("--json")[1]) == {"ok": True, "counts": {}, "inconsistencies": []}


def test_a_ledger_that_is_written_again(store: ef.EntityStore, sql: Sql) -> None:
    """The row of a lost batch has the numbers of its entities that were created and updated."""
    frame = pl.DataFrame({"entity_type": "note", "id": [f"n{number}" for number in range(6)], "content": "text"})
    store.upsert(frame.head(5), progress=False)
    store.upsert(frame.tail(3).with_columns(content=pl.lit("changed")), progress=False)
    sql("DELETE FROM entityframes.batches")
    assert store.verify(repair=True)["repaired"].all()
    # The last one balances the entities that were created before they were updated.
    written = sql("SELECT created, updated, deleted FROM entityframes.batches ORDER BY written_at")
    assert written == [(3, 0, 0), (1, 2, 0), (2, 0, 0)]
    assert store.verify().is_empty()
