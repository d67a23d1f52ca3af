"""The bookkeeping of a sync: one outcome per row, and the state to record for files and entities in sync."""

from __future__ import annotations

import time
from typing import Any

import polars as pl

from entityframes.directory.left_out import LEFT_OUT
from entityframes.directory.plan import PLAN_SCHEMA
from entityframes.engines.base import Engine
from entityframes.engines.directory import FILED, DirectoryEngine
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import ERROR_KINDS, SYNC_STATUSES, OutcomeLog, SyncResult, outcome_schema
from entityframes.writing.confirm import confirm

#: Columns of the outcomes of a sync.
SYNC_SCHEMA = pl.Schema(
    {
        **outcome_schema(SYNC_STATUSES),
        # The file system can also reject a row.
        "error_kind": pl.Enum([*ERROR_KINDS, "file"]),
        "path": pl.String(),
        "action": PLAN_SCHEMA["action"],
        "direction": PLAN_SCHEMA["direction"],
    }
)


class Account:
    """Collects the outcomes of the rows of one sync, and the files whose state is to be recorded."""

    def __init__(self, run_id: str) -> None:
        #: Number of transactions that wrote entities.
        self.batches = 0
        self._reporter: Reporter | None = None
        #: Files and folders that the walk left out.
        self.left_out = pl.DataFrame(schema=LEFT_OUT)
        self._started = time.perf_counter()
        self._log = OutcomeLog(SYNC_STATUSES, schema=SYNC_SCHEMA)
        self._log.run_id = run_id
        self._filed: list[pl.DataFrame] = [pl.DataFrame(schema=FILED)]
        self._gone: list[pl.Series] = [pl.Series("path", [], dtype=pl.String)]

    def result(self) -> SyncResult:
        """The result so far."""
        elapsed = time.perf_counter() - self._started
        return SyncResult(dict(self._log.counts), self.batches, elapsed, self._log, self.left_out)

    def log(self, rows: pl.DataFrame, status: str | pl.Expr, *, advance: bool = True, **columns: Any) -> None:
        """Log the outcomes of rows.

        Args:
            rows: row, path, key, action and direction, and optionally other outcome columns.
            status: their status.
            advance: whether to report progress for them, too.
            columns: outcome columns; they take precedence over those of `rows`.
        """
        if rows.is_empty():
            return
        given = {"status": status, **columns}
        exprs = {name: value if isinstance(value, pl.Expr) else pl.lit(value) for name, value in given.items()}
        self._log.append(
            rows.select(
                exprs.get(name, pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in SYNC_SCHEMA.items()
            )
        )
        if advance:
            self.advance(rows.height)

    def report_to(self, reporter: Reporter) -> None:
        """Report progress from now on."""
        self._reporter = reporter
        reporter.track(self._log.counts)

    def advance(self, rows: int) -> None:
        """Report progress for a number of rows."""
        if self._reporter is not None:
            self._reporter.advance(rows)

    def complete(self, rows: pl.DataFrame) -> None:
        """Log rows without an outcome as cancelled: the sync ended before it reached them."""
        if sum(self._log.counts.values()) < rows.height:
            logged = self._log.collect()["row"]
            left = rows.filter(~pl.col("row").is_in(logged.implode()))
            self.log(left, "cancelled", action=None, direction=None)

    def confirm(self, engine: Engine, losses: int, interrupt: Interrupt) -> None:
        """Correct the outcomes of rows that were written to the store and are no longer in it."""
        confirm(engine, self._log, losses, interrupt, lambda: None)

    def remember(self, rows: pl.DataFrame) -> None:
        """Add files that are in sync with their entity.

        A file whose state is not stable gets the mark -1, so that the next sync reads it. Its previous path is
        forgotten.

        Args:
            rows: path, key, size, mark, header, the hashes now_hash, now_content and now_metadata, and stable.
        """
        values = {
            "mark": pl.when("stable").then("mark").otherwise(-1),
            "file_hash": pl.col("now_hash"),
            "content_hash": pl.col("now_content"),
            "metadata_hash": pl.col("now_metadata"),
        }
        self.remember_files(
            rows.select(values.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in FILED.items()),
            rows,
        )

    def remember_files(self, filed: pl.DataFrame, rows: pl.DataFrame) -> None:
        """Add files in the form in which they are recorded (`FILED`), and forget their previous paths.

        Args:
            filed: the files.
            rows: their path and base_path.
        """
        self._filed.append(filed)
        self.forget(rows.filter(pl.col("base_path") != pl.col("path")))

    def forget(self, rows: pl.DataFrame) -> None:
        """Add paths (base_path) that no longer belong to a file or to an entity."""
        self._gone.append(rows["base_path"].alias("path"))

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and mark of the files that are in sync, by path."""
        filed = pl.concat(self._filed)
        return dict(zip(filed["path"], zip(filed["size"], filed["mark"], strict=True), strict=True))

    def record(self, folders: DirectoryEngine, folder: str, holder: str) -> bool:
        """Write the state of the files to the store; False if the lock was lost."""
        filed, gone = pl.concat(self._filed), pl.concat(self._gone)
        return (filed.is_empty() and gone.is_empty()) or folders.record(folder, holder, filed, gone)
