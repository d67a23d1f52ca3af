"""Results: a frame with one outcome for each input row, and notes about all of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import polars as pl

from entityframes import forks, views
from entityframes.errors import DuplicateError, EntityFramesError, SchemaError
from entityframes.rejected import Inputs, Rejected
from entityframes.visible import visible

R = TypeVar("R", bound="RunResult")

#: The statuses of a row of an upsert. Each row ends with exactly one of them:
#: created, updated, unchanged: the entity is stored, as reported by the database;
#: duplicate: another row of the frame with the same key was written instead;
#: conflict: the stored entity does not have the expected hash; it was left unchanged;
#: failed: the row was rejected, with the reason in ``error``; nothing of it is stored;
#: cancelled: the row was not written, because the run was stopped;
#: unknown: the connection was lost during COMMIT and the ledger could not be read.
UPSERT_STATUSES = ("created", "updated", "unchanged", "duplicate", "conflict", "failed", "cancelled", "unknown")

#: The statuses of a row of a mirror: those of an upsert, and deleted for a stored row that the frame lacks.
MIRROR_STATUSES = (
    "created",
    "updated",
    "unchanged",
    "deleted",
    "duplicate",
    "conflict",
    "failed",
    "cancelled",
    "unknown",
)

#: The statuses of a row of a delete; missing: the entity is not stored.
DELETE_STATUSES = ("deleted", "missing", "duplicate", "failed", "cancelled", "unknown")

#: The statuses of an entity that was due when its job ran:
#: embedded: the vector of its content is stored;
#: skipped: before the vector was written, the entity was changed or deleted, or another worker took over its job; or
#: the content is white space only;
#: failed: the embedder rejected its text, or all attempts to call the embedder failed;
#: cancelled: the run was stopped; the entity stays due.
EMBED_STATUSES = ("embedded", "skipped", "failed", "cancelled", "unknown")

#: The statuses of a file of a sync, or of an entity that should have a file:
#: created, updated, renamed, deleted: the change of the entity, or of the file if the direction is export;
#: exported: the file was written; unchanged: there was nothing to do;
#: conflict: both sides changed, or one of them changed during the sync; both were left unchanged;
#: failed: the file is not a valid entity, the entity cannot be a file, or writing failed, with the reason in ``error``.
SYNC_STATUSES = (
    "created", "updated", "renamed", "exported", "deleted", "unchanged", "conflict", "failed", "cancelled", "unknown"
)  # fmt: skip

#: The kinds of errors: validation by this package; an error of the database or of the connection to it; a timeout; a
#: lack of disk space or memory; an error of the embedder.
ERROR_KINDS = ("validation", "database", "connection", "timeout", "resource", "embedder")

#: The statuses of rows that were written by a transaction.
WRITTEN = ("created", "updated", "renamed", "deleted")

#: The statuses that require an action of the caller.
UNRESOLVED = ("conflict", "failed", "cancelled", "unknown")


@cache
def outcome_schema(
    statuses: tuple[str, ...] = UPSERT_STATUSES,
    key: tuple[tuple[str, pl.DataType], ...] = (("entity_type", pl.String()), ("id", pl.String())),
    jobs: bool = True,
) -> pl.Schema:
    """The columns and dtypes of an outcome frame, given its statuses and key columns, and whether there are jobs."""
    return pl.Schema(
        {
            "row": pl.UInt32(),
            **dict(key),
            "status": pl.Enum(statuses),
            "batch_id": pl.String(),
            **({"job_id": pl.String()} if jobs else {}),
            "error_kind": pl.Enum(ERROR_KINDS),
            "rule": pl.String(),
            "error": pl.String(),
            "sqlstate": pl.String(),
        }
    )


def outcomes(rows: pl.DataFrame, schema: pl.Schema, **columns: Any) -> pl.DataFrame:
    """Outcomes of `rows` (row, key, any outcome columns); other columns are taken from `columns` or null."""
    given = {name: value if isinstance(value, pl.Expr) else pl.lit(value) for name, value in columns.items()}
    return rows.select_seq(
        given.get(name, pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in schema.items()
    )


def concat_outcomes(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Concatenate outcome frames; without a copy if only one has rows, as for most batches."""
    parts = list(parts)
    non_empty = [rows for rows in parts if rows.height]
    return non_empty[0] if len(non_empty) == 1 else pl.concat(non_empty or parts)


