"""What notebooks show of stores, tables, results, plans and frames, and the texts beside it."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import entityframes as ef
from entityframes import views
from entityframes.embedding.snippets import snippets

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[2J\u202e"
NOTES = pl.DataFrame(
    {
        "entity_type": "note",
        "id": ["a", "b", "c", EVIL],
        "content": ["The first program", "The Enigma code", "A moth in the relay", EVIL],
        "metadata": [{"year": 1843}, {"year": 1941}, {"year": 1947}, {"year": 0}],
    }
)


class Page(HTMLParser):
    """The tags, styles and text of a view; every tag that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style", "title"}
        self.styles += [value or "" for name, value in attrs if name == "style"]
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


#: What the sanitizer of JupyterLab lets through in notebooks that are not trusted, as far as views use it.
NUMBER = r"\d+(\.\d+)?"
LENGTH = rf"(0|{NUMBER}(em|px))"
COLOR = r"(#[0-9a-f]{6}|rgba\(\d+,\d+,\d+,0\.\d+\))"
ALLOWED = {
    "background-color": COLOR,
    "border": "none",
    "border-collapse": "collapse",
    "border-radius": LENGTH,
    "border-top": rf"1px solid {COLOR}",
    "display": "flex|inline-block",
    "font-weight": "normal",
    "height": LENGTH,
    "line-height": NUMBER,
    "margin": rf"{LENGTH}( {LENGTH})*",
    "margin-right": LENGTH,
    "max-width": LENGTH,
    "min-width": LENGTH,
    "opacity": r"0\.\d+",
    "overflow": "hidden",
    "overflow-wrap": "break-word",
    "padding": rf"{LENGTH}( {LENGTH})*",
    "table-layout": "auto",
    "text-align": "left|right",
    "vertical-align": "top",
    "white-space": "nowrap",
    "width": rf"({NUMBER}%|{LENGTH})",
}
TAGS = {"div", "span", "strong", "code", "table", "thead", "tbody", "tr", "th", "td"}


def seen(thing: object) -> str:
    """The text of the view of an object, whose HTML is safe and survives the sanitizer."""
    page = Page(thing._repr_html_())  # type: ignore[attr-defined]
    assert set(page.tags) <= TAGS
    for style in page.styles:
        for rule in style.split(";"):
            name, _, value = rule.partition(":")
            assert re.fullmatch(ALLOWED[name], value, re.IGNORECASE), rule
            # Text has the color of the page.
            assert name != "color"
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    return " ".join(page.text.split())


def pretty(thing: object) -> str:
    """The text of an object in IPython."""

    class Printer:
        written = ""

        def text(self, text: str) -> None:
            self.written += text

    printer = Printer()
    thing._repr_pretty_(printer, False)  # type: ignore[attr-defined]
    return printer.written


def test_store(store: ef.EntityStore) -> None:
    """Where it is, its types with counts, what is due; a closed store says so."""
    assert "no entities yet" in seen(store)
    assert len(pretty(store).splitlines()) == 2
    store.upsert(NOTES)
    shown = seen(store)
    assert "note 4 0 4 0" in shown
    assert "4 entities" in shown
    assert store.address in shown
    first, second = pretty(store).splitlines()
    assert first == repr(store)
    assert "4 note" in second
    store.close()
    assert "closed" in seen(store)
    assert "closed" in pretty(store)
    assert repr(store) == first


def test_table(store: ef.EntityStore) -> None:
    """Key, rows and columns."""
    table = ef.create_table(store, "people", {"id": pl.Int64, EVIL.replace('"', ""): pl.String}, key="id")
    table.upsert(pl.DataFrame({"id": [1, 2]}))
    shown = seen(table)
    assert "people" in shown
    assert "key (id)" in shown
    assert "2 rows" in shown
    assert "<script>alert(1)</script>" in shown
    first, second = repr(table).splitlines()
    assert "key=['id']" in first
    assert second.startswith("2 columns: id Int64, <script>")
    store.close()
    assert "closed" in seen(table)


def test_result(store: ef.EntityStore) -> None:
    """Counts, rate, failures grouped by reason with examples, and the call that gets the rest."""
    keys = pl.DataFrame({"entity_type": "note", "id": ["a", None, None, "b\0", EVIL], "content": EVIL})
    shown = seen(store.upsert(keys))
    assert "2 created" in shown
    assert "rows/s" in shown
    assert "null_key 2 row 1" in shown
    assert "nul_character 1 row 3" in shown
    assert "result.failed" in shown
    assert "result.failed" not in seen(store.upsert(keys[:1]))
    expecting = keys[:1].with_columns(content=pl.lit("new"), hash=pl.lit("0" * 64))
    shown = seen(store.upsert(expecting, expected_hash="hash"))
    assert "1 conflict" in shown
    assert 'result.outcomes.filter(status="conflict")' in shown


def test_plan(store: ef.EntityStore) -> None:
    """What would change, old -> new; why a row is invalid."""
    store.upsert(NOTES)
    changed = NOTES.with_columns(
        metadata=pl.struct(year=pl.Series([1842, 1941, 1947, 0]), at=pl.lit(EVIL)), content=pl.lit("text")
    )
    plan = store.plan(pl.concat([changed, changed[:1].with_columns(id=pl.lit(None, pl.String))]))
    shown = seen(plan)
    assert "4 to update" in shown
    assert "content changes" in shown
    assert "year 1843 → 1842" in shown
    assert "at — →" in shown
    assert "id is null" in shown
    assert "plan.apply()" in shown
    first, second = repr(plan).splitlines()
    assert first == "Plan: 5 rows: 4 to update, 1 invalid"
    assert "updates change the content of 4" in second


