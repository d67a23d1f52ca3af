"""Vectors that the caller brings, takes, and compares; on both engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from tests.test_embedding import Recording, notes
from tests.test_passage_spaces import PASSAGES, entity, page

Sql = Callable[..., list[tuple[Any, ...]]]


def with_vectors(frame: pl.DataFrame, dim: int = 8, seed: int = 0) -> pl.DataFrame:
    """Keys with random vectors of any length."""
    rng = np.random.default_rng(seed)
    values = pl.Series("vector", rng.normal(size=(frame.height, dim)), pl.Array(pl.Float64, dim))
    return frame.select("entity_type", "id", values)


def put(store: ef.EntityStore, frame: Any, space: str = "ours", **options: Any) -> ef.EmbedResult:
    return store.put_vectors(frame, space=space, progress=False, **options)


def statuses(result: ef.EmbedResult) -> list[str]:
    return result.outcomes.sort("row")["status"].cast(pl.String).to_list()


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    store.upsert(notes(10), progress=False)
    return store


def test_they_are_stored_and_found(filled: ef.EntityStore) -> None:
    """A space is created with the dimension of the vectors, which are scaled to length 1; nothing is due then."""
    given = with_vectors(notes(10))
    result = put(filled, given.sample(fraction=1.0, shuffle=True, seed=1))
    assert (result.ok, result.space, result.counts["embedded"], result.calls) == (True, "ours", 10, 0)
    assert filled.spaces().select("space", "model", "dim", "embedded", "due").row(0) == ("ours", "ours", 8, 10, 0)
    vectors = given["vector"].to_numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = filled.search(unit[3], k=10)
    assert found["id"].to_list() == [f"n{n:05}" for n in np.argsort(-(unit @ unit[3]))]
    taken = filled.vectors("ours")
    assert taken["id"].to_list() == notes(10)["id"].to_list()
    np.testing.assert_allclose(taken["vector"].to_numpy(), unit, atol=1e-6)
    assert taken.select("start", "end", "heading").row(0) == (0, 6, "")
    assert filled.verify().is_empty()
    # The jobs of the upsert have nothing to do.
    named = Recording(8)
    named.name = "ours"
    assert filled.embed(named, progress=False).rows == 0
    assert named.calls == []


def test_rows_that_fail(filled: ef.EntityStore) -> None:
    """Each for its own reason; the others are stored."""
    vectors: list[Any] = [
        [1.0, 2.0],
        [1.0, 2.0, 3.0],
        [float("nan"), 1.0],
        [float("inf"), 1.0],
        [0.0, 0.0],
        None,
        [1.0, None],
    ]
    given = notes(9).select(
        pl.when(pl.int_range(pl.len()) == 7).then(pl.lit(None)).otherwise("entity_type").alias("entity_type"),
        pl.when(pl.int_range(pl.len()) == 8).then(pl.lit("absent")).otherwise("id").alias("id"),
        vector=pl.Series([*vectors, [1.0, 1.0], [1.0, 1.0]], dtype=pl.List(pl.Float64)),
    )
    result = put(filled, given)
    assert statuses(result) == ["embedded", *["failed"] * 7, "skipped"]
    errors = result.outcomes.sort("row")["error"].to_list()
    expected = ["3 dimensions, the space has 2", "NaN", "infinity", "zeros", "null", "null", "key", "not stored"]
    assert [part in error for part, error in zip(expected, errors[1:], strict=True)] == [True] * 8, errors
    assert set(result.failed["error_kind"].cast(pl.String)) == {"validation"}
    assert filled.stats().select("embedded", "due").row(0) == (1, 9)


def test_a_hash_that_is_given(filled: ef.EntityStore) -> None:
    """The vector is stored for this text only: not for a later one."""
    read = filled.read("note").with_columns(entity_type=pl.lit("note"))
    given = with_vectors(read).with_columns(read["content_hash"])
    filled.upsert(notes(3, "new"), progress=False)
    result = put(filled, given)
    assert statuses(result) == ["skipped"] * 3 + ["embedded"] * 7
    assert "hash" in result.outcomes["error"][0]
    assert filled.vectors()["id"].to_list() == given["id"][3:].to_list()
    assert put(filled, with_vectors(notes(3))).counts["embedded"] == 3
    assert filled.stats()["due"].to_list() == [0]


def test_they_replace_earlier_ones(filled: ef.EntityStore, sql: Sql) -> None:
    """Also an error of the text, and of other entities with the same text."""
    filled.upsert(pl.concat([notes(1, "poison"), notes(1).with_columns(entity_type=pl.lit("copy"))]), progress=False)
    filled.upsert(notes(1, "poison").with_columns(entity_type=pl.lit("copy")), progress=False)
    assert filled.embed(Recording(), progress=False).counts["failed"] == 2
    given = with_vectors(notes(2), 16)
    assert put(filled, given, "hashing-16").counts["embedded"] == 2
    assert filled.stats().select("entity_type", "embedded", "failed").rows() == [("copy", 1, 0), ("note", 10, 0)]
    found = filled.search(given["vector"][0].to_list(), k=3)
    assert found.select("entity_type", "id").rows()[:2] == [("copy", "n00000"), ("note", "n00000")]
    assert found["score"][:2].to_list() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert sql("SELECT count(*) FROM entityframes.embeddings") == [(10,)]
    assert filled.verify().is_empty()


def test_taken_from_one_store_and_brought_to_another(filled: ef.EntityStore, tmp_path: Any) -> None:
    """With their hashes, as they were."""
    filled.embed(Recording(), progress=False)
    with ef.connect(tmp_path / "other.duckdb") as other:
        other.upsert(notes(10), progress=False)
        assert put(other, filled.vectors(), "hashing-16").counts["embedded"] == 10
        assert other.vectors().equals(filled.vectors())
        assert (
            other.search("text 3", k=3)
            .drop("created_at", "updated_at")
            .equals(filled.search("text 3", k=3).drop("created_at", "updated_at"))
        )


def test_vectors_of_passages(store: ef.EntityStore) -> None:
    """They need the place of the passage; an entity is embedded once the last of its passages has a vector."""
    store.upsert(pl.concat([entity(page(20, seed=n), f"n{n}") for n in range(3)]), progress=False)
    store.embed(Recording(), passages=PASSAGES, progress=False)
    taken = store.vectors()
    space = store.spaces()["space"][0]
    contents = {f"n{n}": page(20, seed=n) for n in range(3)}
    assert taken.select("id", "start", "end", "heading").rows() == [
        (id, one.start, one.end, one.heading) for id, text in contents.items() for one in PASSAGES.cut(text)
    ]
    store.delete(ef.ids("page", ["n0", "n1", "n2"]))
    store.vacuum()
    store.upsert(pl.concat([entity(text, id) for id, text in contents.items()]), embed=False, progress=False)
    with pytest.raises(ef.SpaceError, match="start and end"):
        put(store, taken.drop("start"), space)
    half = taken[: taken.height // 2]
    assert put(store, half, space).counts["embedded"] == half.height
    assert store.stats().select("embedded", "due").row(0) == (1, 2)
    wrong = taken.with_columns(end=pl.col("end") - 1)
    assert put(store, wrong, space).counts["failed"] == taken.height
    assert put(store, taken[taken.height // 2 :], space).ok
    assert store.stats().select("embedded", "due").row(0) == (3, 0)
    assert store.vectors().equals(taken)
    assert store.verify().is_empty()


def test_frames_that_are_refused(filled: ef.EntityStore) -> None:
    """Before anything is written; no space is created."""
    given = with_vectors(notes(3))
    for frame, message in (
        (given.drop("vector"), "vector"),
        (given.with_columns(vector=pl.lit("text")), "vector"),
        (given.drop("id"), "id"),
        (given.with_columns(content_hash=pl.lit(1)), "content_hash"),
    ):
        with pytest.raises(ef.SchemaError, match=message):
            put(filled, frame)
    with pytest.raises(ef.SpaceError, match="invalid space name"):
        put(filled, given, "")
    with pytest.raises(ef.SpaceError, match="no vector"):
        put(filled, given[:0])
    assert filled.spaces().is_empty()
    filled.embed(Recording(), progress=False)
    with pytest.raises(ef.SpaceError, match="vectors of hashing-16, not of another"):
        put(filled, with_vectors(notes(3), 16), "hashing-16", model="another")
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ef.StatementCancelledError):
        put(filled, with_vectors(notes(3), 16), "hashing-16", cancel=cancel)
    assert filled.last_result.counts["cancelled"] == 3


@pytest.mark.parametrize("indexed", [False, True])
def test_equal_vectors_of_different_texts(store: ef.EntityStore, indexed: bool) -> None:
    """They are in the order of their keys, and the limit takes the first of them, however many there are."""
    store.upsert(notes(300), progress=False)
    same = pl.Series("vector", [[1.0, 0.0]] * 290 + [[0.8, 0.6]] * 10)
    put(store, notes(300).select("entity_type", "id", same).sample(fraction=1.0, shuffle=True, seed=3))
    if indexed:
        store.index_space()
    ids = notes(300)["id"].to_list()
    for k in (1, 5, 33, 295, 300):
        for more in ({}, {"entity_type": "note"}, {"where": pl.col("id") < "n00295"}):
            expected = ids[: min(k, 295 if "where" in more else 300)]
            assert store.search([1.0, 0.0], k=k, **more)["id"].to_list() == expected, (k, more)
    assert store.search([0.0, 1.0], k=12)["id"].to_list() == ids[290:] + ids[:2]


def test_similar(store: ef.EntityStore) -> None:
    """Each pair once, the most similar first; by the means of passages."""
    texts = ["river stone cloud", "river stone cloud", "river stone cloud green", "engine paper", "of another kind"]
    rows = pl.DataFrame({"id": [f"n{n}" for n in range(5)], "text": texts})
    store.upsert(ef.entities(rows, "note", id="id", content="text"), progress=False)
    store.upsert_entity("other", "n0", "river stone cloud")
    store.embed(ef.HashingEmbedder(64), progress=False)
    found = store.similar("note", 0.7)
    assert found.select("id", "other_id").rows() == [("n0", "n1"), ("n0", "n2"), ("n1", "n2")]
    vectors = ef.HashingEmbedder(64).embed(texts)
    assert found["score"].to_list() == pytest.approx([1.0, *[float(vectors[0] @ vectors[2])] * 2], abs=1e-5)
    assert store.similar("note", 1.0)["other_id"].to_list() == ["n1"]
    assert store.similar("note", 0.7, limit=2).equals(found[:2])
    assert store.similar("other").is_empty()
    for options in ({"threshold": 0}, {"threshold": 1.1}, {"limit": 0}):
        with pytest.raises(ValueError, match="must be"):
            store.similar("note", **options)


def test_similar_in_blocks(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not depend on how many entities are compared at once."""
    store.upsert(notes(30), progress=False)
    rng = np.random.default_rng(5)
    values = pl.Series("vector", rng.normal(size=(30, 3)), pl.Array(pl.Float64, 3))
    put(store, notes(30).select("entity_type", "id", values))
    whole = store.similar("note", 0.8)
    unit = store.vectors()["vector"].to_numpy()
    scores = unit @ unit.T
    expected = {(f"n{a:05}", f"n{b:05}") for a in range(30) for b in range(a) if scores[a, b] >= 0.8}
    assert {tuple(sorted(pair)) for pair in whole.select("id", "other_id").rows()} == {
        tuple(sorted(p)) for p in expected
    }
    assert whole["score"].is_sorted(descending=True)
    monkeypatch.setattr("entityframes.embedding.given._BLOCK", 7)
    assert (
        store.similar("note", 0.8)
        .select("id", "other_id")
        .sort(pl.all())
        .equals(whole.select("id", "other_id").sort(pl.all()))
    )
