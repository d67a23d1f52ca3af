"""Text search on DuckDB: a table of postings sorted by word, so that few blocks are read for each word."""

from __future__ import annotations

import threading

import polars as pl

from entityframes.engines import predicates
from entityframes.engines.duckdb.session import Sessions
from entityframes.engines.text import IndexState, TextQuery, Unindexed


class DuckDBText:
    """The `TextEngine` of a `DuckDBEngine`."""

    def __init__(self, engine: Sessions) -> None:
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
            return session.query("texts")

    def index(self, documents: pl.DataFrame) -> None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            last = session.query("last_document").item()
            session.register("given", documents.with_row_index("document", last + 1))
            if session.execute("drop_replaced"):
                session.execute("drop_postings")
            session.execute("index_documents")
            session.execute("index_words")

    def finish_index(self, batches: int) -> None:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            if session.execute("drop_documents"):
                session.execute("drop_postings")
            session.execute("forget_state")
            session.execute("finish_index", batches)

    def matching(self, query: TextQuery, limit: int) -> tuple[pl.DataFrame, bool]:
        statements = self._engine.statements
        kept = ""
        if query.where is not None:
            kept = statements.format("kept", {"condition": predicates.render(query.where, predicates.DUCKDB)})
        placeholders = {
            "documents": statements["counts_everything" if query.unindexed is None else "counts_as_stored"],
            "counted": statements["counted_words" if query.terms["needed"].max() == 1 else "counted_chains"],
            "kept": kept,
        }
        unindexed = query.unindexed or Unindexed()
        with self._engine.session() as session:
            session.register("terms", query.terms)
            session.register("beside", unindexed.words.select("word", "entity_type", "id", "length", "frequency"))
            found = session.query(
                "matching", limit, query.entity_type, unindexed.entities, unindexed.length, placeholders=placeholders
            )
        return found, found.height == limit
