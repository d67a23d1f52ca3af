"""A key is a type and an id: entities of several types with equal ids, in no particular order, are not confused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb import engine as duckdb_engine
from tests.directory.test_sync import edit, put

Key = tuple[str, str]

#: In the order in which they are stored: sorted neither by id nor by type. Concatenated types and ids are ambiguous.
KEYS: list[Key] = [
    ("b", "1"), ("a", "2"), ("ab", "1"), ("b", "12"), ("a", "b1"), ("b", "2"), ("ab", "2"), ("a", "1"), ("B", "1"),
    ("a", "B1"), ("b", "é"), ("a", "z"), ("a", "é"), ("b", "b1"),
]  # fmt: skip
#: Keys under which nothing is stored, although each part exists.
ABSENT: list[Key] = [("a", "12"), ("ab", "é"), ("B", "2"), ("1", "b")]
SPACE = "hashing-16"


def entities(keys: Iterable[Key], version: str = "first") -> pl.DataFrame:
    """An entity frame with distinct content and metadata for each key."""
    rows = [(kind, id, f"{version} {kind} {id}", {"of": f"{version} {kind}/{id}"}) for kind, id in keys]
    return pl.DataFrame(rows, ["entity_type", "id", "content", "metadata"], orient="row")


def ids(keys: Iterable[Key]) -> pl.DataFrame:
    return pl.DataFrame(list(keys), {"entity_type": pl.String, "id": pl.String}, orient="row")


def stored(store: ef.EntityStore) -> dict[Key, tuple[str, str]]:
    rows = store.scan().select("entity_type", "id", "content", "metadata").collect().rows()
    return {(kind, id): (content, metadata) for kind, id, content, metadata in rows}


def expected(keys: Iterable[Key], version: str = "first") -> dict[Key, tuple[str, str]]:
    return {(kind, id): (f"{version} {kind} {id}", f'{{"of":"{version} {kind}/{id}"}}') for kind, id in keys}


def keys_of(outcomes: pl.DataFrame, status: str) -> list[Key]:
    return outcomes.filter(pl.col("status") == status).select("entity_type", "id").rows()


class Embedder(ef.HashingEmbedder):
    """Records the texts it was given, and rejects some of them."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__(dim)
        self.texts: list[str] = []
        self.refused: set[str] = set()

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        if self.refused.intersection(texts):
            raise ValueError("this text is rejected")
        self.texts += texts
        return super().embed(texts)


