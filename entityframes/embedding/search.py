"""Search: vector, text and hybrid, with filters applied in the database before the limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import polars as pl

from entityframes.embedding import spaces
from entityframes.embedding.calls import Calls
from entityframes.embedding.embedders.base import Embedder, check_embedder, embedder_of_model
from entityframes.embedding.hits import FUSION, PASSAGES, Words, best_by_both, best_by_words, with_passages
from entityframes.embedding.passages import Passages
from entityframes.embedding.text_index import catch_up
from entityframes.embedding.words import Query
from entityframes.engines.base import Engine
from entityframes.engines.predicates import EntityColumn, IsIn, Predicate
from entityframes.engines.text import TextQuery
from entityframes.errors import EmbedderError, SpaceError
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress
from entityframes.reading import lookup
from entityframes.reading.rowwise import is_row_by_row
from entityframes.reading.scan import ScanQuery, lazy_frame

Mode = Literal["vector", "text", "hybrid"]

#: The columns of a search result: of its best passage, and of its entity.
SCHEMA = pl.Schema(
    {
        "rank": pl.UInt32(),
        "score": pl.Float64(),
        "entity_type": pl.String(),
        "id": pl.String(),
        "passage": pl.String(),
        "start": pl.Int64(),
        "end": pl.Int64(),
        "heading": pl.String(),
        **lookup.ENTITY_SCHEMA,
    }
)
_ENTITY = ["score", *lookup.ENTITY_SCHEMA]

#: The minimum number of hits of each ranking that are fused.
_FUSED = 50

#: The maximum number of ids in a statement.
_LISTED = 10_000

#: Runs a search with a limit and a filter; returns the hits, and whether there may be more.
Find = Callable[[int, Predicate | None], tuple[pl.DataFrame, bool]]


class Search:
    """One call of `search`."""

    def __init__(
        self,
        engine: Engine,
        entity_type: str | None,
        k: int,
        per_entity: int,
        where: pl.Expr | None,
        progress: Progress,
        interrupt: Interrupt,
    ) -> None:
        for name, value in (("k", k), ("per_entity", per_entity)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if where is not None and not isinstance(where, pl.Expr):
            raise TypeError(f"where must be an expression such as pl.col('year') > 1900, got {type(where).__name__}")
        self._engine = engine
        self._progress, self._interrupt = progress, interrupt
        self._entity_type = entity_type
        self._k, self._per_entity = k, per_entity
        self._where = where
        # The part of the filter that the database can evaluate. It may keep more rows; the full filter is applied here.
        self._pushed: Predicate | None = None
        # The keys that pass a filter that needs all entities at once, such as n == max(n).
        self._kept: pl.DataFrame | None = None
        if where is not None and is_row_by_row(where):
            self._pushed = _pushed(engine, entity_type, where)
        elif where is not None:
            self._kept = lookup.passing(engine, entity_type, where)
            self._pushed = _one_of(self._kept)

    def text(self, query: str) -> pl.DataFrame:
        """The entities whose content or title contains words of the query."""
        words = Query(query)
        found = self._texts(words, self._k)
        ranking = Words(words, _passages(self._engine))
        return self._ranked(found, best_by_words(found, ranking, self._per_entity))

    def vector(self, query: Any, embedder: Embedder | None, remembered: Mapping[str, Embedder]) -> pl.DataFrame:
        """The entities with the nearest passages."""
        space = _space(self._engine, embedder)
        vector = _vector(query, space, embedder, remembered)
        found = self._vectors(space, vector, self._k)
        passages = found.with_row_index("position").select(PASSAGES.names())
        if self._per_entity > 1:
            near = self._engine.embedding.passages_near(space["space"], vector, found)
            # An entity that has changed since it was found keeps the passage by which it was.
            gone = passages.join(near, on="position", how="anti")
            near = near.filter(pl.int_range(pl.len()).over("position") < self._per_entity)
            passages = pl.concat([near.select(PASSAGES.names()), gone])
        return self._ranked(found, passages)

    def hybrid(self, query: str, embedder: Embedder | None, remembered: Mapping[str, Embedder]) -> pl.DataFrame:
        """The results of both searches, fused by rank; likewise the passages of each entity."""
        words, count = Query(query), max(_FUSED, self._k * 4)
        space = _space(self._engine, embedder)
        vector = _vector(query, space, embedder, remembered)
        both = [self._vectors(space, vector, count).select(_ENTITY), self._texts(words, count).select(_ENTITY)]
        scored = [part.with_columns(score=1 / (FUSION + pl.int_range(1, pl.len() + 1))) for part in both]
        # If an entity changes between the two queries, the row of the vector search is used.
        fused = pl.concat(scored).group_by("entity_type", "id", maintain_order=True)
        merged = fused.agg(pl.col("score").sum(), pl.exclude("score").first())
        best = merged.sort("score", "entity_type", "id", descending=[True, False, False]).head(self._k)

        def near(entities: pl.DataFrame) -> pl.DataFrame:
            if space["passages"] is None:
                return pl.DataFrame(schema=PASSAGES)
            return self._engine.embedding.passages_near(space["space"], vector, entities)

        ranking = Words(words, _passages(self._engine))
        return self._ranked(best, best_by_both(best, near, ranking, self._per_entity))

    def _ranked(self, found: pl.DataFrame, passages: pl.DataFrame) -> pl.DataFrame:
        """The rows of the result: of each entity its passages, in this order."""
        rows = with_passages(found.select(_ENTITY), passages).with_columns(rank=pl.col("position") + 1)
        return rows.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())

    def _texts(self, words: Query, count: int) -> pl.DataFrame:
        if words.terms.is_empty():
            return pl.DataFrame(schema={name: SCHEMA[name] for name in _ENTITY})
        engine = self._engine.text
        unindexed = catch_up(engine, words, self._entity_type, self._progress, self._interrupt)

        def find(limit: int, pushed: Predicate | None) -> tuple[pl.DataFrame, bool]:
            found, more = engine.matching(TextQuery(words.terms, self._entity_type, pushed, unindexed), limit)
            return words.matching(found), more

        return self._best(count, find)

    def _vectors(self, space: Mapping[str, Any], vector: np.ndarray[Any, Any], count: int) -> pl.DataFrame:
        nearest = self._engine.embedding.nearest
        return self._best(
            count, lambda limit, pushed: nearest(space["space"], vector, limit, self._entity_type, pushed)
        )

    def _best(self, count: int, find: Find) -> pl.DataFrame:
        """The first `count` hits that pass the filter; raises the limit until there are enough or no more."""
        limit = count
        while True:
            found, more = find(limit, self._pushed)
            if self._where is not None:
                found = self._filtered(found)
            if found.height >= count or not more:
                return found.head(count)
            limit *= 4

    def _filtered(self, found: pl.DataFrame) -> pl.DataFrame:
        if self._kept is not None:
            return found.join(self._kept, on=KEY, how="semi", maintain_order="left")
        assert self._where is not None
        typed = lookup.typed(self._engine, self._entity_type, found.select(lookup.ENTITY_SCHEMA.names()))
        return found.filter(typed.select(self._where.fill_null(False).alias("kept")).to_series())


def _one_of(keys: pl.DataFrame) -> Predicate | None:
    """The predicate that an id is one of these; None if there are too many for a statement."""
    ids = keys["id"].unique()
    return IsIn(EntityColumn("id"), tuple(ids)) if len(ids) <= _LISTED else None


def _pushed(engine: Engine, entity_type: str | None, where: pl.Expr) -> Predicate | None:
    """The part of the filter that a scan pushes to the database; raises if the filter names an unknown column."""
    seen: list[Predicate | None] = [None]

    def note(query: ScanQuery) -> Iterator[pl.DataFrame]:
        seen[0] = query.where
        return iter(())

    schema, columns = lookup.located(engine, entity_type)
    lazy_frame(schema, columns, note, name="search").filter(where).collect()
    return seen[0]


def _space(engine: Engine, embedder: Embedder | None) -> dict[str, Any]:
    """The active space, or the space of the embedder's model if the active space has another model."""
    active = spaces.find(engine, None)
    if embedder is None or (active["model"], active["dim"]) == (embedder.name, embedder.dim):
        return active
    for row in engine.embedding.spaces().iter_rows(named=True):
        if (row["model"], row["dim"]) == (embedder.name, embedder.dim):
            return row
    spaces.check(active, embedder)
    return active