def test_plan_of_a_table(store: ef.EntityStore) -> None:
    """The same for a table, with deletions."""
    table = ef.create_table(store, "people", {"id": pl.Int64, "name": pl.String}, key="id")
    table.upsert(pl.DataFrame({"id": [1, 2, 3], "name": ["Ada", "Bob", "Cid"]}))
    plan = table.plan(pl.DataFrame({"id": [1, 2, 4], "name": ["Ada L.", "Bob", EVIL]}), mirror=True)
    shown = seen(plan)
    assert "1 update name Ada → Ada L." in shown
    assert "3 delete name Cid → —" in shown
    assert repr(plan).startswith("TablePlan: 4 rows: 1 to create, 1 to update, 1 unchanged, 1 to delete\n")


def test_sync(store: ef.EntityStore, tmp_path: Path) -> None:
    """A plan and a result list paths."""
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / "<i>.md").write_text("text")
    (tmp_path / "note" / "bad.md").write_text("---\nyear: [\n---\n")
    sync = ef.DirectorySync(store, tmp_path)
    shown = seen(sync.plan())
    assert "1 to create" in shown
    assert "note/<i>.md create import" in shown
    assert len(repr(sync.plan()).splitlines()) == 2
    shown = seen(sync.sync(progress=False))
    assert "note/<i>.md created import" in shown
    assert "note/bad.md" in shown


def test_verification(store: ef.EntityStore, sql: Callable[..., object]) -> None:
    """Sound, or what is not and what repairs it."""
    store.upsert(NOTES)
    assert "sound" in seen(store.verify())
    sql("DELETE FROM entityframes.batches")
    shown = seen(store.verify())
    assert "sound" not in shown
    assert "ledger" in shown
    assert "store.verify(repair=True)" in shown
    assert "repaired" in seen(store.verify(repair=True))


def test_search_and_jobs(store: ef.EntityStore) -> None:
    """Hits with their words marked; jobs by state."""
    assert "none" in seen(store.jobs())
    store.upsert(NOTES)
    assert "1 pending" in seen(store.jobs())
    found = store.search("programs script", mode="text")
    shown = seen(found)
    assert '<strong style="background-color:rgba(255,180,0,0.35)">program</strong>' in found._repr_html_()
    assert "rank score entity_type id content metadata content_hash updated_at" in shown
    store.embed(ef.HashingEmbedder(32))
    assert "no entities found" not in seen(store.search([1.0] * 32))
    assert "no entities found" in seen(store.search("zebra", mode="text"))


def test_a_frame_with_a_view_is_a_plain_frame(store: ef.EntityStore) -> None:
    """Frames that are derived from it, or copied, are shown by Polars, and so is itself when its columns change."""
    store.upsert(NOTES)
    found = store.search("program", mode="text")
    assert type(found) is pl.DataFrame
    usual = pl.DataFrame._repr_html_
    for other in (found.filter(pl.col("rank") == 1), found.head(), found.clone(), copy.deepcopy(found)):
        assert other._repr_html_() == usual(other)
    restored = pickle.loads(pickle.dumps(found))
    assert_frame_equal(restored, found)
    assert found._repr_html_() != usual(found)
    found.insert_column(0, pl.Series("new", [1]))
    assert found._repr_html_() == usual(found)


@pytest.mark.parametrize(
    ("text", "query", "marked"),
    [
        ("The Programs run", "program", ["Programs"]),
        ("read_csv_batched or not", "csv", ["read_csv_batched"]),
        ("東京タワーに行く", "東京タワー", ["東京タワー"]),
        ("Straße", "STRASSE", ["Straße"]),
        ("nothing here", "program", []),
        ("anything", None, []),
        ("", "program", []),
    ],
)
def test_snippets(text: str, query: str | None, marked: list[str]) -> None:
    """The words that a text search would find are marked, and the text is as it is."""
    [parts] = snippets(pl.Series([text], dtype=pl.String), query)
    assert [part for part, mark in parts if mark] == marked
    assert "".join(part for part, _ in parts) == text


def test_a_snippet_is_the_part_of_a_long_text_with_most_words() -> None:
    """It is cut between words, on both sides."""
    text = "one " + "x " * 300 + "one two two " + "y " * 300
    [parts] = snippets(pl.Series([text]), "one two")
    assert [part for part, mark in parts if mark] == ["one", "two", "two"]
    assert parts[0] == ("… ", False)
    assert parts[-1] == (" …", False)
    assert len("".join(part for part, _ in parts)) < 250


def test_a_snippet_may_end_within_a_long_word() -> None:
    """Rather than far before it."""
    [parts] = snippets(pl.Series(["one " + "x" * 1_000]), "one")
    assert len("".join(part for part, _ in parts)) > 150


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_234, "1.23 kB"), (999_900, "1 MB"), (3_200_000_000_000, "3.2 TB")],
)
def test_sizes(count: int, text: str) -> None:
    """Three digits."""
    assert views.size(count) == text
