"""The Protocol of database engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.database import Database
from entityframes.errors import ConnectError, FormatError
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.tables import TableEngine
    from entityframes.engines.text import TextEngine

#: The store format that this version writes.
FORMAT = 6


class Engine(Protocol):
    """A store of entities in a database.

    Frames of canonical rows have the columns of `validation.Canonical.valid`; key frames have entity_type and id.
    A ``position`` (UInt32) in a result is the 0-based index of a row in the input frame. All methods are thread-safe,
    use a connection of their own, and may raise DatabaseError.
    """

    @property
    def database(self) -> Database:
        """The database of the store."""

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows that are new or differ, in one transaction, with a ledger row and an embedding job.

        Args:
            rows: canonical rows in key order, without duplicate keys. If they have the columns ``expected`` and
                ``expected_metadata`` (Binary), an entity is overwritten only if it has these hashes (null metadata:
                any), and where ``expected`` is null the row is written only if there is no entity. The comparison and
                the write are in the same transaction.
            batch: the batch.

        Returns:
            position, created Boolean, due Boolean (whether the embedding job contains the row) of the rows that were
            written. With expected hashes also conflict Boolean: true for rows that were not written because the hashes
            differ. For a batch that is `Batch.guarded` also again Boolean: true for rows that were not written because
            they may lack fields of the stored entity.
        """

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Like `write`, but skip rows that the database rejects.

        Returns:
            position, created (null for a row that was not written), due, sqlstate, rule and error (of a rejected row),
            other_type and other_id (the key under which a trigger stores the row).
        """

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """The result of `write` for a batch whose response was lost, or None if nothing of it was written.

        Raises:
            ConnectionLostError: the connection was lost again, or the server is a standby, which may be behind. This
                also applies to `deleted_by` and `not_recorded`.
        """

    def deleted_by(self, batch: Batch) -> int | None:
        """How many entities were deleted by a batch whose response was lost, or None if it is not in the ledger."""

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        """The given batches that are not in the ledger."""

    def batches_between(self, first: str, last: str) -> list[str]:
        """The batches in the ledger whose id is in a range, of which both ends are part."""

    def written_between(self, keys: pl.DataFrame, first: str, last: str) -> pl.DataFrame:
        """The stored keys that were last written by such a batch.

        Returns:
            position, batch_id String, created Boolean (whether the batch created the entity).
        """

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, content_hash and metadata_hash (Binary) of each key that is stored."""

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, metadata (JSON text), content_hash and metadata_hash (Binary) of each key that is stored."""

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Position of each key that is stored."""

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, content, metadata, content_hash, created_at, updated_at of each key that is stored."""

    def contains(self, entity_type: str, id: str) -> bool:
        """Whether an entity is stored."""

    def find(self, entity_type: str, id: str) -> dict[str, Any] | None:
        """content, metadata (JSON text), content_hash (hex), created_at, updated_at of an entity; None if missing."""

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Delete entities in one transaction.

        Args:
            keys: the keys, without duplicates. If they have the columns content_hash and metadata_hash (Binary), only
                entities that still have these hashes are deleted.
            batch: the batch.

        Returns:
            position of each key that was stored, and error and rule (String) if it could not be deleted.

        Raises:
            ConnectionLostError: if it is ``committing``, its ``answer`` is what would have been returned.
        """

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        """entity_type, field, dtype, declared of the recorded metadata fields, in order of first occurrence."""

    def record_fields(self, fields: pl.DataFrame) -> None:
        """Add or update fields: entity_type, field, dtype, declared, and was (the dtype known to the caller, or null).

        An inferred field is replaced. A declared field stays, unless its dtype is ``was`` or its type has no entities.
        """

    def is_empty(self, entity_type: str) -> bool:
        """Whether the type has no entities."""

    def stats(self, space: str | None) -> pl.DataFrame:
        """entity_type, entities, embedded, due, failed in a space, by default the active one; one row per type."""

    def types(self) -> pl.DataFrame:
        """entity_type, entities and updated_at (of the latest change) of each type, in order."""

    def runs(self, limit: int | None) -> pl.DataFrame:
        """The runs in the ledger, the latest first.

        Returns:
            run_id, batches, created, updated, deleted, first_written_at and last_written_at.
        """

    def size(self) -> int | None:
        """The bytes that the store takes on disk, on DuckDB the file with its log; None if it is in memory."""

    def count(self, entity_type: str | None) -> int:
        """The number of entities of a type, or of all types."""

    @property
    def checks(self) -> list[str]:
        """The names of the checks of `inconsistencies`."""

    def inconsistencies(self, before_each: Callable[[], None]) -> pl.DataFrame:
        """check, entity_type, id, batch_id, expected, found (String) of each inconsistency, from one snapshot.

        Args:
            before_each: called before each of the `checks`; it may raise an exception to stop.
        """

    def repair(self, checks: list[str]) -> None:
        """Repair the findings of these checks of `inconsistencies`, if possible, in one transaction."""

    def kinds(self) -> pl.DataFrame:
        """entity_type, field, kind, id: each kind of JSON value in a metadata field, with one id as an example.

        Kinds are integer, long integer (19 digits or more), float, string, boolean, null, array and object.
        """

    def all_fields(self) -> pl.DataFrame:
        """entity_type, field, dtype, declared of every recorded metadata field."""

    def forget_fields(self, fields: pl.DataFrame) -> None:
        """Delete recorded metadata fields, given by entity_type and field."""

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Columns of the entities of a type that satisfy a predicate, in no particular order, in chunks."""

    @property
    def embedding(self) -> EmbeddingEngine:
        """The operations for embedding and vector search."""

    @property
    def tables(self) -> TableEngine:
        """The operations on tables of the user."""

    @property
    def text(self) -> TextEngine:
        """The operations for text search."""

    @property
    def directory(self) -> DirectoryEngine:
        """The operations for syncing folders."""

    def drop(self) -> None:
        """Drop the namespace with everything in it. The engine cannot be used afterwards."""


def check_format(database: Database, version: int) -> None:
    """Check that this version of the package supports the format of the store (0 if there is no store).

    Raises:
        FormatError: the format is newer, or it is older and it is opened read-only.
        ConnectError: there is no store, and it is opened read-only.
    """
    if version > FORMAT:
        raise FormatError(
            f"the store at {database.address} has format {version}, but this version of entityframes supports formats "
            f"up to {FORMAT}",
            advice="install a newer entityframes",
        )
    if not database.read_only:
        return
    if version == 0:
        raise no_store(
            f"there is no store at {database.address} in the namespace {database.namespace!r}",
            "check the address and the namespace, or connect once for writing to create it",
        )
    if version < FORMAT:
        raise FormatError(
            f"the store at {database.address} has format {version}, which is older than {FORMAT}",
            advice="connect to it once for writing (without read_only=True) to migrate it",
        )


def no_store(happened: str, advice: str) -> ConnectError:
    """The error for a store that does not exist."""
    error = ConnectError(happened, advice=advice)
    error.missing = True
    return error
