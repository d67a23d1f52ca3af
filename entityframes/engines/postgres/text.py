"""Text search on PostgreSQL: the words of each entity are an array with a GIN index."""

from __future__ import annotations

import threading
from typing import Any

import polars as pl

from entityframes.engines import predicates
from entityframes.engines.postgres.session import Sessions
from entityframes.engines.text import WORDS, IndexState, TextQuery, Unindexed
from entityframes.interrupt import Interrupt
from entityframes.retry import retry


class PostgresText:
    """The `TextEngine` of a `PostgresEngine`."""

    def __init__(self, engine: Sessions) -> None:
        self._engine = engine
        self.indexing = threading.Lock()

    def state(self) -> IndexState:
        found = self._engine.read("text_state").row(0, named=True)
        return IndexState(found["batches"], found["indexed"], found["writable"] and not self._engine.read_only)

    def unindexed(self) -> pl.DataFrame:
        return self._engine.read("unindexed")

    def texts(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._engine.read("texts", keys["entity_type"], keys["id"])

    def index(self, documents: pl.DataFrame) -> None:
        # In key order, as all writers lock entities in this order. Words contain no spaces.
        rows = documents.sort("entity_type", "id").with_columns(
            pl.col("words").list.join(" "), pl.col("frequencies").cast(pl.List(pl.String)).list.join(" ")
        )
        columns = ("entity_type", "id", "content_hash", "metadata_hash", "length", "words", "frequencies")
        self._transaction(("index_documents", *rows.select(columns).get_columns()))

    def finish_index(self, batches: int) -> None:
        self._transaction(("drop_documents",), ("finish_index", str(batches)))

    def _transaction(self, *statements: tuple[Any, ...]) -> None:
        engine = self._engine

        def write() -> None:
            with engine.session() as session, session.transaction(Interrupt()):
                session.query("index_lock", engine.namespace)
                for name, *parameters in statements:
                    session.execute(name, *parameters)

        retry(write)

    def matching(self, query: TextQuery, limit: int) -> tuple[pl.DataFrame, bool]:
        statements = self._engine.statements
        kept = "true"
        if query.where is not None:
            kept = statements.format("kept", {"condition": predicates.render(query.where, predicates.POSTGRESQL)})
        placeholders = {
            "counts": "true" if query.unindexed is None else statements["counts_as_stored"],
            "counted": statements["counted_words" if query.terms["needed"].max() == 1 else "counted_chains"],
            "kept": kept,
        }
        unindexed = query.unindexed or Unindexed()
        parameters = (
            *query.terms.select("chain", "word", "points", "needed").cast({pl.UInt32: pl.Int32}).get_columns(),
            str(limit),
            query.entity_type,
            *unindexed.words.select(*WORDS).cast({pl.UInt32: pl.Int32}).get_columns(),
            str(unindexed.entities),
            str(unindexed.length),
        )
        found = self._engine.read("matching", *parameters, placeholders=placeholders)
        return found, found.height == limit
