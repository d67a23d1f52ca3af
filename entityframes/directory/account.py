"""The account of a sync: one outcome for each row, and what is to be remembered of files and entities in step."""

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
        # The file system can refuse a row, too.
        "error_kind": pl.Enum([*ERROR_KINDS, "file"]),
        "path": pl.String(),
        "action": PLAN_SCHEMA["action"],
        "direction": PLAN_SCHEMA["direction"],
    }
)


class Account:
    """Collects what became of the rows of one sync."""

    def __init__(self) -> None:
        #: How many transactions wrote entities.
        self.batches = 0
        #: Who is told how far it is.
        self.reporter: Reporter | None = None
        #: What of the folder was left out.
        self.left_out = pl.DataFrame(schema=LEFT_OUT)
        self._started = time.perf_counter()
        self._log = OutcomeLog(SYNC_STATUSES, schema=SYNC_SCHEMA)
        self._filed: list[pl.DataFrame] = [pl.DataFrame(schema=FILED)]
        self._gone: list[pl.Series] = [pl.Series("path", [], dtype=pl.String)]

    def result(self) -> SyncResult:
        """What has happened so far."""
        elapsed = time.perf_counter() - self._started
        return SyncResult(dict(self._log.counts), self.batches, elapsed, self._log, self.left_out)

    def tell(self, rows: pl.DataFrame, status: str | pl.Expr, *, advance: bool = True, **columns: Any) -> None:
        """Log the outcomes of rows.

        Args:
            rows: with row, path, key, action and direction, and any column of an outcome.
            status: what became of them.
            advance: whether their progress is still to be told.
            columns: of the outcomes; they go before those of `rows`.
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

    def advance(self, rows: int) -> None:
        """Tell the progress of so many rows."""
        if self.reporter is not None:
            self.reporter.advance(rows, self._log.counts)

    def complete(self, rows: pl.DataFrame) -> None:
        """Rows that nothing was said of were not come to."""
        if sum(self._log.counts.values()) < rows.height:
            told = self._log.collect()["row"]
            left = rows.filter(~pl.col("row").is_in(told.implode()))
            self.tell(left, "cancelled", action=None, direction=None)

    def confirm(self, engine: Engine, losses: int, interrupt: Interrupt) -> None:
        """Correct the outcomes of what was written to the store and is not there any more."""
        confirm(engine, self._log, losses, interrupt, lambda: None)

    def file(self, rows: pl.DataFrame) -> None:
        """Files that are in step with their entity: path, key, size, mark and header, and the hashes of now_...

        The mark of a state that is not settled says nothing. The path that a file had before is forgotten.
        """
        values = {
            "mark": pl.when("settled").then("mark").otherwise(-1),
            "file_hash": pl.col("now_hash"),
            "content_hash": pl.col("now_content"),
            "metadata_hash": pl.col("now_metadata"),
        }
        self.filed(
            rows.select(values.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in FILED.items()),
            rows,
        )

    def filed(self, filed: pl.DataFrame, rows: pl.DataFrame) -> None:
        """The same of what is given as it is to be remembered (`FILED`)."""
        self._filed.append(filed)
        self.forget(rows.filter(pl.col("base_path") != pl.col("path")))

    def forget(self, rows: pl.DataFrame) -> None:
        """Paths (base_path) that are no file any more, or of no entity."""
        self._gone.append(rows["base_path"].alias("path"))

    def files(self) -> dict[str, tuple[int, int]]:
        """Size and mark of the files that are in step, as they are to be remembered."""
        filed = pl.concat(self._filed)
        return dict(zip(filed["path"], zip(filed["size"], filed["mark"], strict=True), strict=True))

    def record(self, folders: DirectoryEngine, folder: str, holder: str) -> bool:
        """Let the store remember it; False if the lock was lost."""
        filed, gone = pl.concat(self._filed), pl.concat(self._gone)
        return (filed.is_empty() and gone.is_empty()) or folders.record(folder, holder, filed, gone)
