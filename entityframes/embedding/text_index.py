"""Brings the index of words up to what is stored when a text search comes; what it lacks is looked up, not recorded."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from entityframes.embedding import words
from entityframes.engines.text import WORDS, Beside, TextEngine

#: Texts of about so many bytes are cut into words at once.
_BYTES = 4 << 20


def catch_up(engine: TextEngine, query: words.Query, entity_type: str | None) -> Beside | None:
    """Bring the index up to date.

    Returns:
        None if it is; where it may not be written, what it lacks, as far as the query and the type are concerned.
    """
    state = engine.state()
    if not state.writable:
        return _beside(engine, state.complete, query, entity_type)
    if not state.complete:
        with engine.indexing:
            # Whoever held the lock may have done it.
            state = engine.state()
            if not state.complete:
                for documents in _documents(engine):
                    engine.index(documents)
                # What was written since is found by the next search.
                engine.finish_index(state.batches)
    return None


def _documents(engine: TextEngine) -> Iterator[pl.DataFrame]:
    """What the index lacks, with its words. Nothing is held open between two pieces."""
    keys = engine.unindexed().sort("entity_type", "id").with_columns(piece=pl.col("bytes").cum_sum() // _BYTES)
    for piece in keys.partition_by("piece", maintain_order=True):
        found = engine.texts(piece)
        counted = words.count(found.select(words.text_of("title"))["text"])
        yield pl.concat([found.drop("title", "content"), counted], how="horizontal")


def _beside(engine: TextEngine, complete: bool, query: words.Query, entity_type: str | None) -> Beside:
    asked, parts, entities, length = query.terms["word"].implode(), [], 0, 0
    for documents in () if complete else _documents(engine):
        if entity_type is not None:
            documents = documents.filter(pl.col("entity_type") == entity_type)
        entities += documents.height
        length += int(documents["length"].sum())
        each = documents.select("entity_type", "id", "length", word="words", frequency="frequencies")
        parts.append(each.explode("word", "frequency").filter(pl.col("word").is_in(asked)))
    return Beside(pl.concat([pl.DataFrame(schema=WORDS), *parts]), entities, length)
