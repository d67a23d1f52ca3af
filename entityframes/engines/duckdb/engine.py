"""DuckDB: a file owned by this process, frames scanned in place, one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes import forks
from entityframes.engines import migrations, predicates, queries
from entityframes.engines.arrow import to_frame
from entityframes.engines.base import FORMAT, Batch, check_format
from entityframes.engines.duckdb.connection import File
from entityframes.engines.duckdb.errors import streamed, translated
from entityframes.engines.url import Location
from entityframes.errors import ConnectError, DatabaseError, TransientError
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.text import TextEngine

#: Of up to so many entities all keys are read to look some up; of more, their hashes first.
SCANNED = 300_000


class DuckDBEngine:
    """One DuckDB database; each call works on a cursor of its own, which is a connection of its own."""

    name = "duckdb"

    def __init__(self, location: Location, namespace: str, workers: int | None, read_only: bool = False) -> None:
        self.address, self._namespace, self.read_only = location.address, namespace, read_only
        # One batch is prepared while another is written.
        self.workers, self.writers = workers or 2, 1
        # A full row group goes straight to the file; what is smaller goes through the log and is written twice.
        self.batch_bytes, self.batch_rows, self.lookup_rows, self.by_key = 128 << 20, 122_880, 500_000, False
        queries.quoted_namespace(namespace)
        self._sql: dict[str, str] = {}
        #: About how many there are.
        self._entities = 0
        #: Whether the hashes of keys are those of another version of DuckDB, and could not be made anew.
        self._hashed_elsewhere = False
        sql = queries.load("duckdb/engine.sql", namespace)
        self._file = File(location, sql["session"], read_only)
        self._cursor, self._writer, self._transaction = self._file.cursor, self._file.writer, self._file.transaction
        try:
            with self._file.root() as root:
                # A file entityframes.duckdb is a catalog of the same name as the schema in it.
                ((catalog, path),) = root.execute(sql["catalog"]).fetchall()
                if path is None and location.target != ":memory:":
                    # DuckDB opens CSV, Parquet and JSON as a database that is gone with the process.
                    raise ConnectError(f"{self.address} is a file of rows: a DuckDB store needs a file of its own")
                for part in ("engine", "checks", "embedding", "text", "directory", "earlier"):
                    self._sql |= queries.load(f"duckdb/{part}.sql", namespace, catalog)
                root.execute(self._sql["settings"])
            self._migrate()
            self._entities = self.count(None)
            self._file.limit_memory()
        except BaseException as error:
            self.close()
            if isinstance(error, DatabaseError):
                raise ConnectError(f"cannot open the store at {self.address}: {error}") from error
            raise

    @property
    def namespace(self) -> str:
        return self._namespace

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            changed = self._changed(cursor, rows, batch)
            if self._lacks(cursor, changed, batch):
                return _all_again(rows)
            self._file.allow(int(changed.estimated_size()))
            return self._file.with_memory(lambda: self._write(cursor, changed, batch))

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            changed = self._changed(cursor, rows, batch)
            if self._lacks(cursor, changed, batch):
                return _all_again(rows)
            _register(cursor, "changed", changed)
            refused = self._refused(cursor, changed.join(self._conflicting(cursor, changed), on="position", how="anti"))
            accepted = changed.join(refused, on="position", how="anti")
            if refused.is_empty():
                # Not a constraint that can be asked for its rows: let the error speak for the batch.
                accepted = changed
            written = self._file.with_memory(lambda: self._write(cursor, accepted, batch))
            return pl.concat([written, refused], how="diagonal")

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._cursor() as cursor:
            if not self._ask(cursor, "recorded", [batch.batch_id]).item():
                return None
            _register(cursor, "given", _keys(rows))
            return self._ask(cursor, "written_by", [batch.batch_id])

    def deleted_by(self, batch: Batch) -> int | None:
        with self._cursor() as cursor:
            return self._ask(cursor, "deleted_by", [batch.batch_id]).item()  # type: ignore[no-any-return]

    @property
    def losses(self) -> int:
        return 0

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        with self._cursor() as cursor:
            return self._ask(cursor, "not_recorded", [batch_ids])["batch_id"].to_list()

    def replicated(self, seconds: float) -> bool:
        return True

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "hashes").drop("place", "created_at")

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "stored")

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "existing").drop("place")

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "lookup")

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            numbered = keys.with_row_index("position")
            _register(cursor, "given", numbered)
            with self._transaction(cursor, batch.interrupt):
                gone = self._ask(cursor, "unchanged" if "content_hash" in keys.columns else "existing")
                if gone.height:
                    written = numbered[gone["position"]].select("entity_type", "id")
                    _register(cursor, "written", written.with_columns(gone["place"]))
                    self._run(cursor, "delete")
                    self._run(cursor, "delete_vectors")
                    self._run(cursor, "ledger", [batch.batch_id, batch.run_id, 0, 0, gone.height, 0])
            return gone.drop("place")

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", pl.DataFrame({"entity_type": entity_types}, schema={"entity_type": pl.String}))
            return self._ask(cursor, "fields")

    def record_fields(self, fields: pl.DataFrame) -> None:
        with self._writer(Interrupt()) as cursor:
            _register(cursor, "given", fields.with_row_index("position"))
            with self._transaction(cursor, Interrupt()):
                self._run(cursor, "widen_fields")
                self._run(cursor, "add_fields")

    def is_empty(self, entity_type: str) -> bool:
        with self._cursor() as cursor:
            return bool(self._ask(cursor, "is_empty", [entity_type]).item())

    def stats(self, space: str | None) -> pl.DataFrame:
        with self._cursor() as cursor:
            return self._ask(cursor, "stats", [space])

    @cached_property
    def embedding(self) -> EmbeddingEngine:
        from entityframes.engines.duckdb.embedding import DuckDBEmbedding

        return DuckDBEmbedding(self)

    @cached_property
    def text(self) -> TextEngine:
        from entityframes.engines.duckdb.text import DuckDBText

        return DuckDBText(self)

    @cached_property
    def directory(self) -> DirectoryEngine:
        from entityframes.engines.duckdb.directory import DuckDBDirectory

        return DuckDBDirectory(self)

    def count(self, entity_type: str | None) -> int:
        with self._cursor() as cursor:
            return int(self._ask(cursor, "count", [entity_type]).item())

    def inconsistencies(self) -> pl.DataFrame:
        with self._cursor() as cursor, self._transaction(cursor, Interrupt()):
            return pl.concat(
                self._ask(cursor, name).select(pl.lit(name.removeprefix("find_")).alias("check"), pl.all())
                for name in self._sql
                if name.startswith("find_")
            )

    def mend(self, checks: list[str]) -> None:
        with self._writer(Interrupt()) as cursor, self._transaction(cursor, Interrupt()):
            for name in queries.mending(self._sql, checks):
                self._run(cursor, name)

    def kinds(self) -> pl.DataFrame:
        with self._cursor() as cursor:
            return self._ask(cursor, "kinds")

    def all_fields(self) -> pl.DataFrame:
        with self._cursor() as cursor:
            return self._ask(cursor, "all_fields")

    def forget_fields(self, fields: pl.DataFrame) -> None:
        with self._writer(Interrupt()) as cursor:
            _register(cursor, "given", fields)
            self._run(cursor, "forget_fields")

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        sql = predicates.select(self._sql["select"], predicates.DUCKDB, columns, entity_type, where, limit)
        with self._cursor(interrupt) as cursor, translated():
            reader = forks.keep(cursor.sql(sql).to_arrow_reader(50_000))
            try:
                for batch in streamed(reader):
                    yield to_frame(batch)
            finally:
                if not self._file.is_inherited:
                    reader.close()

    def drop(self) -> None:
        with self._writer(Interrupt()) as cursor:
            self._run(cursor, "drop")

    def close(self) -> None:
        self._file.close()

    def _changed(self, cursor: Any, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """The rows that are new or differ, with created, due, and the place of what is stored."""
        # Keys and hashes only: an anti-join that does not touch the texts.
        _register(cursor, "given", _keys(rows))
        stored = self._ask(cursor, "hashes")
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

    def _lacks(self, cursor: Any, changed: pl.DataFrame, batch: Batch) -> bool:
        """Whether a row that is to be written over an entity may lack something of it.

        Nobody writes or records fields meanwhile.
        """
        if not batch.guarded or changed["created"].all():
            return False
        _register(cursor, "given", changed.select("entity_type").unique())
        return batch.may_lack(self._ask(cursor, "fields"))

    def _write(self, cursor: Any, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Insert and update in one transaction with the ledger row and the job; nothing at all if nothing changed."""
        expecting = "expected" in changed.columns
        conflicts = changed[["position"]].clear()
        if changed.height:
            _register(cursor, "changed", changed)
            with self._transaction(cursor, batch.interrupt):
                if expecting:
                    # Asked again inside the transaction, for a store that was opened twice in this process.
                    conflicts = self._conflicting(cursor, changed)
                    changed = changed.join(conflicts, on="position", how="anti", maintain_order="left")
                    _register(cursor, "changed", changed)
                if changed.height:
                    self._merge(cursor, changed, batch)
        written = changed[["position", "created", "due"]]
        return pl.concat([written, conflicts.with_columns(conflict=True)], how="diagonal") if expecting else written

    def _merge(self, cursor: Any, changed: pl.DataFrame, batch: Batch) -> None:
        """The statements of a transaction that writes the rows registered as changed."""
        created = int(changed["created"].sum())
        updated = self._run(cursor, "delete_differing") if created < changed.height else 0
        if created + updated != changed.height:
            # Only somebody who wrote past the store, in this process, can have come between.
            raise TransientError(f"{changed.height - created} entities were to be updated, and {updated} were found")
        self._run(cursor, "insert_changed", [batch.batch_id])
        self._entities += created
        due = int(changed["due"].sum())
        self._run(cursor, "ledger", [batch.batch_id, batch.run_id, created, updated, 0, due])
        if due:
            self._run(cursor, "job", [batch.job_id, batch.batch_id, due])
            self._run(cursor, "job_keys", [batch.job_id])

    def _conflicting(self, cursor: Any, changed: pl.DataFrame) -> pl.DataFrame:
        """The position of rows registered as changed whose entity is not in the state that is expected of it."""
        if "expected" not in changed.columns:
            return changed.select("position").clear()
        return self._ask(cursor, "hold").with_columns(pl.col("position").cast(changed.schema["position"]))

    def _refused(self, cursor: Any, changed: pl.DataFrame) -> pl.DataFrame:
        """position, sqlstate and error of the rows that a CHECK constraint refuses; one statement a constraint."""
        _register(cursor, "changed", changed)
        found = pl.DataFrame(schema={"position": pl.UInt32, "sqlstate": pl.String, "error": pl.String})
        for (condition,) in self._ask(cursor, "checks", [self._namespace]).iter_rows():
            with translated():
                rows = cursor.sql(self._sql["refused"].replace("{condition}", condition)).pl()
            error = pl.lit(f"CHECK constraint failed: {condition}")
            found = pl.concat([found, rows.with_columns(sqlstate=pl.lit("23514"), error=error)])
        return found.unique("position", keep="first")

    def _ask(self, cursor: Any, name: str, parameters: list[Any] | None = None) -> pl.DataFrame:
        def ask() -> pl.DataFrame:
            with translated():
                return to_frame(cursor.sql(self._statement(name), params=parameters or None).to_arrow_table())

        return self._file.with_memory(ask)

    def _run(self, cursor: Any, name: str, parameters: list[Any] | None = None) -> int:
        """Execute statements and return how many rows the last one changed."""
        with translated():
            row = cursor.execute(self._statement(name), parameters or []).fetchone()
        return int(row[0]) if row else 0

    def _statement(self, name: str) -> str:
        """The text of a statement, with the way to look keys up that suits the number of entities."""
        found = self._sql["found_by_hash" if self._entities > SCANNED and not self._hashed_elsewhere else "found"]
        return self._sql[name].replace("{found}", found)

    def _migrate(self) -> None:
        """Create the store or bring it to this version's format in one transaction."""
        with self._cursor() if self.read_only else self._writer(Interrupt()) as cursor:
            found = self._ask(cursor, "format_table", [self._namespace])
            self._namespace = found["namespace"].item() or self._namespace
            there = found["there"].item()
            version = migrations.known_version(self.address, self._ask(cursor, "format_version").item()) if there else 0
            check_format(self, version)
            if version < FORMAT:
                if self._ask(cursor, "storage_version").item() == "v1.0.0+":
                    # The tables of somebody's older file; it knows no zstd.
                    for name in ("migrate_3", "repair_entities"):
                        self._sql[name] = self._sql[name].replace("USING COMPRESSION zstd", "")
                with self._transaction(cursor, Interrupt()):
                    self._run(cursor, "create_schema")
                    for step in range(version + 1, FORMAT + 1):
                        if version and step == migrations.REPAIRED_AT + 1:
                            self._repair(cursor)
                        self._run(cursor, f"migrate_{step}")
            if self._ask(cursor, "hashed_elsewhere").item():
                if self.read_only:
                    self._hashed_elsewhere = True
                    return
                with self._transaction(cursor, Interrupt()):
                    self._run(cursor, "rehash")

    def _repair(self, cursor: Any) -> None:
        """Bring a store whose tables are of an earlier shape to what the code knows."""

        def parts() -> list[str]:
            return self._ask(cursor, "parts", [self._namespace])["part"].to_list()

        migrations.repair(self.name, self.address, parts, lambda name: self._run(cursor, name))


def _keys(frame: pl.DataFrame) -> pl.DataFrame:
    return frame[["entity_type", "id"]].with_row_index("position")


def _all_again(rows: pl.DataFrame) -> pl.DataFrame:
    """The answer of a batch of which nothing is written, because its rows may lack something of what is stored."""
    return rows.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("position"), again=pl.lit(True))


def _register(cursor: Any, name: str, frame: pl.DataFrame) -> None:
    # Arrow, not the Polars frame: DuckDB scans it in place and faster.
    with translated():
        cursor.register(name, frame.to_arrow())
