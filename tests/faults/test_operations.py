"""The procedures that the guide describes for operators: dumps, and logical replication to another server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import entityframes as ef
from tests.faults.invariants import rows
from tests.faults.servers import Server, wait_until


def program(server: Server, name: str, *words: str) -> None:
    subprocess.run([server._bin / name, *words], check=True, capture_output=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["custom", "plain"])
def test_a_dump_is_a_store(own_server: Server, database: str, own_store, tmp_path: Path, kind: str) -> None:
    """pg_dump of the schema, including pgvector's vectors, restored elsewhere: consistent, searchable, and writable."""
    store = own_store()
    store.upsert(rows(300))
    store.embed(ef.HashingEmbedder(16))
    ef.DirectorySync(store, tmp_path, name="notes").export_files()
    dump, copy = tmp_path / "dump", f"copy_{database}"
    own_server.sql(f"CREATE DATABASE {copy}")
    try:
        program(own_server, "pg_dump", "-F", kind, "-f", str(dump), own_server.url(database))
        if kind == "custom":
            program(own_server, "pg_restore", "-d", own_server.url(copy), str(dump))
        else:
            program(own_server, "psql", "-v", "ON_ERROR_STOP=1", "-f", str(dump), own_server.url(copy))
        with ef.connect(own_server.url(copy)) as restored:
            assert restored.verify().is_empty()
            assert restored.scan().collect().sort("id").equals(store.scan().collect().sort("id"))
            assert restored.stats().equals(store.stats())
            query = ef.HashingEmbedder(16).embed(["text 7"])[0]
            assert restored.search(query, k=3)["id"].equals(store.search(query, k=3)["id"])
            assert restored.upsert(rows(300)).counts["unchanged"] == 300
            assert restored.upsert(rows(20, "new")).ok
            assert restored.embed(ef.HashingEmbedder(16)).counts["embedded"] == 20
            assert ef.DirectorySync(restored, tmp_path, name="notes").sync().ok
            assert restored.verify().is_empty()
    finally:
        own_server.sql(f"DROP DATABASE {copy} WITH (FORCE)")


@pytest.fixture
def subscriber() -> Iterator[Server]:
    """A second server."""
    server = Server({"wal_level": "logical"})
    server.sql("CREATE DATABASE app")
    yield server
    server.stop()


@pytest.fixture
def publisher() -> Iterator[Server]:
    """A server that publishes."""
    server = Server({"wal_level": "logical"})
    server.sql("CREATE DATABASE app")
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.postgresql
def test_logical_replication(publisher: Server, subscriber: Server) -> None:
    """As shown in the guide: a space created later is replicated, because partitions are published as their parent."""
    with ef.connect(publisher.url("app")) as store, ef.connect(subscriber.url("app")) as copy:
        store.upsert(rows(50))
        store.embed(ef.HashingEmbedder(16))
        # Otherwise the rows of the subscriber's own format would be duplicated.
        names = (
            "entities, batches, embedding_jobs, spaces, embeddings, passages, metadata_fields, folders, files, renames"
        )
        tables = ", ".join(f"entityframes.{name}" for name in names.split(", "))
        publisher.sql(
            f"CREATE PUBLICATION store FOR TABLE {tables} WITH (publish_via_partition_root = true)",
            "ALTER TABLE entityframes.renames REPLICA IDENTITY FULL",
            database="app",
        )
        defaults = [
            f"CREATE TABLE entityframes.{name}_default PARTITION OF entityframes.{name} DEFAULT"
            for name in ("embeddings", "passages")
        ]
        column = "ALTER TABLE entityframes.embeddings ADD COLUMN IF NOT EXISTS pgvector vector"
        subscriber.sql("CREATE EXTENSION IF NOT EXISTS vector", column, *defaults, database="app")
        source = f"host=127.0.0.1 port={publisher.port} user=postgres dbname=app"
        subscriber.sql(f"CREATE SUBSCRIPTION store CONNECTION '{source}' PUBLICATION store", database="app")
        total = (
            "SELECT (SELECT count(*) FROM entityframes.embeddings)::int4, "
            "(SELECT count(*) FROM entityframes.passages)::int4"
        )
        for space in ("", "later"):
            if space:
                store.embed(ef.HashingEmbedder(32), space=space)
                store.upsert(rows(20, "changed"))
                store.delete(rows(5, start=40))
            wanted = publisher.sql(total, database="app")
            wait_until(lambda wanted=wanted: subscriber.sql(total, database="app") == wanted, "the vectors")
        last = "SELECT count(*)::int4 FROM entityframes.entities WHERE content LIKE 'changed%'"
        wait_until(lambda: subscriber.sql(last, database="app") == [(20,)], "the entities")
        wait_until(lambda: copy.stats()["entities"].sum() == 45, "the deletions")
        assert copy.verify().is_empty()
        assert copy.scan().collect().sort("id").equals(store.scan().collect().sort("id"))
        [(state,)] = subscriber.sql("SELECT subenabled FROM pg_subscription", database="app")
        assert state
