"""Spaces of passages: what is sent to the embedder, what is stored, and what a search finds; on both engines."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from entityframes.embedding.spaces import default_name
from entityframes.embedding.texts import title
from tests.test_embedding import Recording

Sql = Callable[..., list[tuple[Any, ...]]]

PASSAGES = ef.Passages(size=200)
SPACE = default_name(Recording(), PASSAGES)


def page(paragraphs: int, seed: int = 0) -> str:
    """A text of paragraphs of about 150 characters, which are all different, under a few headings."""
    rng = random.Random(seed)
    words = [f"{first}{last}" for first in ("ba", "ke", "lo", "mi", "su") for last in ("ra", "ton", "lix", "po", "n")]
    parts = []
    for number in range(paragraphs):
        if number % 20 == 0:
            parts.append(f"## Chapter {number // 20}")
        parts.append(f"Paragraph {number} of {seed}: " + " ".join(rng.choices(words, k=24)) + ".")
    return "\n\n".join(parts) + "\n"


def entity(content: str, id: str = "a", **metadata: Any) -> pl.DataFrame:
    row = {"entity_type": "page", "id": id, "content": content}
    return pl.DataFrame([row | ({"metadata": metadata} if metadata else {})])


def embed(store: ef.EntityStore, embedder: Recording | None = None, **options: Any) -> ef.EmbedResult:
    return store.embed(embedder or Recording(), progress=False, **{"passages": PASSAGES, **options})


def sent(store: ef.EntityStore, **options: Any) -> list[str]:
    """The texts that an embedder is given now."""
    embedder = Recording()
    assert embed(store, embedder, **options).ok
    return embedder.texts


def is_sound(store: ef.EntityStore, sql: Sql, space: str = SPACE, passages: ef.Passages = PASSAGES) -> None:
    """The passages of every entity are those of its content, in order, and each has the vector of its text."""
    stored = sql(
        "SELECT p.entity_type, p.id, p.position, p.start_char, p.end_char, p.heading, v.error IS NULL "
        "FROM entityframes.passages AS p JOIN entityframes.embeddings AS v "
        f"ON v.space = p.space AND v.text_hash = p.text_hash WHERE p.space = '{space}' ORDER BY 1, 2, 3"
    )
    expected = []
    for kind, id, content, metadata in store.scan().select("entity_type", "id", "content", "metadata").collect().rows():
        for number, found in enumerate(passages.cut(content, title(metadata, passages.title_fields))):
            expected.append((kind, id, number, found.start, found.end, found.heading, True))
    assert [tuple(row) for row in stored] == sorted(expected)
    assert store.stats(space=space)["due"].sum() == 0
    assert store.verify().is_empty()


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    """A page of some 100 kB, embedded."""
    store.upsert(entity(page(600)), progress=False)
    assert embed(store).counts["embedded"] == 1
    return store


def test_every_passage_has_a_vector(filled: ef.EntityStore, sql: Sql) -> None:
    """The space records how contents are cut, and a later call uses that without being told."""
    assert filled.spaces().select("space", "passages", "embedded").rows() == [(SPACE, PASSAGES.spec(), 1)]
    is_sound(filled, sql)
    filled.upsert(entity(page(3, seed=1), "b"), progress=False)
    assert filled.embed(Recording(), progress=False).counts["embedded"] == 1
    is_sound(filled, sql)


@pytest.mark.parametrize("edit", ["append", "delete", "insert"])
def test_an_edit_sends_a_few_passages(filled: ef.EntityStore, sql: Sql, edit: str) -> None:
    """A line at the end or in the middle of a long text sends at most two of its hundreds of passages."""
    paragraphs = page(600).split("\n\n")
    if edit == "append":
        paragraphs.append("One more line.\n")
    elif edit == "delete":
        del paragraphs[300]
    else:
        paragraphs.insert(300, "One more line.")
    filled.upsert(entity("\n\n".join(paragraphs)), progress=False)
    assert filled.stats()["due"].to_list() == [1]
    assert len(sent(filled)) <= 2
    is_sound(filled, sql)


def test_a_text_that_was_embedded_is_not_sent_again(filled: ef.EntityStore, sql: Sql, tmp_path: Any) -> None:
    """Equal, deleted and stored again, of another type, renamed, and changed back."""
    content = page(600)
    filled.upsert(pl.concat([entity(content, "equal"), entity(content).with_columns(entity_type=pl.lit("other"))]))
    assert sent(filled) == []
    filled.delete(ef.ids("page", ["a", "equal"]))
    filled.upsert(entity(content, "again"), progress=False)
    assert sent(filled) == []
    filled.upsert(entity(page(5, seed=1), "again"), progress=False)
    assert len(sent(filled)) > 0
    filled.upsert(entity(content, "again"), progress=False)
    assert sent(filled) == []
    folder = ef.DirectorySync(filled, tmp_path)
    assert folder.export_files(progress=False).ok
    (tmp_path / "page" / "again.md").rename(tmp_path / "page" / "renamed.md")
    assert folder.sync(progress=False).counts["renamed"] == 1
    assert filled.stats()["due"].sum() == 0
    assert sent(filled) == []
    is_sound(filled, sql)


def test_unused_vectors_are_deleted_on_demand(filled: ef.EntityStore, sql: Sql) -> None:
    """A vector that passages of any space or entity use stays."""
    total = "SELECT count(*) FROM entityframes.embeddings"
    [(before,)] = sql(total)
    filled.embed(ef.HashingEmbedder(8), space="whole", progress=False)
    filled.upsert(entity(page(300)), progress=False)
    assert filled.vacuum() == 0
    embed(filled, space=SPACE)
    assert filled.vacuum() > before // 3
    filled.embed(ef.HashingEmbedder(8), space="whole", progress=False)
    assert filled.vacuum() == 1
    is_sound(filled, sql)
    filled.drop_space("whole")
    assert sql("SELECT DISTINCT space FROM entityframes.passages") == [(SPACE,)]
    assert sql("SELECT DISTINCT space FROM entityframes.embeddings") == [(SPACE,)]


@pytest.mark.parametrize("passages", [None, PASSAGES])
def test_white_space_is_not_embedded(store: ef.EntityStore, passages: ef.Passages | None) -> None:
    """An entity whose content is white space only is skipped, once, and is then neither due nor embedded."""
    store.upsert(pl.concat([entity(" \n\t\u00a0\u2003"), entity("text", "b")]), progress=False)
    embedder = Recording()
    result = store.embed(embedder, passages=passages, progress=False)
    assert embedder.texts == ["text"]
    assert result.ok
    assert result.outcomes.select("id", pl.col("status").cast(pl.String)).rows() == [
        ("a", "skipped"),
        ("b", "embedded"),
    ]
    assert "white space" in result.outcomes["error"][0]
    assert store.stats().select("entities", "embedded", "due", "failed").row(0) == (2, 1, 0, 0)
    assert store.enqueue() == 0
    assert store.search("text", embedder=embedder)["id"].to_list() == ["b"]
    store.upsert(entity("now a text"), progress=False)
    assert store.embed(embedder, progress=False).counts["embedded"] == 1
    assert store.verify().is_empty()


def test_a_passage_that_fails(store: ef.EntityStore, sql: Sql) -> None:
    """Its entity fails, with the place of the passage; the others' vectors are kept, and a retry sends this one only."""
    content = page(30).replace("Paragraph 17 of", "poison 17 of")
    store.upsert(pl.concat([entity(content), entity(page(3, seed=1), "b")]), progress=False)
    result = embed(store)
    assert (result.counts["failed"], result.counts["embedded"]) == (1, 1)
    [(id, error)] = result.failed.select("id", "error").rows()
    [bad] = [one for one in PASSAGES.cut(content) if "poison" in one.text]
    assert (id, error) == ("a", f"characters {bad.start} to {bad.end}: ValueError: cannot embed this")
    assert store.stats().select("embedded", "due", "failed").row(0) == (1, 0, 1)
    # Its other passages are found.
    assert store.search("Paragraph 16 of 0", k=1)["id"].to_list() == ["a"]
    store.upsert(entity(content, "copy"), progress=False)
    again = Recording()
    assert embed(store, again).counts["failed"] == 1
    assert again.calls == []
    assert store.retry_failed() == 2
    assert store.stats()["due"].to_list() == [2]
    patched = type("Patched", (Recording,), {"embed": lambda self, texts: self.calls.append(list(texts)) or (
        ef.HashingEmbedder.embed(self, texts))})()  # fmt: skip
    assert embed(store, patched).counts["embedded"] == 2
    assert patched.texts == [bad.text]
    is_sound(store, sql)


