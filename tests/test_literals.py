"""Small parameters are literals within a statement: whatever they contain, they are stored and found as they are."""

from __future__ import annotations

import polars as pl
import psycopg
import pytest

import entityframes as ef
from entityframes.engines.postgres.literals import MOST_BYTES, literals
from tests.conftest import execute

ODD = [
    "it's", "''", "\\", "\\'", "a\\\\'b", '"', '\\"', "{", "}", "{a,b}", "NULL", "null", "$1", "$12 $$ $a$", "{schema}",
    "{columns}", "E'x'", "-- x", "/* x", ";", "\n\r\t\x01", " ", "x ", "\\x41", "\\n", "\\u0041", "%s", "é", "e\u0301", "\U0001f600",
    "'); DROP SCHEMA entityframes CASCADE; --", "\\'); DROP SCHEMA entityframes CASCADE; --",
]  # fmt: skip


def check(store: ef.EntityStore, ids: list[str]) -> None:
    frame = pl.DataFrame({"entity_type": "t", "id": ids, "content": ids, "metadata": [{"text": id} for id in ids]})
    assert store.upsert(frame, progress=False).counts["created"] == len(ids)
    assert store.upsert(frame, progress=False).counts["unchanged"] == len(ids)
    assert store.upsert(frame.with_columns(content=pl.col("id") + "'\\"), progress=False).counts["updated"] == len(ids)
    found = store.get(frame)
    assert found["id"].to_list() == ids
    assert found["content"].to_list() == [id + "'\\" for id in ids]
    assert store.read("t").sort("id")["text"].to_list() == sorted(ids)
    for id in ids:
        entity = store.get_entity("t", id)
        assert entity is not None
        assert (entity["id"], entity["content"], entity["metadata"]) == (id, id + "'\\", {"text": id})
        assert store.upsert_entity("t", id, id, {"text": id[::-1]})["status"] == "updated"
        assert store.get_entity("t", id)["metadata"] == {"text": id[::-1]}
    assert store.delete(frame.head(3)).counts["deleted"] == 3
    assert store.exists(frame)["exists"].to_list() == [False] * 3 + [True] * (len(ids) - 3)


def test_odd_texts(store: ef.EntityStore) -> None:
    check(store, ODD)
    assert store.verify().is_empty()


@pytest.mark.parametrize("setting", ["off", "on"])
def test_whether_or_not_strings_conform_to_the_standard(postgres_url: str, setting: str) -> None:
    """Behind a pooler, another client may have changed this setting."""
    binary = [text.encode() for text in ODD] + [b"\0\xff'\\", b"", None]
    arrays = [pl.Series([*ODD, None, ""]), pl.Series(binary), pl.Series([True, None, False]), pl.Series([1, None, -2])]
    types = ["text[]", "bytea[]", "boolean[]", "int8[]"]
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"SET standard_conforming_strings = {setting}")
        for text in (*ODD, None, True, 5):
            written = literals([text])
            assert written is not None
            (found,) = connection.execute(f"SELECT {written['1']}::text").fetchone() or ()
            assert found == {True: "true", 5: "5"}.get(text, text)
        written = literals(arrays)
        assert written is not None
        columns = ", ".join(f"{written[str(number)]}::{name}" for number, name in enumerate(types, 1))
        found = connection.execute(f"SELECT {columns}").fetchone() or ()
        assert [list(values) for values in found] == [values.to_list() for values in arrays]


def test_sizes_around_the_limit(store: ef.EntityStore) -> None:
    """A text just below and above the size up to which parameters are literals."""
    for size in (MOST_BYTES // 2, MOST_BYTES - 1, MOST_BYTES, MOST_BYTES + 1, 3 * MOST_BYTES):
        text = "'\\" * (size // 2)
        assert store.upsert_entity("t", f"'{size}", text)["status"] == "created"
        assert store.get_entity("t", f"'{size}")["content"] == text


def test_a_table(engine: str, url: str) -> None:
    """The same for the keys and texts of a table."""
    frame = pl.DataFrame({"id": ODD, "text": ODD})
    with ef.create_table(url, "odd", frame, key="id") as table:
        assert table.upsert(frame, progress=False).counts["created"] == len(ODD)
        assert table.get(frame)["text"].to_list() == ODD
        assert table.upsert(frame, progress=False).counts["unchanged"] == len(ODD)
        assert table.delete(frame.head(2)).counts["deleted"] == 2
        assert table.exists(frame)["exists"].to_list() == [False] * 2 + [True] * (len(ODD) - 2)


def test_a_table_whose_names_look_like_parameters(engine: str, url: str) -> None:
    """Names of the user are placeholders of statements that have parameters too."""
    frame = pl.DataFrame({"$1": ["a", "b"], "{schema}": ["c", "d"], "it's $2": [1, 2]})
    with ef.create_table(url, '"odd $3 {key}"', frame, key="$1") as table:
        assert table.upsert(frame, progress=False).counts["created"] == 2
        assert table.read().sort("$1").rows() == [("a", "c", 1), ("b", "d", 2)]
        assert table.delete(frame.head(1)).counts["deleted"] == 1
        assert table.get(frame)["{schema}"].to_list() == [None, "d"]


@pytest.mark.slow
@pytest.mark.postgresql
@pytest.mark.parametrize("content", ["s3cr3t", "s3cr3t': s3cr3t", "s3cr3t\nDETAIL: Query was: s3cr3t"])
def test_a_lost_connection_does_not_quote_values(postgres_url: str, content: str) -> None:
    """The driver's error has the statement, and with it the values."""
    with ef.connect(postgres_url) as store:
        store.upsert_entity("t", "a", "x")
        execute(
            postgres_url,
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'",
            "CREATE TRIGGER die BEFORE UPDATE ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION die()",
        )
        frame = pl.DataFrame({"entity_type": ["t"], "id": ["a"], "content": [content]})
        row = store.upsert(frame, progress=False).outcomes.row(0, named=True)
        assert (row["status"], row["error_kind"]) in (("failed", "connection"), ("unknown", "connection"))
        assert "s3cr3t" not in row["error"]
        assert "terminat" in row["error"] or "closed" in row["error"]
