"""Search: by meaning, by words, or both, with filters applied in the database before the limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import polars as pl

from entityframes.embedding import spaces
from entityframes.embedding.calls import Calls
from entityframes.embedding.embedders.base import Embedder, embedder_of_model
from entityframes.embedding.text_index import catch_up
from entityframes.embedding.words import Query
from entityframes.engines.base import Engine
from entityframes.engines.predicates import EntityColumn, IsIn, Predicate
from entityframes.engines.text import Asked
from entityframes.errors import EmbedderError, SpaceError
from entityframes.frames.schema import KEY
from entityframes.reading import lookup
from entityframes.reading.rowwise import is_row_by_row
from entityframes.reading.scan import ScanQuery, lazy_frame

Mode = Literal["vector", "text", "hybrid"]

#: Columns of an answer.
SCHEMA = pl.Schema({"rank": pl.UInt32(), "score": pl.Float64(), **lookup.ENTITY_SCHEMA})

#: Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): the sum of 1 / (10 + rank) over the rankings. With their
#: 60, being in both rankings counts for more than being first in one, and of two there are not enough for that.
_FUSION = 10
#: How many of each ranking are fused, at least.
_FUSED = 50

#: A statement lists so many ids at most.
_LISTED = 10_000

Ask = Callable[[int, Predicate | None], tuple[pl.DataFrame, bool]]


class Search:
    """One call of `search`: what is wanted, of which store."""

    def __init__(self, engine: Engine, entity_type: str | None, k: int, where: pl.Expr | None) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}: it is a number of entities, at least 1")
        self._engine = engine
        self._entity_type = entity_type
        self._k = k
        self._where = where
        # What of the filter the database can decide; it may keep more, and the rest is decided here.
        self._pushed: Predicate | None = None
        # The keys that pass a filter which cannot be applied to a part of the entities, such as n == max(n).
        self._kept: pl.DataFrame | None = None
        if where is not None and is_row_by_row(where):
            self._pushed = _pushed(engine, entity_type, where)
        elif where is not None:
            self._kept = lookup.passing(engine, entity_type, where)
            self._pushed = _one_of(self._kept)

    def text(self, query: str) -> pl.DataFrame:
        """The entities whose content or title has words of the query."""
        return self._ranked(self._texts(query, self._k))

    def vector(self, query: Any, embedder: Embedder | None, remembered: Mapping[str, Embedder]) -> pl.DataFrame:
        """The entities whose vectors are nearest."""
        return self._ranked(self._vectors(query, embedder, remembered, self._k))

    def hybrid(self, query: str, embedder: Embedder | None, remembered: Mapping[str, Embedder]) -> pl.DataFrame:
        """Both, fused by rank."""
        count = max(_FUSED, self._k * 4)
        both = [self._vectors(query, embedder, remembered, count), self._texts(query, count)]
        weighed = [part.with_columns(score=1 / (_FUSION + pl.int_range(1, pl.len() + 1))) for part in both]
        # The vectors' rows first: where an entity changes between the two questions, one of its rows is taken.
        fused = pl.concat(weighed).group_by("entity_type", "id", maintain_order=True)
        merged = fused.agg(pl.col("score").sum(), pl.exclude("score").first())
        best = merged.sort("score", "entity_type", "id", descending=[True, False, False])
        return self._ranked(best)

    def _ranked(self, found: pl.DataFrame) -> pl.DataFrame:
        rows = found.head(self._k).with_row_index("rank", 1)
        return rows.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())

    def _texts(self, query: str, count: int) -> pl.DataFrame:
        words = Query(query)
        if words.terms.is_empty():
            return pl.DataFrame(schema=SCHEMA).drop("rank")
        engine = self._engine.text
        beside = catch_up(engine, words, self._entity_type)

        def ask(limit: int, pushed: Predicate | None) -> tuple[pl.DataFrame, bool]:
            found, more = engine.matching(Asked(words.terms, self._entity_type, pushed, beside), limit)
            return words.answered(found), more

        return self._best(count, ask)

    def _vectors(
        self, query: Any, embedder: Embedder | None, remembered: Mapping[str, Embedder], count: int
    ) -> pl.DataFrame:
        space = _space(self._engine, embedder)
        if isinstance(query, str):
            embedder = embedder or remembered.get(space["model"]) or embedder_of_model(space["model"])
            if embedder is None:
                raise EmbedderError(f"the query has to be embedded by {space['model']}: give embedder=...")
            spaces.check(space, embedder)
            vectors, errors = Calls(embedder).embed([query])
            if errors[0] is not None:
                raise EmbedderError(f"the query cannot be embedded: {errors[0]}")
            vector = vectors[0]
        else:
            vector = _as_vector(query, space)
        ask = self._engine.embedding.nearest
        return self._best(count, lambda limit, pushed: ask(space["space"], vector, limit, self._entity_type, pushed))

    def _best(self, count: int, ask: Ask) -> pl.DataFrame:
        """The first `count` that pass the filter; asks for more until there are so many, or no more."""
        limit = count
        while True:
            found, more = ask(limit, self._pushed)
            if self._where is not None:
                found = self._filtered(found)
            if found.height >= count or not more:
                return found.head(count)
            limit *= 4

    def _filtered(self, found: pl.DataFrame) -> pl.DataFrame:
        if self._kept is not None:
            return found.join(self._kept, on=KEY, how="semi", maintain_order="left")
        assert self._where is not None
        typed = lookup.typed(self._engine, self._entity_type, found.drop("score"))
        return found.filter(typed.select(self._where.fill_null(False).alias("kept")).to_series())


def _one_of(keys: pl.DataFrame) -> Predicate | None:
    """That an id is one of these; None if they are too many for a statement."""
    ids = keys["id"].unique()
    return IsIn(EntityColumn("id"), tuple(ids)) if len(ids) <= _LISTED else None


def _pushed(engine: Engine, entity_type: str | None, where: pl.Expr) -> Predicate | None:
    """The predicate as the database gets it from a scan; also raises where the filter names no column."""
    seen: list[Predicate | None] = [None]

    def note(query: ScanQuery) -> Iterator[pl.DataFrame]:
        seen[0] = query.where
        return iter(())

    schema, columns = lookup.located(engine, entity_type)
    lazy_frame(schema, columns, note, name="search").filter(where).collect()
    return seen[0]


def _space(engine: Engine, embedder: Embedder | None) -> dict[str, Any]:
    """The active space, or the one of the embedder's model if the active one is of another."""
    active = spaces.find(engine, None)
    if embedder is None or (active["model"], active["dim"]) == (embedder.name, embedder.dim):
        return active
    for row in engine.embedding.spaces().iter_rows(named=True):
        if (row["model"], row["dim"]) == (embedder.name, embedder.dim):
            return row
    spaces.check(active, embedder)
    return active


