"""What a store asks of a database: one Protocol, which each engine fulfils."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import polars as pl

from entityframes.errors import ConnectError, FormatError, PermanentError
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.text import TextEngine

#: The store's format that this version writes.
FORMAT = 5


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Batch:
    """One transaction of one run."""

    run_id: str
    interrupt: Interrupt
    #: Whether content that it writes makes an embedding job.
    embed: bool = True
    #: Whether `write_each` writes nothing if a row is refused.
    whole: bool = False
    #: The ledger's key. It stays the same when the batch is tried again, so that it cannot be written twice.
    batch_id: str = field(default_factory=_new_id)
    job_id: str = field(default_factory=_new_id)
    #: The recorded fields of the types of its rows, all of which the rows carry; None where they may replace whatever
    #: is stored. If there are more of them by now, no entity is written over.
    known: Mapping[str, frozenset[str]] | None = None
    #: Whether its rows may lack something of what is stored, so that none is written over an entity.
    only_new: bool = False

    @property
    def guarded(self) -> bool:
        """Whether rows without an expectation have to be looked at before they are written over an entity."""
        return self.only_new or self.known is not None

    def may_lack(self, recorded: pl.DataFrame) -> bool:
        """Whether its rows may lack something of what is stored, as these fields are recorded by now."""
        found: dict[str, set[str]] = {}
        for entity_type, name in recorded.select("entity_type", "field").iter_rows():
            found.setdefault(entity_type, set()).add(name)
        known = self.known or {}
        return self.only_new or any(not found[name] <= known.get(name, frozenset()) for name in found)


class Engine(Protocol):
    """A database that keeps entities.

    Frames of canonical rows have the columns of `validation.Canonical.valid`; key frames have entity_type and id.
    A ``position`` (UInt32) in an answer is the 0-based place of a row in the frame that was given. Every method may
    raise DatabaseError, borrows its own connection, and may be called from several threads.
    """

    #: "postgresql" or "duckdb".
    name: str
    #: Where the store is, without a password.
    address: str
    #: Whether nothing may be written.
    read_only: bool
    #: How many batches are worked on at once.
    workers: int
    #: How many of them the database writes at once.
    writers: int
    #: About how many bytes, and at most how many rows, of a frame in memory make a batch; the caller may say otherwise.
    batch_bytes: int
    batch_rows: int
    #: Whether batches of neighbouring keys are compared with what is stored in less time than others.
    by_key: bool
    #: How many ids are asked about at once at most.
    lookup_rows: int

    @property
    def namespace(self) -> str:
        """The schema that it is in, as the database has its name."""

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows that are new or differ, in one transaction, with ledger row and embedding job.

        Args:
            rows: canonical rows in key order, no key twice. With the columns ``expected`` and ``expected_metadata``
                (Binary), a row is written only over an entity with these hashes (null metadata: any), where
                ``expected`` is null only if there is no entity; compared and written in the one transaction.

        Returns:
            position, created Boolean, due Boolean (the embedding job covers it): the rows that were written; and
            where something was expected, conflict Boolean: true for rows that were left alone; and for a batch that is
            `Batch.guarded`, again Boolean: true for rows that were left alone because they may lack something of the
            entity that is there.
        """

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """As `write`, but leave out the rows that the database refuses.

        Returns:
            position, created (null for a row that was not written), due, sqlstate, rule and error (of a refused row),
            other_type and other_id (the key under which a trigger stores the row).
        """

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """What a batch wrote whose answer was lost, as `write` would have returned it, or None if it wrote nothing.

        Raises:
            ConnectionLostError: also where the server that answers is a standby, which may be behind; so `deleted_by`
                and `not_recorded`.
        """

    def deleted_by(self, batch: Batch) -> int | None:
        """How many entities a batch deleted whose answer was lost, or None if it is not in the ledger."""

    @property
    def losses(self) -> int:
        """How often a connection was lost; if it was, another server may answer that does not have what was written."""

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        """Those of some batches that the ledger does not have."""

    def replicated(self, seconds: float) -> bool:
        """Whether all that was committed is on a standby, where a COMMIT has to wait for one; waits at most so long."""

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, content_hash and metadata_hash (Binary) of each key that is stored."""

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, metadata (JSON text), content_hash and metadata_hash (Binary) of each key that is stored."""

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Position of each key that is stored."""

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        """position, content, metadata, content_hash, created_at, updated_at of each key that is stored."""

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Delete in one transaction; position of each key that was stored, error and rule if it could not be deleted.

        No key may stand twice.

        With the columns content_hash and metadata_hash (Binary), only entities that still have them are deleted.

        Raises:
            ConnectionLostError: where it was ``committing``, its ``answer`` is what would have been returned.
        """

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        """entity_type, field, dtype, declared of the recorded metadata fields, in the order in which they came."""

    def record_fields(self, fields: pl.DataFrame) -> None:
        """Add fields (entity_type, field, dtype, declared, and was, the dtype that it was found with, or null).

        An inferred field is replaced; a declared one stays, unless its dtype is ``was`` or its type has no entity left.
        """

    def is_empty(self, entity_type: str) -> bool:
        """Whether the type has no entity."""

    def stats(self, space: str | None) -> pl.DataFrame:
        """entity_type, entities, embedded, due, failed in a space, by default the active one; one row a type."""

    def count(self, entity_type: str | None) -> int:
        """How many entities there are."""

    @property
    def checks(self) -> list[str]:
        """What `inconsistencies` compares."""

    def inconsistencies(self, before_each: Callable[[], None]) -> pl.DataFrame:
        """check, entity_type, id, batch_id, expected, found (String): what does not agree, all in one snapshot.

        Args:
            before_each: called before each of the `checks`; what it raises ends them.
        """

    def repair(self, checks: list[str]) -> None:
        """Repair what `inconsistencies` found under these names, where it can be derived, in one transaction."""

    def kinds(self) -> pl.DataFrame:
        """entity_type, field, kind, id: each kind of JSON value that a metadata field holds, with one id that has it.

        Kinds are integer, long integer (19 digits or more), float, string, boolean, null, array and object.
        """

    def all_fields(self) -> pl.DataFrame:
        """entity_type, field, dtype, declared of every recorded metadata field."""

    def forget_fields(self, fields: pl.DataFrame) -> None:
        """Drop the record of metadata fields, given by entity_type and field."""

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Entity columns of the entities of a type that satisfy a predicate, in no particular order, in pieces."""

    @property
    def embedding(self) -> EmbeddingEngine:
        """The same database where embedding and search are concerned."""

    @property
    def text(self) -> TextEngine:
        """The same database where text search is concerned."""

    @property
    def directory(self) -> DirectoryEngine:
        """The same database where folders are concerned."""

    def drop(self) -> None:
        """Drop the namespace with everything in it; the engine is of no use afterwards."""

    def close(self) -> None:
        """Close every connection. May be called again."""


def check_format(engine: Engine, version: int) -> None:
    """Make sure that this version of the package can work with a store of this format; 0 where there is no store.

    Raises:
        FormatError: it is newer, or it is older and may not be written.
        ConnectError: there is no store, and none may be made.
    """
    if version > FORMAT:
        raise FormatError(
            f"the store at {engine.address} has format {version}, this entityframes knows {FORMAT}: "
            "install a newer entityframes"
        )
    if not engine.read_only:
        return
    if version == 0:
        raise no_store(
            f"there is no store at {engine.address} in the namespace {engine.namespace!r}: see the address and the "
            "namespace, or connect for writing once to make one"
        )
    if version < FORMAT:
        raise FormatError(
            f"the store at {engine.address} has format {version}, which is older than {FORMAT}: connect to it once for "
            "writing (without read_only=True), which brings it up to date"
        )


def no_store(message: str) -> ConnectError:
    """The error where there is no store."""
    error = ConnectError(message)
    error.missing = True
    return error


def check_writable(engine: Engine) -> None:
    """Refuse a call that writes, before it does anything.

    Raises:
        PermanentError: the store was opened read-only.
    """
    if engine.read_only:
        raise PermanentError(
            f"the store at {engine.address} was opened read-only: connect without read_only=True to write", "25006"
        )
