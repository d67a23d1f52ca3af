"""Vector, text and hybrid search: the same results on both engines where both are exact."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef

WORDS = np.array(
    [
        "river",
        "stone",
        "cloud",
        "engine",
        "paper",
        "window",
        "green",
        "seven",
        "music",
        "garden",
        "letter",
        "market",
        "winter",
        "bridge",
    ]
)


def corpus(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "entity_type": ["page"] * count,
            "id": [f"p{n:04}" for n in range(count)],
            "content": [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(count)],
            "metadata": [{"n": n, "lang": "de" if n % 3 else "en"} for n in range(count)],
        }
    )


EMBEDDER = ef.HashingEmbedder(64)


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    store.upsert(corpus(600), progress=False)
    store.upsert_entity("other", "x", "river stone")
    store.embed(EMBEDDER, progress=False)
    return store


def exact(query: str, frame: pl.DataFrame, k: int) -> list[str]:
    """The expected result of a search, computed with numpy."""
    vectors = EMBEDDER.embed(frame["content"].to_list())
    scores = vectors @ EMBEDDER.embed([query])[0]
    return (
        frame.with_columns(score=pl.Series(scores))
        .sort("score", "id", descending=[True, False])["id"]
        .head(k)
        .to_list()
    )


def test_an_index_is_used_at_once(store: ef.EntityStore, sql: Any, engine: str) -> None:
    """With pgvector: the index finds most of the nearest, including those embedded later."""
    many = corpus(3_000)
    store.upsert(many, progress=False)
    store.embed(EMBEDDER, progress=False)
    # A PostgreSQL that the tests did not start may lack it.
    available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
    indexed = engine == "postgresql" and sql(available) == [(1,)]
    assert store.index_space() == indexed
    assert store.index_space() == indexed
    store.upsert_entity("page", "new", "green garden in winter")
    store.embed(EMBEDDER, progress=False)
    found = store.search("green garden in winter", k=20)
    assert found["id"][0] == "new"
    assert found["score"].is_sorted(descending=True)
    assert len(set(found["id"][1:]) & set(exact("green garden in winter", many, 19))) >= 14
    only = store.search("green garden", entity_type="page", where=pl.col("n") < 50, k=5)
    assert only.height == 5
    assert all(row["n"] < 50 for row in only["metadata"].str.json_decode(pl.Struct({"n": pl.Int64})))
    if indexed:
        scans = "SELECT idx_scan > 0 FROM pg_stat_user_indexes WHERE indexrelname = 'nearest_1'"
        store.close()
        deadline = time.monotonic() + 120
        while sql(scans) != [(True,)] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sql(scans) == [(True,)]


def test_vector_search_is_exact(filled: ef.EntityStore) -> None:
    """The nearest by cosine similarity, best first, with rank, score and the entity's columns."""
    found = filled.search("green garden in winter", entity_type="page", k=20)
    assert found["id"].to_list() == exact("green garden in winter", corpus(600), 20)
    assert found["rank"].to_list() == list(range(1, 21))
    assert found["score"].is_sorted(descending=True)
    assert found.columns[:2] == ["rank", "score"]
    assert set(found.columns) >= {"content", "metadata", "created_at"}
    by_vector = filled.search(EMBEDDER.embed(["green garden in winter"])[0], entity_type="page", k=20)
    assert by_vector["id"].to_list() == found["id"].to_list()
    everywhere = filled.search("river stone", k=5)
    assert ("other", "x") in everywhere.select("entity_type", "id").rows()


