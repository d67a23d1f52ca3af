"""Text search: the same rules on both engines, an index that follows the stored text, and ranking by BM25."""

from __future__ import annotations

import math
import random
import re
import threading
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.embedding import text_index, words

GUIDE = Path(__file__).parent.parent / "notebooks" / "guide" / "words.md"
#: The table of the guide: a text, words that find it, and words that do not.
TABLE = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
    for line in GUIDE.read_text("utf-8").splitlines()
    if line.startswith("| `")
]

FORMS = ("NFC", "NFD")
#: A text in each language, words that find it, and words that do not.
LANGUAGES = {
    "English": (
        "The lighthouse keepers were watching the harbour.",
        ["watch", "keeper", "harbours", "lighthouse", "the"],
        ["sailor", "light"],
    ),
    "German": (
        "Die Größe der Straßenbahn überraschte alle Gäste aus Köln.",
        ["größe", "GRÖSSE", "straßenbahn", "strassenbahn", "gäste", "köln"],
        ["bahnhof", "bahn", "gaste", "koeln"],
    ),
    "French": (
        "L’été dernier, l'école d'Hélène à Saint-Étienne a mangé des crêpes de bon cœur.",
        ["été", "l'été", "école", "Hélène", "saint-étienne", "étienne", "cœur", "coeur"],
        ["hiver", "ete", "ecole"],
    ),
    "Turkish": (
        "Işıl, İzmir'den gelen ılık rüzgârı sevdi; DIŞARI çıktı.",
        ["ışıl", "IŞIL", "izmir", "İZMİR", "ılık", "dışarı", "rüzgârı"],
        ["ankara", "ruzgari"],
    ),
    "Russian": (
        "Съешь же ещё этих мягких французских булок.",
        ["французских", "БУЛОК", "ещё", "еще", "съешь"],
        ["чаю", "булка", "француз"],
    ),
    "Hindi": (
        "मैं २०२४ में किताबें पढ़ना पसंद करता हूँ। क्षत्रिय, हिन्दी",
        ["किताबें", "पढ़ना", "हूँ", "हिन्दी", "क्षत्रिय", "क्\u200dषत्रिय", "२०२४", "2024"],
        ["लिखना", "हिन", "क्ष", "2023"],
    ),
    "Thai": (
        "แม่น้ำเจ้าพระยาไหลผ่านกรุงเทพมหานครในปี๒๕๖๗",
        ["เจ้าพระยา", "น้ำ", "กรุงเทพ", "กรุง\u200bเทพ", "2567"],
        ["เชียงใหม่", "นำ"],
    ),
    "Chinese": ("数据库的事务保证原子性。水、𠮷野家", ["事务", "数据库", "原子性", "水", "𠮷野", "据"], ["日志", "子原", "火"]),
    "Japanese": (
        "データベースの索引を作り直しました。時々サーバーが",
        ["索引", "データベース", "ﾃﾞｰﾀﾍﾞｰｽ", "時々", "サーバ", "作り直し"],
        ["記録", "デタ", "引索"],
    ),
    "Korean": (
        "데이터베이스에서 색인을 다시 만들었습니다. 물",
        ["색인", "색인을", "데이터베이스", "만들었습니다", "물"],
        ["거래", "인색"],
    ),
    "code": (
        "getUserName(snake_case_name) kebab-case-id C++ C# .NET v1.2.3 10.0.0.254 os.path.join x::y 1_000_000 ＡＢＣ",
        ["getUserName", "user", "case", "kebab", "kebab-case-id", "c++", "C#", ".net", "1.2.3", "v1.2.3", "10.0.0.254",
         "path.join", "x::y", "1000000", "1_000_000", "abc", "NAME"],
        ["username", "usern", "f#", "1.2.4", "10.0.0.25", "os.path.split"],
    ),
    "web": (
        "Ask ada.lovelace@example.org, or read https://docs.example.com/a/page.html?q=1#part (see www.test.de) #tag @name",
        ["ada.lovelace@example.org", "lovelace", "example.org", "https://docs.example.com/a/page.html", "docs.example.com",
         "page.html", "part", "www.test.de", "test.de", "#tag", "tag", "@name"],
        ["bob@example.org", "test.fr", "pagination"],
    ),
    "Vietnamese": ("Cơ sở dữ liệu được đồng bộ hóa.", ["đồng", "DỮ LIỆU"], ["chỉ", "dong"]),
    "Arabic": ("قاعدة البيانات سـريعة جدا في ٢٠٢٤.", ["سريعة", "البيانات", "2024"], ["بطيئة"]),
    "Persian": ("کتاب\u200cها را می\u200cخوانم.", ["کتاب", "کتاب\u200cها", "کتابها", "خوانم"], ["کتا"]),
    "Hebrew": ("מסד הנתונים מהיר מאוד.", ["מהיר"], ["איטי"]),
    "Tamil": ("தரவுத்தளம் வேகமாக உள்ளது.", ["வேகமாக"], ["மெதுவாக"]),
}  # fmt: skip


