"""Text search on DuckDB: a table of words and the documents that have them, of which few blocks are read for a word."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import polars as pl

from entityframes.engines import predicates
from entityframes.engines.text import Asked, Beside, IndexState

if TYPE_CHECKING:
    from entityframes.engines.duckdb.engine import DuckDBEngine


class DuckDBText:
    """The text search of a `DuckDBEngine`, on its cursors."""

    def __init__(self, engine: DuckDBEngine) -> None:
        self._engine = engine
        self.indexing = threading.Lock()

    def state(self) -> IndexState:
        found = self._engine.read("text_state").row(0, named=True)
        return IndexState(found["batches"], found["indexed"], not self._engine.read_only)

    def unindexed(self) -> pl.DataFrame:
        return self._engine.read("unindexed")

    def texts(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine.session() as session:
            session.register_keys(keys)
            return session.ask("texts")

    def index(self, documents: pl.DataFrame) -> None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            last = session.ask("last_document").item()
            session.register("given", documents.with_row_index("document", last + 1))
            if session.run("drop_replaced"):
                session.run("drop_postings")
            session.run("index_documents")
            session.run("index_words")

    def finish_index(self, batches: int) -> None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            if session.run("drop_documents"):
                session.run("drop_postings")
            session.run("forget_state")
            session.run("finish_index", batches)

    def matching(self, asked: Asked, limit: int) -> tuple[pl.DataFrame, bool]:
        statements = self._engine.statements
        kept = ""
        if asked.where is not None:
            kept = statements.filled("kept", {"condition": predicates.render(asked.where, predicates.DUCKDB)})
        places = {
            "documents": statements["counts_everything" if asked.beside is None else "counts_as_stored"],
            "counted": statements["counted_words" if asked.terms["needed"].max() == 1 else "counted_chains"],
            "kept": kept,
        }
        beside = asked.beside or Beside()
        with self._engine.session() as session:
            session.register("terms", asked.terms)
            session.register("beside", beside.words.select("word", "entity_type", "id", "length", "frequency"))
            found = session.ask("matching", limit, asked.entity_type, beside.entities, beside.length, places=places)
        return found, found.height == limit
