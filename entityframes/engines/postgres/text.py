"""Text search on PostgreSQL: the words of each entity are an array, in a GIN index."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes.engines import predicates
from entityframes.engines.text import WORDS, Asked, Beside, IndexState
from entityframes.interrupt import Interrupt
from entityframes.retry import retry

if TYPE_CHECKING:
    from entityframes.engines.postgres.engine import PostgresEngine


class PostgresText:
    """The text search of a `PostgresEngine`, on its connections."""

    def __init__(self, engine: PostgresEngine) -> None:
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
        # In key order, as every writer locks; words have no blanks.
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
                session.ask("index_lock", engine.namespace)
                for name, *parameters in statements:
                    session.run(name, *parameters)

        retry(write)

    def matching(self, asked: Asked, limit: int) -> tuple[pl.DataFrame, bool]:
        statements = self._engine.statements
        kept = "true"
        if asked.where is not None:
            kept = statements.filled("kept", {"condition": predicates.render(asked.where, predicates.POSTGRESQL)})
        places = {
            "counts": "true" if asked.beside is None else statements["counts_as_stored"],
            "counted": statements["counted_words" if asked.terms["needed"].max() == 1 else "counted_chains"],
            "kept": kept,
        }
        beside = asked.beside or Beside()
        parameters = (
            *asked.terms.select("chain", "word", "points", "needed").cast({pl.UInt32: pl.Int32}).get_columns(),
            str(limit),
            asked.entity_type,
            *beside.words.select(*WORDS).cast({pl.UInt32: pl.Int32}).get_columns(),
            str(beside.entities),
            str(beside.length),
        )
        found = self._engine.read("matching", *parameters, places=places)
        return found, found.height == limit