class OutcomeLog:
    """Collects the outcomes of a run; whenever more than `keep` rows are in memory, they are moved to a file."""

    def __init__(
        self, statuses: tuple[str, ...] = UPSERT_STATUSES, keep: int = 100_000, schema: pl.Schema | None = None
    ) -> None:
        #: The columns and dtypes of the outcomes.
        self.schema = schema or outcome_schema(statuses)
        self._keep = keep
        self._frames: list[pl.DataFrame] = []
        self._held = 0
        self._folder: Path | None = None
        self._files: list[Path] = []
        self.counts = dict.fromkeys(statuses, 0)
        #: The id of the run in the ledger; None for a run that writes no ledger rows.
        self.run_id: str | None = None
        #: The Python objects that the rows were made from; of frames there are none.
        self.inputs = Inputs()

    def append(self, frame: pl.DataFrame) -> None:
        """Add outcomes, in any order."""
        if frame.is_empty():
            return
        self._count(frame, 1)
        self.inputs.resolve(frame)
        self._frames.append(frame)
        self._held += frame.height
        if self._held > self._keep:
            self._spill()

    def written(self) -> list[str]:
        """The ids of the batches that wrote rows."""
        ids = (frame.filter(pl.col("status").cast(pl.String).is_in(WRITTEN))["batch_id"] for frame in self._pieces())
        return list({batch_id for column in ids for batch_id in column.drop_nulls().unique()})

    def correct(self, batch_ids: Iterable[str], status: str | None, error: str) -> int:
        """Set the status and error, or only the error, of rows written by some batches; return the number of rows."""
        ids = pl.Series(list(batch_ids), dtype=pl.String)
        if ids.is_empty():
            return 0
        affected = pl.col("batch_id").is_in(ids.implode()) & pl.col("status").cast(pl.String).is_in(WRITTEN)
        new = {
            "status": status, "error_kind": "connection", "rule": "connection_lost", "error": error, "sqlstate": None,
            "job_id": None,
        }  # fmt: skip
        new = new if status is not None else {"error": error}
        corrected = 0

        def correct(frame: pl.DataFrame) -> pl.DataFrame:
            nonlocal corrected
            corrected += frame.select(affected.sum()).item()
            return frame.with_columns(
                pl.when(affected).then(pl.lit(value)).otherwise(pl.col(name)).cast(frame.schema[name]).alias(name)
                for name, value in new.items()
                if name in frame.columns
            )

        self.amend(correct)
        return corrected

    def amend(self, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Replace the outcomes by what a function makes of them; it is called for each piece of them, in any order."""
        self._frames = [self._amended(frame, change) for frame in self._frames]
        for path in self._files:
            # Replace the file, as frames returned earlier may still be memory-mapped from the old one.
            self._amended(pl.read_ipc(path), change).write_ipc(fresh := path.with_suffix(".new"), compression="lz4")
            fresh.replace(path)

    def _amended(self, frame: pl.DataFrame, change: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        self._count(frame, -1)
        changed = change(frame)
        self._count(changed, 1)
        return changed

    def _count(self, frame: pl.DataFrame, sign: int) -> None:
        for status, rows in frame["status"].cast(pl.String).value_counts().iter_rows():
            self.counts[status] += sign * rows

    def _pieces(self) -> Iterator[pl.DataFrame]:
        yield from self._frames
        yield from (pl.read_ipc(path) for path in self._files)

    def collect(self) -> pl.DataFrame:
        """All outcomes in input order."""
        forks.check()
        spilled = [pl.read_ipc(path) for path in self._files]
        frames = [*spilled, *self._frames]
        return pl.concat(frames).sort("row", nulls_last=True) if frames else pl.DataFrame(schema=self.schema)

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="entityframes-"))
            weakref.finalize(self, _remove, self._folder, os.getpid())
        path = self._folder / f"{len(self._files)}.arrow"
        pl.concat(self._frames).write_ipc(path, compression="lz4")
        self._files.append(path)
        self._frames, self._held = [], 0


def _remove(folder: Path, owner: int) -> None:
    """Delete a folder, unless this is a forked child of the process that created it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, repr=False)
