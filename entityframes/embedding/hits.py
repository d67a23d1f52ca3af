"""The best passages of the entities that a search has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from entityframes.embedding.texts import title

if TYPE_CHECKING:
    from entityframes.embedding.passages import Passages
    from entityframes.embedding.words import Query

#: Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): the sum of 1 / (10 + rank) over the rankings. With the
#: constant 60 of the paper, a hit in both rankings outranks the first hit of one, which two rankings do not justify.
FUSION = 10

#: The passages of entities: position (the number of the entity), score (null where none is known), start, end (null: to
#: the end of the content), heading.
PASSAGES = pl.Schema(
    {
        "position": pl.UInt32(),
        "score": pl.Float64(),
        "start": pl.Int64(),
        "end": pl.Int64(),
        "heading": pl.String(),
    }
)


@dataclass(frozen=True)
class Words:
    """Ranks passages by the words of a query."""

    query: Query
    #: How contents are cut that have no recorded passages.
    passages: Passages

    def cut(self, entities: pl.DataFrame) -> pl.DataFrame:
        """The passages of entities (content, metadata), with the words of their titles and headings; see `PASSAGES`."""
        return self.ranked(pl.DataFrame(list(self._cut(entities)), {**PASSAGES, "text": pl.String}, orient="row"))

    def ranked(self, passages: pl.DataFrame) -> pl.DataFrame:
        """Passages (position, start, end, heading, text) with their score by words, best first for each position."""
        scored = passages.with_columns(score=self.query.scores(passages["text"])).select(PASSAGES.names())
        return scored.sort("position", "score", "start", descending=[False, True, False])

    def _cut(self, entities: pl.DataFrame) -> Iterator[tuple[int, None, int, int, str, str]]:
        rows = entities.select("content", "metadata").iter_rows()
        for position, (content, metadata) in enumerate(rows):
            for start, end, heading, text in self.passages.cut(content, title(metadata, self.passages.title_fields)):
                yield position, None, start, end, heading, text


def best_by_words(entities: pl.DataFrame, words: Words, per_entity: int) -> pl.DataFrame:
    """The passages of each entity that contain the most of the words; one if no passage contains any."""
    ranked = words.cut(entities)
    number = pl.int_range(pl.len()).over("position")
    kept = ranked.filter((number == 0) | (pl.col("score") > 0) & (number < per_entity))
    # The scores are those of the entities.
    return kept.with_columns(score=pl.lit(None, pl.Float64))


def best_by_both(
    entities: pl.DataFrame, near: Callable[[pl.DataFrame], pl.DataFrame], words: Words, per_entity: int
) -> pl.DataFrame:
    """The passages of each entity that rank best by vector and by words together, fused by rank.

    Args:
        entities: the columns of the entities.
        near: returns the passages of entities that have vectors, best first; empty if contents are not cut.
        words: ranks by words.
        per_entity: the number of passages of an entity.
    """
    recorded = near(entities)
    content = entities["content"].gather(recorded["position"])
    piece = content.str.slice(recorded["start"], recorded["end"] - recorded["start"])
    texts = recorded.with_columns(text=pl.concat_str("heading", piece, separator="\n"))
    by_words = words.ranked(texts).filter(pl.col("score") > 0)
    ranked = [
        part.with_columns(score=1 / (FUSION + pl.int_range(1, pl.len() + 1).over("position")))
        for part in (recorded.select(PASSAGES.names()), by_words)
    ]
    fused = pl.concat(ranked).group_by("position", "start", maintain_order=True)
    best = fused.agg(pl.col("score").sum(), pl.col("end", "heading").first())
    best = best.sort("position", "score", "start", descending=[False, True, False])
    best = best.filter(pl.int_range(pl.len()).over("position") < per_entity)
    best = best.with_columns(score=pl.lit(None, pl.Float64))
    # Entities that are due, and all where contents are not cut.
    rest = entities.with_row_index("position").join(recorded, on="position", how="anti", maintain_order="left")
    if rest.is_empty():
        return best.select(PASSAGES.names())
    others = best_by_words(rest, words, per_entity)
    others = others.with_columns(position=rest["position"].gather(others["position"]))
    return pl.concat([best.select(PASSAGES.names()), others])


def with_passages(entities: pl.DataFrame, passages: pl.DataFrame) -> pl.DataFrame:
    """One row per passage: the columns of the entities, and passage, start, end and heading, in order of the entities.

    Args:
        entities: score and the columns of the entities, best first.
        passages: the columns of `PASSAGES`, best first for each entity. An entity that has none gets its whole content.
    """
    numbered = entities.with_row_index("position")
    joined = numbered.join(passages.rename({"score": "own"}), on="position", how="left", maintain_order="left_right")
    end = pl.coalesce("end", pl.col("content").str.len_chars().cast(pl.Int64))
    placed = joined.with_columns(
        score=pl.coalesce("own", "score"),
        start=pl.col("start").fill_null(0),
        end=end,
        heading=pl.col("heading").fill_null(""),
    )
    length = pl.col("end") - pl.col("start")
    return placed.with_columns(passage=pl.col("content").str.slice(pl.col("start"), length))
