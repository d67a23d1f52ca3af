"""What a sync has to do: the folder and the store are surveyed, and an action is decided for each path.

Most actions follow from the survey. The others need the content of the file, which is read in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from entityframes.directory.left_out import LEFT_OUT
from entityframes.directory.plan import (
    PLAN_SCHEMA,
    STATES,
    Direction,
    OnConflict,
    as_planned,
    decide,
    limit_deletions,
    limit_new_types,
    vanished,
)
from entityframes.directory.reading import read_in_chunks
from entityframes.directory.survey import Folder, survey, to_rows
from entityframes.engines.base import Engine
from entityframes.errors import StatementCancelledError
from entityframes.frames.schema import KEY
from entityframes.progress import Progress, Reporter

#: Creates the reporter of a step of a sync, given the name of the step and its number of files.
Reporting = Callable[[str, int | None], Reporter]


def reporting_to(progress: Progress) -> Reporting:
    """The reporters of a sync; a function of the caller is not called for the survey, whose files come again."""

    def reporting(step: str, files: int | None) -> Reporter:
        return Reporter(False if step == "survey" and callable(progress) else progress, files, what=step, unit="files")

    return reporting


@dataclass(frozen=True)
class SyncOptions:
    """The options of a sync."""

    direction: Direction
    on_conflict: OnConflict = "report"
    delete: bool = False
    max_delete: int | None = None
    quarantine: bool = False
    batch_size: int | None = None
    embed: bool = True


class Planner:
    """Decides the actions of one sync of one folder.

    Args:
        engine: the engine of the store.
        folder: the folder.
        options: the options of the sync.
        planned: a plan to apply (`STATES`), or None.
        stopping: whether no more files are to be read.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Folder,
        options: SyncOptions,
        planned: pl.DataFrame | None,
        stopping: Callable[[], bool],
    ) -> None:
        self._engine, self._folder, self._tree = engine, folder, folder.tree
        self._options, self._planned, self._stopping = options, planned, stopping
        #: Files and folders that are left out, and temporary files left behind by killed processes.
        self.left_out = pl.DataFrame(schema=LEFT_OUT)
        self.temporary: list[str] = []
        #: Number of files in the folder.
        self._files = 0

    def plan(self, reporting: Reporting) -> pl.DataFrame:
        """What a sync would do (`STATES`), ordered by path; nothing is written.

        Raises:
            StatementCancelledError: it was stopped.
        """
        decided, unread = self.decide(self.survey(reporting))
        pieces = [decided]
        with reporting("plan", unread.height) as reporter:
            for piece in self.read(unread):
                pieces.append(piece)
                reporter.advance(piece.height)
        if self._stopping():
            raise StatementCancelledError("the plan was stopped")
        columns = [pl.col(name).cast(PLAN_SCHEMA.get(name, pl.Binary())) for name in STATES]
        return pl.concat([with_file_hash(piece).select(columns) for piece in pieces]).sort("path")

    def survey(self, reporting: Reporting) -> pl.DataFrame:
        """The current state of the folder and the store, as rows numbered in the order of their paths."""
        with reporting("survey", None) as reporter:
            return self._survey(reporter)

    def _survey(self, reporter: Reporter) -> pl.DataFrame:
        folder, remembered = self._folder, self._engine.directory
        with ThreadPoolExecutor(2) as threads:
            # The database is queried while the folder is walked.
            filed = threads.submit(remembered.filed, folder.name)
            wanted = self._options.direction != "import"
            unfiled = threads.submit(remembered.unfiled, folder.name, folder.types) if wanted else None
            walk = self._tree.walk(reporter.advance)
            self.temporary = walk.temporary
            self.left_out = walk.left_out
            self._files = walk.files.height
            rows = survey(
                folder, walk, filed.result(), unfiled.result() if unfiled else None, self._engine,
                self._options.direction,
            )  # fmt: skip
        if self._planned is not None:
            rows = pl.concat([rows, to_rows(vanished(rows, self._planned))])
        return rows.sort("path").with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))

    def decide(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows with an action that was decided without reading the file, and rows whose file has to be read first."""
        direction = self._options.direction
        touched = pl.col("file").is_in(["changed", "new"])
        if direction == "export":
            # Only files that may conflict with an entity, or whose status may have changed but not their bytes.
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
        decided = self._actions(rows.filter(open_))
        decided = pl.concat([decided, rows.filter(pl.col("action").is_not_null()).select(decided.columns)])
        known = rows.filter(pl.col("base_path").is_not_null()).height
        decided = limit_deletions(decided, known, self._options.max_delete, empty=self._files == 0)
        if direction == "both" and self._folder.types is None:
            types = rows.filter(pl.col("file") != "none")["entity_type"].unique()
            decided = limit_new_types(decided, types.extend(pl.Series([self._folder.default_type])))
        return self._as_planned(decided), rows.filter(unread).drop("unread")

    def _as_planned(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self._planned is None:
            return rows
        return as_planned(with_file_hash(rows), self._planned).drop("file_hash")

    def _actions(self, rows: pl.DataFrame) -> pl.DataFrame:
        options = self._options
        return decide(rows, options.direction, options.on_conflict, options.delete)

    def read(self, unread: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Read the files of rows and decide their actions, in chunks."""
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
                good = self._with_newer(good)
            good = self._actions(good)
            bad = piece.filter(pl.col("problem").is_not_null())
            bad = bad.with_columns(action=pl.lit("invalid"), reason=pl.col("problem"))
            yield self._as_planned(pl.concat([good, bad.select(good.columns)]))

    def _with_newer(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with newer: whether the file was changed after its entity."""
        found = self._engine.lookup(rows.select(KEY))
        at = pl.DataFrame(
            {"position": found["position"].cast(pl.Int64), "updated_ns": found["updated_at"].dt.epoch("ns")}
        )
        rows = rows.with_columns(position=pl.int_range(pl.len(), dtype=pl.Int64))
        rows = rows.join(at, on="position", how="left", maintain_order="left")
        return rows.with_columns(newer=pl.col("mtime_ns") > pl.col("updated_ns")).drop("position", "updated_ns")


def with_file_hash(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with file_hash: of the bytes that this sync read, else of the last sync; null if there is no file."""
    seen = pl.col("now_hash") if "now_hash" in rows.columns else pl.col("base_hash")
    return rows.with_columns(file_hash=pl.when(pl.col("size").is_not_null()).then(seen))
