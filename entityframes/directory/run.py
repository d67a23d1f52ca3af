"""The life of a sync: survey, rename, import, delete, export, and remember what is in step now.

Nothing is written before all paths were looked at; each file and each entity is written only if it still is what was
looked at; and each row ends in one outcome. What was done is remembered at the end, whatever ended the run: what was
not remembered is found equal the next time.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from entityframes.directory.account import Account
from entityframes.directory.handles import outlast_tick
from entityframes.directory.plan import (
    PLAN_SCHEMA,
    STATES,
    Direction,
    OnConflict,
    as_planned,
    at_home,
    bounded,
    decide,
    vanished,
)
from entityframes.directory.reading import read_in_chunks
from entityframes.directory.renames import rename
from entityframes.directory.survey import Folder, shaped, survey
from entityframes.directory.writing import Rendered, rendered, write_in_chunks
from entityframes.engines.base import Batch
from entityframes.errors import ConnectionLostError, DirectoryError
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import SyncResult, UpsertResult
from entityframes.writing.delete import Delete
from entityframes.writing.options import Options
from entityframes.writing.upsert import Upsert

if TYPE_CHECKING:
    from entityframes.store import EntityStore

_CONTENT = ("content", "metadata")
#: What an upsert tells of its rows.
_TOLD = ("status", "batch_id", "job_id", "error_kind", "rule", "error", "sqlstate")
#: What is needed of rows that are done later.
_LATER = (
    "row", "path", *KEY, "action", "direction", "reason", "resolved", "size", "file_hash", "base_path",
    "stored_content", "stored_metadata",
)  # fmt: skip
_CHANGED_SINCE = "changed while it was synced: sync again"


@dataclass(frozen=True)
class SyncOptions:
    """What the caller of a sync decides."""

    direction: Direction
    on_conflict: OnConflict = "report"
    delete: bool = False
    max_delete: int | None = None
    quarantine: bool = False
    batch_size: int | None = None
    embed: bool = True


class SyncRun:
    """One sync of one folder, or the plan of one."""

    def __init__(
        self,
        store: EntityStore,
        folder: Folder,
        options: SyncOptions,
        cancel: threading.Event | None = None,
        planned: pl.DataFrame | None = None,
    ) -> None:
        self._store = store
        self._engine = store._engine
        self._folder = folder
        self._tree = folder.tree
        self._options = options
        self._cancel = cancel
        #: The plan that is carried out (`STATES`); None where there is none.
        self._planned = planned
        self._run_id = str(uuid.uuid4())
        self._losses = self._engine.losses
        self._account = Account()
        #: Exports and deletions that are decided, to be done in their turn.
        self._later: list[pl.DataFrame] = []
        #: How many files there are at all.
        self._files = 0
        #: What killed processes left behind.
        self._temporary: list[str] = []

    def result(self) -> SyncResult:
        """What has happened so far."""
        return self._account.result()

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and mark of the files that it brought into step."""
        return self._account.files()

    def plan(self) -> pl.DataFrame:
        """What `execute` would do, and to what (`STATES`), by path; nothing is written."""
        settled, unread = self._decided(self._survey())
        pieces = [settled, *(piece for piece in self._read(unread))]
        columns = [pl.col(name).cast(PLAN_SCHEMA.get(name, pl.Binary())) for name in STATES]
        return pl.concat([_with_bytes_seen(piece).select(columns) for piece in pieces]).sort("path")

    def execute(self, holder: str, reporting: Callable[[int], Reporter]) -> SyncResult:
        """Do it; `result` stays right whatever is raised.

        Args:
            holder: who has the lock on the folder.
            reporting: makes the progress of so many rows.

        Raises:
            DirectoryError: the folder cannot be read, or the lock was lost.
            DatabaseError: the database cannot be reached.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back.
        """
        if self._options.quarantine:
            self._restore()
        rows = self._survey()
        if self._temporary:
            self._tree.clean(self._temporary)
        with reporting(rows.height) as self._account.reporter:
            settled, unread = self._decided(rows)
            try:
                self._settle(settled)
                if not self._stopping():
                    renames = settled.filter(pl.col("action") == "rename")
                    rename(self._engine, self._tree, renames, self._batch(), self._account)
                self._import(unread)
                self._delete_entities()
                self._export()
                self._delete_files()
            finally:
                self._account.complete(rows)
                held = self._remember(holder)
        if not held:
            raise DirectoryError(
                f"another sync of {self._tree.root} took over, because this one was not heard of for a while; "
                "what it did stands, and is found in step by the next sync"
            )
        return self.result()

    def _remember(self, holder: str) -> bool:
        """Remember what is in step; whether the lock was still this sync's."""
        if self._engine.losses == self._losses:
            outlast_tick(self._tree.wrote_ns)
            try:
                return self._account.record(self._engine.directory, self._folder.name, holder)
            except ConnectionLostError:
                pass
        # Another server may have taken over that does not have all that was in step: the next sync looks for itself.
        self._account.confirm(self._engine, self._losses, Interrupt(self._cancel))
        return True

    # What is to be done.

    def _survey(self) -> pl.DataFrame:
        """What folder and store say now, each row numbered in the order of the paths."""
        folder, remembered = self._folder, self._engine.directory
        with ThreadPoolExecutor(2) as threads:
            # The database answers while the folder is walked.
            filed = threads.submit(remembered.filed, folder.name)
            wanted = self._options.direction != "import"
            unfiled = threads.submit(remembered.unfiled, folder.name, folder.types) if wanted else None
            walk = self._tree.walk()
            self._temporary = walk.temporary
            self._account.left_out = walk.left_out
            self._files = walk.files.height
            rows = survey(
                folder, walk, filed.result(), unfiled.result() if unfiled else None, self._engine,
                self._options.direction,
            )  # fmt: skip
        if self._planned is not None:
            rows = pl.concat([rows, shaped(vanished(rows, self._planned))])
        return rows.sort("path").with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))

    def _decided(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows of which it is clear what is to be done, and those whose file has to be read first."""
        direction = self._options.direction
        touched = pl.col("file").is_in(["changed", "new"])
        if direction == "export":
            # Only what may stand in the way of an entity, or may not have changed but in its status.
            touched &= (pl.col("file") == "changed") | pl.col("entity").is_in(["changed", "new"])
        elif direction == "import":
            touched |= (pl.col("file") == "same") & (pl.col("entity") == "gone")
        unread = pl.col("action").is_null() & touched
        open_ = pl.col("action").is_null() & ~touched
        rows = rows.with_columns(
            equal=pl.lit(None, pl.Boolean),
            newer=pl.lit(None, pl.Boolean),
            resolved=pl.lit(False),
            refused=pl.lit(False),
            unread=pl.lit(False),
        )
        decided = self._decide(rows.filter(open_))
        settled = pl.concat([decided, rows.filter(pl.col("action").is_not_null()).select(decided.columns)])
        known = rows.filter(pl.col("base_path").is_not_null()).height
        settled = bounded(settled, known, self._options.max_delete, empty=self._files == 0)
        if direction == "both" and self._folder.types is None:
            types = rows.filter(pl.col("file") != "none")["entity_type"].unique()
            settled = at_home(settled, types.extend(pl.Series([self._folder.default_type])))
        return self._as_planned(settled), rows.filter(unread).drop("unread")

    def _as_planned(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self._planned is None:
            return rows
        return as_planned(_with_bytes_seen(rows), self._planned).drop("file_hash")

    def _decide(self, rows: pl.DataFrame) -> pl.DataFrame:
        options = self._options
        return decide(rows, options.direction, options.on_conflict, options.delete)

    def _read(self, unread: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The other rows, read and decided, chunk by chunk."""
        for piece in read_in_chunks(self._tree, unread, self._stopping):
            in_step = (pl.col("now_content") == pl.col("base_content")) & (
                pl.col("now_metadata") == pl.col("base_metadata")
            )
            equal = (pl.col("now_content") == pl.col("stored_content")) & (
                pl.col("now_metadata") == pl.col("stored_metadata")
            )
            good = piece.filter(pl.col("problem").is_null()).with_columns(
                equal=equal.fill_null(False),
                file=pl.when(in_step)
                .then(pl.lit("same"))
                .when(pl.col("base_path").is_null())
                .then(pl.lit("new"))
                .otherwise(pl.lit("changed")),
            )
            if self._options.on_conflict == "newer":
                good = self._dated(good)
            good = self._decide(good)
            bad = piece.filter(pl.col("problem").is_not_null())
            bad = bad.with_columns(action=pl.lit("invalid"), reason=pl.col("problem"))
            yield self._as_planned(pl.concat([good, bad.select(good.columns)]))

    def _dated(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Whether each file was changed after its entity."""
        found = self._engine.lookup(rows.select(KEY))
        at = pl.DataFrame(
            {"position": found["position"].cast(pl.Int64), "updated_ns": found["updated_at"].dt.epoch("ns")}
        )
        rows = rows.with_columns(position=pl.int_range(pl.len(), dtype=pl.Int64))
        rows = rows.join(at, on="position", how="left", maintain_order="left")
        return rows.with_columns(newer=pl.col("mtime_ns") > pl.col("updated_ns")).drop("position", "updated_ns")

    # Doing it.

    def _settle(self, rows: pl.DataFrame) -> None:
        """Tell what needs no doing, remember what is in step, and leave exports and deletions for later."""
        action = pl.col("action")
        refused = rows.filter("refused")
        self._account.tell(refused, "failed", error_kind="validation", error=pl.col("reason"))
        rows = rows.filter(~pl.col("refused"))
        self._later.append(_with_bytes_seen(rows.filter(action.is_in(["export", "delete"]))).select(*_LATER))
        self._account.tell(rows.filter(action == "conflict"), "conflict", error=pl.col("reason"))
        self._refuse(rows.filter(action == "invalid"))
        unchanged = rows.filter(action == "unchanged")
        self._account.tell(unchanged, "unchanged", error=pl.col("reason"))
        self._account.forget(unchanged.filter((pl.col("file") == "gone") & (pl.col("entity") == "gone")))
        if "now_hash" in rows.columns:
            self._account.file(unchanged.filter(pl.col("equal") | (pl.col("file") == "same")))

    def _refuse(self, rows: pl.DataFrame) -> None:
        """Tell which files can be no entities; those that were read are set aside if that is wanted."""
        kind = pl.when("unread").then(pl.lit("file")).otherwise(pl.lit("validation"))
        if self._options.quarantine and "now_hash" in rows.columns:
            reasons = []
            for row in rows.iter_rows(named=True):
                reason = row["reason"]
                if not row["unread"]:
                    aside = f"{row['path']}.invalid"
                    said = self._tree.rename(row["path"], aside, row["now_hash"])
                    reason += f"; set aside as {aside}" if said is None else f"; not set aside: {said}"
                reasons.append(reason)
            rows = rows.with_columns(reason=pl.Series(reasons, dtype=pl.String))
        self._account.tell(rows, "failed", error_kind=kind, error=pl.col("reason"))

    def _import(self, unread: pl.DataFrame) -> None:
        """Read, decide, and write new and changed entities, batch by batch."""
        if unread.is_empty():
            return
        if self._options.direction == "export":
            for piece in self._read(unread):
                self._settle(piece.drop(_CONTENT))
            return
        sent: list[pl.DataFrame] = []
        compared = self._options.direction == "both" or self._planned is not None
        options = Options(
            self._options.batch_size,
            self._options.embed,
            expected_hash="expected_content" if compared else None,
            expected_metadata_hash="expected_metadata" if compared else None,
            # A file is the whole entity.
            absent="clear",
        )
        done = 0

        def progress(rows: int, total: int | None) -> None:
            nonlocal done
            self._account.advance(rows - done)
            done = rows

        run = Upsert(self._engine, options, Interrupt(self._cancel))
        source = self._entities(unread, sent, compared)
        with Reporter(progress, None) as reporter:
            try:
                run.execute(source, reporter, self._store._threads.submit)
            finally:
                source.close()
                if sent:
                    self._imported(pl.concat(sent), run.result())

    def _entities(self, unread: pl.DataFrame, sent: list[pl.DataFrame], compared: bool) -> Generator[pl.DataFrame]:
        """Entity frames of what is to be imported; what is not is settled on the way."""
        for piece in self._read(unread):
            wanted = pl.col("action").is_in(["create", "update"])
            self._settle(piece.filter(~wanted).drop(_CONTENT))
            rows = self._keep_entities(piece.filter(wanted))
            if rows.is_empty():
                continue
            sent.append(rows.drop(_CONTENT))
            hashes = [
                pl.col(stored).bin.encode("hex").alias(name)
                for stored, name in (("stored_content", "expected_content"), ("stored_metadata", "expected_metadata"))
                if compared
            ]
            yield rows.select(*KEY, "content", "metadata", *hashes)

    def _imported(self, sent: pl.DataFrame, result: UpsertResult) -> None:
        """Outcomes of what was sent, in the same order; what the upsert did not come to was cancelled."""
        self._account.batches += result.batches
        told = result.outcomes.select(pl.col("row").alias("sent"), *_TOLD)
        rows = sent.with_columns(sent=pl.int_range(pl.len(), dtype=pl.UInt32))
        rows = rows.join(told, on="sent", how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("status").cast(pl.String).fill_null("cancelled"))
        self._account.tell(rows, pl.col("status"), advance=False)
        self._account.file(rows.filter(pl.col("status").is_in(["created", "updated", "unchanged"])))

    def _keep_entities(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Keep entities that lose beside their file, before it overwrites them; the rows where that went well."""
        losing = rows.filter("resolved")
        if losing.is_empty():
            return rows
        kept = []
        hashes = zip(losing["path"], losing["stored_content"], losing["stored_metadata"], strict=True)
        for (path, *seen), file in zip(hashes, rendered(self._engine, losing.select(KEY)), strict=True):
            same = isinstance(file, Rendered) and [file.content_hash, file.metadata_hash] == seen
            if isinstance(file, Rendered) and same:
                self._tree.set_aside(path, file.data)
            kept.append(same or seen[0] is None)
        good = pl.Series(kept, dtype=pl.Boolean)
        self._account.tell(losing.filter(~good), "conflict", error=_CHANGED_SINCE)
        return rows.join(losing.filter(~good), on="row", how="anti", maintain_order="left")

    def _keep_files(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Keep files that lose beside themselves; the rows where that went well."""
        losing = rows.filter(pl.col("resolved") & pl.col("size").is_not_null())
        bad = []
        for row in losing.iter_rows(named=True):
            (read,) = self._tree.read([row["path"]])
            if read.data is None or read.digest != row["file_hash"]:
                bad.append(row["row"])
            else:
                self._tree.set_aside(row["path"], read.data)
        changed = pl.col("row").is_in(bad)
        self._account.tell(rows.filter(changed), "conflict", error=_CHANGED_SINCE)
        return rows.filter(~changed)

    def _export(self) -> None:
        rows = self._due("export", "export")
        if rows.is_empty():
            return
        rows = self._keep_files(rows)
        for written, filed in write_in_chunks(self._engine, self._tree, rows, self._stopping):
            failed = pl.col("problem").is_not_null()
            status = pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("exported"))
            kind = pl.when(failed).then(pl.lit("file"))
            self._account.tell(written, status, error_kind=kind, error=pl.col("problem"))
            self._account.filed(filed, written.filter(~failed))

    def _delete_entities(self) -> None:
        rows = self._keep_entities(self._due("delete", "import"))
        if rows.is_empty():
            return
        run = Delete(self._engine, Interrupt(self._cancel), unchanged=True)
        try:
            keys = rows.select(*KEY, content_hash="stored_content", metadata_hash="stored_metadata")
            run.execute(keys, Reporter(False, None), self._store._threads.submit)
        finally:
            result = run.result()
            self._account.batches += result.batches
            rows = rows.hstack(result.outcomes.select(*_TOLD).with_columns(pl.col("status").cast(pl.String)))
            changed = pl.col("status") == "missing"
            error = pl.when(changed).then(pl.lit(_CHANGED_SINCE)).otherwise("error")
            self._account.tell(rows, pl.when(changed).then(pl.lit("conflict")).otherwise("status"), error=error)
            self._account.forget(rows.filter(pl.col("status") == "deleted"))

    def _delete_files(self) -> None:
        for piece in self._keep_files(self._due("delete", "export")).iter_slices(1):
            row = piece.row(0, named=True)
            said = self._tree.remove(row["path"], row["file_hash"])
            self._account.tell(piece, "failed" if said else "deleted", error_kind="file" if said else None, error=said)
            if said is None:
                self._account.forget(piece)

    def _restore(self) -> None:
        """Files that were set aside and are well again get their names back."""
        aside = self._tree.walk().quarantined
        rows = aside.with_columns(pl.format("{}.invalid", "path").alias("path"))
        for piece in read_in_chunks(self._tree, rows, self._stopping):
            for row in piece.filter(pl.col("problem").is_null()).iter_rows(named=True):
                name = row["path"].removesuffix(".invalid")
                self._tree.rename(row["path"], name, row["now_hash"])

    # What came of it.

    def _batch(self) -> Batch:
        return Batch(self._run_id, Interrupt(self._cancel))

    def _due(self, action: str, direction: str) -> pl.DataFrame:
        rows = pl.concat(self._later)
        wanted = (pl.col("action") == action) & (pl.col("direction") == direction)
        return rows.filter(wanted) if not self._stopping() else rows.clear()

    def _stopping(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()


def _with_bytes_seen(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with file_hash: of the bytes that this sync read, or else the last one; null where there is no file."""
    seen = pl.col("now_hash") if "now_hash" in rows.columns else pl.col("base_hash")
    return rows.with_columns(file_hash=pl.when(pl.col("size").is_not_null()).then(seen))
