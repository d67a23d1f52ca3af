"""DuckDB: a file owned by this process, frames scanned in place, one writer at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import polars as pl

from entityframes.engines import FORMAT, Batch, Interrupt, Location, predicates, queries
from entityframes.engines.arrow import to_frame
from entityframes.engines.duckdb_errors import InvalidatedError, translated, why_not_opened
from entityframes.errors import (
    ClosedError,
    ConnectError,
    DatabaseError,
    FormatError,
    ResourceError,
    TransientError,
)

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate


#: DuckDB keeps what it has read until its limit is reached, by default most of the machine's memory. A file gets this
#: many bytes and so many for each entity, because the index of keys has to fit; more as soon as a statement needs it.
MEMORY_BYTES = 96 << 20
MEMORY_BYTES_PER_ENTITY = 80
#: And so much for each byte of a batch.
MEMORY_PER_BYTE = 4
MEMORY_AT_MOST = 8 << 30

T = TypeVar("T")


class DuckDBEngine:
    """One DuckDB database; each call works on a cursor of its own, which is a connection of its own."""

    name = "duckdb"

    def __init__(self, location: Location, namespace: str, workers: int | None) -> None:
        self.address = location.address
        # One batch is prepared while another is written.
        self.workers, self.writers = workers or 2, 1
        # A full row group goes straight to the file; what is smaller goes through the log and is written twice.
        self.batch_bytes, self.batch_rows = 128 << 20, 122_880
        self._namespace = namespace
        queries.quoted_namespace(namespace)
        self._sql: dict[str, str] = {}
        self._process = os.getpid()
        self._writing = threading.Lock()
        # The connection that cursors are made of; one call at a time, DuckDB refuses a second.
        self._root: Any = None
        self._root_free = threading.RLock()
        try:
            self._root = duckdb.connect(location.target)
        except (duckdb.Error, UnicodeError, ValueError) as error:
            raise ConnectError(why_not_opened(location, error)) from None
        try:
            with translated():
                # A file entityframes.duckdb is a catalog of the same name as the schema in it.
                ((catalog,),) = self._root.execute("SELECT current_database()").fetchall()
                for file in ("duckdb.sql", "duckdb_checks.sql", "duckdb_embedding.sql", "duckdb_directory.sql"):
                    self._sql |= queries.load(file, namespace, catalog)
                self._root.execute(self._sql["session"])
            # A store in memory may fill it.
            self._bounded = location.target != ":memory:"
            self._extra_memory = 0
            self._room_for = -1
            self._migrate()
            if self._bounded:
                self._fit_memory(self.count(None))
        except BaseException as error:
            self.close()
            if isinstance(error, DatabaseError):
                raise ConnectError(f"cannot open the store at {self.address}: {error}") from error
            raise

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            changed = self._changed(cursor, rows, batch)
            self._allow(MEMORY_PER_BYTE * int(changed.estimated_size()))
            return self._with_memory(lambda: self._write(cursor, changed, batch))

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            changed = self._changed(cursor, rows, batch)
            _register(cursor, "changed", changed)
            refused = self._refused(cursor, changed.join(self._conflicting(cursor, changed), on="position", how="anti"))
            accepted = changed.join(refused, on="position", how="anti")
            if refused.is_empty():
                # Not a constraint that can be asked for its rows: let the error speak for the batch.
                accepted = changed
            written = self._with_memory(lambda: self._write(cursor, accepted, batch))
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

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "hashes")

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return self._ask(cursor, "existing")

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._cursor() as cursor:
            _register(cursor, "given", _keys(keys))
            return _in_utc(self._ask(cursor, "lookup"))

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        with self._writer(batch.interrupt) as cursor:
            numbered = keys.with_row_index("position")
            _register(cursor, "given", numbered)
            gone = self._ask(cursor, "unchanged" if "content_hash" in keys.columns else "existing")
            if gone.is_empty():
                return gone
            _register(cursor, "written", numbered[gone["position"]].select("entity_type", "id"))
            with self._transaction(cursor, batch.interrupt):
                self._run(cursor, "delete")
                self._run(cursor, "delete_vectors")
                self._run(cursor, "ledger", [batch.batch_id, batch.run_id, 0, 0, gone.height, 0])
            return gone

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
        from entityframes.engines.duckdb_embedding import DuckDBEmbedding

        return DuckDBEmbedding(self)

    @cached_property
    def directory(self) -> DirectoryEngine:
        from entityframes.engines.duckdb_directory import DuckDBDirectory

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
            reader = cursor.sql(sql).to_arrow_reader(50_000)
            try:
                for batch in reader:
                    yield _in_utc(to_frame(batch))
            finally:
                reader.close()

    def drop(self) -> None:
        with self._writer(Interrupt()) as cursor:
            self._run(cursor, "drop")

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        with self._root_free:
            root, self._root = self._root, None
            while root is not None:
                # Its cursors are closed with it; DuckDB refuses while one of them is at a statement.
                try:
                    root.close()
                    break
                except duckdb.ResourceInUseException:
                    time.sleep(0.005)

    def _changed(self, cursor: Any, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """The rows that are new or differ, with created and due."""
        numbered = rows.with_row_index("position")
        # Keys and hashes only: an anti-join that does not touch the texts.
        _register(cursor, "given", numbered.select("position", "entity_type", "id", "content_hash", "metadata_hash"))
        changed = self._ask(cursor, "probe").sort("position")
        due = pl.col("differs") & (pl.col("content") != "") & pl.lit(batch.embed)
        return numbered[changed["position"]].with_columns(changed["created"], changed["differs"]).with_columns(due=due)

    def _write(self, cursor: Any, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Insert and update in one transaction with the ledger row and the job; nothing at all if nothing changed."""
        expecting = "expected" in changed.columns
        conflicts = changed.select("position").clear()
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
            self._grown(int(changed["created"].sum()))
        written = changed.select("position", "created", "due")
        return pl.concat([written, conflicts.with_columns(conflict=True)], how="diagonal") if expecting else written

    def _merge(self, cursor: Any, changed: pl.DataFrame, batch: Batch) -> None:
        """The statements of a transaction that writes the rows registered as changed."""
        created = int(changed["created"].sum())
        inserted = self._run(cursor, "insert_created", [batch.batch_id]) if created else 0
        updated = self._run(cursor, "update_differing", [batch.batch_id]) if created < changed.height else 0
        if inserted + updated != changed.height:
            # Only another store that this process opened on the same file can have come between.
            raise TransientError(f"{inserted + updated} rows were written where {changed.height} were expected")
        due = int(changed["due"].sum())
        self._run(cursor, "ledger", [batch.batch_id, batch.run_id, inserted, updated, 0, due])
        if due:
            self._run(cursor, "job", [batch.job_id, batch.batch_id])

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

    def _fit_memory(self, entities: int) -> None:
        """Let DuckDB use memory for a store that has grown somewhat; asked again when it has."""
        self._entities = entities
        self._room_for = entities * 5 // 4 + 250_000
        self._memory = MEMORY_BYTES + MEMORY_BYTES_PER_ENTITY * self._room_for + self._extra_memory
        with self._root_free, translated():
            self._opened().execute(f"SET memory_limit = '{self._memory >> 20}MiB'")

    def _grown(self, created: int) -> None:
        """Fit the memory after a COMMIT, if there is much more in the store; what fails here does not undo it."""
        if self._bounded and self._entities + created > self._room_for:
            with suppress(DatabaseError, ClosedError):
                self._fit_memory(self.count(None))
        elif self._bounded:
            self._entities += created

    def _allow(self, extra: int) -> None:
        """See to it that there is so much memory beyond what the store itself needs."""
        if self._bounded and extra > self._extra_memory:
            self._extra_memory = extra
            self._fit_memory(self._entities)

    def _with_memory(self, work: Callable[[], T]) -> T:
        """Do the work; where the memory that DuckDB may use is not enough, allow it more and do the work again."""
        while True:
            try:
                return work()
            except ResourceError as error:
                if error.sqlstate != "53200" or not self._bounded or self._memory > MEMORY_AT_MOST:
                    raise
                self._allow(self._extra_memory + self._memory)

    def _opened(self) -> Any:
        if self._root is None:
            raise ClosedError("the store is closed: open it again with entityframes.connect()")
        return self._root

    @contextmanager
    def _cursor(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        if self._process != os.getpid():
            raise ClosedError("this store was opened in another process: after a fork, connect again in the child")
        with self._root_free, translated():
            cursor = self._opened().cursor()
        try:
            if interrupt is None:
                yield cursor
            else:
                interrupt.check()
                with interrupt.cancelling(cursor.interrupt):
                    yield cursor
        except InvalidatedError as error:
            self.close()
            said = f"the store was closed, because DuckDB gave up its file ({error})"
            raise ClosedError(f"{said}: see that there is room on the disk, and connect again") from None
        finally:
            # An open transaction is rolled back with its connection.
            cursor.close()

    @contextmanager
    def _writer(self, interrupt: Interrupt) -> Iterator[Any]:
        """A cursor that no other writer works beside: writers to the same keys would fail each other."""
        with self._writing, self._cursor(interrupt) as cursor:
            yield cursor

    @contextmanager
    def _transaction(self, cursor: Any, interrupt: Interrupt) -> Iterator[None]:
        with translated():
            cursor.begin()
        try:
            yield
            # A COMMIT that is interrupted while it writes the log into the file has happened and says that it has not.
            with interrupt.held_back(), self._committing():
                cursor.commit()
        except ResourceError:
            # It may be tried again on this cursor; any other error ends with the cursor, which rolls back too.
            with suppress(duckdb.Error):
                cursor.rollback()
            raise

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """A COMMIT that ran out of memory leaves keys in the index that have no row: they must not reach the file."""
        try:
            with translated():
                yield
        except ResourceError as error:
            if error.sqlstate != "53200":
                raise
            # What was committed before is in the log, and is read from there when the file is opened again.
            with self._root_free:
                with suppress(duckdb.Error, ClosedError):
                    self._opened().execute("PRAGMA disable_checkpoint_on_shutdown")
                self.close()
            raise ClosedError(
                f"the store was closed, because a COMMIT ran out of memory ({error}): connect again"
            ) from None

    def _ask(self, cursor: Any, name: str, parameters: list[Any] | None = None) -> pl.DataFrame:
        def ask() -> pl.DataFrame:
            with translated():
                return to_frame(cursor.sql(self._sql[name], params=parameters or None).to_arrow_table())

        return self._with_memory(ask)

    def _run(self, cursor: Any, name: str, parameters: list[Any] | None = None) -> int:
        """Execute statements and return how many rows the last one changed."""
        with translated():
            row = cursor.execute(self._sql[name], parameters or []).fetchone()
        return int(row[0]) if row else 0

    def _migrate(self) -> None:
        """Create the store or bring it to this version's format in one transaction."""
        with self._writer(Interrupt()) as cursor:
            exists = self._ask(cursor, "format_table", [self._namespace]).item()
            version = int(self._ask(cursor, "format_version").item()) if exists else 0
            if version > FORMAT:
                raise FormatError(
                    f"the store at {self.address} has format {version}, this entityframes knows {FORMAT}: "
                    "install a newer entityframes"
                )
            if version < FORMAT:
                with self._transaction(cursor, Interrupt()):
                    self._run(cursor, "create_schema")
                    for step in range(version + 1, FORMAT + 1):
                        self._run(cursor, f"migrate_{step}")


def _keys(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("entity_type", "id").with_row_index("position")


def _register(cursor: Any, name: str, frame: pl.DataFrame) -> None:
    # Arrow, not the Polars frame: DuckDB scans it in place and faster.
    with translated():
        cursor.register(name, frame.to_arrow())


def _in_utc(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Datetime).cast(pl.Datetime("us", "UTC")))
