"""What text search asks of a database: it keeps the words of each entity, and finds entities by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import polars as pl

if TYPE_CHECKING:
    from threading import Lock

    from entityframes.engines.predicates import Predicate


@dataclass(frozen=True)
class IndexState:
    """How far the index is."""

    #: How many batches the ledger has.
    batches: int
    #: How many of them the index knows of.
    indexed: int
    #: Whether the index may be written, and all that is stored can be seen.
    writable: bool

    @property
    def complete(self) -> bool:
        """Whether it has what is stored."""
        return self.batches == self.indexed


#: The words of some entities, a row for each.
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
class Beside:
    """What the index lacks and cannot be given, as far as a query is concerned."""

    #: As `WORDS`.
    words: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=WORDS))
    #: How many entities it lacks, and how many words they have.
    entities: int = 0
    length: int = 0


@dataclass(frozen=True)
class Asked:
    """What is searched for."""

    #: chain, word, points, needed: an entity has a chain if its words bring as many points as are needed.
    terms: pl.DataFrame
    #: Of which type; None for all.
    entity_type: str | None
    #: What the entities have to satisfy.
    where: Predicate | None
    #: What counts besides the index, of which then only what is as it is stored counts; None if it has everything.
    beside: Beside | None


class TextEngine(Protocol):
    """A database that keeps an index of words. Every method may raise DatabaseError."""

    #: Held by the thread that brings the index up to date.
    indexing: Lock

    def state(self) -> IndexState:
        """How far the index is."""

    def unindexed(self) -> pl.DataFrame:
        """entity_type, id and bytes of content of the entities that the index lacks as they are now."""

    def texts(self, keys: pl.DataFrame) -> pl.DataFrame:
        """entity_type, id, title (or null), content and both hashes (Binary) of the entities of some keys."""

    def index(self, documents: pl.DataFrame) -> None:
        """Write the words of entities in one transaction, in place of others only where an entity is still as it was.

        Args:
            documents: entity_type, id, content_hash, metadata_hash, length, words List(String), frequencies
                List(UInt32).
        """

    def finish_index(self, batches: int) -> None:
        """Drop what is not stored any more, and note that these batches are in the index."""

    def matching(self, asked: Asked, limit: int) -> tuple[pl.DataFrame, bool]:
        """The entities that have chains of the terms, best first (BM25), ties by key.

        Returns:
            score Float64 and the entity's columns, at most `limit` rows; whether there may be more.
        """
