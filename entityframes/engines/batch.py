"""One transaction of a run, as its engine sees it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from entityframes.interrupt import Interrupt


def random_id() -> str:
    """A new id, of a batch or a job."""
    return str(uuid.uuid4())


class PartitionIds:
    """Makes the ids of the batches of one partition of a run, which several processes may try to write.

    They are UUIDs of version 8, whose first half is the same for all batches of the partition, and differs from that of
    every other batch: other ids are of version 4.

    Args:
        run_id: the id of the run.
        partition: the name of the partition within the run.
    """

    def __init__(self, run_id: str, partition: str) -> None:
        digest = hashlib.sha256(f"{run_id}\0{partition}".encode()).digest()
        self._half = int.from_bytes(digest[:8], "big") & ~(0xF << 12) | 8 << 12

    def __call__(self) -> str:
        """A new id."""
        return str(uuid.UUID(int=self._half << 64 | 2 << 62 | uuid.uuid4().int & (1 << 62) - 1))

    @property
    def range(self) -> tuple[str, str]:
        """The first and the last id of the partition."""
        first = self._half << 64
        return str(uuid.UUID(int=first)), str(uuid.UUID(int=first | (1 << 64) - 1))


@dataclass(frozen=True)
class Batch:
    """A transaction of a run."""

    run_id: str
    interrupt: Interrupt
    #: Whether an embedding job is created for the content that it writes.
    embed: bool = True
    #: Whether `write_each` writes nothing if a row is rejected.
    whole: bool = False
    #: The key in the ledger. It stays the same when the batch is retried, so that the batch cannot be written twice.
    batch_id: str = field(default_factory=random_id)
    job_id: str = field(default_factory=random_id)
    #: Makes the ids of further batches for the same rows.
    new_id: Callable[[], str] = field(default=random_id, repr=False, compare=False)
    #: The recorded fields of the types of its rows, all of which the rows contain; None if the rows may overwrite any
    #: metadata. If further fields have been recorded meanwhile, no entity is overwritten.
    known: Mapping[str, frozenset[str]] | None = None
    #: Whether the rows may lack stored fields, so that no entity may be overwritten.
    only_new: bool = False

    #: Whether the rows are probably new, so that they are copied before they are compared with stored entities.
    initial: bool = False

    @property
    def guarded(self) -> bool:
        """Whether to check, before a row without expected hashes overwrites an entity, that no stored field is lost."""
        return self.only_new or self.known is not None

    def may_lack(self, recorded: Iterable[tuple[str, str]]) -> bool:
        """Whether the rows may lack stored fields, given the fields that are recorded now (entity_type and field)."""
        found: dict[str, set[str]] = {}
        for entity_type, name in recorded:
            found.setdefault(entity_type, set()).add(name)
        known = self.known or {}
        return self.only_new or any(not found[name] <= known.get(name, frozenset()) for name in found)


def retry_all(rows: pl.DataFrame) -> pl.DataFrame:
    """The result of a batch of which nothing was written, because its rows may lack stored fields."""
    return rows.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("position"), again=pl.lit(True))
