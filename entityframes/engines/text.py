"""The database operations for text search: indexing the words of entities, and finding entities by words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import polars as pl

if TYPE_CHECKING:
    from threading import Lock

    from entityframes.engines.predicates import Predicate


@dataclass(frozen=True)
class IndexState:
    """The state of the index."""

    #: The number of batches in the ledger.
    batches: int
    #: The number of batches that are covered by the index.
    indexed: int
    #: Whether this user may write the index and can see all entities.
    writable: bool

    @property
    def complete(self) -> bool:
        """Whether the index covers everything that is stored."""
        return self.batches == self.indexed


#: The words of entities, one row per word.
WORDS = pl.Schema(
    {
        "entity_type": pl.String(),
        "id": pl.String(),
        "length": pl.UInt32(),
        "word": pl.String(),
        "frequency": pl.UInt32(),
    }
)


@dataclass(frozen=True)
class Unindexed:
    """The part of an index that is missing and cannot be written, as far as it is relevant to a query."""

    #: The words of the query in the missing entities, with the columns of `WORDS`.
    words: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=WORDS))
    #: The number of missing entities, and the total number of their words.
    entities: int = 0
    length: int = 0


@dataclass(frozen=True)
class TextQuery:
    """A query of a text search."""

    #: chain, word, points, needed: an entity contains a chain if its words have at least `needed` points.
    terms: pl.DataFrame
    #: The entity type; None for all.
    entity_type: str | None
    #: A predicate that the entities have to satisfy.
    where: Predicate | None
    #: The entities that the index lacks; outdated entries of the index are then ignored. None if the index is complete.
    unindexed: Unindexed | None


class TextEngine(Protocol):
    """A database that stores an index of words. Every method may raise DatabaseError."""

    #: Held by the thread that brings the index up to date.
    indexing: Lock

    def state(self) -> IndexState:
        """The state of the index."""

    def unindexed(self) -> pl.DataFrame:
        """entity_type, id and bytes of content of the entities whose current version is not in the index."""

    def texts(self, keys: pl.DataFrame) -> pl.DataFrame:
        """entity_type, id, title (or null), content and both hashes (Binary) of the given entities."""

    def index(self, documents: pl.DataFrame) -> None:
        """Write the words of entities in one transaction, except for entities that have changed since they were read.

        Args:
            documents: entity_type, id, content_hash, metadata_hash, length, words List(String), frequencies
                List(UInt32).
        """

    def finish_index(self, batches: int) -> None:
        """Delete entities from the index that are no longer stored, and record the number of batches it covers."""

    def matching(self, query: TextQuery, limit: int) -> tuple[pl.DataFrame, bool]:
        """The entities that contain a chain of the terms, best first (BM25), ties ordered by key.

        Returns:
            score Float64 and the columns of the entity, at most `limit` rows; and whether there may be more.
        """