def search(store: ef.EntityStore, query: str, **options: Any) -> list[str]:
    return store.search(query, mode="text", **{"k": 100, **options})["id"].to_list()


def notes(texts: dict[str, str], **metadata: Any) -> pl.DataFrame:
    return pl.DataFrame({"entity_type": "note", "id": list(texts), "content": list(texts.values()), **metadata})


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    """The texts of the table, numbered."""
    store.upsert(notes({str(row): text for row, ((text,), *_) in enumerate(TABLE)}), progress=False)
    return store


@pytest.mark.slow
def test_the_table_of_the_guide(filled: ef.EntityStore) -> None:
    """Words that find a text and words that do not, by row, for any Unicode composition of text and query."""
    assert len(TABLE) > 25
    wrong = [
        (text, form, query)
        for row, ((text,), found, missed) in enumerate(TABLE)
        for query in (*found, *missed)
        for form in ("NFC", "NFD")
        if (str(row) in search(filled, unicodedata.normalize(form, query))) != (query in found)
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def forms() -> pl.DataFrame:
    """The text of each language, composed and decomposed; ids are the language and the form."""
    texts = [
        (name, form, unicodedata.normalize(form, text)) for name, (text, *_) in LANGUAGES.items() for form in FORMS
    ]
    return notes({f"{name} {form}": text for name, form, text in texts})


@pytest.mark.slow
def test_languages(store: ef.EntityStore, forms: pl.DataFrame) -> None:
    """Words find their text and no other, in any composition of text and query, and in any case."""
    store.upsert(forms, progress=False)
    wrong = []
    for name, (_, words_in_it, others) in LANGUAGES.items():
        both = {f"{name} {form}" for form in FORMS}
        for form in FORMS:
            for query in [unicodedata.normalize(form, word) for word in words_in_it]:
                spellings = {query, query.upper()}
                wrong += [(name, form, one) for one in spellings if not both <= set(search(store, one))]
            for query in [unicodedata.normalize(form, word) for word in others]:
                wrong += [(name, form, query) for found in search(store, query) if found in both]
    assert wrong == []


def test_text_without_spaces_is_found_where_it_is_contiguous(store: ef.EntityStore) -> None:
    """Not if all its character pairs occur separately; a shorter word of the query still finds its text."""
    together, apart = "ไปกรุงเทพวันนี้", "กรุ รุง งเ เท ทพ"
    store.upsert(notes({"together": together, "apart": apart, "other": "a plain python"}), progress=False)
    assert search(store, "กรุงเทพ") == ["together"]
    assert search(store, "กรุงเทพ", k=1) == ["together"]
    assert search(store, "กรุงเทพ python") == ["together", "other"]
    assert sorted(search(store, "รุง")) == ["apart", "together"]


@pytest.mark.slow
def test_the_end_of_a_long_text_is_found(store: ef.EntityStore) -> None:
    """Beyond the first 100,000 characters, and with more words than a tsvector allows; one word may be a megabyte."""
    many = " ".join(f"word{number}" for number in range(150_000))
    store.upsert(notes({"many": f"{many} needle", "one": f"{'x' * 1_000_000} haystack"}), progress=False)
    assert search(store, "needle") == ["many"]
    assert search(store, "word149999") == ["many"]
    assert search(store, "haystack") == ["one"]
    assert search(store, "x" * 5_000) == ["one"]


def test_titles_are_searched(store: ef.EntityStore, tmp_path: Path) -> None:
    """The field title, in any kind of metadata, also from front matter; changes are indexed."""
    metadata = [{"title": "Ein Besuch in Zürich"}, {"title": "1984"}, {"title": None}]
    store.upsert(notes({"a": "text", "b": "", "c": "text"}, metadata=metadata), progress=False)
    store.upsert(
        pl.DataFrame(
            {
                "entity_type": "json",
                "id": ["number", "list"],
                "content": "text",
                "metadata": ['{"title": 3.25}', '{"title": ["x"]}'],
            }
        ),
        progress=False,
    )
    (tmp_path / "page.md").write_text("---\ntitle: Windmills\n---\nThey turn.\n")
    ef.DirectorySync(store, tmp_path).import_files(progress=False)
    assert search(store, "zürich") == ["a"]
    assert search(store, "1984") == ["b"]
    assert search(store, "3.25") == ["number"]
    assert search(store, "windmill") == ["page"]
    store.upsert_entity("note", "a", "text", {"title": "Ein Besuch in Bern"})
    assert search(store, "zürich") == []
    assert search(store, "bern") == ["a"]


def test_stop_words(store: ef.EntityStore) -> None:
    """A query of stop words alone is searched; next to other words they are ignored, contracted or not."""
    store.upsert(notes({"a": "What is the name of the cat", "b": "who knows", "c": "I ❤️ zebras"}), progress=False)
    assert search(store, "what the") == ["a"]
    assert search(store, "the who") == ["b", "a"]
    assert search(store, "what's the who, cat") == ["a"]
    assert search(store, "🦊 -- ! ❤️") == []


def model(texts: dict[str, str], query: str) -> list[tuple[str, float]]:
    """BM25 in plain Python over the words of `words`, with chains that need all of their parts."""
    counted = words.count(pl.Series(list(texts.values()), dtype=pl.String))
    documents = {
        id: Counter(dict(zip(row["words"], row["frequencies"], strict=True)))
        for id, row in zip(texts, counted.iter_rows(named=True), strict=True)
    }
    terms = words.Query(query).terms.rows(named=True)
    average = sum(counter.total() for counter in documents.values()) / len(documents)
    scores = {}
    for id, counter in documents.items():
        points = Counter[int]()
        for term in terms:
            points[term["chain"]] += term["points"] if term["word"] in counter else 0
        asked = {term["word"] for term in terms if points[term["chain"]] >= term["needed"]} & set(counter)
        score = 0.0
        for word in sorted(asked):
            having = sum(word in other for other in documents.values())
            weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            frequency = counter[word]
            score += weight * frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * counter.total() / average))
        if asked:
            scores[id] = score
    return sorted(scores.items(), key=lambda found: (-round(found[1], 9), found[0]))