class RunResult:
    """The outcome of every row of one call; the base of the results of all calls that write.

    Attributes:
        counts: number of rows by status, with an entry for each status.
        batches: number of batches, each of them one transaction.
        elapsed: seconds that the call took.
        notes: sentences on what the outcomes do not show, such as that a stream was not read to its end.
    """

    counts: dict[str, int]
    batches: int
    elapsed: float
    _log: OutcomeLog = field(compare=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def outcomes(self) -> pl.DataFrame:
        """One row per input row, in input order.

        Columns: ``row`` UInt32 (0-based position), ``entity_type`` and ``id`` String as given, ``status`` Enum,
        ``batch_id`` String (null for rows that were in no batch), ``job_id`` String (the embedding job of the row; null
        if nothing is to be embedded), and for failures ``error_kind`` Enum, ``rule`` String (a short stable name such
        as ``null_key``, ``too_long`` or ``check:<constraint>``), ``error`` String and ``sqlstate`` String.

        The statuses of an upsert: created, updated and unchanged rows are stored; a duplicate gave way to another row
        with its key; a conflict means that the stored entity was not the expected one; a failed row was refused, for
        the reason in ``error``; a cancelled row was not written because the run was stopped; unknown means that the
        connection was lost during COMMIT and the ledger could not be read.

        Examples:
            >>> result = store.upsert(ef.ids("note", ["a", "d", "d"]))
            >>> result.outcomes.select("row", "id", "status").rows()
            [(0, 'a', 'unchanged'), (1, 'd', 'duplicate'), (2, 'd', 'created')]
        """
        return self._log.collect()

    @property
    def failed(self) -> pl.DataFrame:
        """The outcomes of rows that failed, each with its reason.

        Examples:
            >>> store.upsert(ef.ids("note", ["a", None])).failed.select("row", "rule").rows()
            [(1, 'null_key')]
        """
        return self.outcomes.filter(pl.col("status") == "failed")

    @property
    def run_id(self) -> str | None:
        """The id of the run, as in `EntityStore.runs` and in log messages; None for a run of `EntityStore.embed`.

        Examples:
            >>> store.upsert(ef.ids("note", ["d"])).run_id == store.runs(limit=1)["run_id"][0]
            True
        """
        return getattr(self._log, "run_id", None)

    @property
    def failed_by_reason(self) -> pl.DataFrame:
        """Number of failed rows by reason, most frequent first.

        Columns: ``error_kind`` Enum, ``rule`` String, ``n`` UInt32, ``row`` UInt32 (the first of these rows) and
        ``error`` String (of that row).

        Examples:
            >>> result = store.upsert(ef.ids("note", [None, "a", None]))
            >>> result.failed_by_reason.select("rule", "n", "row").rows()
            [('null_key', 2, 0)]
        """
        reasons = self.failed.group_by("error_kind", "rule").agg(
            pl.len().cast(pl.UInt32).alias("n"), pl.col("row").first(), pl.col("error").first()
        )
        return reasons.sort(["n", "row"], descending=[True, False])

    @property
    def ok(self) -> bool:
        """Whether no row is failed, cancelled, in conflict or unknown.

        Examples:
            >>> store.upsert(ef.ids("note", ["a"])).ok
            True
        """
        return not any(self.counts.get(status) for status in UNRESOLVED)

    def raise_for_failures(self) -> None:
        """Raise an exception unless `ok`.

        Raises:
            EntityFramesError: rows failed, were cancelled, are in conflict or unknown. The message counts them and
                quotes the first ones.

        Examples:
            >>> store.upsert(ef.ids("note", ["a", None])).raise_for_failures()
            Traceback (most recent call last):
                ...
            entityframes.errors.EntityFramesError: ...
        """
        if self.ok:
            return
        bad = self.outcomes.filter(pl.col("status").is_in(UNRESOLVED))
        counted = ", ".join(f"{self.counts[status]:,} {status}" for status in UNRESOLVED if self.counts.get(status))
        raise EntityFramesError(
            "; ".join([f"{counted} of {self.rows:,} rows: {_examples(bad)}", *self.notes]),
            advice="see result.outcomes for all of them",
        )

    def to_dict(self) -> dict[str, Any]:
        """The totals as a dict that JSON can represent, for logs.

        Returns:
            ``call`` (name of the class), ``run_id``, ``ok``, ``rows``, ``batches``, ``elapsed`` (seconds), ``counts``
            (rows by status), ``failed_by_reason`` (a list of dicts with the columns of `failed_by_reason`).

        Examples:
            >>> import json
            >>> summary = store.upsert(ef.ids("note", ["d", None])).to_dict()
            >>> summary["ok"], summary["counts"]["created"], summary["failed_by_reason"][0]["rule"]
            (False, 1, 'null_key')
            >>> json.dumps(summary)
            '{"call": "UpsertResult", ...}'
        """
        return {
            "call": type(self).__name__,
            "run_id": self.run_id,
            "ok": self.ok,
            "rows": self.rows,
            "batches": self.batches,
            "elapsed": round(self.elapsed, 3),
            "counts": dict(self.counts),
            "failed_by_reason": self.failed_by_reason.to_dicts() if self.counts.get("failed") else [],
        }

    def _explain(self, error: BaseException, place: str) -> None:
        """Add to an exception that ended the call what was done before, and how to continue.

        Args:
            error: the exception.
            place: where the result is, as the caller writes it.
        """
        # The messages of these say it.
        if isinstance(error, SchemaError | DuplicateError):
            return
        counted = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count)
        if counted:
            done = f"Before that: {counted}. {place}.last_result has the outcome of each row."
            error.add_note(" ".join([done, *self.notes, "Run the same call again to continue."]))
        elif isinstance(error, KeyboardInterrupt):
            error.add_note(" ".join(["Nothing was written.", *self.notes]))

    @property
    def _stored_before(self) -> str:
        """What a run has written before an error, for the message of the error."""
        statuses = ("created", "updated", "deleted", "unknown")
        written = [f"{self.counts[status]:,} {status}" for status in statuses if self.counts.get(status)]
        if not written:
            return "nothing was written"
        return f"before that, {', '.join(written)}, which are kept (see last_result)"

    @property
    def rows(self) -> int:
        """Number of input rows.

        Examples:
            >>> store.upsert(ef.ids("note", ["a", None])).rows
            2
        """
        return sum(self.counts.values())

    def __repr__(self) -> str:
        counted = ", ".join(f"{count:,} {status}" for status, count in self.counts.items() if count) or "no rows"
        first = f"{type(self).__name__}: {counted}\n"
        second = _pace(self)
        failure = "" if not self.counts.get("failed") else f"; first failure: {_examples(self.failed, 1)}"
        return "\n".join([first + second + failure + self._remark(), *self.notes])

    def _remark(self) -> str:
        """Text at the end of the second line."""
        return ""

    def _repr_html_(self) -> str:
        return views.result(type(self).__name__, self.counts, self._lines(), self._reasons(), self._changes())

    def _lines(self) -> list[str]:
        """What a view says below the counts."""
        return [_pace(self) + self._remark(), *self.notes]

    def _reasons(self) -> list[views.Reason]:
        """Why rows failed, are in conflict or unknown, the most frequent reason first."""
        statuses = ("failed", "conflict", "unknown")
        if not any(self.counts.get(status) for status in statuses):
            return []
        bad = self.outcomes.filter(pl.col("status").cast(pl.String).is_in(statuses))
        reasons = [
            views.Reason(rows["status"][0], rows["rule"][0], rows.height, _locations(rows), rows["error"][0])
            for rows in bad.partition_by("status", "error_kind", "rule", maintain_order=True)
        ]
        return sorted(reasons, key=lambda reason: (statuses.index(reason.status), -reason.rows))

    def _changes(self) -> tuple[list[str], list[tuple[Any, ...]], int] | None:
        """The header and the first rows of what a view lists of the rows that are done, and how many there are."""
        return None


