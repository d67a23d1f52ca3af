"""Mistakes of the first hour: each message says what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

import entityframes as ef
from tests.command import run

BOOKS = pl.DataFrame({"isbn": ["1", "2"], "title": ["A", "B"], "price": [1.5, 2.0]})
PANDAS = BOOKS.to_pandas().set_index("isbn")

#: What is tried with a store that has these books, and the end of the message.
MISTAKES: dict[str, tuple[Callable[[ef.EntityStore], Any], str]] = {
    "a plain frame": (lambda store: store.upsert(BOOKS), "make one with entityframes.entities(frame, entity_type, id=...)"),
    "ids without a type": (
        lambda store: store.get(pl.DataFrame({"id": ["1"]})), "make one with entityframes.ids(entity_type, ids)"
    ),
    "a list of ids": (lambda store: store.get(["1", "2"]), "entityframes.ids(entity_type, ids) makes one of ids alone"),
    "a path": (lambda store: store.upsert("books.csv"), "read the file first, as in polars.read_csv('books.csv')"),
    "a path object": (
        lambda store: ef.entities(Path("a/books.parquet"), "book", id="isbn"),  # type: ignore[call-overload]
        "read the file first, as in polars.read_parquet('a/books.parquet')",
    ),
    "another case": (lambda store: ef.entities(BOOKS, "book", id="ISBN"), "did you mean 'isbn'?"),
    "a typing mistake": (lambda store: ef.entities(BOOKS, "book", id="isbn", content="titel"), "did you mean 'title'?"),
    "the type first": (
        lambda store: ef.entities("book", BOOKS, id="isbn"),  # type: ignore[call-overload]
        "pass the frame before its type",
    ),
    "the ids first": (lambda store: ef.ids(["1"], "book"), "pass the type before the ids"),  # type: ignore[arg-type]
    "an index of pandas": (lambda store: ef.entities(PANDAS, "book", id="isbn"), "pass frame.reset_index()"),
    "a column of pandas": (lambda store: store.upsert(PANDAS["title"]), "pass its frame: to_frame()"),
    "mixed values": (
        lambda store: ef.entities(pd.DataFrame({"id": ["a", "b"], "m": [1, "x"]}), "book", id="id"),
        "or pass frame.to_dict('records'), of which only the rows fail that do not fit",
    ),
    "another dtype": (
        lambda store: store.upsert(ef.entities(BOOKS.with_columns(price=pl.lit("1")), "book", id="isbn")),
        "cast the columns, as in pl.col('price').cast(pl.Float64), or write these entities under another type",
    ),
    "a class": (lambda store: store.embed(ef.HashingEmbedder), "call it, as in HashingEmbedder(...)"),  # type: ignore[arg-type]
    "the name of an embedder": (
        lambda store: store.embed("wordllama"),  # type: ignore[arg-type]
        "pass an object such as entityframes.WordLlamaEmbedder()",
    ),
    "a filter as text": (
        lambda store: store.search("A", mode="text", where="price > 1"),  # type: ignore[arg-type]
        "such as pl.col('year') > 1900, got str",
    ),
    "a search too early": (lambda store: store.search("A"), "call store.embed(embedder) first"),
    "no table": (lambda store: store.table("boks"), "or create it with entityframes.create_table"),
    "a key that is no column": (lambda store: ef.create_table(store, "t", BOOKS, key="ISBN"), "did you mean 'isbn'?"),
    "a key in the index": (lambda store: ef.create_table(store, "t", PANDAS, key="isbn"), "pass frame.reset_index()"),
    "a table twice": (
        lambda store: [ef.create_table(store, "t", BOOKS, key="isbn") for _ in range(2)],
        "or choose another name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_to_do_instead(store: ef.EntityStore, name: str) -> None:
    """At the end of the message, or of what it says about the store."""
    call, advice = MISTAKES[name]
    store.upsert(ef.entities(BOOKS, "book", id="isbn", content="title"), progress=False)
    with pytest.raises((ef.EntityFramesError, TypeError)) as caught:
        call(store)
    assert str(caught.value).endswith(advice), caught.value


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", "check the address, and that the server runs"),
        ("no/folder/x.duckdb", "create the folder first"),
        ("mysql://u:secret@h/db", "use a file path, duckdb:///path, :memory: or postgresql://..."),
    ],
)
def test_addresses_that_do_not_work(address: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No password is repeated."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ef.ConnectError) as caught:
        ef.connect(address)
    assert caught.value.advice == advice
    assert "secret" not in str(caught.value)


def test_a_mistyped_column_of_a_file(tmp_path: Path) -> None:
    """On the command line, too."""
    (tmp_path / "books.csv").write_text("isbn,title\n1,A\n")
    ran = run("import", "books.csv", "--type", "book", "--id", "ISBN", cwd=tmp_path)
    assert ran.stderr.splitlines()[1] == "  did you mean 'isbn'?"