VOCABULARY = [
    "stone",
    "stones",
    "river",
    "get_river",
    "a.b",
    "snake_case",
    "1.2.3",
    "1.2",
    "Zürich",
    "数据库",
    "数据",
    "the",
]


def drawn(rng: random.Random, count: int) -> dict[str, str]:
    return {f"n{n:03}": " ".join(rng.choices(VOCABULARY, k=rng.randint(0, 12))) for n in range(count)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_order_and_scores_are_those_of_the_model(connect: Any, seed: int) -> None:
    """After inserts, edits, deletions and renames, in one call or several, with the index or without it."""
    rng = random.Random(seed)
    store = connect()
    texts = drawn(rng, 60)
    store.upsert(notes(texts), progress=False)
    for step in range(4):
        for _ in range(6):
            query = " ".join(rng.choices(VOCABULARY, k=rng.randint(1, 4)))
            found = store.search(query, mode="text", k=500)
            expected = model(texts, query)
            assert found["id"].to_list() == [id for id, _ in expected], (seed, step, query)
            assert found["score"].to_list() == pytest.approx([score for _, score in expected], rel=1e-9)
            assert search(store, query, k=3) == [id for id, _ in expected[:3]]
            kept = sorted(texts)[:20]
            assert search(store, query, where=pl.col("id").is_in(kept)) == [id for id, _ in expected if id in kept]
        changed = {id: " ".join(rng.choices(VOCABULARY, k=5)) for id in rng.sample(sorted(texts), 5)}
        store.upsert(notes(changed | {f"new{step}": "river stone"}), progress=False)
        gone = rng.sample(sorted(texts.keys() - changed), 4)
        store.delete(ef.ids("note", gone))
        texts = {id: text for id, text in (texts | changed | {f"new{step}": "river stone"}).items() if id not in gone}


@pytest.mark.slow
def test_a_read_only_store_gives_the_same_results(connect: Any) -> None:
    """Whether its index is empty, complete or outdated; of one type, and with a filter."""
    store = connect()
    texts = drawn(random.Random(5), 40)
    store.upsert(notes(texts), progress=False)
    queries = ["stone river", "a.b", "数据库", "1.2.3 snake_case"]

    asked: list[dict[str, Any]] = [{}, {"entity_type": "note"}, {"where": pl.col("id") < "n020"}]

    def answers(store: ef.EntityStore) -> list[pl.DataFrame]:
        return [store.search(query, mode="text", k=50, **options) for query in queries for options in asked]

    for _ in range(3):
        store.close()
        with connect(read_only=True) as reader:
            read_only = answers(reader)
        store = connect()
        written = answers(store)
        assert any(not found.is_empty() for found in written)
        for number, (one, other) in enumerate(zip(read_only, written, strict=True)):
            assert one.equals(other), number
        store.upsert(notes({"n001": "river river", "n002": "", "later": "数据库 a.b"}), progress=False)
        store.upsert_entity("other", "x", "river stone a.b")
        store.delete(ef.ids("note", ["n003"]))


def test_concurrent_changes_are_found_by_the_next_search(
    store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of a text that was replaced while they were counted are not stored as those of the new one."""
    store.upsert(notes({"a": "first", "b": "second"}), progress=False)
    count = words.count
    edits = iter(["changed", "changed again"])

    def counted(texts: pl.Series) -> pl.DataFrame:
        if (edit := next(edits, None)) is not None:
            store.upsert_entity("note", "a", edit)
        return count(texts)

    monkeypatch.setattr(words, "count", counted)
    assert search(store, "second") == ["b"]
    assert search(store, "second") == ["b"]
    monkeypatch.undo()
    assert search(store, "first") == []
    assert search(store, "changed") == ["a"]
    assert search(store, "again") == ["a"]


def test_an_interrupted_index_is_resumed(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is kept; the next search completes the index."""
    store.upsert(notes({f"n{n}": f"stone number{n}" for n in range(30)}), progress=False)
    monkeypatch.setattr(text_index, "_BYTES", 100)
    real, calls = words.count, []

    def count(texts: pl.Series) -> pl.DataFrame:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(texts)

    monkeypatch.setattr(words, "count", count)
    with pytest.raises(KeyboardInterrupt):
        search(store, "stone")
    before = sum(calls[:2])
    assert len(search(store, "stone")) == 30
    assert sum(calls[3:]) == 30 - before
    assert len(search(store, "number29")) == 1
    assert sum(calls[3:]) == 30 - before


def test_an_emptied_store_is_indexed_again(connect: Any, sql: Any) -> None:
    """After all rows of all tables are deleted there is a store without entities, whose index works."""
    store = connect()
    store.upsert(notes({"a": "stone"}), progress=False)
    assert search(store, "stone") == ["a"]
    for table in ("entities", "batches", "documents", "text_index", "embedding_jobs"):
        sql(f"DELETE FROM entityframes.{table}")
    store = connect()
    assert store._engine.text.state().complete
    store.upsert(notes({"b": "stone"}), progress=False)
    assert search(store, "stone") == ["b"]
    assert store._engine.text.state().complete


def test_searches_and_upserts_at_once(connect: Any, engine: str) -> None:
    """Threads that search while others write: every result has texts that existed, the last one the current ones."""
    store = connect()
    other = store if engine == "duckdb" else connect()
    store.upsert(notes({f"n{n}": "stone" for n in range(50)}), progress=False)
    problems: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            for turn in range(8):
                work(turn)
        except BaseException as error:
            problems.append(error)

    def write(turn: int) -> None:
        store.upsert(notes({f"n{n}": f"stone turn{turn} river" for n in range(turn, 50, 3)}), progress=False)

    def read(turn: int) -> None:
        assert len((store if turn % 2 else other).search("stone", mode="text", k=100)) == 50

    threads = [threading.Thread(target=run, args=(work,)) for work in (write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    texts = dict(store.read("note").select("id", "content").rows())
    for turn in range(8):
        assert sorted(search(other, f"turn{turn}")) == sorted(
            id for id, text in texts.items() if f"turn{turn} " in text
        )