@pytest.mark.parametrize("small", [True, False])
def test_the_filter_applies_before_the_limit(
    filled: ef.EntityStore, small: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the database as far as it evaluates the filter like Polars, else after it: the same rows, however few pass."""
    if not small:
        # As if there were many times as many entities.
        module = f"entityframes.engines.{'postgres' if engine == 'postgresql' else engine}"
        monkeypatch.setattr(f"{module}.embedding.WIDER", 1)
        if engine == "postgresql":
            monkeypatch.setattr(f"{module}.embedding.FEW", 5)
    page = corpus(600).with_columns(pl.col("metadata").struct.unnest())
    for where in (
        pl.col("lang") == "en",
        pl.col("n") >= 580,
        pl.col("n") % 50 == 7,
        pl.col("id").str.ends_with("3"),
        # The database evaluates the first condition, and many of those that satisfy it do not satisfy the second.
        pl.sql_expr("n < 30 AND lang LIKE 'e%'"),
        pl.sql_expr("n < 300 AND lang LIKE 'e%'"),
        pl.col("n") < 0,
    ):
        for k in (1, 8):
            found = filled.search("music market", entity_type="page", k=k, where=where)
            assert found["id"].to_list() == exact("music market", page.filter(where), k), (where, k)
        found = filled.search("music market", entity_type="page", k=700, where=where)
        assert sorted(found["id"]) == page.filter(where)["id"].to_list()
    for kind, count in (("page", 600), ("other", 1)):
        assert filled.search("music market", entity_type=kind, k=700).height == count
    assert filled.search("music", k=9, where=pl.col("id") == "x")["id"].to_list() == ["x"]


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_words(filled: ef.EntityStore, mode: Any) -> None:
    """A rare word decides; entities that contain it rank before others; endings do not matter."""
    filled.upsert_entity("page", "rare", "a zebra in the garden", {"n": 1, "lang": "en"})
    filled.embed(EMBEDDER, progress=False)
    found = filled.search("zebras garden", entity_type="page", mode=mode, k=5)
    assert "rare" in found["id"].head(1 if mode == "text" else 5)
    if mode == "text":
        assert found["content"].str.contains("garden").all()
        assert filled.search("xylophone", mode=mode).is_empty()
        assert filled.search("the of and", mode=mode).height <= 10
    assert (
        filled.search("zebra", entity_type="page", mode=mode, k=5, where=pl.col("lang") == "de")["id"]
        .is_in(["rare"])
        .sum()
        == 0
    )


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_equal_contents_are_separate_hits(filled: ef.EntityStore, mode: Any) -> None:
    """Entities of one type that share a text, and so its vector, are each found once, with their own metadata."""
    same = pl.DataFrame({"entity_type": "page", "id": ["s1", "s2", "s3"], "content": "purple orchard"})
    filled.upsert(same.with_columns(metadata=pl.struct(n=pl.int_range(3))), progress=False)
    filled.embed(EMBEDDER, progress=False)
    for where in (None, pl.col("n") < 5):
        found = filled.search("purple orchard", entity_type="page", mode=mode, k=3, where=where)
        assert found["id"].to_list() == ["s1", "s2", "s3"], where
        assert [json.loads(text) for text in found["metadata"]] == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_what_is_null_does_not_pass_a_filter(filled: ef.EntityStore, mode: Any) -> None:
    """Whether the database evaluates the filter, or Polars."""
    filled.upsert_entity("page", "none", "music market")
    filled.embed(EMBEDDER, progress=False)
    assert "none" in filled.search("music market", entity_type="page", mode=mode, k=5)["id"]
    for where in (pl.col("n") >= 0, pl.col("lang").str.reverse() != "ed", ~pl.col("lang").str.contains("[d]")):
        found = filled.search("music market", entity_type="page", mode=mode, k=500, where=where)
        assert not found.is_empty()
        assert "none" not in found["id"]


def test_a_vector_of_older_content_is_not_compared(filled: ef.EntityStore) -> None:
    """Between an edit and its embedding the entity is not found by its old content."""
    filled.upsert_entity("page", "p0000", "entirely different now", {"n": 0, "lang": "en"})
    best = corpus(600)["content"][0]
    assert "p0000" not in filled.search(best, entity_type="page", k=5)["id"]
    assert "p0000" in filled.search("different", entity_type="page", mode="text", k=5)["id"]


def test_progress_of_an_index(store: ef.EntityStore, sql: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted in vectors, and can be cancelled; nothing of the index remains then."""
    store.upsert(corpus(2_000), progress=False)
    store.embed(EMBEDDER, progress=False)
    calls: list[tuple[int, int | None]] = []
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ef.StatementCancelledError):
        store.index_space(cancel=cancel)
    if engine == "duckdb" or sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == [(0,)]:
        return
    monkeypatch.setattr("entityframes.engines.postgres.embedding.FOLLOW_SECONDS", 0.001)
    nearest = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'nearest_%'"

    def stop(done: int, total: int | None) -> None:
        cancel.set()

    def fail(done: int, total: int | None) -> None:
        raise OSError("the display is gone")

    cancel.clear()
    with pytest.raises(ef.StatementCancelledError):
        store.index_space(progress=stop, cancel=cancel)
    with pytest.raises(OSError, match="the display is gone"):
        store.index_space(progress=fail)
    assert sql(nearest) == [(0,)]
    assert store.index_space(progress=lambda done, total: calls.append((done, total)))
    assert sql(nearest) == [(1,)]
    assert calls[-1] == (2_000, 2_000)
    assert len(calls) > 1


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_search_without_pgvector(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results, each entity once, also those with an id and content of another type; there is no index."""
    monkeypatch.setattr(type(store._engine.embedding), "_has_pgvector", lambda self: False)
    for kind, id in (("page", "a"), ("post", "a"), ("page", "b")):
        store.upsert_entity(kind, id, "green garden" if id == "a" else "stone")
    store.embed(EMBEDDER, progress=False)
    assert not store.index_space()
    found = store.search("green garden", k=3)
    assert found.select("entity_type", "id").rows() == [("page", "a"), ("post", "a"), ("page", "b")]
    assert store.search("green garden", entity_type="post", k=3).select("entity_type", "id").rows() == [("post", "a")]


def test_an_embedder_of_earlier_vectors(connect: Any) -> None:
    """The store remembers an embedder of this name; another one has since made a space with other dimensions."""
    store, other = connect(), connect()
    small, large = ef.HashingEmbedder(16), ef.HashingEmbedder(32)
    small.name = large.name = "ours"
    store.upsert(corpus(5), progress=False)
    store.embed(small, progress=False)
    other.embed(large, space="large", progress=False)
    other.activate("large")
    with pytest.raises(ef.SpaceError, match="ours with 32 dimensions, but the embedder is ours with 16"):
        store.search("river")


def test_invalid_searches(store: ef.EntityStore) -> None:
    with pytest.raises(ef.SpaceError, match="nothing is embedded yet"):
        store.search("x", embedder=EMBEDDER)
    store.upsert(corpus(5), progress=False)
    assert store.search("river", mode="text").height <= 5
    store.embed(EMBEDDER, progress=False)
    with pytest.raises(ef.SpaceError, match="64"):
        store.search([1.0, 2.0])
    with pytest.raises(ef.SpaceError):
        store.search("x", embedder=ef.HashingEmbedder(32))
    with pytest.raises(ValueError, match="k"):
        store.search("river", k=0)
    with pytest.raises(ValueError, match="mode"):
        store.search("river", mode="psychic")
    for mode in ("text", "hybrid"):
        with pytest.raises(ValueError, match="the query must be a string"):
            store.search([1.0] * EMBEDDER.dim, mode=mode)
    # A vector is of the active space, not of the space of another embedder.
    with pytest.raises(ef.SpaceError):
        store.search([1.0] * EMBEDDER.dim, embedder=ef.HashingEmbedder(32))
    for query in ("river", ""):
        with pytest.raises(pl.exceptions.ColumnNotFoundError, match="nothing"):
            store.search(query, where=pl.col("nothing") == 1)


@pytest.mark.parametrize(
    "query", ["'; DROP TABLE x; --", "a & b | !c", "\\ ' \" %", "", "(((", "ß 🦊 日本", "🦊", "-5"]
)
def test_any_query_is_accepted(filled: ef.EntityStore, query: str) -> None:
    for mode in ("vector", "text", "hybrid"):
        assert filled.search(query, mode=mode, k=3).height <= 3  # type: ignore[arg-type]


def test_another_process_finds_the_embedder(connect: Any) -> None:
    """A built-in embedder is identified by the space's model."""
    store = connect()
    store.upsert(corpus(50), progress=False)
    store.embed(EMBEDDER, progress=False)
    if store._engine.database.name == "duckdb":
        store.close()
    assert connect().search("river", k=3).height == 3


#: The handbook of a tool library, and a question for each page.
HANDBOOK = {
    "joining": "Anybody who lives in the town can become a member. Bring a passport and a bill with your address. A year "
    "costs twenty euros, half of that for students and pensioners. You get a card with a number.",
    "borrowing": "Show your card at the desk and take up to five tools home for a week. Large machines are handed out one "
    "at a time. Write down scratches and missing parts before you leave, so that nobody blames you for them.",
    "returning": "Bring everything back clean and dry on the day that stands on the slip. A volunteer looks at blades, "
    "cables and batteries and signs the slip. Drop boxes outside take hand tools at night.",
    "late": "Each day after the date costs one euro a tool. After three weeks we call you, after six the deposit is kept "
    "and the card is blocked until the debt is paid.",
    "broken": "Things wear out, and an honest accident costs you nothing. Tell us what happened, and do not try to fix "
    "it yourself. If you were careless you pay half of a new one.",
    "chainsaws": "Chainsaws and angle grinders are given only to those who have passed our safety course. Wear a helmet, "
    "goggles, gloves and trousers that stop a chain. Never work alone or on a ladder.",
    "course": "On the first Saturday of every month an instructor teaches how to handle dangerous machines. It takes three "
    "hours, is free of charge, and ends with a short examination.",
    "workshop": "The benches in the back room are open in the evening. There is a lathe, a band saw and a kiln for pottery. "
    "Sweep the floor and empty the dust collector before you go.",
    "reserving": "Popular things, such as the carpet cleaner and the party tent, may be booked up to two months ahead on "
    "the web site or by telephone. What is not fetched by noon goes to the next in the queue.",
    "donating": "We are glad of tools that you do not need any more, if they work and are not rusty. We give no receipt for "
    "the tax office. Books, clothes and paint are not taken.",
    "volunteering": "Twelve people run the house without pay. Whoever has two hours a week can help at the desk, sharpen "
    "chisels, or drive the van. Helpers borrow for nothing.",
    "hours": "We are open from Tuesday to Friday between four and eight in the afternoon and on Saturday from ten to two. "
    "On public holidays and in August the house is closed.",
}
QUESTIONS = {
    "What does it cost to become a member?": "joining",
    "How many things may I take home at once?": "borrowing",
    "Can I give a drill back at night?": "returning",
    "What happens if I am overdue by a few weeks?": "late",
    "I damaged a machine by accident, do I have to pay?": "broken",
    "What protective clothing do I need for a chainsaw?": "chainsaws",
    "When is the next safety lesson with an instructor?": "course",
    "Is there a place where I can work with a lathe?": "workshop",
    "I want to book the tent for a party in advance": "reserving",
    "Do you accept old tools as a gift?": "donating",
    "How can I help at the desk?": "volunteering",
    "Are you closed on holidays?": "hours",
}


def test_questions_find_their_page(store: ef.EntityStore) -> None:
    """Hybrid search with a local model: the right page is among the first three results."""
    pages = pl.DataFrame({"id": list(HANDBOOK), "text": list(HANDBOOK.values())})
    store.upsert(ef.entities(pages, "page", id="id", content="text"), progress=False)
    store.embed(ef.WordLlamaEmbedder(), progress=False)
    found = {question: store.search(question, mode="hybrid", k=3)["id"].to_list() for question in QUESTIONS}
    assert {question: ids for question, ids in found.items() if QUESTIONS[question] not in ids} == {}


def windows() -> pl.DataFrame:
    """Entities whose vectors are in an order unrelated to n, many of them equal."""
    rng = np.random.default_rng(8)
    count = 900
    return pl.DataFrame(
        {
            "entity_type": "page",
            "id": [f"p{n:04}" for n in rng.permutation(count)],
            "content": [f"river {' '.join(rng.choice(WORDS, 2))}" for _ in range(count)],
            "metadata": [
                {"n": int(rng.integers(0, 40)), "m": float(rng.normal()), "lang": str(rng.choice(["de", "en", "fr"]))}
                for _ in range(count)
            ],
        }
    )  # fmt: skip


n, m = pl.col("n"), pl.col("m")
#: Filters over more than one row: their result on a part of the rows is not a part of their result.
WHOLE = {
    "maximum": n == n.max(),
    "group": m == m.max().over("lang"),
    "sum": m.sum().over("n") > 5,
    "duplicated": pl.struct("n", "lang").is_duplicated() & (n > 30),
    "first": n.is_first_distinct(),
    "shift": n.shift() > n,
    "cumulated": n.cum_sum() > 9_000,
    "count": n.cum_count() <= 100,
    "rank": m.rank() <= 20,
    "top": m.is_in(m.top_k(15).implode()),
    "mean": n.is_between(n.mean(), n.max()),
    "quantile": m > m.quantile(0.95),
    "length": pl.int_range(pl.len()) % 7 == 0,
    "both": (n == 5) & (m > m.mean()),
    "either": (n == 5) | (m == m.min()),
    "python": m.map_batches(lambda values: values == values.max(), return_dtype=pl.Boolean),
    "constant": pl.len() > 100,
    "never": n > n.max(),
    "choice": pl.when(n > n.mean()).then(m > 1).otherwise(False),
    "filled": n.fill_null(n.max()) == n.max(),
    "forward": n.diff().fill_null(strategy="forward") > 20,
    "series": pl.lit(pl.Series([place % 9 == 0 for place in range(900)])),
    "sql": pl.sql_expr("n = 39 AND lang LIKE 'd%'"),
    "all columns": pl.any_horizontal(pl.col("n", "m").max() == pl.col("n", "m")),
}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: Any, postgres_server: str) -> Any:
    """The same store on both engines, filled once."""
    from tests.conftest import execute, with_database

    name = f"entityframes_windows_{os.getpid()}"
    execute(postgres_server, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
    urls = [str(tmp_path_factory.mktemp("windows") / "s.duckdb"), with_database(postgres_server, name)]
    stores = dict(zip(("duckdb", "postgresql"), map(ef.connect, urls), strict=True))
    for store in stores.values():
        store.upsert(windows(), progress=False)
        store.embed(EMBEDDER, progress=False)
    yield stores
    for store in stores.values():
        store.close()
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    "name",
    [name if name in ("maximum", "shift", "both") else pytest.param(name, marks=pytest.mark.slow) for name in WHOLE],
)
def test_a_filter_over_more_than_one_row(windowed: Any, engine: str, name: str) -> None:
    """It keeps the same rows as `read` followed by filter, in every mode, and the best of them rank first (case 61)."""
    store = windowed[engine]
    kept = set(store.read("page").filter(WHOLE[name])["id"])
    # A result that does not depend on the order of the rows is the same on a scan.
    if name not in ("first", "shift", "cumulated", "count", "length", "forward", "series"):
        assert set(store.scan("page").filter(WHOLE[name]).collect()["id"]) == kept
    for mode in ("vector", "text", "hybrid"):
        everything = store.search("river garden", entity_type="page", mode=mode, k=900)
        ranked = [id for id in everything["id"] if id in kept]
        for k in (1, 7, 900):
            found = store.search("river garden", entity_type="page", mode=mode, k=k, where=WHOLE[name])
            assert set(found["id"]) <= kept
            if mode != "hybrid":
                # Ranks without a filter are the same, except for fused ranks.
                assert found["id"].to_list() == ranked[:k], (mode, k)
        assert set(found["id"]) == set(ranked), mode
    by_row = store.search("river", entity_type="page", k=900, where=pl.col("id").is_in(sorted(kept)))
    whole = store.search("river", entity_type="page", k=900, where=WHOLE[name])
    assert whole.drop("rank").equals(by_row.drop("rank"))