def _passages(engine: Engine) -> Passages:
    """How contents are cut to find their passages by words: as in the active space, if it has passages."""
    for row in engine.embedding.spaces().filter("active").iter_rows(named=True):
        with suppress(SpaceError):
            return spaces.recorded(row) or Passages()
    return Passages()


def _vector(
    query: Any, space: Mapping[str, Any], embedder: Embedder | None, remembered: Mapping[str, Embedder]
) -> np.ndarray[Any, Any]:
    """The vector of a query in a space."""
    if not isinstance(query, str):
        return _as_vector(query, space)
    embedder = embedder or remembered.get(space["model"]) or embedder_of_model(space["model"])
    if embedder is None:
        raise EmbedderError(f"the query must be embedded with {space['model']}", advice="pass embedder=...")
    spaces.check(dict(space), embedder)
    vectors, errors = Calls(embedder).embed([query])
    if errors[0] is not None:
        raise EmbedderError(f"the query cannot be embedded: {errors[0]}")
    vector: np.ndarray[Any, Any] = vectors[0]
    return vector


def _as_vector(query: Any, space: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """A query vector, scaled to length 1.

    Raises:
        SpaceError: the vector and the space have different dimensions.
        ValueError: the query is not a vector of finite numbers.
    """
    try:
        vector = np.asarray(query, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("the query is neither a string nor a vector of numbers") from error
    if vector.shape != (space["dim"],):
        raise SpaceError(
            f"the query vector has shape {vector.shape}, but the space {space['space']} has {space['dim']} dimensions"
        )
    if not np.isfinite(vector).all():
        raise ValueError("the query vector contains NaN or infinity")
    # The squares of very large or very small numbers would overflow or underflow.
    vector = vector / (np.abs(vector).max() or 1.0)
    return (vector / (float(np.linalg.norm(vector)) or 1.0)).astype(np.float32)


def search(
    engine: Engine,
    query: Any,
    *,
    entity_type: str | None,
    k: int,
    per_entity: int,
    mode: Mode,
    where: pl.Expr | None,
    embedder: Embedder | None,
    remembered: Mapping[str, Embedder],
    progress: Progress,
    interrupt: Interrupt,
) -> pl.DataFrame:
    """See `EntityStore.search`; `remembered` maps models to the embedders that this store has used."""
    if mode not in ("vector", "text", "hybrid"):
        raise ValueError(f"mode must be 'vector', 'text' or 'hybrid', got {mode!r}")
    if embedder is not None:
        check_embedder(embedder)
    if mode != "vector" and not isinstance(query, str):
        raise ValueError(f"mode {mode!r} searches for words: the query must be a string")
    if isinstance(query, str) and re.search("[\0\ud800-\udfff]", query):
        raise ValueError("the query contains a NUL character or is not valid Unicode text")
    one_search = Search(engine, entity_type, k, per_entity, where, progress, interrupt)
    if isinstance(query, str) and not query.strip():
        return pl.DataFrame(schema=SCHEMA)
    if mode == "text":
        return one_search.text(query)
    if mode == "hybrid":
        return one_search.hybrid(query, embedder, remembered)
    return one_search.vector(query, embedder, remembered)
