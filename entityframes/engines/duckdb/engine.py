"""The DuckDB engine: this process owns the file, frames are scanned in place, and there is one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import polars as pl

from entityframes.engines import migrations, predicates
from entityframes.engines.base import FORMAT, check_format
from entityframes.engines.batch import Batch, retry_all
from entityframes.engines.database import unopened
from entityframes.engines.duckdb.database import DuckDBDatabase
from entityframes.engines.duckdb.session import Session
from entityframes.engines.rules import rule_of
from entityframes.errors import DatabaseError, TransientError
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.tables import TableEngine
    from entityframes.engines.text import TextEngine

_EPOCH = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))

#: Up to this many entities, lookups scan all keys; beyond that, they scan the hashes of the keys first.
SCANNED = 300_000


class DuckDBEngine:
    """The store in a DuckDB database; opening it creates or migrates it if necessary."""

    def __init__(self, database: DuckDBDatabase) -> None:
        self.database = database
        #: The approximate number of entities.
        self._entities = 0
        #: Whether the hashes of keys were computed by another version of DuckDB and could not be recomputed.
        self._hashed_elsewhere = False
        try:
            database.file.configure(database.statements["store_settings"])
            self._migrate()
            self._count_entities(self.count(None))
            database.file.limit_memory()
        except BaseException as error:
            database.close()
            if isinstance(error, DatabaseError):
                raise unopened("store", database.address, error) from error
            raise

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self.database.session(batch.interrupt, writing=True) as session:
            if rows.height == 1 and "expected" not in rows.columns:
                return self._write_one(session, rows, batch)
            changed = self._changed(session, rows, batch)
            if self._lacks(session, changed, batch):
                return retry_all(rows)
            self.database.file.reserve(int(changed.estimated_size()))
            return self.database.file.with_memory(lambda: self._write(session, changed, batch))

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self.database.session(batch.interrupt, writing=True) as session:
            changed = self._changed(session, rows, batch)
            if self._lacks(session, changed, batch):
                return retry_all(rows)
            session.register("changed", changed)
            rejected = self._rejected(
                session, changed.join(self._conflicting(session, changed), on="position", how="anti")
            )
            accepted = changed.join(rejected, on="position", how="anti")
            if rejected.is_empty():
                # No CHECK constraint rejects these rows: write them all, which raises the error for the batch.
                accepted = changed
            written = self.database.file.with_memory(lambda: self._write(session, accepted, batch))
            return pl.concat([written, rejected], how="diagonal")

    # There is no connection whose loss would leave a COMMIT without a response.

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        return None

    def deleted_by(self, batch: Batch) -> int | None:
        return None

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        return []

    def batches_between(self, first: str, last: str) -> list[str]:
        return self.database.read("batches_between", first, last)["batch_id"].to_list()

    def written_between(self, keys: pl.DataFrame, first: str, last: str) -> pl.DataFrame:
        with self.database.session() as session:
            session.register_keys(keys)
            return session.query("written_between", first, last)

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self.database.session() as session:
            session.register_keys(keys)
            return session.query("hashes").drop("place", "created_at")

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self.database.session() as session:
            session.register_keys(keys)
            return session.query("stored")

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self.database.session() as session:
            session.register_keys(keys)
            return session.query("existing").drop("place")

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self.database.session() as session:
            session.register_keys(keys)
            return session.query("lookup")

    def contains(self, entity_type: str, id: str) -> bool:
        with self.database.session() as session:
            return bool(session.rows("entity_hashes", entity_type, id))

    def find(self, entity_type: str, id: str) -> dict[str, Any] | None:
        with self.database.session() as session:
            found = session.rows("entity", entity_type, id)
        if not found:
            return None
        names = ("content", "metadata", "content_hash", "created_at", "updated_at")
        entity = dict(zip(names, found[0], strict=True))
        return entity | {name: _time(entity[name]) for name in names[3:]}

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self.database.session(batch.interrupt, writing=True) as session:
            numbered = keys.with_row_index("position")
            session.register("given", numbered)
            with session.transaction(batch.interrupt):
                found = session.query("unchanged" if "content_hash" in keys.columns else "existing")
                if found.height:
                    written = numbered[found["position"]].select("entity_type", "id")
                    session.register("written", written.with_columns(found["place"]))
                    session.execute("delete")
                    session.execute("delete_passages")
                    session.execute("ledger", batch.batch_id, batch.run_id, 0, 0, found.height, 0)
            return found.drop("place")

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        with self.database.session() as session:
            session.register("given", pl.DataFrame({"entity_type": entity_types}, schema={"entity_type": pl.String}))
            return session.query("fields")

    def record_fields(self, fields: pl.DataFrame) -> None:
        with self.database.session(writing=True) as session:
            session.register("given", fields.with_row_index("position"))
            with session.transaction():
                session.execute("widen_fields")
                session.execute("add_fields")

    def is_empty(self, entity_type: str) -> bool:
        return bool(self.database.read("is_empty", entity_type).item())

    def stats(self, space: str | None) -> pl.DataFrame:
        return self.database.read("stats", space)

    @cached_property
    def embedding(self) -> EmbeddingEngine:
        from entityframes.engines.duckdb.embedding import DuckDBEmbedding

        return DuckDBEmbedding(self.database)

    @cached_property
    def tables(self) -> TableEngine:
        from entityframes.engines.duckdb.tables import DuckDBTables

        return DuckDBTables(self.database)

    @cached_property
    def text(self) -> TextEngine:
        from entityframes.engines.duckdb.text import DuckDBText

        return DuckDBText(self.database)

    @cached_property
    def directory(self) -> DirectoryEngine:
        from entityframes.engines.duckdb.directory import DuckDBDirectory

        return DuckDBDirectory(self.database)

    def types(self) -> pl.DataFrame:
        return self.database.read("types")

    def runs(self, limit: int | None) -> pl.DataFrame:
        return self.database.read("runs", limit)

    def size(self) -> int | None:
        path = self.database.read("catalog")["path"].item()
        if path is None:
            return None
        return sum(os.path.getsize(file) for file in (path, f"{path}.wal") if os.path.exists(file))

    def count(self, entity_type: str | None) -> int:
        return int(self.database.read("count", entity_type).item())

    @property
    def checks(self) -> list[str]:
        return [name.removeprefix("find_") for name in self.database.statements.checks()]

    def inconsistencies(self, before_each: Callable[[], None]) -> pl.DataFrame:
        found = []
        with self.database.session() as session, session.transaction():
            for name in self.checks:
                before_each()
                found.append(session.query(f"find_{name}").select(pl.lit(name).alias("check"), pl.all()))
        return pl.concat(found)

    def repair(self, checks: list[str]) -> None:
        with self.database.session(writing=True) as session, session.transaction():
            for name in self.database.statements.repairs(checks):
                session.execute(name)

    def kinds(self) -> pl.DataFrame:
        return self.database.read("kinds")

    def all_fields(self) -> pl.DataFrame:
        return self.database.read("all_fields")

    def forget_fields(self, fields: pl.DataFrame) -> None:
        with self.database.session(writing=True) as session:
            session.register("given", fields)
            session.execute("forget_fields")

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        placeholders = predicates.placeholders(predicates.DUCKDB, columns, entity_type, where, limit)
        with self.database.session(interrupt) as session:
            yield from session.stream("select", placeholders=placeholders)

    def drop(self) -> None:
        with self.database.session(writing=True) as session:
            session.execute("drop")

    def _count_entities(self, added: int) -> None:
        """Add to the number of entities, and choose the lookup of keys that is faster for it."""
        self._entities += added
        if self._entities > SCANNED and not self._hashed_elsewhere:
            self.database.found = "found_by_hash"

    def _changed(self, session: Session, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """The rows that are new or differ, with created, due, and place (the location of the stored entity)."""
        # This compares keys and hashes only, without reading the content.
        session.register_keys(rows)
        stored = session.query("hashes")
        created = pl.col("place").is_null()
        differs = created | (pl.col("content_hash") != pl.col("content_hash_stored"))
        return (
            rows.with_row_index("position")
            .join(stored, on="position", how="left", suffix="_stored", maintain_order="left")
            .filter(differs | (pl.col("metadata_hash") != pl.col("metadata_hash_stored")))
            .select(
                pl.exclude("content_hash_stored", "metadata_hash_stored"),
                created=created,
                due=differs & (pl.col("content") != "") & pl.lit(batch.embed),
            )
        )

    def _lacks(self, session: Session, changed: pl.DataFrame, batch: Batch) -> bool:
        """Whether a row that overwrites an entity may lack fields of it. There are no concurrent writers."""
        if not batch.guarded or changed["created"].all():
            return False
        session.register("given", changed.select("entity_type").unique())
        return batch.may_lack(session.query("fields").select("entity_type", "field").iter_rows())

    def _write(self, session: Session, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Insert and update in one transaction, with the ledger row and the job; does nothing if nothing changed."""
        expecting = "expected" in changed.columns
        conflicts = changed[["position"]].clear()
        if changed.height:
            session.register("changed", changed)
            with session.transaction(batch.interrupt):
                if expecting:
                    # Checked again inside the transaction, in case the store was opened twice in this process.
                    conflicts = self._conflicting(session, changed)
                    changed = changed.join(conflicts, on="position", how="anti", maintain_order="left")
                    session.register("changed", changed)
                if changed.height:
                    self._merge(session, changed, batch)
        written = changed[["position", "created", "due"]]
        return pl.concat([written, conflicts.with_columns(conflict=True)], how="diagonal") if expecting else written

    def _merge(self, session: Session, changed: pl.DataFrame, batch: Batch) -> None:
        """Write the rows registered as ``changed``, within a transaction."""
        created = int(changed["created"].sum())
        updated = session.execute("delete_differing") if created < changed.height else 0
        if created + updated != changed.height:
            # Only a writer in this process that does not use this package can cause this.
            raise TransientError(f"expected {changed.height - created} entities to update, found {updated}")
        session.execute("insert_changed", batch.batch_id)
        self._count_entities(created)
        due = int(changed["due"].sum())
        session.execute("ledger", batch.batch_id, batch.run_id, created, updated, 0, due)
        if due:
            session.execute("job", batch.job_id, batch.batch_id, due)
            session.execute("job_keys", batch.job_id)

    def _write_one(self, session: Session, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """`write` for a single row. Registering frames would take longer than these statements."""
        values = dict(zip(rows.columns, rows.row(0), strict=True))
        key = values["entity_type"], values["id"]
        found = session.rows("entity_hashes", *key)
        place, content_hash, metadata_hash, created_at = found[0] if found else (None,) * 4
        differs = content_hash != values["content_hash"]
        if not differs and metadata_hash == values["metadata_hash"]:
            return _written_one([])
        if found and batch.guarded:
            recorded = session.rows("field_names", key[0])
            if batch.may_lack((key[0], name) for (name,) in recorded):
                return retry_all(rows)
        due = differs and values["content"] != "" and batch.embed
        columns = [values[name] for name in ("content", "metadata", "content_hash", "metadata_hash")]

        def write() -> None:
            with session.transaction(batch.interrupt):
                if found and not session.execute("delete_one", *key, place):
                    # As in `_merge`, by a writer that does not use this package.
                    raise TransientError("expected an entity to update, found none")
                session.execute("insert_one", *key, *columns, batch.batch_id, created_at)
                session.execute("ledger", batch.batch_id, batch.run_id, int(not found), int(bool(found)), 0, int(due))
                if due:
                    session.execute("job", batch.job_id, batch.batch_id, 1)
                    session.execute("job_key", batch.job_id, *key)
            self._count_entities(int(not found))

        self.database.file.reserve(int(rows.estimated_size()))
        self.database.file.with_memory(write)
        return _written_one([(0, not found, due)])

    def _conflicting(self, session: Session, changed: pl.DataFrame) -> pl.DataFrame:
        """The positions of the rows registered as ``changed`` whose entity does not have the expected hashes."""
        if "expected" not in changed.columns:
            return changed.select("position").clear()
        return session.query("hold")

    def _rejected(self, session: Session, changed: pl.DataFrame) -> pl.DataFrame:
        """position, sqlstate, rule and error of the rows that a CHECK constraint rejects; one query per constraint."""
        session.register("changed", changed)
        found = pl.DataFrame(schema={"position": pl.UInt32, **dict.fromkeys(["sqlstate", "rule", "error"], pl.String)})
        for condition, name in session.query("checks", self.database.namespace).iter_rows():
            rows = session.query("rejected", placeholders={"condition": condition})
            error = pl.lit(f"CHECK constraint failed: {condition}")
            found = pl.concat(
                [found, rows.with_columns(sqlstate=pl.lit("23514"), rule=pl.lit(rule_of("23514", name)), error=error)]
            )
        return found.unique("position", keep="first")

    def _migrate(self) -> None:
        """Create the store, or migrate it to the format of this version, in one transaction."""
        with self.database.session(writing=not self.database.read_only) as session:
            found = session.query("format_table", self.database.namespace)
            self.database.statements.namespace = found["namespace"].item() or self.database.namespace
            there = found["there"].item()
            version = (
                migrations.known_version(self.database.address, session.query("format_version").item()) if there else 0
            )
            check_format(self.database, version)
            if version < FORMAT:
                if session.query("storage_version").item() == "v1.0.0+":
                    # The storage format of this older file does not support zstd.
                    for name in ("migrate_3", "reshape_entities"):
                        self.database.statements.replace(name, "USING COMPRESSION zstd", "")
                with session.transaction():
                    session.execute("create_schema")
                    for step in range(version + 1, FORMAT + 1):
                        if version and step == migrations.REPAIRED_AT + 1:
                            self._repair(session)
                        session.execute(f"migrate_{step}")
            if session.query("hashed_elsewhere").item():
                if self.database.read_only:
                    self._hashed_elsewhere = True
                    return
                with session.transaction():
                    session.execute("rehash")

    def _repair(self, session: Session) -> None:
        """Repair the tables of a store that was created by an earlier version."""

        def parts() -> list[str]:
            return session.query("parts", self.database.namespace)["part"].to_list()

        migrations.repair(self.database.name, self.database.address, parts, lambda name: session.execute(name))


def _written_one(rows: list[tuple[int, bool, bool]]) -> pl.DataFrame:
    """The result of `write` for a batch of one row."""
    return pl.DataFrame(rows, {"position": pl.UInt32, "created": pl.Boolean, "due": pl.Boolean}, orient="row")


def _time(microseconds: int) -> datetime:
    """A time as Polars returns it."""
    return _EPOCH + timedelta(microseconds=microseconds)
