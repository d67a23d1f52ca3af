"""Text search on DuckDB: a table of words and the documents that have them, of which few blocks are read for a word."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import polars as pl

from entityframes.engines import predicates
from entityframes.engines.arrow import to_frame
from entityframes.engines.duckdb.engine import _keys, _register
from entityframes.engines.duckdb.errors import translated
from entityframes.engines.text import Asked, Beside, IndexState
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.duckdb.engine import DuckDBEngine


class DuckDBText:
    """The text search of a `DuckDBEngine`, on its cursors."""

    def __init__(self, engine: DuckDBEngine) -> None:
        self._engine = engine
        self.indexing = threading.Lock()

    def state(self) -> IndexState:
        with self._engine._cursor() as cursor:
            found = self._engine._ask(cursor, "text_state").row(0, named=True)
        return IndexState(found["batches"], found["indexed"], not self._engine.read_only)

    def unindexed(self) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "unindexed")

    def texts(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._engine._ask(cursor, "texts")

    def index(self, documents: pl.DataFrame) -> None:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            last = engine._ask(cursor, "last_document").item()
            _register(cursor, "given", documents.with_row_index("document", last + 1))
            if engine._run(cursor, "drop_replaced"):
                engine._run(cursor, "drop_postings")
            engine._run(cursor, "index_documents")
            engine._run(cursor, "index_words")

    def finish_index(self, batches: int) -> None:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            if engine._run(cursor, "drop_documents"):
                engine._run(cursor, "drop_postings")
            engine._run(cursor, "forget_state")
            engine._run(cursor, "finish_index", [batches])

    def matching(self, asked: Asked, limit: int) -> tuple[pl.DataFrame, bool]:
        engine = self._engine
        documents = engine._statement("counts_everything" if asked.beside is None else "counts_as_stored")
        kept = ""
        if asked.where is not None:
            kept = engine._statement("kept").replace("{condition}", predicates.render(asked.where, predicates.DUCKDB))
        counted = engine._statement("counted_words" if asked.terms["needed"].max() == 1 else "counted_chains")
        sql = engine._statement("matching").replace("{documents}", documents)
        sql = sql.replace("{counted}", counted).replace("{kept}", kept)
        beside = asked.beside or Beside()
        with engine._cursor() as cursor, translated():
            _register(cursor, "terms", asked.terms)
            _register(cursor, "beside", beside.words.select("word", "entity_type", "id", "length", "frequency"))
            parameters = [limit, asked.entity_type, beside.entities, beside.length]
            found = to_frame(cursor.sql(sql, params=parameters).to_arrow_table())
        return found, found.height == limit