def test_titles(store: ef.EntityStore, sql: Sql) -> None:
    """They are embedded with each passage; a changed title sends all passages, other metadata none."""
    titled = ef.Passages(size=200, title_fields=["name"])
    store.upsert(entity(page(10), name="First", n=1), progress=False)
    texts = sent(store, passages=titled)
    assert texts
    assert all(text.startswith("First\n") for text in texts)
    store.upsert(entity(page(10), name="First", n=2), progress=False)
    assert store.stats()["due"].to_list() == [1]
    assert sent(store, passages=None) == []
    assert store.stats()["due"].to_list() == [0]
    store.upsert(entity(page(10), name="Second", n=2), progress=False)
    assert len(sent(store, passages=None)) == len(texts)
    space = store.spaces()["space"][0]
    is_sound(store, sql, space, titled)
    assert sent(store, passages=None) == []
    # Neither all that is due nor one that is asked for.
    assert store.enqueue() == store.enqueue(ef.ids("page", ["a"])) == 0


def test_a_space_keeps_its_passages(filled: ef.EntityStore) -> None:
    """Another size, or none where there are some, is refused; a second space may have it."""
    with pytest.raises(ef.SpaceError, match=r'"size":200.*"size":300'):
        embed(filled, passages=ef.Passages(size=300))
    assert embed(filled, passages=ef.Passages(size=300), space="larger").counts["embedded"] == 1
    filled.embed(Recording(), space="whole", progress=False)
    with pytest.raises(ef.SpaceError, match="whole contents"):
        embed(filled, space="whole")
    assert filled.spaces()["passages"].is_null().to_list() == [False, False, True]