def test_a_filter_over_all_types_and_more_than_one_row(filled: ef.EntityStore) -> None:
    """Over the columns of `scan`, of entities of every type."""
    latest = pl.col("updated_at") == pl.col("updated_at").max()
    kept = filled.scan().collect().filter(latest).select("entity_type", "id").rows()
    found = filled.search("river stone", k=1_000, where=latest)
    assert sorted(found.select("entity_type", "id").rows()) == sorted(kept)


def test_filters_that_are_evaluated_row_by_row() -> None:
    """Filters that the database may evaluate, or that may be evaluated on a part of the rows; others need all rows."""
    from entityframes.reading.rowwise import is_row_by_row

    assert not any(is_row_by_row(where) for name, where in WHOLE.items() if name != "sql")
    text, day = pl.col("s"), pl.col("d")
    for where in (
        WHOLE["sql"], n % 50 == 7, (n > 3) & ~(m < 1), n.is_in([1, 2]), n.is_null(), n.is_between(1, 2), text == "a",
        text.str.contains("a"), text.str.ends_with("3"), text.str.to_lowercase().str.len_chars() > 3, n.cast(pl.Int8) > 1,
        pl.when(n > 1).then(m > 1).otherwise(m < 1), day.dt.year() == 2020, pl.col("st").struct.field("a") > 1,
        pl.any_horizontal(n > 1, m > 1), pl.coalesce(n, m) > 1, n.fill_null(0) > 1, pl.col("l").list.contains(3),
    ):  # fmt: skip
        assert is_row_by_row(where), where
    for where in (n.shuffle() > 1, n.sample(10) > 1, text.str.to_datetime() > 1, pl.lit(True), n.sort() > 1,
                  n.reverse() > 1, pl.all().is_null(), pl.nth(0) == 1, n.rolling_mean(3) > 1, n.interpolate() > 1,
 n.search_sorted(3) > 1,
                  n == pl.Series([1, 2]), n.is_unique(), n.rle_id() > 1, pl.corr("n", "m") > 1):  # fmt: skip
        assert not is_row_by_row(where), where
