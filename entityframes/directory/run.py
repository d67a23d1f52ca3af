"""A sync: plan -> rename -> import -> delete -> export -> record the state of what is now in sync.

Nothing is written before the survey of all paths is complete. Each file and each entity is written only if it has not
changed since the survey, and each row has exactly one outcome. The state is recorded at the end, even if the run fails;
files whose state was not recorded are found equal by the next sync.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator
from typing import TYPE_CHECKING

import polars as pl

from entityframes.directory.account import Account
from entityframes.directory.handles import wait_for_tick
from entityframes.directory.planning import Planner, Reporting, SyncOptions, with_file_hash
from entityframes.directory.reading import read_in_chunks
from entityframes.directory.renames import rename
from entityframes.directory.survey import Folder
from entityframes.directory.writing import Rendered, render, write_in_chunks
from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError, DirectoryError
from entityframes.frames.schema import KEY
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import SyncResult, UpsertResult
from entityframes.writing.delete import Delete
from entityframes.writing.entities.deletion import EntityDeletion
from entityframes.writing.entities.upsert import entity_upsert
from entityframes.writing.options import Options

if TYPE_CHECKING:
    from entityframes.store import EntityStore

_CONTENT = ("content", "metadata")
#: Outcome columns of an upsert.
_OUTCOME = ("status", "batch_id", "job_id", "error_kind", "rule", "error", "sqlstate")
#: Columns of rows whose action is deferred.
_DEFERRED = (
    "row", "path", *KEY, "action", "direction", "reason", "resolved", "size", "file_hash", "base_path",
    "stored_content", "stored_metadata",
)  # fmt: skip
_CHANGED_SINCE = "changed during the sync: sync again"


class SyncRun:
    """One sync of one folder."""

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
        self._planner = Planner(self._engine, folder, options, planned, self._stopping)
        #: Whether entities may only be overwritten if they are as the survey found them.
        self._compared = options.direction == "both" or planned is not None
        self._run_id = str(uuid.uuid4())
        self._losses = self._engine.database.losses
        self._account = Account(self._run_id)
        #: Exports and deletions, to be done after the imports.
        self._deferred: list[pl.DataFrame] = []

    def result(self) -> SyncResult:
        """The result so far."""
        return self._account.result()

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and mark of the files that are now in sync, by path."""
        return self._account.files()

    def execute(self, holder: str, reporting: Reporting) -> SyncResult:
        """Run the sync; `result` is valid even if an error is raised.

        Args:
            holder: the holder of the lock on the folder.
            reporting: creates the reporters of progress.

        Raises:
            DirectoryError: the folder cannot be read, or the lock was lost.
            DatabaseError: the database cannot be reached.
            KeyboardInterrupt: on Ctrl-C, after the current batch was rolled back.
        """
        if self._options.quarantine:
            self._restore()
        rows = self._planner.survey(reporting)
        self._account.left_out = self._planner.left_out
        if self._planner.temporary:
            self._tree.clean(self._planner.temporary)
        with reporting("sync", rows.height) as reporter:
            self._account.report_to(reporter)
            decided, unread = self._planner.decide(rows)
            try:
                self._dispatch(decided)
                if not self._stopping():
                    renames = decided.filter(pl.col("action") == "rename")
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
                f"another sync of {self._tree.root} took over because this one did not renew its lock in time; its "
                "changes were kept, and the next sync will find them in sync"
            )
        return self.result()

    def _remember(self, holder: str) -> bool:
        """Record the state of the files in sync; returns whether this sync still held the lock."""
        if self._engine.database.losses == self._losses:
            wait_for_tick(self._tree.wrote_ns)
            try:
                return self._account.record(self._engine.directory, self._folder.name, holder)
            except ConnectionLostError:
                pass
        # A server that took over after the connection was lost may lack some of the writes: the next sync compares
        # again.
        self._account.confirm(self._engine, self._losses, Interrupt(self._cancel))
        return True

    def _dispatch(self, rows: pl.DataFrame) -> None:
        """Log rows without anything to do, remember rows that are in sync, and defer exports and deletions."""
        action = pl.col("action")
        refused = rows.filter("refused")
        self._account.log(refused, "failed", error_kind="validation", error=pl.col("reason"))
        rows = rows.filter(~pl.col("refused"))
        self._deferred.append(with_file_hash(rows.filter(action.is_in(["export", "delete"]))).select(*_DEFERRED))
        self._account.log(rows.filter(action == "conflict"), "conflict", error=pl.col("reason"))
        self._log_invalid(rows.filter(action == "invalid"))
        unchanged = rows.filter(action == "unchanged")
        self._account.log(unchanged, "unchanged", error=pl.col("reason"))
        self._account.forget(unchanged.filter((pl.col("file") == "gone") & (pl.col("entity") == "gone")))
        if "now_hash" in rows.columns:
            self._account.remember(unchanged.filter(pl.col("equal") | (pl.col("file") == "same")))

    def _log_invalid(self, rows: pl.DataFrame) -> None:
        """Log files that cannot be entities; with quarantine, those that were read are renamed."""
        kind = pl.when("unread").then(pl.lit("file")).otherwise(pl.lit("validation"))
        if self._options.quarantine and "now_hash" in rows.columns:
            reasons = []
            for row in rows.iter_rows(named=True):
                reason = row["reason"]
                if not row["unread"]:
                    aside = f"{row['path']}.invalid"
                    error = self._tree.rename(row["path"], aside, row["now_hash"])
                    reason += f"; set aside as {aside}" if error is None else f"; not set aside: {error}"
                reasons.append(reason)
            rows = rows.with_columns(reason=pl.Series(reasons, dtype=pl.String))
        self._account.log(rows, "failed", error_kind=kind, error=pl.col("reason"))

    def _import(self, unread: pl.DataFrame) -> None:
        """Read files, decide their actions, and write new and changed entities in batches."""
        if unread.is_empty():
            return
        if self._options.direction == "export":
            for piece in self._planner.read(unread):
                self._dispatch(piece.drop(_CONTENT))
            return
        sent: list[pl.DataFrame] = []
        options = Options(
            batch_size=self._options.batch_size,
            embed=self._options.embed,
            expected_hash="expected_content" if self._compared else None,
            expected_metadata_hash="expected_metadata" if self._compared else None,
            # A file contains the complete entity.
            absent="clear",
        )
        done = 0

        def progress(rows: int, total: int | None) -> None:
            nonlocal done
            self._account.advance(rows - done)
            done = rows

        run = entity_upsert(self._engine, options, Interrupt(self._cancel), run_id=self._run_id)
        source = self._entity_frames(unread, sent)
        with Reporter(progress, what="import") as reporter:
            try:
                run.execute(source, reporter, self._store._threads.submit)
            finally:
                source.close()
                if sent:
                    self._log_imported(pl.concat(sent), run.result())

    def _entity_frames(self, unread: pl.DataFrame, sent: list[pl.DataFrame]) -> Generator[pl.DataFrame]:
        """Yield entity frames of the rows to import; other rows are dispatched along the way."""
        for piece in self._planner.read(unread):
            wanted = pl.col("action").is_in(["create", "update"])
            self._dispatch(piece.filter(~wanted).drop(_CONTENT))
            rows = self._keep_entities(piece.filter(wanted))
            if rows.is_empty():
                continue
            sent.append(rows.drop(_CONTENT))
            hashes = [
                pl.col(stored).bin.encode("hex").alias(name)
                for stored, name in (("stored_content", "expected_content"), ("stored_metadata", "expected_metadata"))
                if self._compared
            ]
            yield rows.select(*KEY, "content", "metadata", *hashes)

    def _log_imported(self, sent: pl.DataFrame, result: UpsertResult) -> None:
        """Log the outcomes of the rows that were sent to the upsert; rows that it did not reach were cancelled."""
        self._account.batches += result.batches
        outcomes = result.outcomes.select(pl.col("row").alias("sent"), *_OUTCOME)
        rows = sent.with_columns(sent=pl.int_range(pl.len(), dtype=pl.UInt32))
        rows = rows.join(outcomes, on="sent", how="left", maintain_order="left")
        rows = rows.with_columns(pl.col("status").cast(pl.String).fill_null("cancelled"))
        self._account.log(rows, pl.col("status"), advance=False)
        self._account.remember(rows.filter(pl.col("status").is_in(["created", "updated", "unchanged"])))

    def _keep_entities(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Save entities that lose a conflict next to their file; returns the rows that can be overwritten."""
        lost = rows.filter("resolved")
        if lost.is_empty():
            return rows
        kept = []
        hashes = zip(lost["path"], lost["stored_content"], lost["stored_metadata"], strict=True)
        for (path, *seen), file in zip(hashes, render(self._engine, lost.select(KEY)), strict=True):
            same = isinstance(file, Rendered) and [file.content_hash, file.metadata_hash] == seen
            if isinstance(file, Rendered) and same:
                self._tree.set_aside(path, file.data)
            kept.append(same or seen[0] is None)
        good = pl.Series(kept, dtype=pl.Boolean)
        self._account.log(lost.filter(~good), "conflict", error=_CHANGED_SINCE)
        return rows.join(lost.filter(~good), on="row", how="anti", maintain_order="left")

    def _keep_files(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Save files that lose a conflict under another name; returns the rows that can be overwritten."""
        lost = rows.filter(pl.col("resolved") & pl.col("size").is_not_null())
        bad = []
        for row in lost.iter_rows(named=True):
            (read,) = self._tree.read([row["path"]])
            if read.data is None or read.digest != row["file_hash"]:
                bad.append(row["row"])
            else:
                self._tree.set_aside(row["path"], read.data)
        changed = pl.col("row").is_in(bad)
        self._account.log(rows.filter(changed), "conflict", error=_CHANGED_SINCE)
        return rows.filter(~changed)

    def _export(self) -> None:
        rows = self._take_deferred("export", "export")
        if rows.is_empty():
            return
        rows = self._keep_files(rows)
        for written, filed in write_in_chunks(self._engine, self._tree, rows, self._stopping):
            failed = pl.col("problem").is_not_null()
            status = pl.when(failed).then(pl.lit("failed")).otherwise(pl.lit("exported"))
            kind = pl.when(failed).then(pl.lit("file"))
            self._account.log(written, status, error_kind=kind, error=pl.col("problem"))
            self._account.remember_files(filed, written.filter(~failed))

    def _delete_entities(self) -> None:
        rows = self._keep_entities(self._take_deferred("delete", "import"))
        if rows.is_empty():
            return
        run = Delete(EntityDeletion(self._engine, unchanged=True), Interrupt(self._cancel), self._run_id)
        try:
            keys = rows.select(*KEY, content_hash="stored_content", metadata_hash="stored_metadata")
            run.execute(keys, Reporter(False, what="delete"), self._store._threads.submit)
        finally:
            result = run.result()
            self._account.batches += result.batches
            rows = rows.hstack(result.outcomes.select(*_OUTCOME).with_columns(pl.col("status").cast(pl.String)))
            changed = pl.col("status") == "missing"
            error = pl.when(changed).then(pl.lit(_CHANGED_SINCE)).otherwise("error")
            self._account.log(rows, pl.when(changed).then(pl.lit("conflict")).otherwise("status"), error=error)
            self._account.forget(rows.filter(pl.col("status") == "deleted"))

    def _delete_files(self) -> None:
        for piece in self._keep_files(self._take_deferred("delete", "export")).iter_slices(1):
            row = piece.row(0, named=True)
            error = self._tree.remove(row["path"], row["file_hash"])
            kind = "file" if error else None
            self._account.log(piece, "failed" if error else "deleted", error_kind=kind, error=error)
            if error is None:
                self._account.forget(piece)

    def _restore(self) -> None:
        """Give quarantined files that have been repaired their names back."""
        aside = self._tree.walk().quarantined
        rows = aside.with_columns(pl.format("{}.invalid", "path").alias("path"))
        for piece in read_in_chunks(self._tree, rows, self._stopping):
            for row in piece.filter(pl.col("problem").is_null()).iter_rows(named=True):
                name = row["path"].removesuffix(".invalid")
                self._tree.rename(row["path"], name, row["now_hash"])

    # Helpers.

    def _batch(self) -> Batch:
        return Batch(self._run_id, Interrupt(self._cancel))

    def _take_deferred(self, action: str, direction: str) -> pl.DataFrame:
        rows = pl.concat(self._deferred)
        wanted = (pl.col("action") == action) & (pl.col("direction") == direction)
        return rows.filter(wanted) if not self._stopping() else rows.clear()

    def _stopping(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()