@pytest.fixture(params=["duckdb", "duckdb by hash", "postgresql"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each engine in turn; DuckDB twice, because it finds keys by two methods."""
    monkeypatch.setattr(duckdb_engine, "SCANNED", 0 if request.param == "duckdb by hash" else 1_000)
    return request.param.split()[0]


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    """A store of `KEYS`, in batches of three."""
    result = store.upsert(entities(KEYS), batch_size=3, progress=False)
    assert result.counts["created"] == len(KEYS)
    return store


@pytest.fixture
def embedded(filled: ef.EntityStore) -> ef.EntityStore:
    """The same, with all vectors."""
    assert filled.embed(Embedder(), progress=False).counts["embedded"] == len(KEYS)
    return filled


@pytest.fixture
def vectors(sql: Any) -> Callable[..., list[Key]]:
    """The keys of the vectors of a space, sorted."""

    def keys(space: str = SPACE) -> list[Key]:
        rows = sql(
            "SELECT p.entity_type, p.id FROM entityframes.passages AS p JOIN entityframes.embeddings AS v "
            f"ON v.space = p.space AND v.text_hash = p.text_hash WHERE p.space = '{space}' AND v.error IS NULL"
        )
        return sorted(rows)

    return keys


def test_written_and_read_in_any_order(filled: ef.EntityStore) -> None:
    """`read` is sorted by id, bytewise; `get`, `exists` and `missing` are in the order of their input."""
    assert stored(filled) == expected(KEYS)
    for kind in {kind for kind, _ in KEYS}:
        own = sorted((id for of, id in KEYS if of == kind), key=str.encode)
        found = filled.read(kind)
        assert found["id"].to_list() == own
        assert found["of"].to_list() == [f"first {kind}/{id}" for id in own]
    asked = [*ABSENT[:2], *reversed(KEYS), *ABSENT[2:], KEYS[0]]
    got = filled.get(ids(asked))
    assert got.select("entity_type", "id").rows() == asked
    assert got["content"].to_list() == [expected(KEYS).get(key, (None, None))[0] for key in asked]
    assert filled.exists(ids(asked))["exists"].to_list() == [key in KEYS for key in asked]
    assert filled.missing(ids(asked)).rows() == ABSENT


def test_written_over_by_key(filled: ef.EntityStore) -> None:
    """Updates, a new entity, the expected hash of another entity, and a plan: each applies to its own type."""
    new, changed = ("ab", "12"), [("a", "1"), ("b", "2")]
    result = filled.upsert(pl.concat([entities(KEYS[:3]), entities([*changed, new], "second")]), progress=False)
    assert keys_of(result.outcomes, "unchanged") == KEYS[:3]
    assert keys_of(result.outcomes, "updated") == changed
    assert keys_of(result.outcomes, "created") == [new]
    now = expected(KEYS) | expected([*changed, new], "second")
    assert stored(filled) == now
    hashes = {key: row for *key_, row in filled.get(ids(KEYS)).select("entity_type", "id", "content_hash").rows()
              for key in [tuple(key_)]}  # fmt: skip
    third = entities([("a", "2"), ("ab", "2"), ("a", "12")], "third").with_columns(
        seen=pl.Series([hashes["a", "2"], hashes["a", "2"], hashes["b", "12"]])
    )
    result = filled.upsert(third, expected_hash="seen", progress=False)
    assert keys_of(result.outcomes, "updated") == [("a", "2")]
    assert keys_of(result.outcomes, "conflict") == [("ab", "2"), ("a", "12")]
    now |= expected([("a", "2")], "third")
    assert stored(filled) == now
    plan = filled.plan(entities([("B", "1"), ("b", "1"), ("B", "2")], "third").vstack(entities([("ab", "1")])))
    assert plan.frame["action"].cast(pl.String).to_list() == ["update", "update", "create", "unchanged"]
    assert plan.apply(progress=False).ok
    assert stored(filled) == now | expected([("B", "1"), ("b", "1"), ("B", "2")], "third")
    assert filled.verify().is_empty()


def test_only_the_same_key_is_a_duplicate(store: ef.EntityStore) -> None:
    """Whole keys count, within a batch and across batches."""
    twice = [*KEYS, ("a", "1"), ("b", "1")]
    for batch_size in (None, 4):
        result = store.upsert(entities(twice), batch_size=batch_size, progress=False)
        assert keys_of(result.outcomes, "duplicate") == [("b", "1"), ("a", "1")]
        assert stored(store) == expected(KEYS)
    result = store.delete(ids(twice))
    assert keys_of(result.outcomes, "duplicate") == twice[-2:]
    assert result.counts["deleted"] == len(KEYS)


@pytest.mark.parametrize("types", [3, 10])
def test_many_keys_of_several_types(store: ef.EntityStore, types: int) -> None:
    """More than fit in one statement; all share their ids and most share their content."""
    keys = [(f"t{kind}", f"n{n:04}") for n in range(3_000 // types) for kind in range(types)]
    all_of_them = ids(keys).with_columns(content=pl.lit("the same"))
    assert store.upsert(all_of_them, progress=False).counts["created"] == len(keys)
    changed, new = [("t1", "n0003"), ("t2", "n0100"), ("t1", "n0200")], ("t0", "n0100a")
    other = ids([*changed, new]).with_columns(content=pl.lit("another"))
    now = pl.concat([all_of_them.join(other, on=["entity_type", "id"], how="anti"), other])
    result = store.upsert(now, progress=False)
    assert keys_of(result.outcomes, "updated") == changed
    assert keys_of(result.outcomes, "created") == [new]
    assert result.counts["unchanged"] == len(keys) - 3
    assert store.upsert(now, progress=False).counts["unchanged"] == len(keys) + 1
    asked = ids([*keys, new, ("t2", "n0100a"), ("t1", "n9999")]).sample(fraction=1, shuffle=True, seed=3)
    texts = {tuple(key): content for *key, content in store.get(asked).select("entity_type", "id", "content").rows()}
    assert {key for key, content in texts.items() if content == "another"} == {*changed, new}
    assert {key for key, content in texts.items() if content is None} == {("t2", "n0100a"), ("t1", "n9999")}
    assert store.missing(asked).height == 2
    assert store.delete(ids([key for key in keys if key[0] == "t1"])).counts["deleted"] == len(keys) // types
    assert store.stats().select("entity_type", "entities").rows() == [
        (f"t{kind}", len(keys) // types + (kind == 0)) for kind in range(types) if kind != 1
    ]
    assert store.exists(asked)["exists"].to_list() == [
        key[0] != "t1" and key not in [("t2", "n0100a")] for key in asked.rows()
    ]


def test_deleted_by_key(embedded: ef.EntityStore, vectors: Callable[..., list[Key]]) -> None:
    """An entity is deleted with its vector; entities of the same id in other types and of the same type stay."""
    gone = [("a", "1"), ("b", "2"), ("a", "é")]
    result = embedded.delete(ids([*gone, *ABSENT]))
    assert keys_of(result.outcomes, "deleted") == gone
    assert keys_of(result.outcomes, "missing") == ABSENT
    left = [key for key in KEYS if key not in gone]
    assert stored(embedded) == expected(left)
    assert vectors() == sorted(left)
    assert embedded.stats().select("embedded", "due").sum().row(0) == (len(left), 0)
    assert embedded.verify().is_empty()


def test_embedded_by_key(embedded: ef.EntityStore, vectors: Callable[..., list[Key]]) -> None:
    """Changed content is due and is embedded; vectors of the same id in other types are unchanged, and are found."""
    changed = [("a", "1"), ("ab", "2"), ("b", "12")]
    embedded.upsert(entities(changed, "second"), progress=False)
    assert dict(embedded.stats().select("entity_type", "due").rows()) == {"B": 0, "a": 1, "ab": 1, "b": 1}
    assert embedded.spaces().select("embedded", "due").row(0) == (len(KEYS) - 3, 3)
    embedder = Embedder()
    assert keys_of(embedded.embed(embedder, progress=False).outcomes, "embedded") == changed
    assert sorted(embedder.texts) == sorted(entities(changed, "second")["content"])
    assert vectors() == sorted(KEYS)
    assert embedded.verify().is_empty()
    now = expected(KEYS) | expected(changed, "second")
    for key in [*changed, ("b", "1"), ("ab", "1"), ("B", "1")]:
        found = embedded.search(embedder.embed([now[key][0]])[0], k=2).filter(pl.col("score") > 0.999)
        assert (key, now[key][0]) in zip(found.select("entity_type", "id").rows(), found["content"], strict=True)
        of_type = embedded.search(embedder.embed([now[key][0]])[0], k=1, entity_type=key[0])
        assert of_type.select("entity_type", "id").rows() == [key]
        filtered = embedded.search(
            embedder.embed([now[key][0]])[0], k=1, entity_type=key[0], where=pl.col("id").is_in([key[1], "2"])
        )
        assert filtered.select("entity_type", "id", "content").rows() == [(*key, now[key][0])]


def test_queued_by_key(store: ef.EntityStore, vectors: Callable[..., list[Key]]) -> None:
    """Entities without a job are queued by key or by type; failed ones are due again only where selected."""
    store.upsert(entities(KEYS), embed=False, progress=False)
    embedder = Embedder()
    assert store.enqueue(ids([("a", "1"), ("b", "é"), *ABSENT])) == 2
    assert keys_of(store.embed(embedder, progress=False).outcomes, "embedded") == [("a", "1"), ("b", "é")]
    assert store.enqueue("ab") == 2
    # An entity with a vector is not due: one less of "a".
    assert store.enqueue("a") == 5
    embedder.refused = {"first a é", "first ab 1", "first ab 2", "first a 2"}
    result = store.embed(embedder, progress=False)
    assert sorted(keys_of(result.outcomes, "failed")) == [("a", "2"), ("a", "é"), ("ab", "1"), ("ab", "2")]
    assert dict(store.stats().select("entity_type", "failed").rows()) == {"B": 0, "a": 2, "ab": 2, "b": 0}
    embedder.refused, before = set(), vectors()
    assert store.enqueue(ids([("ab", "2"), ("b", "1")])) == 2
    assert dict(store.stats().select("entity_type", "failed").rows()) == {"B": 0, "a": 2, "ab": 1, "b": 0}
    store.embed(embedder, progress=False)
    assert vectors() == sorted([*before, ("ab", "2"), ("b", "1")])
    assert store.enqueue("ab") == 1
    assert dict(store.stats().select("entity_type", "failed").rows()) == {"B": 0, "a": 2, "ab": 0, "b": 0}
    assert store.retry_failed() == 2
    assert sorted(keys_of(store.embed(embedder, progress=False).outcomes, "embedded")) == [
        ("a", "2"), ("a", "é"), ("ab", "1")
    ]  # fmt: skip
    assert store.enqueue() == 4
    store.embed(embedder, progress=False)
    assert vectors() == sorted(KEYS)
    assert store.verify().is_empty()


def test_equal_texts_under_one_id(
    store: ef.EntityStore, connect: Callable[..., ef.EntityStore], vectors: Callable[..., list[Key]]
) -> None:
    """An entity is embedded once its own job has run, though an entity of another type has its id and its text."""
    keys = [("b", "1"), ("a", "1"), ("ab", "1"), ("c", "1")]
    same = ids(keys).with_columns(content=pl.lit("the same"))
    store.upsert(same[:1], progress=False)
    store.embed(Embedder(), progress=False)
    store.upsert(same[:2], progress=False)
    store.upsert(same[2:], embed=False, progress=False)
    assert store.stats().select("entity_type", "embedded", "due").rows() == [
        ("a", 0, 1), ("ab", 0, 1), ("b", 1, 0), ("c", 0, 1)
    ]  # fmt: skip
    assert store.spaces().select("embedded", "due").row(0) == (1, 3)
    assert keys_of(store.embed(Embedder(), progress=False).outcomes, "embedded") == [("a", "1")]
    assert store.enqueue("b") == 0
    assert store.enqueue(same) == 2
    # The text has a vector, so the embedder is not called.
    result = store.embed(Embedder(), progress=False)
    assert (result.calls, keys_of(result.outcomes, "embedded")) == (0, [("ab", "1"), ("c", "1")])
    store.upsert(ids([("ab", "1")]).with_columns(content=pl.lit("another")), embed=False, progress=False)
    assert vectors() == [("a", "1"), ("ab", "1"), ("b", "1"), ("c", "1")]
    assert store.search("the same", k=5, embedder=Embedder(), mode="vector").select("entity_type", "id").rows() == [
        ("a", "1"), ("b", "1"), ("c", "1")
    ]  # fmt: skip
    assert store.delete(ids([("b", "1")])).counts["deleted"] == 1
    assert vectors() == [("a", "1"), ("ab", "1"), ("c", "1")]
    store.upsert(same[:1], embed=False, progress=False)
    assert store.enqueue() == 2
    assert store.embed(Embedder(), progress=False).counts["embedded"] == 2
    assert vectors() == [("a", "1"), ("ab", "1"), ("b", "1"), ("c", "1")]
    assert store.verify().is_empty()


def test_a_space_is_dropped(embedded: ef.EntityStore, vectors: Callable[..., list[Key]]) -> None:
    """With its vectors and jobs; those of other spaces stay."""
    embedded.embed(Embedder(32), space="wide", progress=False)
    embedded.upsert(entities([("a", "1")], "second"), progress=False)
    embedded.embed(Embedder(32), space="wide", progress=False)
    embedded.drop_space("wide")
    assert vectors() == sorted(KEYS)
    assert vectors("wide") == []
    assert embedded.stats()["due"].sum() == 1
    assert embedded.jobs("pending").height == 1
    assert embedded.embed(embedder := Embedder(), progress=False).counts["embedded"] == 1
    assert embedder.texts == ["second a 1"]
    assert embedded.verify().is_empty()


def test_files_by_key(store: ef.EntityStore, tmp_path: Path, vectors: Callable[..., list[Key]]) -> None:
    """Files of one name in folders of several types: edited, moved, removed and exported, each is a separate entity."""
    keys = [key for key in KEYS if key[0] != "B"]
    root = tmp_path / "notes"
    for kind, id in keys:
        put(root / kind / f"{id}.md", f"---\nof: first {kind}/{id}\n---\nfirst {kind} {id}")
    folder = ef.DirectorySync(store, root)
    assert folder.sync().counts["created"] == len(keys)
    store.embed(Embedder(), progress=False)
    assert set(folder.plan()["action"]) == {"unchanged"}
    edit(root / "a/1.md", "---\nof: second a/1\n---\nsecond a 1")
    store.upsert(entities([("b", "12")], "second").vstack(entities([("c", "2")])), progress=False)
    (root / "b/1.md").rename(root / "b/9.md")
    (root / "ab/2.md").unlink()
    store.delete(ids([("a", "z")]))
    result = folder.sync(delete=True, max_delete=5)
    found = {(row["entity_type"], row["id"]): row["status"] for row in result.outcomes.iter_rows(named=True)}
    assert {key: status for key, status in found.items() if status != "unchanged"} == {
        ("a", "1"): "updated", ("b", "12"): "exported", ("b", "9"): "renamed", ("ab", "2"): "deleted",
        ("a", "z"): "deleted", ("c", "2"): "exported",
    }  # fmt: skip
    left = [key for key in keys if key not in [("a", "z"), ("ab", "2"), ("b", "1")]]
    now = expected([*left, ("c", "2")]) | expected([("a", "1"), ("b", "12")], "second")
    assert stored(store) == now | {("b", "9"): ("first b 1", '{"of":"first b/1"}')}
    assert {path.relative_to(root).as_posix(): path.read_text().splitlines()[-1] for path in root.rglob("*.md")} == {
        f"{kind}/{id}.md": content for (kind, id), (content, _) in now.items()
    } | {"b/9.md": "first b 1"}
    assert vectors() == sorted([*left, ("b", "9")])
    assert store.stats()["due"].sum() == 3
    assert store.verify().is_empty()
    # Another folder of the same store has front matter of these keys, and not of others with the same id.
    (other := tmp_path / "other").mkdir()
    put(root / "a/1.md", "---\n# kept\nof: second a/1\n---\nsecond a 1")
    folder.sync()
    assert ef.DirectorySync(store, other).export_files().ok
    assert "# kept" in (other / "a/1.md").read_text()
    assert "# kept" not in (other / "ab/1.md").read_text()


def test_an_inconsistency_is_reported_for_its_key(embedded: ef.EntityStore, sql: Any) -> None:
    """`verify` names the key whose content does not match its hash, and repairs no other one."""
    sql("UPDATE entityframes.entities SET content = 'tampered' WHERE entity_type = 'ab' AND id = '1'")
    found = embedded.verify().filter(pl.col("id").is_not_null())
    assert set(found.select("entity_type", "id").rows()) == {("ab", "1")}
    embedded.verify(repair=True)
    assert embedded.verify().is_empty()
    now = stored(embedded)
    assert now.pop(("ab", "1"))[0] == "tampered"
    assert now == {key: value for key, value in expected(KEYS).items() if key != ("ab", "1")}