def _as_vector(query: Any, space: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """A query that is a vector, of length 1.

    Raises:
        SpaceError: it has another dimension than the space.
        ValueError: it is no vector of finite numbers.
    """
    try:
        vector = np.asarray(query, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("the query is neither a text nor a vector of numbers") from error
    if vector.shape != (space["dim"],):
        raise SpaceError(
            f"the query has the shape {vector.shape}, the space {space['space']} has {space['dim']} dimensions"
        )
    if not np.isfinite(vector).all():
        raise ValueError("the query vector holds NaN or infinity")
    # Squares of what is very large, or very small, would leave the range.
    vector = vector / (np.abs(vector).max() or 1.0)
    return (vector / (float(np.linalg.norm(vector)) or 1.0)).astype(np.float32)


def search(
    engine: Engine,
    query: Any,
    *,
    entity_type: str | None,
    k: int,
    mode: Mode,
    where: pl.Expr | None,
    embedder: Embedder | None,
    remembered: Mapping[str, Embedder],
) -> pl.DataFrame:
    """See `EntityStore.search`; `remembered` are the embedders of models that this store has used."""
    if mode not in ("vector", "text", "hybrid"):
        raise ValueError(f"mode is {mode!r}: it is 'vector', 'text' or 'hybrid'")
    if mode != "vector" and not isinstance(query, str):
        raise ValueError(f"mode {mode!r} searches for words: the query has to be a text")
    if isinstance(query, str) and re.search("[\0\ud800-\udfff]", query):
        raise ValueError("the query holds a NUL character or is no valid Unicode text")
    wanted = Search(engine, entity_type, k, where)
    if isinstance(query, str) and not query.strip():
        return pl.DataFrame(schema=SCHEMA)
    if mode == "text":
        return wanted.text(query)
    if mode == "hybrid":
        return wanted.hybrid(query, embedder, remembered)
    return wanted.vector(query, embedder, remembered)
