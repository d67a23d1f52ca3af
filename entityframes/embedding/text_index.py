"""Brings the text index up to date before a text search, with the entities that it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from entityframes.embedding import words
from entityframes.engines.text import WORDS, TextEngine, Unindexed

#: About how many bytes of text are tokenized at once.
_BYTES = 4 << 20


def catch_up(engine: TextEngine, query: words.Query, entity_type: str | None) -> Unindexed | None:
    """Bring the index up to date.

    Returns:
        None if the index is complete. If it cannot be written: what it lacks for this query and this type.
    """
    state = engine.state()
    if not state.writable:
        return _unindexed(engine, state.complete, query, entity_type)
    if not state.complete:
        with engine.indexing:
            # Another thread may have brought the index up to date while this one waited for the lock.
            state = engine.state()
            if not state.complete:
                for documents in _documents(engine):
                    engine.index(documents)
                # Entities that were written meanwhile are indexed by the next search.
                engine.finish_index(state.batches)
    return None


def _documents(engine: TextEngine) -> Iterator[pl.DataFrame]:
    """The entities that the index lacks, with their words, in chunks. No transaction stays open between chunks."""
    keys = engine.unindexed().sort("entity_type", "id").with_columns(chunk=pl.col("bytes").cum_sum() // _BYTES)
    for chunk in keys.partition_by("chunk", maintain_order=True):
        found = engine.texts(chunk)
        counted = words.count(found.select(words.text_of("title"))["text"])
        yield pl.concat([found.drop("title", "content"), counted], how="horizontal")


def _unindexed(engine: TextEngine, complete: bool, query: words.Query, entity_type: str | None) -> Unindexed:
    wanted, parts, entities, length = query.terms["word"].implode(), [], 0, 0
    for documents in () if complete else _documents(engine):
        if entity_type is not None:
            documents = documents.filter(pl.col("entity_type") == entity_type)
        entities += documents.height
        length += int(documents["length"].sum())
        each = documents.select("entity_type", "id", "length", word="words", frequency="frequencies")
        parts.append(each.explode("word", "frequency").filter(pl.col("word").is_in(wanted)))
    return Unindexed(pl.concat([pl.DataFrame(schema=WORDS), *parts]), entities, length)