class Keeper(Protocol):
    """A store or a table."""

    last_result: RunResult | None


def kept(keeper: Keeper, place: str, work: Callable[[], object], result: Callable[[], R]) -> R:
    """Do the work of a call and keep its result as `last_result`; an exception that ends it says what was done before.

    Args:
        keeper: the store or the table.
        place: its usual name, for messages.
        work: does the work.
        result: the result so far.
    """
    try:
        work()
    except BaseException as error:
        keeper.last_result = result()
        keeper.last_result._explain(error, place)
        raise
    keeper.last_result = last = result()
    return last


@dataclass(frozen=True, repr=False)
class UpsertResult(RunResult):
    """The outcome of every row of an upsert.

    Attributes:
        counts: number of rows by status, with an entry for each status: created, updated, unchanged, duplicate,
            conflict, failed, cancelled, unknown.
        batches: number of batches, each of them one transaction.
        elapsed: seconds that the call took.

    Examples:
        >>> result = store.upsert(ef.ids("note", ["a", "d"]))
        >>> result.counts["created"], result.counts["unchanged"], result.batches
        (1, 1, 1)
    """

    @property
    def succeeded(self) -> pl.DataFrame:
        """The outcomes of rows that are stored as given: created, updated or unchanged; for a mirror also deleted.

        Examples:
            >>> store.upsert(ef.ids("note", ["a", None])).succeeded["id"].to_list()
            ['a']
        """
        return self.outcomes.filter(
            pl.col("status").cast(pl.String).is_in(["created", "updated", "unchanged", "deleted"])
        )

    @property
    def rejected(self) -> Rejected:
        """The Python objects of the rows that failed, in input order, to be corrected and passed again.

        Each item is a dict: ``row`` (the position of the object in the input), ``value`` (the object itself; of a dict
        from an iterator, a copy), ``rule`` and ``error``. The objects of an iterator are kept for this: 10,000 of them
        in memory, more in a temporary file, which is removed with the result. ``value`` is None if the input consisted
        of frames, whose rows `failed` can be joined to by ``row``, and if the row was lost in a failover after it had
        been committed.

        Examples:
            >>> notes = [{"entity_type": "note", "id": "d"}, {"entity_type": "note", "id": None}]
            >>> for each in store.upsert(iter(notes)).rejected:
            ...     print(each["row"], each["value"], each["rule"])
            1 {'entity_type': 'note', 'id': None} null_key
        """
        return Rejected(self.failed, getattr(self._log, "inputs", None))