def test_a_space_of_another_cutter(filled: ef.EntityStore, sql: Sql) -> None:
    """It is not filled with passages that are cut in another way; searches still work."""
    sql("""UPDATE entityframes.spaces SET passages = replace(passages, '"version":', '"version":9')""")
    with pytest.raises(ef.SpaceError, match="cutter"):
        filled.embed(Recording(), progress=False)
    for mode in ("vector", "text", "hybrid"):
        assert filled.search("Paragraph 17", embedder=Recording(), mode=mode)["id"].to_list() == ["a"]


def test_a_long_text_is_written_in_parts(store: ef.EntityStore, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vectors are written before all of them are there, its passages with the last ones."""
    monkeypatch.setattr(store._engine.embedding, "write_bytes", 64 * 16 * 4)
    write, sizes = store._engine.embedding.write_vectors, []

    def counted(job: Any, embedded: Any, *rest: Any) -> pl.DataFrame:
        sizes.append((embedded.texts.height, embedded.passages.height))
        return write(job, embedded, *rest)

    monkeypatch.setattr(store._engine.embedding, "write_vectors", counted)
    store.upsert(entity(page(600)), progress=False)
    result = embed(store, Recording(max_batch=64))
    assert (result.rows, result.counts["embedded"]) == (1, 1)
    assert len(sizes) > 5
    assert max(texts for texts, _ in sizes) == 64
    assert [passages for _, passages in sizes[:-1]] == [0] * (len(sizes) - 1)
    is_sound(store, sql)


def test_what_was_embedded_before_a_stop_is_not_sent_again(store: ef.EntityStore, sql: Sql) -> None:
    """Also of an entity whose other passages were not reached."""
    store.upsert(entity(page(600)), progress=False)

    def stop(texts: Sequence[str]) -> None:
        if len(first.calls) == 4:
            raise ef.EmbedderError("the account is empty")

    first, second = Recording(max_batch=50, before=stop), Recording()
    with pytest.raises(ef.EmbedderError, match="empty"):
        embed(store, first)
    assert (store.last_result.counts["embedded"], store.last_result.counts["cancelled"]) == (0, 1)
    assert embed(store, second).counts["embedded"] == 1
    assert not set(first.texts[:150]) & set(second.texts)
    assert len(first.texts[:150]) + len(second.texts) == len({one.text for one in PASSAGES.cut(page(600))})
    is_sound(store, sql)


def test_content_that_changes_while_it_is_embedded(connect: Any, sql: Sql) -> None:
    """The passages of the older text are not written; its vectors serve the newer one."""
    store, other = connect(), connect()
    store.upsert(entity(page(100)), progress=False)
    edited = threading.Event()

    def edit(texts: Sequence[str]) -> None:
        if not edited.is_set():
            edited.set()
            other.upsert(entity(page(100) + "\n\nMore.\n"), progress=False)

    embedder = Recording(max_batch=10, before=edit)
    result = embed(store, embedder)
    assert (result.counts["skipped"], result.counts["embedded"]) == (1, 1)
    assert len(embedder.texts) <= len(PASSAGES.cut(page(100))) + 2
    is_sound(store, sql)


def test_vectors_that_vanish_before_they_are_used(connect: Any, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job runs again, and every passage has its vector."""
    store, other = connect(), connect()
    store.upsert(entity(page(20)), progress=False)
    embed(store)
    store.delete(ef.ids("page", ["a"]))
    store.upsert(entity(page(20), "b"), progress=False)
    write = store._engine.embedding.write_vectors

    def late(*given: Any) -> pl.DataFrame:
        assert other.vacuum() > 0 or calls
        calls.append(given)
        return write(*given)

    calls: list[Any] = []
    monkeypatch.setattr(store._engine.embedding, "write_vectors", late)
    result = embed(store)
    assert (result.counts["skipped"], result.counts["embedded"]) == (1, 1)
    assert store.jobs()["state"].cast(pl.String).unique().to_list() == ["done"]
    is_sound(store, sql)


@pytest.mark.slow
def test_workers_with_the_same_texts(connect: Any, sql: Sql) -> None:
    """Jobs with equal passages, processed at once: no failure, and one vector of each text."""
    store = connect()
    frames = [entity(page(60, seed=number % 3), f"n{number}") for number in range(24)]
    store.upsert(pl.concat(frames), batch_size=2, progress=False)
    result = embed(store, Recording(max_batch=7), workers=4)
    assert result.counts["embedded"] == 24
    texts = {one.text for seed in range(3) for one in PASSAGES.cut(page(60, seed=seed))}
    assert sql("SELECT count(*) FROM entityframes.embeddings") == [(len(texts),)]
    is_sound(store, sql)


NEEDLE = "A zebra hides in the last paragraph."


def test_the_end_of_a_long_text_is_found(store: ef.EntityStore) -> None:
    """By its paraphrase and by its words; the passage is the place in the content."""
    long = page(700) + "\n\n## The end\n\n" + NEEDLE + "\n"
    assert len(long) > 100_000
    store.upsert(pl.concat([entity(long), *(entity(page(40, seed=n), f"n{n}") for n in range(1, 9))]), progress=False)
    store.embed(ef.WordLlamaEmbedder(), passages=ef.Passages(), progress=False)
    for mode, query in (
        ("vector", "an animal with stripes is concealed at the end"),
        ("text", "zebra"),
        ("hybrid", "zebra hides"),
    ):
        [first, *_] = store.search(query, mode=mode, k=3).rows(named=True)
        assert (first["id"], first["heading"]) == ("a", "The end"), (mode, first["passage"])
        assert NEEDLE in first["passage"]
        assert long[first["start"] : first["end"]] == first["passage"]


def vectors_of(content: str) -> tuple[list[Any], np.ndarray[Any, Any]]:
    found = PASSAGES.cut(content)
    return found, Recording().embed([one.text for one in found])


def test_search_is_exact(store: ef.EntityStore) -> None:
    """The k entities with the best passages, best first, each once, though one has many near passages."""
    many = "\n\n".join(f"The river and the stone, part {n}." for n in range(300))
    contents = {"many": many, **{f"n{n:02}": page(30, seed=n) for n in range(30)}}
    contents |= {f"r{n}": f"{page(12, seed=90 + n)}\n\nA river flows by stone {n}.\n" for n in range(5)}
    store.upsert(pl.concat([entity(text, id) for id, text in contents.items()]), progress=False)
    passages = ef.Passages(size=40)
    store.embed(Recording(), passages=passages, progress=False)
    query = Recording().embed(["the river and the stone"])[0]
    best = {}
    for id, text in contents.items():
        found = passages.cut(text)
        scores = Recording().embed([one.text for one in found]) @ query
        place = int(np.argmax(scores))
        best[id] = (float(scores[place]), found[place])
    expected = sorted(best, key=lambda one: (-best[one][0], one))
    for k in (1, 3, 10, 36):
        found = store.search(query, k=k)
        assert found["score"].to_list() == pytest.approx([best[id][0] for id in expected[:k]], abs=1e-6)
        assert found["rank"].to_list() == list(range(1, k + 1))
        assert found["id"].n_unique() == k
        for id, start, end, passage in found.select("id", "start", "end", "passage").rows():
            assert contents[id][start:end] == passage
    assert found["id"][0] == "many"
    only = store.search(query, k=3, where=pl.col("id").str.starts_with("r"))
    assert only["id"].to_list() == [id for id in expected if id.startswith("r")][:3]
    three = store.search(query, k=2, per_entity=3)
    assert three["rank"].to_list() == [1, 1, 1, 2, 2, 2]
    assert three["score"][:3].is_sorted(descending=True)
    assert three.select("id", "start").n_unique() == 6
    assert three.unique("id", keep="first", maintain_order=True)["id"].to_list() == found["id"][:2].to_list()


def test_equal_passages_of_several_entities(store: ef.EntityStore) -> None:
    """One vector stands for all of them; the limit counts entities, in the order of their keys."""
    store.upsert(
        pl.concat([entity(f"# One\n\nThe same paragraph.\n\n# {n}\n\nOwn {n}.", f"n{n:02}") for n in range(40)])
    )
    store.embed(Recording(), passages=ef.Passages(size=30), progress=False)
    for k in (5, 33):
        found = store.search("The same paragraph.", embedder=Recording(), k=k)
        assert found["id"].to_list() == [f"n{n:02}" for n in range(k)]
        assert set(found["passage"]) <= {"The same paragraph.", "# One\n\nThe same paragraph."}
    found = store.search("The same paragraph.", embedder=Recording(), k=3, where=pl.col("id") >= "n20")
    assert found["id"].to_list() == ["n20", "n21", "n22"]


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_passages_by_words(store: ef.EntityStore, mode: Any) -> None:
    """The passage with the most words of the query; with per_entity the next ones that have some."""
    parts = [
        "# Birds\n\nA heron stands in the reeds.",
        "# Fish\n\nA trout swims.",
        "# Both\n\nThe heron eats the trout.",
    ]
    store.upsert(pl.concat([entity("\n\n".join(parts)), entity("Nothing of it.", "b")]), progress=False)
    store.embed(Recording(), passages=ef.Passages(size=60), progress=False)
    found = store.search("heron trout", mode=mode, k=1, per_entity=3)
    assert found["id"].unique().to_list() == ["a"]
    assert found["heading"][0] == "Both"
    assert sorted(found["heading"]) == ["Birds", "Both", "Fish"]
    assert found["score"].n_unique() == 1


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_filter_beyond_the_reach_of_the_index(store: ef.EntityStore) -> None:
    """A scan of the index ends before it has found an entity that passes; all of them are found nevertheless."""
    rows = [entity(page(4, seed=n), f"n{n:03}") for n in range(200)]
    store.upsert(pl.concat(rows), progress=False)
    embed(store)
    assert store.index_space()
    statements = store._engine.embedding._engine.statements
    # As if there were many times as many vectors: the scan ends after the first 40, and the planner prefers it.
    plans = "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL hnsw.iterative_scan = off"
    statements.replace("iterative_scan", "SET LOCAL hnsw.iterative_scan = strict_order", plans)
    query = Recording().embed(["baton lolix"])[0]
    nearest = store.search(query, k=100)["id"].to_list()
    assert len(set(nearest)) == 100
    wanted = pl.col("id").is_in(nearest[-2:])
    assert store.search(query, k=5, where=wanted)["id"].to_list() == nearest[-2:]
    assert store.search(query, k=3)["rank"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_search_without_pgvector(store: ef.EntityStore, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same entities and passages."""
    store.upsert(pl.concat([entity(page(30, seed=n), f"n{n}") for n in range(6)]), progress=False)
    embed(store)
    query = Recording().embed(["baton lolix"])[0]
    options: dict[str, Any] = {"k": 4, "per_entity": 2}
    columns = ["rank", "id", "start", "end", "heading", "passage"]
    expected = [store.search(query, **options, **more).select(columns) for more in ({}, {"where": pl.col("id") > "n2"})]
    store.drop_space(SPACE)
    monkeypatch.setattr(type(store._engine.embedding), "_has_pgvector", lambda self: False)
    embed(store)
    assert sql("SELECT storage FROM entityframes.spaces") == [("vector",)]
    found = [store.search(query, **options, **more).select(columns) for more in ({}, {"where": pl.col("id") > "n2"})]
    assert [one.rows() for one in found] == [one.rows() for one in expected]
    is_sound(store, sql)


def test_both_engines_agree(postgres_url: str, tmp_path: Path) -> None:
    """The same entities and passages with the same scores, in every mode, with and without a filter."""
    found = []
    for url in (str(tmp_path / "s.duckdb"), postgres_url):
        with ef.connect(url) as store:
            store.upsert(pl.concat([entity(page(25, seed=n % 30), f"n{n:02}") for n in range(40)]), progress=False)
            store.embed(ef.HashingEmbedder(64), passages=PASSAGES, progress=False)
            for mode, k, few, each in itertools.product(
                ("vector", "text", "hybrid"), (1, 7, 40), (False, True), (1, 3)
            ):
                where = pl.col("id") > "n20" if few else None
                hits = store.search("baton lolix paragraph 7", mode=mode, k=k, where=where, per_entity=each)  # type: ignore[arg-type]
                found.append((url, mode, k, few, each, hits.drop("created_at", "updated_at")))
    half = len(found) // 2
    for (_, *first, ours), (_, *second, theirs) in zip(found[:half], found[half:], strict=True):
        assert first == second
        assert ours.drop("score").equals(theirs.drop("score")), first
        assert ours["score"].to_list() == pytest.approx(theirs["score"].to_list(), abs=1e-6)
        assert ours["rank"].max() == min(first[1], 19 if first[2] else 40)
