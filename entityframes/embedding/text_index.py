"""Brings the text index up to date before a text search, with the entities that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl

from entityframes.embedding import words
from entityframes.engines.text import WORDS, TextEngine, Unindexed
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter

#: About how many bytes of text are tokenized at once.
_BYTES = 4 << 20


def catch_up(
    engine: TextEngine, query: words.Query, entity_type: str | None, progress: Progress, interrupt: Interrupt
) -> Unindexed | None:
    """Bring the index up to date. What was indexed before it is stopped stays indexed.

    Returns:
        None if the index is complete. If it cannot be written: what it lacks for this query and this type.

    Raises:
        StatementCancelledError: the interrupt was requested.
    """
    state = engine.state()
    if not state.writable:
        if state.complete:
            return Unindexed()
        with _reported(engine, progress) as (keys, reporter):
            return _unindexed(_documents(engine, keys, reporter, interrupt), query, entity_type)
    if not state.complete:
        with engine.indexing:
            # Another thread may have brought the index up to date while this one waited for the lock.
            state = engine.state()
            if not state.complete:
                with _reported(engine, progress) as (keys, reporter):
                    for documents in _documents(engine, keys, reporter, interrupt):
                        engine.index(documents)
                # Entities that were written meanwhile are indexed by the next search.
                engine.finish_index(state.batches)
    return None


@contextmanager
def _reported(engine: TextEngine, progress: Progress) -> Iterator[tuple[pl.DataFrame, Reporter]]:
    """The keys of the entities that the index lacks, and a reporter for them."""
    keys = engine.unindexed().sort("entity_type", "id").with_columns(chunk=pl.col("bytes").cum_sum() // _BYTES)
    with Reporter(progress, keys.height, what="index", unit="entities") as reporter:
        yield keys, reporter


def _documents(
    engine: TextEngine, keys: pl.DataFrame, reporter: Reporter, interrupt: Interrupt
) -> Iterator[pl.DataFrame]:
    """Entities with their words, in chunks. No transaction stays open between chunks."""
    for chunk in keys.partition_by("chunk", maintain_order=True):
        interrupt.check()
        found = engine.texts(chunk)
        counted = words.count(found.select(words.text_of("title"))["text"])
        yield pl.concat([found.drop("title", "content"), counted], how="horizontal")
        reporter.advance(chunk.height)


def _unindexed(given: Iterator[pl.DataFrame], query: words.Query, entity_type: str | None) -> Unindexed:
    wanted, parts, entities, length = query.terms["word"].implode(), [], 0, 0
    for documents in given:
        if entity_type is not None:
            documents = documents.filter(pl.col("entity_type") == entity_type)
        entities += documents.height
        length += int(documents["length"].sum())
        each = documents.select("entity_type", "id", "length", word="words", frequency="frequencies")
        parts.append(each.explode("word", "frequency").filter(pl.col("word").is_in(wanted)))
    return Unindexed(pl.concat([pl.DataFrame(schema=WORDS), *parts]), entities, length)