@dataclass(frozen=True, repr=False)
class DeleteResult(RunResult):
    """The outcome of every id of a delete.

    The attributes are those of `UpsertResult`, with the statuses deleted, missing (no such entity), duplicate, failed,
    cancelled and unknown.

    Examples:
        >>> result = store.delete(ef.ids("note", ["a", "x"]))
        >>> result.counts["deleted"], result.counts["missing"]
        (1, 1)
    """

    @property
    def succeeded(self) -> pl.DataFrame:
        """The outcomes of ids whose entity no longer exists: deleted or missing.

        Examples:
            >>> store.delete(ef.ids("note", ["a", "x", "a"])).succeeded["row"].to_list()
            [0, 1]
        """
        return self.outcomes.filter(pl.col("status").is_in(["deleted", "missing"]))


@dataclass(frozen=True, repr=False)
class EmbedResult(RunResult):
    """The outcome of every entity that was due in a job.

    The attributes are those of `UpsertResult`, with the statuses embedded, skipped (it was changed or deleted, or
    another worker took over its job, before the vector was written; or it is white space only), failed, cancelled (it
    stays due) and unknown.
    ``row`` numbers the entities in the order in which they were processed, and ``batches`` is the number of
    transactions that wrote vectors.

    Attributes:
        space: name of the space.
        calls: number of calls of the embedder.
        waiting: number of entities that are due in jobs that failed, now or earlier, or that a stopped run left open.

    Examples:
        >>> result = store.embed(ef.HashingEmbedder(64))
        >>> result.space, result.counts["embedded"], result.waiting
        ('hashing-64', 3, 0)
    """

    space: str = ""
    calls: int = 0
    waiting: int = 0
    _ask_unqueued: Callable[[], int | None] | None = field(default=None, compare=False)

    @cached_property
    def unqueued(self) -> int | None:
        """Number of entities that are due in the space but in no job; None if the store cannot be queried any more.

        It is counted on first access.

        Examples:
            >>> entity = store.upsert_entity("note", "d", "text", embed=False)
            >>> store.embed(ef.HashingEmbedder(64)).unqueued
            1
        """
        return None if self._ask_unqueued is None else self._ask_unqueued()

    @property
    def ok(self) -> bool:
        """Whether no row failed or was cancelled, and no entity is left in a job that failed or was stopped.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).ok
            True
        """
        return super().ok and not self.waiting

    def raise_for_failures(self) -> None:
        """Raise an exception unless `ok`.

        Raises:
            EntityFramesError: rows failed or were cancelled, or entities are left in failed jobs.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).raise_for_failures()
        """
        if not super().ok:
            super().raise_for_failures()
        if self.waiting:
            raise EntityFramesError(self._due_lines()[0], advice="see store.jobs('failed')")

    def to_dict(self) -> dict[str, Any]:
        """As for `UpsertResult`, with ``space``, ``calls`` and ``waiting``.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).to_dict()["space"]
            'hashing-64'
        """
        return {**super().to_dict(), "space": self.space, "calls": self.calls, "waiting": self.waiting}

    def _due_lines(self) -> list[str]:
        """Lines on what is still due and how to continue."""
        lines = []
        if self.waiting:
            lines.append(
                f"{self.waiting:,} stay due in jobs that failed or were stopped: "
                "call store.retry_failed() and embed again"
            )
        if self.unqueued:
            lines.append(f"{self.unqueued:,} are due but not in any job: call store.enqueue() and embed again")
        return lines

    def __repr__(self) -> str:
        return "\n".join([super().__repr__(), *self._due_lines()])

    def _lines(self) -> list[str]:
        return [*super()._lines(), *self._due_lines()]

    @property
    def succeeded(self) -> pl.DataFrame:
        """The outcomes of entities whose vector was stored.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).succeeded.height
            3
        """
        return self.outcomes.filter(pl.col("status") == "embedded")


@dataclass(frozen=True, repr=False)
class SyncResult(RunResult):
    """The outcome of every file of a sync, and of every entity that should have a file.

    ``outcomes`` has the columns of `UpsertResult.outcomes`, and ``path`` String, ``action`` and ``direction`` Enum as
    in `DirectorySync.plan`; it is ordered by path, and ``row`` numbers the rows. The statuses are created, updated,
    renamed, exported, deleted, unchanged, conflict, failed, cancelled and unknown. ``batches`` is the number of
    transactions that wrote entities.

    Attributes:
        left_out: what the folder holds and the sync ignored: ``path`` String (with a final slash for a folder, whose
            contents are not listed), ``reason`` String (an ignore rule, a leading dot or underscore, another suffix, a
            link), ``files`` UInt32 (how many files with the suffixes of the sync this concerns; null if not counted).

    Examples:
        >>> from pathlib import Path
        >>> Path("notes").mkdir()
        >>> result = ef.DirectorySync(store, "notes").export_files()
        >>> result.outcomes.select("path", "status").row(0)
        ('note/a.md', 'exported')
    """

    left_out: pl.DataFrame = field(default_factory=pl.DataFrame, compare=False)

    @property
    def succeeded(self) -> pl.DataFrame:
        """The outcomes of files that are now in sync with their entity.

        Examples:
            >>> from pathlib import Path
            >>> Path("notes").mkdir()
            >>> ef.DirectorySync(store, "notes").export_files().succeeded.height
            3
        """
        done = ["created", "updated", "renamed", "exported", "deleted", "unchanged"]
        return self.outcomes.filter(pl.col("status").is_in(done))

    def _changes(self) -> tuple[list[str], list[tuple[Any, ...]], int]:
        columns = ["path", "status", "direction", "entity_type", "id"]
        done = self.outcomes.filter(pl.col("status").is_in(["created", "updated", "renamed", "exported", "deleted"]))
        return columns, done.select(columns).head(views.MOST).rows(), done.height

    def _remark(self) -> str:
        count = self.left_out.height
        return f"; {count:,} {'name' if count == 1 else 'names'} left out, see result.left_out" if count else ""


def _pace(result: RunResult) -> str:
    handled = result.rows - result.counts.get("cancelled", 0)
    rate = f", {handled / result.elapsed:,.0f} rows/s" if result.elapsed else ""
    batches = "1 batch" if result.batches == 1 else f"{result.batches:,} batches"
    rows = "1 row" if result.rows == 1 else f"{result.rows:,} rows"
    return f"{rows} in {batches}, {result.elapsed:.2f} s{rate}"


def _examples(bad: pl.DataFrame, most: int = 3) -> str:
    first = bad.head(most).iter_rows(named=True)
    return "; ".join(f"{_location(row)}: {visible(row['error'] or row['status'])}" for row in first)


def _locations(rows: pl.DataFrame, most: int = 3) -> list[str]:
    """The first rows, by path or position and key."""
    return [_location(row) for row in rows.head(most).iter_rows(named=True)]


def _location(row: dict[str, Any]) -> str:
    """The path of the file of a row if it has one, otherwise its position and key."""
    if row.get("path"):
        return visible(row["path"])
    return row_and_key(row, _key_columns(list(row)))


def row_and_key(row: dict[str, Any], key: list[str]) -> str:
    """The position and the key of a row; no key if it is null, and no position for a deletion."""
    parts = ["null" if row[name] is None else visible(row[name]) for name in key]
    shown = [] if all(row[name] is None for name in key) else [f"({'/'.join(parts)})"]
    return " ".join(([] if row["row"] is None else [f"row {row['row']}"]) + shown)


def _key_columns(columns: list[str]) -> list[str]:
    """The key columns of an outcome frame: those between the position and the status."""
    return columns[columns.index("row") + 1 : columns.index("status")]
